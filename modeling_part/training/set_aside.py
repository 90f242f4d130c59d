# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""`--force`: a stage that is trained again is set aside, not removed, until what replaces it is finished."""

import logging
import re
import shutil
from pathlib import Path

from .checkpoints import is_checkpoint
from .monitoring import DEV_FOLDER


logger = logging.getLogger(__name__)

ASIDE = "set_aside"
FORCED = f"{ASIDE}/forced"  # an empty file: `--force` is to train the stage again, whose turn has not come

# What training writes into a stage's folder; anything else there is the user's and stays where it is.
WRITTEN = re.compile(
    r"stage\.json|log_history\.json|training_args\.bin|report\.(json|md|html)|alignments\.json|loss\.png"
    r"|predictions(_unnamed)?\.jsonl(\.part-\d+)?"
    r"|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json|(generation_|processor_|preprocessor_)?config\.json"
    r"|tokenizer(_config)?\.json|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)|merges\.txt"
    r"|tokenizer\.model|chat_template\.jinja|incomplete|lora(\.safetensors)?"
)


def written_by_training(folder: Path) -> list[Path]:
    """What training has written into a stage's folder, `stage.json` first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if WRITTEN.fullmatch(path.name) or is_checkpoint(path) or is_dev(path)]
    return sorted(found, key=lambda path: (path.name != "stage.json", path.name))


def is_dev(path: Path) -> bool:
    """Whether a folder holds what evaluations were answered: those of an earlier training are not of this one."""
    return path.name == DEV_FOLDER and any(path.glob("step-*/predictions.jsonl"))


def set_aside(folder: Path) -> Path | None:
    """Move what training has written into a folder of its own beside it.

    `stage.json` moves first: at no moment does a stage count as finished whose weights are not there.

    Returns:
        Where it is now; None where there was nothing.
    """
    paths = written_by_training(folder)
    if not paths:
        return None
    numbers = [int(path.name) for path in (folder / ASIDE).glob("*") if path.name.isdecimal()]
    target = folder / ASIDE / str(max(numbers, default=0) + 1)
    target.mkdir(parents=True)
    for path in paths:
        path.rename(target / path.name)
    logger.info("What was in %s is set aside in %s until the stage is finished again", folder, target)
    return target


def mark_for_training(folder: Path) -> None:
    """`--force` has begun with an earlier stage: this finished one is to be trained again, also if that is interrupted."""
    if (folder / "stage.json").is_file():
        (folder / ASIDE).mkdir(exist_ok=True)
        (folder / FORCED).touch()


def remove_set_aside(folder: Path) -> None:
    """What a stage's earlier training has left is not needed any more: the stage is finished."""
    shutil.rmtree(folder / ASIDE, ignore_errors=True)
