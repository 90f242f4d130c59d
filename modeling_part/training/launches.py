# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""The command that trains: `run.json` lists it, with when and on which machine, and a run that stops names it."""

import os
import platform
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

import psutil
import torch
from accelerate import PartialState

from ..evaluation.run_files import LAUNCHES_FILE, read_launches
from ..publishing.privacy import without_secrets
from ..recipes.arguments import PARTTrainingArguments
from ..recipes.files import write_json
from ..recipes.program import COMMAND
from ..recipes.user_errors import mistakes_in_one_message, take_debug


INDENT = " " * 9  # below the time that begins a line of the log


def record_launch(folder: Path, args: PARTTrainingArguments) -> None:
    """Add `command`, `machine` and `started` (local time) of this launch to `run.json`; tokens in it are blotted out.

    The main process does it; a dry run leaves nothing.

    Raises:
        CheckpointError: the file holds something else.
    """
    if args.dry_run or not PartialState().is_main_process:
        return
    launches = read_launches(Path(folder))
    launches.append(
        {
            "command": without_secrets(command(), args.hub_token),
            "machine": machine(args.world_size),
            "started": datetime.now().astimezone().isoformat(sep=" ", timespec="minutes"),
        }
    )
    write_json(Path(folder) / LAUNCHES_FILE, launches)


def command(resume: bool = False) -> str:
    """The command line that started this process, launcher included, as it was typed but for tokens.

    Args:
        resume: as it goes on with what is there.
    """
    words = shlex.split(os.environ.get(COMMAND, "")) or _launcher() or ["python", *sys.argv]
    if resume:
        for option in ("--force", "--resume"):
            words = _without(words, option)
        words += ["--resume", "true"]
    return re.sub(r"(--hub[_-]token[ =])\S+", r"\1***", without_secrets(shlex.join(words)))


def how_to_go_on() -> str:
    """What to say when Ctrl-C came while nothing was training."""
    return f"Interrupted. Go on with:\n{INDENT}{command(resume=True)}"


def in_a_process(main: Callable[[list[str]], None], argv: Sequence[str]) -> None:
    """Run `main` as all that this process does: it leaves the group of ranks before it exits.

    Otherwise the group's threads can end a rank with an error after all is done. A failed rank waits for nobody.

    Args:
        main: of `train_part.py`.
        argv: its words; `--debug` shows the traceback of an error.
    """
    argv, debug = take_debug(argv)
    with mistakes_in_one_message("train_part.py", debug, how_to_go_on):
        try:
            main(argv)
        except SystemExit:  # stopped, or not published: the ranks are together
            PartialState().destroy_process_group()
            raise
        PartialState().destroy_process_group()


def _launcher() -> list[str] | None:
    """The words of the process that launched this one: `accelerate launch ...` or `torchrun ...`; None for another."""
    try:
        parent = psutil.Process().parent()
        words = parent.cmdline() if parent is not None else []
    except psutil.Error:
        return None
    if len(words) < 3 or words[-len(sys.argv[1:]) :] != sys.argv[1:]:
        return None
    if Path(words[0]).name.startswith("python"):
        words = words[1:]
    if words[0] == "-m" and words[1] == "accelerate.commands.launch":
        return ["accelerate", "launch", *words[2:]]
    name = Path(words[0]).name
    return [name, *words[1:]] if name in ("accelerate", "accelerate-launch", "torchrun") else None


def _without(words: list[str], option: str) -> list[str]:
    """Words without an option that is true or false, and its value."""
    kept, place = [], 0
    while place < len(words):
        has_value = words[place] == option and place + 1 < len(words) and not words[place + 1].startswith("-")
        if words[place].split("=")[0] != option:
            kept.append(words[place])
        place += 2 if has_value else 1
    return kept


def machine(processes: int) -> str:
    """Processors, accelerators, processes and system in one line: "AMD EPYC 7B13, 2 threads; no accelerator; ..."."""
    accelerators = "no accelerator"
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        accelerators = ", ".join(f"{names.count(name)} × {name}" for name in sorted(set(names)))
    elif torch.accelerator.is_available():
        accelerators = str(torch.accelerator.current_accelerator())
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} threads"
    return f"{_processor()}, {threads}; {accelerators}; {processes} process{'es' * (processes > 1)}; {platform.platform()}"


def _processor() -> str:
    """The processor's name as the system gives it; Linux gives it in a file only."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
