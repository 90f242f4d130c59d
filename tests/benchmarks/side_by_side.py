"""Processes that take turns, the tables that are printed of them, and clips of a manifest: what the benchmarks share."""

import json
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table


# A process that has asked CUDA's driver leaves its forks without a GPU; asked so, torch finds out otherwise whether there is one.
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"


class Worker:
    """A process with a pipe, forked from this one, which has imported and never computes: all start alike."""

    def __init__(self, target: Callable, *arguments):
        context = multiprocessing.get_context("fork")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=target, args=(theirs, *arguments), daemon=True)
        self.process.start()
        theirs.close()

    def receive(self):
        try:
            return self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            message = f"A measuring process ended with code {self.process.exitcode}; its error is printed above."
            if self.process.exitcode == -9:
                message += " It was killed, most likely for its memory: lower the rows."
            raise RuntimeError(message) from None

    def ask(self, request: str):
        with suppress(BrokenPipeError):  # the process has ended: receiving says how
            self.connection.send(request)
        return self.receive()


def to_device(value, device: str, dtype: torch.dtype | None = None):
    """Tensors of a batch on the device, numbers with a fraction in the dtype if one is given; arrays and the rest stay."""
    if isinstance(value, dict):
        return {name: to_device(one, device, dtype) for name, one in value.items()}
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(device, dtype if value.is_floating_point() else None)


def now(device: str = "cpu") -> float:
    """The time when the device has done what it was asked."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_gib(device: str = "cpu") -> float:
    """High-water mark of this process' memory: what it has resident, or what it has allocated on a GPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20


def ratios(one: dict, other: dict) -> list[float]:
    """Clips per second of `one` over those of `other`, round by round; both hold `clip_count` and `seconds`."""
    scale = one["clip_count"] / other["clip_count"]
    return [scale * b / a for a, b in zip(one["seconds"], other["seconds"], strict=True)]


def add_speeds(results: list[dict]):
    """Clips per second, speed and memory relative to the first of `results`, medians over the rounds."""
    for result in results:
        speeds = ratios(result, results[0])
        result["clips_per_s"] = result["clip_count"] / statistics.median(result["seconds"])
        result["speed"], result["speed_range"] = statistics.median(speeds), [min(speeds), max(speeds)]
        result["memory"] = result["peak_gib"] / results[0]["peak_gib"]


SPEED_COLUMNS = {
    "": "{label}",
    "clips/s": "{clips_per_s:.2f}",
    "speed": "{speed:.2f} ({speed_range[0]:.2f}-{speed_range[1]:.2f})",
}
COST_COLUMNS = SPEED_COLUMNS | {
    "per CPU s": "{clips_per_cpu_s:.2f}",
    "peak GiB": "{peak_gib:.2f}",
    "memory": "{memory:.2f}",
}


def show(title: str, results: list[dict], columns: dict[str, str]):
    """Print one table: `columns` are headers and how a result fills them."""
    table = Table(title=title, title_justify="left")
    for header in columns:
        table.add_column(header, justify="right" if header else "left", no_wrap=True)
    for result in results:
        table.add_row(*(form.format(**result) for form in columns.values()))
    Console(width=140).print(table)


def transcriptions(manifest: Path) -> list[dict]:
    """The rows of a manifest that are transcriptions, with the paths of their sounds from here."""
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    return [row | {"audio": str(manifest.parent / row["audio"])} for row in rows if row["task"] == "asr"]


def write(path: Path | None, figures: dict):
    """Write `figures` as JSON where a path is given."""
    if path is not None:
        path.write_text(json.dumps(figures, indent=2) + "\n")
