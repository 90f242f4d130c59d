"""What every pass over the rows takes at the start of a run, in seconds of processor time for a million rows.

    python tests/benchmarks/many_rows.py --rows 2000000

A JSONL manifest of one transcription and one translation per clip, with durations; the sounds are ten files of 0.1 s, so that
nothing is measured of audio. The tokenizer is a small byte-level one made here: see `tokenising.py` for a real one.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import tiny_training
from tokenising import made_sentences

from modeling_part.data.batches import Progress, plan_batches
from modeling_part.data.corpora import open_corpora, read_corpora
from modeling_part.data.loading import Rows, check_prompts
from modeling_part.data.mixture import RowTable
from modeling_part.data.row_tokens import row_tokens
from modeling_part.data.stored_corpora import fingerprint
from modeling_part.data.transcripts import count_too_long
from modeling_part.recipes.arguments import DataArguments, ModelArguments, PARTTrainingArguments, Recipe
from modeling_part.recipes.stages import BUILT_IN_STAGES
from modeling_part.training.checks import check_languages_of
from modeling_part.training.limits import check_lengths


def write_rows(folder: Path, count: int) -> Path:
    """The manifest."""
    for index in range(10):
        soundfile.write(folder / f"{index}.wav", np.full(1600, 0.1), 16_000)
    said, translated = made_sentences(count // 2), made_sentences(count // 2)[::-1]
    path = folder / "rows.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number, (source, target) in enumerate(zip(said, translated, strict=True)):
            row = {"audio": f"{number % 10}.wav", "duration": 0.1, "source_lang": "fr", "id": f"clip-{number}"}
            transcribed = {**row, "task": "asr", "target_lang": "fr", "text": source}
            s2tt = {**row, "task": "s2tt", "target_lang": "en", "text": target, "source_text": source}
            file.write(f"{json.dumps(transcribed)}\n{json.dumps(s2tt)}\n")
    return path


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    count = parser.parse_args().rows
    model, processor = tiny_training.tiny_model()
    print("| pass | wall, s | processor time, s | for a million rows, s |\n|---|---|---|---|")

    def timed(name: str, run: Callable[[], object]) -> object:
        start, busy = time.perf_counter(), time.process_time()
        result = run()
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
        print(f"| {name} | {seconds:.1f} | {busy:.2f} | {busy / count * 1e6:.2f} |", flush=True)
        return result

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        spec = {"reader": "manifest", "path": str(write_rows(folder, count))}
        timed(
            "read, check and write rows (once for a run)",
            lambda: read_corpora([spec], cache_dir=folder / "train", report_path=folder / "report.json"),
        )
        dataset, report = timed("open", lambda: open_corpora(folder / "train"))
        timed("fingerprint (once for a run)", lambda: fingerprint(dataset))
        training = PARTTrainingArguments(output_dir=temporary, use_cpu=True, report_to="none")
        recipe = Recipe(ModelArguments(checkpoint="tiny"), DataArguments(max_rows=64), training)
        rows = Rows(dataset, fingerprint=report["fingerprint"], folder=folder)
        timed("languages", lambda: (check_languages_of(dataset), check_prompts([dataset], processor)))
        tokens = timed(
            "tokens (once for a run)", lambda: row_tokens(dataset, processor, True, folder, rows.fingerprint)
        )
        timed("transcripts that do not fit", lambda: count_too_long(rows, processor))
        timed("table of rows", lambda: RowTable.from_dataset(dataset, tokens.answers))
        stage = BUILT_IN_STAGES["joint"]
        timed("all of the batches' plan", lambda: plan_batches(stage, rows, processor, recipe, Progress()))
        timed("lengths against the model's limits", lambda: check_lengths(model, processor, rows, recipe))


if __name__ == "__main__":
    main()
