"""How much padding, time, memory and waiting TaskBatchSampler costs at the size of all public corpora together.

    python tests/benchmarks/sampling.py                  # 10 million rows, 60 languages, 256 ranks
    python tests/benchmarks/sampling.py --loader         # rows per second of decoding, features and collating

Rows are made like those of Common Voice: durations log-normal around 5 s and cut to 1-20 s, languages by Zipf's law,
about four tokens per second of speech; a quarter of the rows is translation.

Prediction, before the first run: padding 2-3 % (half a padding step of 0.2 s in 5 s), against more than 50 % for
random batches of fixed size and near 2 % for sorted ones, which however need memory for their longest batch; under
30 s and 1 GB per epoch; ranks wait less than 5 % of a step because a step is 256 neighbours of the sorted rows.
A worker yields about 100 rows/s.

Outcome (two cores of a virtual machine, shared with seven other busy processes, hence CPU seconds beside the clock):
padding 1.77 % and waiting 0.2 %, against 59 % and 32 % for random batches of the same mean size; sorted batches of
fixed size pad as little, but their largest holds 840 s of audio where the budget holds 240 s. An epoch is planned in
5.3 CPU s (14.7 s by the clock) and 0.97 GB, of which 0.64 GB are the interpreter, torch and the rows; one rank deals
out its epoch in 0.2 s, which is what resuming costs. The worst step waits 44 %: it is the one that holds the split
batches of the tail. Waiting was predicted far too high: 256 neighbours among ten million are all but equal.
One worker loads 156 rows per CPU second from mp3 (889 s of audio) and 246 from flac; speed and SpecAugment take
15 % of that.
"""

import argparse
import io
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from modeling_part.data.budget import Budget
from modeling_part.data.mixture import Mixture, RowTable
from modeling_part.data.sampling import TaskBatchSampler


PAD_SECONDS = 0.2  # the collator's and the sampler's default


def make_table(rows: int, languages: int, seed: int) -> RowTable:
    """`rows` rows of transcription and, a quarter of them, translation into English."""
    rng = np.random.default_rng(seed)
    shares = 1 / np.arange(1, languages + 1)
    language = rng.choice(languages, rows, p=shares / shares.sum()).astype(np.int32)
    task = (rng.random(rows) < 0.25).astype(np.int8)
    seconds = np.clip(rng.lognormal(np.log(5), 0.45, rows), 1, 20).astype(np.float32)
    tokens = np.maximum(seconds * rng.lognormal(np.log(4), 0.3, rows), 1).astype(np.int32)
    groups = [("asr", f"x{i}", f"x{i}") for i in range(languages)] + [
        ("s2tt", f"x{i}", "en") for i in range(languages)
    ]
    return RowTable(task, language + task * languages, seconds, tokens, np.ones(rows, np.float32), tuple(groups))


def padding_and_waiting(seconds: np.ndarray, bounds: np.ndarray, ranks: int) -> dict[str, float]:
    """Padding and waiting of batches `seconds[bounds[i]:bounds[i + 1]]`, dealt to `ranks` ranks in turn.

    A rank is busy in proportion to the padded audio of its batch; the others wait for the one that is busy longest.
    "mean batch s" and "largest batch s" are rows * longest audio, which memory must be large enough for.
    """
    padded = np.ceil(np.maximum.reduceat(seconds, bounds[:-1]) / PAD_SECONDS - 1e-4) * PAD_SECONDS * np.diff(bounds)
    full = padded[: len(padded) // ranks * ranks].reshape(-1, ranks)
    waiting = 1 - full.mean(axis=1) / full.max(axis=1)
    return {
        "padding": 1 - float(seconds.sum(dtype=np.float64) / padded.sum()),
        "waiting": 1 - float(full.mean(axis=1).sum() / full.max(axis=1).sum()),
        "worst step": float(waiting.max()),
        "mean batch s": float(padded.mean()),
        "largest batch s": float(padded.max()),
        "steps": len(full),
    }


def fixed_size_bounds(rows: int, size: int) -> np.ndarray:
    return np.append(np.arange(0, rows, size), rows)


def peak_gigabytes() -> float:
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / (1e9 if sys.platform == "darwin" else 1e6)


def benchmark_epoch(args) -> list[dict]:
    table = make_table(args.rows, args.languages, args.seed)
    before = peak_gigabytes()
    results = []
    for temperature in (1.0, 3.0):
        start, cpu_start = time.perf_counter(), time.process_time()
        sampler = TaskBatchSampler(
            table,
            Mixture({"asr": 1.0, "s2tt": 1.0}, temperature),
            Budget(args.max_audio_seconds, args.max_tokens),
            world_size=args.ranks,
            epochs=1,
            seed=args.seed,
        )
        built, built_cpu = time.perf_counter() - start, time.process_time() - cpu_start
        peak = peak_gigabytes()
        plan = sampler.plan(0)
        order = plan.bounds[:-1].reshape(-1, args.ranks)
        assert len(plan.rows) == args.rows and len(order) == sampler.num_steps
        start = time.process_time()
        drawn = sum(len(batch) for batch in sampler)
        iterated = time.process_time() - start
        assert drawn == args.rows
        results.append(
            {"batches": f"planned, T = {temperature:g}"}
            | padding_and_waiting(table.audio_seconds[plan.rows], plan.bounds, args.ranks)
            | {"plan s": built, "plan CPU s": built_cpu, "iterate CPU s": iterated, "GB": peak, "GB before": before}
        )
        if temperature == 1.0:
            assert (np.bincount(plan.rows, minlength=args.rows) == 1).all(), "a row was lost or doubled"
            size = round(args.rows / (len(plan.bounds) - 1))

    rng = np.random.default_rng(args.seed)
    bounds = fixed_size_bounds(args.rows, size)
    for name, seconds in (
        (f"fixed size {size}, random", rng.permutation(table.audio_seconds)),
        (f"fixed size {size}, sorted", np.sort(table.audio_seconds)),
    ):
        results.append({"batches": name} | padding_and_waiting(seconds, bounds, args.ranks))
    return results


def make_clips(folder: Path, clips: int, seed: int) -> dict[str, list[dict]]:
    """The same speech-shaped noise as mp3 (32 kHz, as in Common Voice) and flac (16 kHz): canonical rows of each."""
    rng = np.random.default_rng(seed)
    rows = {"mp3": [], "flac": []}
    for i, seconds in enumerate(np.clip(rng.lognormal(np.log(5), 0.45, clips), 1, 20)):
        for kind, rate in (("mp3", 32_000), ("flac", 16_000)):
            time_axis = np.arange(int(seconds * rate)) / rate
            syllables = 0.5 + 0.5 * np.sin(2 * np.pi * 4 * time_axis)
            voice = sum(np.sin(2 * np.pi * 120 * k * time_axis) / k for k in range(1, 20))
            sound = 0.1 * syllables * (voice + 0.1 * rng.normal(size=len(time_axis)))
            path = folder / f"{i}.{kind}"
            encoded = io.BytesIO()
            soundfile.write(encoded, sound.astype(np.float32), rate, format=kind.upper())
            path.write_bytes(encoded.getvalue())
            text = "word " * int(seconds * 2.5)
            row = {"id": f"{i}", "corpus": "made", "task": "asr", "source_lang": "en", "target_lang": "en"}
            row |= {"text": text, "source_text": None, "duration": seconds, "start": None, "end": None}
            rows[kind].append(row | {"audio": {"path": str(path), "bytes": None}})
    return rows


def benchmark_loader(args) -> list[dict]:
    """Rows per second of one worker: decode, resample, features of whisper-large-v3 (128 bins), prompt, padding.

    A worker of a data loader has one thread; here this process is the worker.
    """
    torch.set_num_threads(1)
    sys.path.insert(0, str(Path(__file__).parent.parent))  # tiny.py
    import tiny
    from transformers import WhisperFeatureExtractor

    from modeling_part import PARTProcessor
    from modeling_part.data.augmentation import Augmentation, SpecAugment
    from modeling_part.data.collator import PARTCollator

    tokenizer = tiny.tiny_tokenizer(extra_tokens=["<|audio|>"])
    processor = PARTProcessor(WhisperFeatureExtractor(feature_size=128), tokenizer)
    augmentation = Augmentation(spec_augment=SpecAugment(), speeds=(0.9, 1.0, 1.1))
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for kind, rows in make_clips(Path(folder), args.clips, args.seed).items():
            seconds = np.array([row["duration"] for row in rows], dtype=np.float32)
            lengths = np.array([len(row["text"]) for row in rows], dtype=np.int32)
            zeros, group = np.zeros(len(rows), dtype=np.int32), ("asr", "en", "en")
            table = RowTable(zeros.astype(np.int8), zeros, seconds, lengths, np.ones_like(seconds), (group,))
            for name, chosen in (("none", None), ("speed and SpecAugment", augmentation)):
                sampler = TaskBatchSampler(
                    table, Mixture({"asr": 1.0}), Budget(args.max_audio_seconds, 20_000), epochs=1
                )
                loader = DataLoader(
                    rows,
                    batch_sampler=sampler,
                    collate_fn=PARTCollator(processor, augmentation=chosen),
                )
                for _ in loader:  # fill the file cache
                    pass
                start, cpu_start = time.perf_counter(), time.process_time()
                for _ in loader:
                    pass
                spent, spent_cpu = time.perf_counter() - start, time.process_time() - cpu_start
                results.append(
                    {
                        "audio": kind,
                        "augmentation": name,
                        "rows/s": len(rows) / spent,
                        "rows per CPU s": len(rows) / spent_cpu,
                        "audio s per CPU s": float(seconds.sum()) / spent_cpu,
                    }
                )
    return results


def show(title: str, results: list[dict]) -> None:
    table = Table(title=title)
    columns = list(dict.fromkeys(key for result in results for key in result))
    for column in columns:
        table.add_column(column, no_wrap=True, justify="left" if isinstance(results[0][column], str) else "right")
    for result in results:
        cells = [result.get(column, "") for column in columns]
        shares = ("padding", "waiting", "worst step")
        table.add_row(
            *(
                f"{cell:.2%}" if column in shares else f"{cell:.2f}" if isinstance(cell, float) else str(cell)
                for column, cell in zip(columns, cells, strict=True)
            )
        )
    Console(width=150).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--languages", type=int, default=60)
    parser.add_argument("--ranks", type=int, default=256)
    parser.add_argument("--max_audio_seconds", type=float, default=240.0)
    parser.add_argument("--max_tokens", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--loader", action="store_true", help="measure loading instead of planning")
    parser.add_argument("--clips", type=int, default=200, help="audio files made for --loader")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    if args.loader:
        results = benchmark_loader(args)
        show(f"One worker loads {args.clips} clips", results)
    else:
        results = benchmark_epoch(args)
        show(f"One epoch of {args.rows:,} rows, {args.languages} languages, {args.ranks} ranks", results)
    if args.output:
        settings = {key: value for key, value in vars(args).items() if key != "output"}
        args.output.write_text(json.dumps({"settings": settings, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
