# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""`train_part.py --help`: PART's own options first, then those of `Trainer` that have an effect.

The options are read from the text of the classes that hold them: to import these takes torch and transformers, and with
them longer than somebody waits for help.
"""

import argparse
import ast
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from .stages import Stage
from .trainer_settings import WORKING


WORDS = "RECIPE [OVERLAY ...] [--NAME VALUE ...]"
DESCRIPTION = """\
Train PART, stage by stage. A recipe is a YAML file or the name of a shipped one (`part recipes`); every key of a recipe
is an option too. `accelerate launch train_part.py ...` and `part train ...` take the same words, and the launcher's own
before them (`accelerate launch --help`).
"""
# Of the run as a whole; what transformers says of its own where it holds for PART (None), or what is true here.
STEERING = {
    "output_dir": "Folder of the run, with a folder per stage and report.html.",
    "stage": None,
    "resume": None,
    "resume_with_changes": None,
    "force": None,
    "dry_run": None,
    "do_predict": "Train nothing: predict and score `test_data` with `checkpoint`, or with the folder of `stage`.",
    "reuse_runs": None,
    "seed": "Of weights, batches and dropout.",
    "push_to_hub": "Publish each finished stage: a commit and a tag of `hub_model_id`.",
    "hub_model_id": "Repository on the Hub, such as USER/NAME.",
}


@dataclass(frozen=True)
class Option:
    """What help says of one field.

    Attributes:
        help: sentence.
        default: as it is written, or None where the text does not say it.
    """

    help: str
    default: object


def leave_with_help(argv: Sequence[str], program: str = "train_part.py") -> None:
    """Print all options and exit, if that is what the words of the command line ask for.

    Args:
        argv: the words after the program.
        program: see [`print_help`].
    """
    if {"--help", "-h"} & set(argv):
        print_help(program)
        sys.exit(0)


def print_help(program: str = "train_part.py") -> None:
    """Print all options.

    Args:
        program: to which they are given.
    """
    arguments = Path(__file__).with_name("arguments.py")
    model, data, training = (
        options_in(arguments, name) for name in ("ModelArguments", "DataArguments", "PARTTrainingArguments")
    )
    of_trainer = options_in(Path(find_spec("transformers").origin).with_name("training_args.py"), "TrainingArguments")
    known = of_trainer | training
    parser = argparse.ArgumentParser(
        usage=f"{program} {WORDS}",
        description=DESCRIPTION,
        add_help=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    group = _add(
        parser,
        "the run",
        {name: replace(known[name], help=text or known[name].help) for name, text in STEERING.items()},
    )
    group.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
    _add(parser, "the model", model)
    _add(parser, "the data", data)
    own = {name: one for name, one in training.items() if name not in of_trainer and name not in STEERING}
    group = _add(parser, "training", own)
    names = ", ".join(name for name in Stage.__dataclass_fields__ if name != "name")
    group.add_argument(
        "--stages.STAGE.FIELD", metavar="VALUE", help=f"One setting of one stage; the fields are {names}."
    )
    left = [name for name in of_trainer if name in WORKING and name not in STEERING and name != "debug"]
    _add(parser, "of transformers.TrainingArguments", {name: known[name] for name in left})
    parser.print_help()


def options_in(path: Path, owner: str) -> dict[str, Option]:
    """The fields of a dataclass with their help, by name, from the text of its file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    (body,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == owner)
    found = {}
    for node in body:
        is_field = isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Call)
        given = {word.arg: _constant(word.value) for word in node.value.keywords} if is_field else {}
        if given.get("init", True) and is_field:
            metadata = given.get("metadata") or {}
            found[node.target.id] = Option(_sentence(metadata.get("help", "")), given.get("default"))
    return found


def _sentence(text: str) -> str:
    """Help in one line; some of transformers' percent signs are doubled for argparse."""
    return " ".join(text.replace("%%", "%").split())


def _constant(node: ast.expr) -> object:
    """The value of an expression; None of one that only running the file gives, of a mapping's member too."""
    if isinstance(node, ast.Dict):
        return {_constant(key): _constant(value) for key, value in zip(node.keys, node.values, strict=True)}
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def _add(parser: argparse.ArgumentParser, title: str, options: Mapping[str, Option]) -> argparse._ArgumentGroup:
    group = parser.add_argument_group(title)
    for name, one in options.items():
        shown = "" if one.default is None else f" Default: {one.default}."
        group.add_argument(f"--{name}", metavar="VALUE", help=one.help.replace("%", "%%") + shown)
    return group
