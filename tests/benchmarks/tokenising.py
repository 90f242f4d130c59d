"""How long the texts of many rows take: as before, three times at a stage's start row by row of batches, and now, once.

    python tests/benchmarks/tokenising.py --tokenizer HuggingFaceTB/SmolLM2-135M-Instruct --rows 2000000

Half of the rows are transcriptions, half translations of the same clips. Texts have 4 to 16 words, drawn by Zipf's law from
200,000 made-up words in Latin and 100,000 in Cyrillic letters; one in ten is Chinese, 6 to 30 characters without a space.
Beside the seconds, the processor time, for machines that do other work too. Every figure is also a ratio to the first line's.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
from datasets import Dataset
from transformers import AutoTokenizer

from modeling_part.data import text_pieces
from modeling_part.data.row_tokens import row_tokens


SCRIPTS = (("bcdfghjklmnprstvw", "aeiouéäöü", 200_000), ("бвгдзклмнпрстхчшж", "аеиоуыюя", 100_000))
NEEDED = 20_000_000 / 60 / 8  # rows that each of eight cores must do in a second for 20 million in a minute


def made_words(consonants: str, vowels: str, count: int, generator: random.Random) -> np.ndarray:
    """So many different words of one to four syllables, the short ones first, as frequent words are short."""
    words: dict[str, None] = {}
    while len(words) < count:
        syllables = 1 + min(3, len(words).bit_length() // 5)
        words["".join(generator.choice(consonants) + generator.choice(vowels) for _ in range(syllables))] = None
    return np.array(list(words), dtype=object)


def made_sentences(count: int) -> list[str]:
    """Sentences of the two scripts, and one in ten in Chinese characters."""
    generator, numbers = random.Random(0), np.random.default_rng(0)
    sentences: list[str] = []
    for script, share in zip(SCRIPTS, (0.6, 0.3), strict=True):
        words = made_words(*script, generator)
        lengths = numbers.integers(4, 17, round(share * count))
        chances = 1 / (np.arange(len(words)) + 2.7)
        drawn = words[numbers.choice(len(words), lengths.sum(), p=chances / chances.sum())]
        sentences += [" ".join(one) for one in np.split(drawn, np.cumsum(lengths)[:-1])]
    lengths = numbers.integers(6, 31, count - len(sentences))
    characters = numbers.integers(0x4E00, 0x4E00 + 3000, lengths.sum()).astype(np.uint32).tobytes().decode("utf-32-le")
    ends = np.cumsum(lengths)
    sentences += [characters[end - length : end] for end, length in zip(ends, lengths, strict=True)]
    return [sentences[index] for index in numbers.permutation(count)]


def made_rows(count: int) -> Dataset:
    """Rows of texts alone."""
    names = ("id", "corpus", "source_lang", "target_lang")
    said, translated = made_sentences(count // 2), made_sentences(count // 2)[::-1]
    values = {
        "task": ["asr", "s2tt"] * (count // 2),
        "text": [text for pair in zip(said, translated, strict=True) for text in pair],
        "source_text": [text for text in said for _ in range(2)],
        "duration": [1.0] * count,
    }
    constant = {name: ["x"] * count for name in names}
    return Dataset.from_dict({**constant, **values, **{name: [None] * count for name in ("start", "end")}})


def as_before(dataset: Dataset, tokenizer, passes: int = 3) -> None:
    """What a stage did at first: batches of 1,000 through the tokenizer's call, for three purposes."""
    for _ in range(passes):
        for batch in dataset.select_columns(["task", "text", "source_text"]).iter(batch_size=1000):
            [len(ids) + 1 for ids in tokenizer(batch["text"], add_special_tokens=False)["input_ids"]]


def timed(name: str, rows: int, run: Callable[[], object], first: float | None) -> float:
    """Print what a run of so many rows takes; its rows per second of processor time."""
    start, busy = time.perf_counter(), time.process_time()
    run()
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    speed = rows / busy
    ratio = f"{speed / (first or speed):6.1f} x"
    print(
        f"{name:32} {rows:>9,} rows {seconds:8.1f} s, {busy:8.1f} s of processor time {speed:>11,.0f} rows per CPU s {ratio}"
        f"   {speed / NEEDED:7.1f} of what is needed",
        flush=True,
    )
    return speed


def main() -> None:
    """Print seconds and rows per second of each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--rows_before", type=int, default=100_000, help="of the slower ways")
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    dataset, processor = made_rows(args.rows), SimpleNamespace(tokenizer=tokenizer)
    some = dataset.select(range(min(args.rows_before, len(dataset))))
    with tempfile.TemporaryDirectory() as folder:
        first = timed("at first, three passes", len(some), lambda: as_before(some, tokenizer), None)
        with mock.patch.object(text_pieces, "splits_at_spaces", return_value=False):
            timed("once, whole texts", len(some), lambda: row_tokens(some, processor, True), first)
        settings = (dataset, processor, True, Path(folder), "rows")
        timed("once, word by word", len(dataset), lambda: row_tokens(*settings), first)
        timed("kept, in every other stage", len(dataset), lambda: row_tokens(*settings), first)


if __name__ == "__main__":
    main()
