"""Training processes that die or are stopped at a chosen moment. Not a test module.

They are forked from a server that has imported everything once: a process costs a fraction of a second.
"""

import functools
import io
import logging
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import torch


CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["train_part", "peft", "interruption"])


def train(argv: list[str], log: Path, moment: int | None = None, send: int = signal.SIGKILL, rows: Path | None = None):
    """Run train_part.py in a new process and wait for it; returns its exit code (negative: killed by that signal).

    Args:
        log: receives what the process says.
        moment: the process gets `send` at its so-manieth moment, see `count_moments`; None: never.
        rows: receives the ids of every batch, a line each.
    """
    process = CONTEXT.Process(target=_main, args=(argv, log, moment, send, rows))
    process.start()
    process.join(250)
    if process.is_alive():
        process.kill()
        raise TimeoutError(f"train_part.py hangs: {log.read_text()[-2000:]}")
    return process.exitcode


def _main(argv, log, moment, send, rows):
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    import train_part

    count_moments(moment, send)
    if rows is not None:
        _record_rows(rows)
    logging.root.handlers.clear()
    train_part.main(argv)


def count_moments(moment: int | None, send: int):
    """Moments are, from the beginning of training: before and after each optimizer step; whenever a file of a
    checkpoint is written, before it, when half of its bytes are there, and after it; before and after the renaming
    that makes a checkpoint visible."""
    import safetensors.torch
    import transformers.modeling_utils

    import modeling_part.training.lora as lora
    import modeling_part.training.trainer as trainer

    state = {"count": 0, "training": False}

    def tick(half=None):
        if not state["training"]:
            return
        state["count"] += 1
        if state["count"] == moment:
            if half is not None:
                half()
            os.kill(os.getpid(), send)
            time.sleep(0.01 if send == signal.SIGKILL else 0)
        print(f"moment {state['count']}", flush=True)

    def around(function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            tick()
            result = function(*args, **kwargs)
            tick()
            return result

        return wrapper

    def torch_save(content, path, *args, **kwargs):
        buffer = io.BytesIO()
        save(content, buffer, *args, **kwargs)
        data = buffer.getvalue()
        tick(half=lambda: Path(path).write_bytes(data[: len(data) // 2]))
        Path(path).write_bytes(data)
        tick()

    def train(self, *args, **kwargs):
        state["training"] = True
        return begin(self, *args, **kwargs)

    begin, trainer.PARTTrainer.train = trainer.PARTTrainer.train, train
    save, torch.save = torch.save, torch_save
    torch.optim.AdamW.step = around(torch.optim.AdamW.step)
    os.replace = around(os.replace)
    for module in (safetensors.torch, transformers.modeling_utils, lora):
        name = "save_file" if hasattr(module, "save_file") else "safe_save_file"
        setattr(module, name, around(getattr(module, name)))


def _record_rows(path: Path):
    from modeling_part.data.collator import PARTCollator

    call = PARTCollator.__call__

    def recorded(self, rows):
        with open(path, "a", encoding="utf-8") as file:
            file.write(" ".join(row["id"] for row in rows) + "\n")
        return call(self, rows)

    PARTCollator.__call__ = recorded


def moments(log: Path) -> int:
    """How many moments a finished process had."""
    return log.read_text().count("moment ")


def draw(seed: int, total: int) -> int:
    """A random moment."""
    return random.Random(seed).randint(1, total)
