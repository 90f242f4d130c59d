# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints inside a stage: writing whole ones, finding, reading and removing them."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from ..recipes.files import CheckpointError, read_json
from ..recipes.stage_files import INDEX, LORA_FOLDER, check_finite, checksums, shards_of
from ..recipes.stage_record import write_stage_json
from ..recipes.stages import Stage
from .lora import load_lora, save_lora, split_lora, transposed_lora


FORMER_LORA_FILE = "lora.safetensors"  # what was written before November 2026
HISTORY_FILE = "batches.json"  # [[batches per optimizer step, optimizer steps], ...] up to the checkpoint
INCOMPLETE = "incomplete"  # checkpoints are written here and renamed when whole


def save_weights(
    model: PreTrainedModel, stage: Stage, folder: Path, state_dict: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Plain weights with LoRA merged, and beside them, in the folder `lora`, LoRA as a PEFT adapter.

    Not among the model's own files, where `from_pretrained` would add the adapter to the merged weights.

    Args:
        model: the unwrapped model.
        stage: whose LoRA it holds.
        folder: created.
        state_dict: where the model's own is sharded; gathered.
    """
    state_dict = model.state_dict() if state_dict is None else state_dict
    transposed = transposed_lora(model)
    merged, lora = split_lora(state_dict, stage.lora_alpha / stage.lora_rank, transposed)
    # Parts that a stage keeps frozen in another dtype are stored like the rest (bfloat16 -> float32 is exact).
    dtype = model.config.dtype or torch.float32
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    merged = {name: t.to(dtype) if t.is_floating_point() else t for name, t in merged.items()}
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, state_dict=_retied(merged, model))
    if lora:
        save_lora(lora, stage, transposed, folder / LORA_FOLDER)
    for path in folder.rglob("*.safetensors"):  # which safetensors writes for their owner alone
        path.chmod((folder / "config.json").stat().st_mode)


def restore_weights(model: nn.Module, folder: Path, stage: Stage) -> None:
    """Weights of a checkpoint into the model, which holds the parent stage's (the base of LoRA).

    Raises:
        ValueError: the tensors are not those of the model.
    """
    state_dict = model.state_dict()
    loaded = load_weights(folder)
    if (folder / LORA_FOLDER).is_dir():
        loaded |= load_lora(folder / LORA_FOLDER)
    elif (folder / FORMER_LORA_FILE).is_file():
        loaded |= load_file(folder / FORMER_LORA_FILE)
    # Weights under LoRA are merged in the file; the frozen originals are already here.
    bases = {name.replace(".base_layer.", ".") for name in state_dict if ".base_layer." in name}
    loaded = {
        name: tensor for name, tensor in loaded.items() if name not in bases or not name.endswith((".weight", ".bias"))
    }
    missing, unexpected = model.load_state_dict(loaded, strict=False)
    tied = set(model.all_tied_weights_keys) if hasattr(model, "all_tied_weights_keys") else set()
    missing = [name for name in missing if ".base_layer." not in name and name not in tied]
    if missing or unexpected:
        raise ValueError(
            f"{folder} does not fit stage {stage.name!r}: missing {missing[:5]}, unexpected {unexpected[:5]}."
        )


def complete_checkpoint(
    staged: Path, final: Path, history: Sequence[tuple[int, int]], on_save: Callable[[Path], None] | None
) -> None:
    """Add what PART keeps to a checkpoint that was written aside, and rename it: from now on it is resumed from."""
    check_finite(staged)  # or the last good checkpoint would soon be removed for ones that are lost
    (staged / HISTORY_FILE).write_text(json.dumps(list(history)))
    if on_save is not None:
        on_save(staged)
    if final.exists():
        os.replace(final, staged.parent / "replaced")
    os.replace(staged, final)
    shutil.rmtree(staged.parent)


def write_checkpoint_record(folder: Path, record: Mapping) -> None:
    """The `stage.json` of a checkpoint inside a stage: what is trained, and size and checksum of every other file."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    write_stage_json(folder, {**record, "files": checksums(paths, folder), "metrics": {}})


def _retied(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Tied tensors as one again (a dtype change has copied them), so that they are stored once."""
    for target, source in (getattr(model, "all_tied_weights_keys", None) or {}).items():
        if target in state_dict and source in state_dict:
            state_dict[target] = state_dict[source]
    return state_dict


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint folder's safetensors files, sharded or not."""
    names = sorted(set(shards_of(folder).values())) if (folder / INDEX).is_file() else ["model.safetensors"]
    weights = {}
    for name in names:
        try:
            weights |= load_file(folder / name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{folder / name} cannot be read: {error}. Go on from another checkpoint."
            ) from error
    return weights


def has_checkpoint_name(path: Path) -> bool:
    """Whether a folder is called as the checkpoints inside a stage are."""
    return re.fullmatch(r"checkpoint-\d+", path.name) is not None


def is_checkpoint(path: Path) -> bool:
    """Whether a path is a whole checkpoint inside a stage; `checkpoint-best` and the like are the user's."""
    return has_checkpoint_name(path) and (path / "trainer_state.json").is_file()


def checkpoints_in(folder: Path) -> list[Path]:
    """The whole checkpoints inside a stage's folder, the oldest first; one that was only half written is not among them."""
    return sorted(filter(is_checkpoint, folder.glob("checkpoint-*")), key=checkpoint_step)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint inside a stage's folder."""
    return next(reversed(checkpoints_in(folder)), None)


def size_of(checkpoints: Iterable[Path]) -> int:
    """Bytes of all files in these folders."""
    return sum(path.stat().st_size for one in checkpoints for path in one.rglob("*") if path.is_file())


def remove_oldest(folder: Path, limit: int | None, best_step: int | None = None) -> None:
    """Keep the newest `limit` checkpoints of a stage; what only begins with such a name is the user's.

    That of `best_step` is among those kept, and where one alone is, beside it: the newest is there to go on from.
    """
    checkpoints = checkpoints_in(folder)
    best = [path for path in checkpoints[:-1] if checkpoint_step(path) == best_step]
    others = [path for path in checkpoints if path not in best]
    for path in others[: -max(1, limit - len(best))] if limit else ():
        shutil.rmtree(path, ignore_errors=True)


def checkpoint_step(checkpoint: Path) -> int:
    """Optimizer steps done when a checkpoint was written."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def read_history(checkpoint: Path, batches_per_step: int) -> list[tuple[int, int]]:
    """What [`TaskBatchSampler`] must know of the steps before a checkpoint, to go on with `batches_per_step`.

    Returns:
        `(batches per step, steps)` of the parts that ran with another number of ranks times accumulation; empty when
        nothing has changed.
    """
    path = checkpoint / HISTORY_FILE
    try:
        history = [(int(batches), int(steps)) for batches, steps in read_json(path)]
    except (OSError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not as it was written: {error}. Go on from another checkpoint.") from error
    if not history:
        raise CheckpointError(f"{path} is empty. Go on from another checkpoint.")
    return history[:-1] if history[-1][0] == batches_per_step else history
