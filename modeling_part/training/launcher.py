# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""`part train`: accelerate's launcher, given a recipe where it expects the script."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate.commands import launch as launcher
from accelerate.commands.config import config_args
from accelerate.utils.launch import prepare_simple_launcher_cmd_env
from torch.distributed.elastic.agent.server import api as agent
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing import api as multiprocessing
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from ..recipes.program import COMMAND, part_command


CONFIGS = Path(__file__).parents[1] / "accelerate_configs"


def launch_recipe(words: Sequence[str], usage: str) -> None:
    """Hand over to accelerate's launcher; this process may become the trainer.

    Args:
        words: options of the launcher, the recipe, and what follows it.
        usage: what is said of words that cannot be understood, or that name no recipe, before exit status 2.
    """
    launch = _read(words, usage)
    has_config = launch.config_file is not None or Path(config_args.default_config_file).is_file()
    if not has_config and not torch.accelerator.is_available():
        launch.config_file = str(CONFIGS / "cpu.yaml")
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "600")  # seconds: ranks that save are not killed after 30
    os.environ[COMMAND] = part_command("train", *words)
    launcher.simple_launcher = _become
    # They would warn of every value that they chose, and of every signal: the run says both in a line.
    for name in (launcher.__name__, agent.__name__, multiprocessing.__name__):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        launcher.launch_command(launch)
    except ChildFailedError as error:  # the ranks have said what it was
        sys.exit(error.get_first_failure()[1].exitcode)
    except SignalException as error:
        sys.exit(128 + error.sigval)


def _read(words: Sequence[str], usage: str) -> argparse.Namespace:
    """The launcher's options; the script that it starts is `train_part`, the recipe the first of its words."""
    parser = launcher.launch_command_parser()
    parser.prog, parser.usage = "part train", usage  # its own lists a hundred options
    (script,) = (action for action in parser._actions if action.dest == "training_script")
    script.metavar = "RECIPE"
    launch = parser.parse_args(words)
    if launch.gradient_accumulation_steps is not None or launch.gradient_clipping is not None:
        parser.error(
            "--gradient_accumulation_steps and --gradient_clipping before the recipe are the launcher's, of DeepSpeed alone: "
            "write --gradient_accumulation_steps or --max_grad_norm behind the recipe"
        )
    launch.module, launch.training_script_args = True, [launch.training_script, *launch.training_script_args]
    launch.training_script = "train_part"
    return launch


def _become(launch: argparse.Namespace) -> None:
    """One process: this one becomes it, so that signals reach the trainer alone and its exit status is ours."""
    command, environment = prepare_simple_launcher_cmd_env(launch)
    os.execvpe(command[0], command, environment)
