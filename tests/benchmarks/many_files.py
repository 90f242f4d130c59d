"""`part transcribe` with batches: the longest files first, beside the order of their names.

    python tests/benchmarks/many_files.py runs/quickstart/joint data/asterisk/digits/test.jsonl

Files of one to several strings of digits, whose lengths have nothing to do with their names, are transcribed in both orders in
turns, which write the same files. Seconds are the processor's; padding is what a batch computes beyond its windows' lengths.
"""

import argparse
import random
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import soundfile
import torch
from side_by_side import show, transcriptions, write
from transformers import pipeline

from modeling_part.audio_part import load_audio
from modeling_part.evaluation import transcription


WAYS = {"by name": lambda files: list(range(len(files))), "longest first": transcription.longest_first}
COLUMNS = {
    "": "{label}",
    "processor seconds": "{seconds:.1f}",
    "audio seconds per second": "{speed:.2f}",
    "padding, % of what is computed": "{padding:.0f}",
}


def make_files(folder: Path, rows: list[dict], count: int, most: int, rate: int, seed: int) -> list[Path]:
    """Files of one to `most` clips each."""
    generator, files = random.Random(seed), []
    for number in range(count):
        clips = [load_audio(row["audio"], rate) for row in generator.choices(rows, k=generator.randint(1, most))]
        files.append(folder / f"{number:03d}.wav")
        soundfile.write(files[-1], np.concatenate(clips), rate)
    return files


def padding_of(lengths: list[float], batch_size: int) -> float:
    """Percent of the seconds of batches that are padding."""
    batches = [lengths[start : start + batch_size] for start in range(0, len(lengths), batch_size)]
    computed = sum(max(batch) * len(batch) for batch in batches)
    return 100 * (1 - sum(lengths) / computed)


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("manifest", type=Path, help="whose clips of transcription are joined")
    parser.add_argument("--language", default="en")
    parser.add_argument("--files", type=int, default=32)
    parser.add_argument("--most", type=int, default=6, help="clips of a file")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    pipe = pipeline("speech-to-text", model=args.checkpoint, device=args.device)
    rate = pipe.processor.sampling_rate
    rows = [row for row in transcriptions(args.manifest) if row["source_lang"] == args.language]
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(Path(folder), rows, args.files, args.most, rate, args.seed)
        lengths = [soundfile.info(file).duration for file in files]
        taken, texts = dict.fromkeys(WAYS, 0.0), {}
        for _ in range(args.rounds):
            for label, order in WAYS.items():
                with mock.patch.object(transcription, "longest_first", order):
                    start = time.process_time()
                    options = {"batch_size": args.batch_size, "source_lang": args.language, "overwrite": True}
                    transcription.transcribe_files(
                        pipe, files, formats=["txt"], folder=Path(folder) / "texts", **options
                    )
                    taken[label] += time.process_time() - start
                texts[label] = [
                    (Path(folder) / "texts" / f"{file.stem}.txt").read_text(encoding="utf-8") for file in files
                ]
    results = [
        {
            "label": label,
            "seconds": taken[label] / args.rounds,
            "speed": sum(lengths) * args.rounds / taken[label],
            "padding": padding_of(
                [lengths[at] for at in order(files)] if label == "by name" else sorted(lengths)[::-1], args.batch_size
            ),
        }
        for label, order in WAYS.items()
    ]
    other = sum(one != two for one, two in zip(*texts.values(), strict=True))
    print(
        f"{len(files)} files of {min(lengths):.1f} to {max(lengths):.1f} s, batches of {args.batch_size}; {other} texts differ"
    )
    show("part transcribe", results, COLUMNS)
    write(
        args.output,
        {"settings": {key: str(value) for key, value in vars(args).items()}, "ways": results, "texts_differ": other},
    )


if __name__ == "__main__":
    main()
