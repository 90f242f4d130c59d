"""What a run keeps of clips in parquet: each once and rows that refer to it, beside a copy in each row.

    python tests/benchmarks/audio_copies.py --clips 1000 --targets 3

A dataset for each direction, as CoVoST 2 has them, with the same clips in all: a transcription, and a translation into each
target. Both ways read the same files in turns and give the same rows; seconds are the processor's, clips are noise.
"""

import argparse
import hashlib
import io
import random
import tempfile
import time
from pathlib import Path
from unittest import mock

import datasets
import numpy as np
import soundfile
from side_by_side import show, write

from modeling_part.data.corpora import kept_rows, read_corpora
from modeling_part.data.sounds import SoundStore


WAYS = {"a copy in each row": lambda store, rows: rows, "each clip once": SoundStore.keep}
RATE = 16_000
TARGETS = ("de", "ja", "zh", "sv", "ar", "id")
COLUMNS = {
    "": "{label}",
    "MB on disk": "{megabytes:.1f}",
    "ratio": "{disk_ratio:.2f}",
    "s to read and write": "{writing:.2f}",
    "ratio ": "{writing_ratio:.2f}",
    "s to fetch all rows, shuffled": "{fetching:.2f}",
    "ratio  ": "{fetching_ratio:.2f}",
}


def noise(seconds: float, generator: np.random.Generator) -> bytes:
    """A WAV file's bytes."""
    buffer = io.BytesIO()
    soundfile.write(buffer, generator.uniform(-0.3, 0.3, round(seconds * RATE)), RATE, format="WAV")
    return buffer.getvalue()


def write_parquet(folder: Path, clips: int, targets: list[str], seconds: float) -> list[dict]:
    """The datasets, and the recipe's entries for them."""
    generator = np.random.default_rng(0)
    sounds = [noise(seconds, generator) for _ in range(clips)]
    for target in targets:
        records = [
            {"id": f"{number}", "audio": {"bytes": sound, "path": f"{number}.wav"}, "sentence": f"Clip {number}."}
            | {"translation": f"{target} {number}."}
            for number, sound in enumerate(sounds)
        ]
        dataset = datasets.Dataset.from_list(records).cast_column("audio", datasets.Audio(decode=False))
        dataset.to_parquet(folder / f"en_{target}" / "train-00000-of-00001.parquet")
    entry = {"reader": "dataset", "languages": ["en"], "columns": {"source_text": "sentence", "text": "translation"}}
    entry |= {"path": f"{folder}/en_{{target}}", "target_languages": targets, "tasks": ["asr", "s2tt"]}
    return [entry]


def digest(rows: datasets.Dataset, order: list[int]) -> str:
    """Of all that rows hold, fetched one by one."""
    found = hashlib.blake2b()
    for index in order:
        row = rows[index]
        found.update(row["audio"]["bytes"])
        found.update(f"{row['id']} {row['task']} {row['text']}".encode())
    return found.hexdigest()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--targets", type=int, default=3, choices=range(1, len(TARGETS) + 1))
    parser.add_argument(
        "--seconds", type=float, default=1.3, help="of a clip; 1.3 are 42 kB, as 5.5 s of MP3 are about"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    args = parser.parse_args(argv)
    figures = {label: {"writing": [], "fetching": []} for label in WAYS}
    digests = set()
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        entries = write_parquet(folder, args.clips, list(TARGETS[: args.targets]), args.seconds)
        parquet = sum(path.stat().st_size for path in folder.rglob("*.parquet"))
        for _ in range(args.rounds):
            for label, keep in WAYS.items():
                run = folder / label
                with mock.patch.object(SoundStore, "keep", keep):
                    start = time.process_time()
                    read_corpora(entries, cache_dir=run)
                    figures[label]["writing"].append(time.process_time() - start)
                rows = kept_rows(run)
                order = random.Random(0).sample(range(len(rows)), len(rows))
                start = time.process_time()
                digests.add(digest(rows, order))
                figures[label]["fetching"].append(time.process_time() - start)
                figures[label]["megabytes"] = sum(path.stat().st_size for path in run.glob("*.arrow")) / 1e6
    assert len(digests) == 1, "the two ways give other rows"
    results = [
        {
            "label": label,
            "megabytes": found["megabytes"],
            **{name: min(found[name]) for name in ("writing", "fetching")},
        }
        for label, found in figures.items()
    ]
    for result in results:
        for name, ratio in (("megabytes", "disk"), ("writing", "writing"), ("fetching", "fetching")):
            result[f"{ratio}_ratio"] = result[name] / results[0][name]
    print(f"{args.clips} clips in {parquet / 1e6:.1f} MB of parquet, {len(rows)} rows; best of {args.rounds}")
    show("What a run keeps of its clips", results, COLUMNS)
    settings = {key: str(value) for key, value in vars(args).items()}
    write(args.output, {"settings": settings, "parquet_megabytes": parquet / 1e6, "rows": len(rows), "ways": results})


if __name__ == "__main__":
    main()
