# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""`run.json`: the commands that trained a run, when, and on which machine; its report shows them."""

import os
import platform
import shlex
import sys
from datetime import datetime
from pathlib import Path

import torch
from accelerate import PartialState

from ..publishing.privacy import without_secrets
from ..recipes.arguments import PARTTrainingArguments
from ..recipes.files import read_json, write_json


def record_launch(folder: Path, args: PARTTrainingArguments) -> None:
    """Add `command`, `machine` and `started` (local time) of this launch to `run.json`; tokens in it are blotted out.

    The main process does it; a dry run leaves nothing.
    """
    if args.dry_run or not PartialState().is_main_process:
        return
    path = Path(folder) / "run.json"
    launches = read_json(path) if path.is_file() else []
    command = without_secrets(shlex.join(sys.argv[1:]), args.hub_token)
    launches.append(
        {
            "command": f"accelerate launch train_part.py {command}",
            "machine": machine(args.world_size),
            "started": datetime.now().astimezone().isoformat(sep=" ", timespec="minutes"),
        }
    )
    write_json(path, launches)


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
