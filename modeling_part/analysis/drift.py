# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""How far each part's weights have moved between two checkpoints.

`part analyze drift runs/part/joint --since runs/part/encoder --output runs/part/analysis`
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from ..evaluation.run_files import read_log_history
from ..recipes.files import CheckpointError, read_json
from ..recipes.stage_files import INDEX, shards_of
from ..recipes.stages import PARTS
from .files import write_result


def weight_drift(checkpoint: str | Path, since: str | Path) -> dict:
    """How far the weights of each part moved from `since` to `checkpoint`: the audit of the task gate.

    Reads tensor by tensor from the safetensors files of two folders.

    Returns:
        `parts`: per part `drift` (norm of the difference over the norm before), `tensors` and `changed` (how many of
        them differ in any bit of their value); `layers`: the drift of each encoder, adapter and language model layer;
        `gate_open_share`: mean over the log of `checkpoint`, None without one; `unexpected`: parts that changed though
        `stage.json` says that nothing of them trained; `left_out`: tensors of an alignment head that only one of them has.

    Raises:
        FileNotFoundError: a folder has no weights.
        ValueError: the folders do not hold the same tensors.
    """
    checkpoint, since = Path(checkpoint), Path(since)
    after, before = _tensor_files(checkpoint), _tensor_files(since)
    of_one = sorted(set(after) ^ set(before))
    if others := [name for name in of_one if not name.startswith("alignment_head.")]:  # a stage may begin with one
        raise ValueError(f"{checkpoint} and {since} differ in tensors {others[:5]}.")
    sums: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2))
    counts: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2, int))
    for name in sorted(after.keys() - of_one):
        new, old = _read_tensor(after[name], name), _read_tensor(before[name], name)
        if new.shape != old.shape:
            raise ValueError(f"{name} is {tuple(new.shape)} in {checkpoint} and {tuple(old.shape)} in {since}.")
        moved = float((new - old).square().sum())
        part = next((part for part, prefixes in PARTS.items() if name.startswith(prefixes)), "language_model")
        counts[part] += (1, int(not torch.equal(new, old)))
        layer = re.search(r"layers\.(\d+)\.", name)
        for key in (part, *([f"{part}/{int(layer[1]):02d}"] if layer else [])):
            sums[key] += (moved, float(old.square().sum()))
    drift = {key: float(np.sqrt(moved / norm)) if norm else 0.0 for key, (moved, norm) in sums.items()}
    parts = {
        part: {"drift": drift[part], "tensors": int(counts[part][0]), "changed": int(counts[part][1])}
        for part in sorted(counts)
    }
    return {
        "since": since.name,
        "parts": parts,
        "layers": {key: value for key, value in sorted(drift.items()) if "/" in key},
        "gate_open_share": _gate_open_share(checkpoint),
        "unexpected": _unexpected(checkpoint, parts),
        "left_out": of_one,
    }


def _tensor_files(folder: Path) -> dict[str, Path]:
    """Tensor name -> its file, of a checkpoint folder with one or several safetensors files."""
    if (folder / INDEX).is_file():
        return {name: folder / file for name, file in shards_of(folder).items()}
    path = folder / "model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no model.safetensors; name the folder of a stage or checkpoint.")
    with safe_open(path, "pt") as file:
        return dict.fromkeys(file.keys(), path)


def _read_tensor(path: Path, name: str) -> torch.Tensor:
    with safe_open(path, "pt") as file:
        return file.get_tensor(name).double()


def _gate_open_share(checkpoint: Path) -> float | None:
    shares = [entry["gate_open_share"] for entry in read_log_history(checkpoint) if "gate_open_share" in entry]
    return float(np.mean(shares)) if shares else None


def _unexpected(checkpoint: Path, parts: Mapping[str, Mapping]) -> list[str]:
    path = checkpoint / "stage.json"
    if not path.is_file():
        return []
    record = read_json(path)
    trained = record.get("trainable_parameters") if isinstance(record, dict) else None
    if not isinstance(trained, dict):
        raise CheckpointError(f"{path} has no `trainable_parameters`: it is damaged. Put it back, or remove it.")
    return [part for part, found in parts.items() if found["changed"] and not trained.get(part)]


def analyze_drift(checkpoint: str | Path, since: str | Path, output: str | Path) -> dict:
    """`STAGE_drift.json` in the folder `output`, of [`weight_drift`], whose result is returned."""
    result = weight_drift(checkpoint, since)
    write_result(checkpoint, "drift", output, result)
    for part, found in result["parts"].items():
        print(f"{part:15} drift {found['drift']:.5f}, {found['changed']} of {found['tensors']} tensors changed")
    if result["left_out"]:
        print(f"In one of the two alone, and left out: {', '.join(result['left_out'])}")
    if result["unexpected"]:
        print(f"Changed though nothing of them trained in this stage: {', '.join(result['unexpected'])}")
    return result
