# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Whether the files of a stage are what its `stage.json` says: whole by size and checksum, and finite."""

import hashlib
import logging
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from .files import CheckpointError, read_json


logger = logging.getLogger(__name__)

INDEX = "model.safetensors.index.json"
LORA_FOLDER = "lora"  # a stage's LoRA beside its merged weights, as a PEFT adapter


class NotFiniteError(CheckpointError):
    """Weights hold NaN or infinity: training has diverged."""


def weight_files(folder: Path) -> list[Path]:
    """The files of the model's weights in a folder, sharded or not, with their index."""
    shards = sorted(folder.glob("model-*-of-*.safetensors"))
    return [path for path in (folder / "model.safetensors", folder / INDEX, *shards) if path.is_file()]


def checksums(paths: Iterable[Path], folder: Path) -> dict[str, dict]:
    """Size and SHA-256 of files, by their path in the folder."""
    return {path.relative_to(folder).as_posix(): size_and_sha256(path) for path in paths}


def check_files(folder: Path, record: Mapping, fix: str) -> None:
    """Raise `CheckpointError` where the files of a folder are not those that its record was written for.

    Args:
        folder: of a finished stage, or a checkpoint inside a stage.
        record: its `stage.json`; one of an earlier version has no `files`, and then the weights must only be readable.
        fix: what to do about it, the end of the message.
    """
    if record.get("files") is None:
        logger.warning("%s has no checksums (an earlier version wrote it): its weights are taken as they are", folder)
        return _check_readable(folder, fix)
    for name, facts in record["files"].items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is not there, though {folder / 'stage.json'} was written with it. {fix}")
        size = path.stat().st_size
        if size != facts["size"]:
            raise CheckpointError(f"{path} has {size} bytes, but was written with {facts['size']}. {fix}")
        if size_and_sha256(path)["sha256"] != facts["sha256"]:
            raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one in stage.json. {fix}")


def files_of(folder: Path) -> dict[str, dict]:
    """Size and SHA-256 of a checkpoint's weights: as its `stage.json` has them, else computed."""
    record = read_json(folder / "stage.json") if (folder / "stage.json").is_file() else {}
    found = record.get("files") if isinstance(record, dict) else None
    return found or checksums(weight_files(folder), folder)


def check_finite(folder: Path) -> None:
    """Raise `NotFiniteError` where a tensor of a folder's safetensors files holds NaN or infinity."""
    bad, paths = [], sorted(folder.glob("*.safetensors"))
    if not paths:
        raise CheckpointError(
            f"{folder} holds no weights: nothing was saved. Start again with --stage {folder.name} --force."
        )
    for path in [*paths, *sorted((folder / LORA_FOLDER).glob("*.safetensors"))]:
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():
                if not is_finite(tensors.get_tensor(name)):
                    bad.append(name)
    if bad:
        raise NotFiniteError(
            f"{len(bad)} tensors of {folder} are not finite, such as {bad[0]}: training has diverged. Lower the "
            "learning rates, or look for the rows of the skipped steps in the log, and start again with "
            f"--stage {folder.name} --force."
        )


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite; whole numbers never are."""
    if not tensor.is_floating_point():
        return True
    if tensor.element_size() == 1:  # floats of 8 bits have no such test
        tensor = tensor.float()
    return bool(torch.isfinite(tensor).all())


def shards_of(folder: Path) -> dict[str, str]:
    """The name of each tensor -> that of its file, of the index of sharded weights."""
    index = read_json(folder / INDEX)
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise CheckpointError(f"{folder / INDEX} has no `weight_map`. Save the checkpoint again.")
    return shards


def _check_readable(folder: Path, fix: str) -> None:
    paths = weight_files(folder)
    if (folder / INDEX).is_file():
        paths += [folder / name for name in sorted(set(shards_of(folder).values()))]
    if not paths:
        raise CheckpointError(f"{folder} has no weights (model.safetensors). {fix}")
    for path in paths:
        if path.name != INDEX:
            try:
                with safe_open(path, framework="pt"):
                    pass
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{path} cannot be read: {error}. {fix}") from error


def size_and_sha256(path: Path) -> dict:
    """`size` in bytes and `sha256` in hexadecimal digits of a file."""
    status = path.stat()
    return {"size": status.st_size, "sha256": _sha256(path, status.st_size, status.st_mtime_ns)}


@lru_cache(maxsize=1024)
def _sha256(path: Path, size: int, changed: int) -> str:
    """Of a file's content; a file is not read again as long as its size and time of change stay."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
