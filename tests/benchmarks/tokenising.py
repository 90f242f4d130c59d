"""How long the texts of many rows take: as before, three times at a stage's start row by row of batches, and now, once.

    python tests/benchmarks/tokenising.py --tokenizer HuggingFaceTB/SmolLM2-135M-Instruct --rows 2000000

Random words in eight languages, 4 to 16 a row, half of the rows transcriptions and half translations. Beside the seconds, the
processor time, for machines that do other work too.
"""

import argparse
import random
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

from datasets import Dataset
from transformers import AutoTokenizer

from modeling_part.data.row_tokens import row_tokens


WORDS = (
    "the a of time window open red house morning good river Danke guten Tag ist maison bonjour ciudad está abierta 早上好 "
    "窗户开着 これは 本です книга окно открыто дом"
).split()


def made_rows(count: int) -> Dataset:
    """Rows of texts alone."""
    generator = random.Random(0)
    sentences = [" ".join(generator.choices(WORDS, k=generator.randint(4, 16))) for _ in range(count)]
    names = ("id", "corpus", "source_lang", "target_lang")
    constant = {name: ["x"] * count for name in names}
    other = sentences[1:] + sentences[:1]
    values = {
        "task": ["asr", "s2tt"] * (count // 2),
        "text": sentences,
        "source_text": other,
        "duration": [1.0] * count,
    }
    spans = {name: [None] * count for name in ("start", "end")}
    return Dataset.from_dict({**constant, **values, **spans})


def as_before(dataset: Dataset, tokenizer, passes: int = 3) -> None:
    """What a stage did until now: batches of 1,000 through the tokenizer's call, for three purposes."""
    for _ in range(passes):
        for batch in dataset.select_columns(["task", "text", "source_text"]).iter(batch_size=1000):
            [len(ids) + 1 for ids in tokenizer(batch["text"], add_special_tokens=False)["input_ids"]]


def main() -> None:
    """Print seconds and rows per second of both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--rows_before", type=int, default=200_000, help="of the former way, which is slow")
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    dataset, processor = made_rows(args.rows), SimpleNamespace(tokenizer=tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        cases = {
            "before, three passes": (
                args.rows_before,
                lambda: as_before(dataset.select(range(args.rows_before)), tokenizer),
            ),
            "now, first stage": (args.rows, lambda: row_tokens(dataset, processor, True, Path(folder))),
            "now, other stages": (args.rows, lambda: row_tokens(dataset, processor, True, Path(folder))),
        }
        for name, (rows, run) in cases.items():
            start, busy = time.perf_counter(), time.process_time()
            run()
            seconds, busy = time.perf_counter() - start, time.process_time() - busy
            print(
                f"{name:22} {rows:>9,} rows {seconds:8.1f} s {rows / seconds:>10,.0f} rows/s, {rows / busy:>9,.0f} per CPU s"
            )


if __name__ == "__main__":
    main()
