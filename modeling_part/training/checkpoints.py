# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints inside a stage: finding, reading and removing them."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn


LORA_FILE = "lora.safetensors"
HISTORY_FILE = "batches.json"  # [[batches per optimizer step, optimizer steps], ...] up to the checkpoint
INCOMPLETE = "incomplete"  # checkpoints are written here and renamed when whole


def retied(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Tied tensors as one again (a dtype change has copied them), so that they are stored once."""
    for target, source in (getattr(model, "all_tied_weights_keys", None) or {}).items():
        if target in state_dict and source in state_dict:
            state_dict[target] = state_dict[source]
    return state_dict


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint folder's safetensors files, sharded or not."""
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    weights = {}
    for name in names:
        weights |= load_file(folder / name)
    return weights


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint inside a stage's folder; one that was only half written is not looked at."""
    found = [path for path in folder.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    return max(found, key=lambda path: int(path.name.removeprefix("checkpoint-")), default=None)


def remove_checkpoints(folder: Path) -> None:
    """What an earlier run has left inside a stage's folder for resuming, and its claim to be finished."""
    (folder / "stage.json").unlink(missing_ok=True)
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path)


def read_history(checkpoint: Path, batches_per_step: int) -> list[tuple[int, int]]:
    """What [`TaskBatchSampler`] must know of the steps before a checkpoint, to go on with `batches_per_step`.

    Returns:
        `(batches per step, steps)` of the parts that ran with another number of ranks times accumulation; empty when
        nothing has changed.
    """
    history = [tuple(part) for part in json.loads((checkpoint / HISTORY_FILE).read_text())]
    return history[:-1] if history[-1][0] == batches_per_step else history
