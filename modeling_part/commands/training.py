# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Recipes: training one, listing and copying those that are shipped; and the environment that it runs in."""

import argparse
import importlib.metadata
import os
import platform
import shutil
import sys
import textwrap
from itertools import takewhile
from pathlib import Path

from ..recipes.program import part_command
from .options import add_verb


TRAIN_USAGE = "part train [options of accelerate launch] RECIPE [RECIPE ...] [--NAME VALUE ...]   (`part recipes` lists those there are)"


def train(options: argparse.Namespace) -> None:
    """A recipe, through accelerate's launcher."""
    from ..training.launcher import launch_recipe

    launch_recipe(options.passed_on, TRAIN_USAGE)


def recipes(options: argparse.Namespace) -> None:
    """The shipped recipes, or a copy of one."""
    from ..recipes.recipe_files import SHIPPED, find_recipe

    if options.name is None:
        for path in sorted(SHIPPED.rglob("*.yaml")):
            lines = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
            sentence = " ".join(line.removeprefix("#").strip() for line in lines).split(". ")[0]
            line = f"{path.relative_to(SHIPPED).with_suffix('').as_posix():<26}{sentence}"
            width = shutil.get_terminal_size().columns
            print(textwrap.fill(line, width, subsequent_indent=" " * 26) if sys.stdout.isatty() else line)
        return
    source = find_recipe(options.name)
    target = options.copy or Path(source.name)
    if target.exists():
        line = part_command("recipes", options.name, "FILE")
        raise FileExistsError(f"{target} is there already; name another file: {line}")
    shutil.copyfile(source, target)
    print(f"{target}: change it, then: {part_command('train', str(target), '--dry_run', 'true')}")


def env(options: argparse.Namespace) -> None:
    """What a report of a fault needs: versions, devices, precision."""
    import torch

    from ..recipes.precision import choose_precision

    packages = (
        "modeling-part",
        "torch",
        "transformers",
        "accelerate",
        "peft",
        "datasets",
        "huggingface_hub",
        "safetensors",
    )
    found = {"python": platform.python_version(), "system": platform.platform()}
    found |= {package: importlib.metadata.version(package) for package in packages}
    found["devices"] = ", ".join(torch.cuda.get_device_name(one) for one in range(torch.cuda.device_count()))
    if not found["devices"]:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        found["devices"] = f"{accelerator or 'CPU only'}, {os.cpu_count()} processors"
    found["precision"] = choose_precision("auto", None, False, not torch.accelerator.is_available())[2]
    for name, value in found.items():
        print(f"{name:<18}{value}")


def add_training(verbs: argparse._SubParsersAction) -> None:
    """Add `train`, `recipes` and `env`."""
    verb = add_verb(
        verbs, train, "train a recipe: `accelerate launch [OPTION ...] -m train_part RECIPE ...`", passes_on=True
    )
    verb.usage = TRAIN_USAGE
    verb = add_verb(verbs, recipes, "list the shipped recipes, or copy one to change it")
    verb.add_argument("name", nargs="?", help="of a shipped recipe, such as part_aligned; all are listed without")
    verb.add_argument("copy", nargs="?", type=Path, metavar="FILE", help="where the copy goes; NAME.yaml unless given")
    add_verb(verbs, env, "print versions, devices and precision, for reports of faults")
