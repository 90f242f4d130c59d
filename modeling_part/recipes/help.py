# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""`train_part.py --help`: PART's own options first, then those of `Trainer` that have an effect."""

import argparse
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields

from transformers import TrainingArguments

from .stages import Stage
from .trainer_settings import WORKING


USAGE = "train_part.py RECIPE [OVERLAY ...] [--NAME VALUE ...]"
DESCRIPTION = """\
Train PART, stage by stage. A recipe is a YAML file or the name of a shipped one (`part recipes`); every key of a recipe
is an option too. `accelerate launch train_part.py ...` and `part train ...` take the same words.
"""
STEERING = (
    "output_dir stage resume resume_with_changes force dry_run do_predict reuse_runs seed push_to_hub hub_model_id"
).split()


def print_help(groups: Sequence[type]) -> None:
    """Print all options.

    Args:
        groups: the arguments of the model, of the data and of training.
    """
    of_trainer = {one.name for one in fields(TrainingArguments)}
    model, data, training = ([one for one in fields(group) if one.init] for group in groups)
    own = [one for one in training if one.name not in of_trainer]
    parser = argparse.ArgumentParser(
        usage=USAGE, description=DESCRIPTION, add_help=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    steering = [one for name in STEERING for one in training if one.name == name]
    _add(parser, "the run", steering)
    parser._action_groups[-1].add_argument("--debug", action="store_true", help="Show the traceback of an error.")
    _add(parser, "the model", model)
    _add(parser, "the data", data)
    _add(parser, "training", [one for one in own if one not in steering])
    names = ", ".join(one.name for one in fields(Stage) if one.name != "name")
    parser._action_groups[-1].add_argument(
        "--stages.STAGE.FIELD", metavar="VALUE", help=f"One setting of one stage; the fields are {names}."
    )
    left = [
        one for one in training if one.name in WORKING - {"debug"} and one.name in of_trainer and one not in steering
    ]
    _add(parser, "of transformers.TrainingArguments", left)
    parser.print_help()


def _add(parser: argparse.ArgumentParser, title: str, options: Sequence[Field]) -> None:
    group = parser.add_argument_group(title)
    for one in options:
        default = one.default if one.default is not MISSING else None
        shown = "" if default is None else f" Default: {getattr(default, 'value', default)}."
        text = " ".join(str(one.metadata.get("help", "")).split()).replace("%", "%%")
        group.add_argument(f"--{one.name}", metavar="VALUE", help=f"{text}{shown}")
