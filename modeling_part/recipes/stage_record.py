# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""`stage.json`: where a stage's weights come from."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from .files import CheckpointError, read_json, write_json


# Keys of stage.json and the type of each. `parent` is None for a stage that starts from the base models; `base_models`
# maps a part ("audio_model", "language_model", or "checkpoint" for the whole) to what it came from.
STAGE_KEYS = {
    "stage": str,
    "parent": (str, type(None)),
    "seed": int,
    "base_models": dict,
    "data": dict,
    "hyperparameters": dict,
    "trainable_parameters": dict,
    "versions": dict,
    "metrics": dict,
}
DATA_KEYS = {"fingerprint": str, "rows": dict, "hours": dict}

# Keys that may be there: `datasets`, Hub ids of the training data, and `parent_revision`, which publishing fills in;
# `files`, size and SHA-256 of the stage's files, `parent_files`, of the weights that it started from, and `stretches`,
# what was different before the stage was resumed with changes (see training/resuming.py).
OPTIONAL_STAGE_KEYS = {
    "datasets": list,
    "parent_revision": str,
    "files": dict,
    "parent_files": dict,
    "stretches": list,
}

# What two stages that were trained exactly alike may differ in.
RESULTS = ("metrics", "files")


def write_stage_json(folder: str | Path, info: Mapping) -> Path:
    """Check a stage's record and write it as `stage.json`; the file appears whole or not at all.

    Args:
        folder: the stage's folder, which exists.
        info: `STAGE_KEYS`, with `data` holding `DATA_KEYS`; `rows` and `hours` are by group, such as `"asr/fr"` and
            `"s2tt/en-fr"`, `trainable_parameters` by part (0: frozen). `OPTIONAL_STAGE_KEYS` may be there.

    Returns:
        The path of the file.

    Raises:
        CheckpointError: a key is missing, unknown or of the wrong type.
    """
    path = Path(folder) / "stage.json"
    check_stage_info(info, path)
    write_json(path, info)
    return path


def read_stage_json(folder: str | Path) -> dict:
    """The checked content of a folder's `stage.json`.

    Raises:
        CheckpointError: the file is missing, is not JSON, or a key is missing, unknown or of the wrong type.
    """
    path = Path(folder) / "stage.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no stage.json: it is not a finished stage. Give the folder of a stage.")
    info = read_json(path)
    check_stage_info(info, path)
    return info


def ancestry(folder: Path) -> dict[str, dict]:
    """The records of a finished stage and of those that it was trained from, by the name of the folder, the latest first."""
    found: dict[str, dict] = {}
    while folder.name not in found and (folder / "stage.json").is_file():
        found[folder.name] = record = read_stage_json(folder)
        folder = folder.parent / Path(record["parent"] or folder.name).name
    return found


def find_alike(record: Mapping, run: Path, others: Iterable[str | Path]) -> Path | None:
    """The finished stage, among other runs, that was trained exactly as a stage is about to be.

    Args:
        record: the stage's `stage.json` to be, without `metrics`.
        run: its run folder, with the finished parents.
        others: run folders to look in.

    Returns:
        A stage folder whose record says the same (settings, data, seed, base models, versions), and whose parents' do;
        None where there is none.
    """
    for other in map(Path, others):
        if (other / record["stage"] / "stage.json").is_file() and other.resolve() != run.resolve():
            if _is_alike(record, run, read_stage_json(other / record["stage"]), other):
                return other / record["stage"]
    return None


def _is_alike(record: Mapping, run: Path, other_record: Mapping, other_run: Path) -> bool:
    """Whether two records say the same, and those of the stages before them."""
    ours, theirs = (
        [one, *(ancestry(folder / one["parent"]).values() if one["parent"] is not None else ())]
        for one, folder in ((record, run), (other_record, other_run))
    )
    return len(ours) == len(theirs) and all(map(_says_the_same, ours, theirs))


def _says_the_same(record: Mapping, other_record: Mapping) -> bool:
    ours, theirs = ({key: value for key, value in one.items() if key not in RESULTS} for one in (record, other_record))
    if "parent_files" not in ours or "parent_files" not in theirs:  # an earlier version's has none
        ours.pop("parent_files", None), theirs.pop("parent_files", None)
    return json.loads(json.dumps(ours)) == theirs  # tuples become lists in the file


def check_stage_info(info: Mapping, name: str | Path = "stage_info") -> None:
    """Raise `CheckpointError` where a stage's record is not as [`write_stage_json`] describes it."""
    _check_keys(info, STAGE_KEYS, OPTIONAL_STAGE_KEYS, name)
    _check_keys(info["data"], DATA_KEYS, None, f"{name}: 'data'")
    for file, facts in (info.get("files") or {}).items():
        _check_keys(facts, {"size": int, "sha256": str}, None, f"{name}: 'files': {file!r}")
    for stretch in info.get("stretches") or ():
        _check_keys(stretch, {"first_step": int, "values": dict}, None, f"{name}: one of 'stretches'")
    if not re.fullmatch(r"[a-z0-9_]+", info["stage"]):
        raise CheckpointError(
            f"{name}: stage {info['stage']!r} cannot be a tag; use lower-case letters, digits and _."
        )


def _check_keys(mapping: Mapping, required: dict, optional: dict | None, name: str | Path) -> None:
    """Every required key of its type; others only where `optional` is None, or when it lists them."""
    if not isinstance(mapping, Mapping):
        raise CheckpointError(f"{name} is a {type(mapping).__name__}, but must be a mapping of {sorted(required)}.")
    missing = sorted(set(required) - set(mapping))
    unknown = sorted(set(mapping) - set(required) - set(optional or {})) if optional is not None else []
    if missing or unknown:
        raise CheckpointError(f"{name}: missing keys {missing}, unknown keys {unknown}; give {sorted(required)}.")
    for key, kind in {**required, **(optional or {})}.items():
        if key in mapping and (not isinstance(mapping[key], kind) or isinstance(mapping[key], bool)):
            raise CheckpointError(
                f"{name}: {key!r} is a {type(mapping[key]).__name__}, but must be {_type_name(kind)}."
            )


def _type_name(kind: type | tuple[type, ...]) -> str:
    return " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
