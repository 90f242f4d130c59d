# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""What a run leaves on disk, read and checked for its reports."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..recipes.files import CheckpointError, read_json
from .report_file import read_report
from .scoring import PREDICTIONS_FILE, check_prediction, read_predictions


EXAMPLES_PER_STAGE = 6
EXAMPLE_FIELDS = ("id", "task", "source_lang", "target_lang", "reference", "hypothesis")
ALIGNMENTS_FILE = "alignments.json"  # of a stage, see alignments.py
LAUNCHES_FILE = "run.json"  # of a run, see training/launches.py
LAUNCH_PARTS = ("command", "machine", "started")
RECORD_PARTS = ("metrics", "base_models", "trainable_parameters", "versions", "hyperparameters")  # of stage.json
DATA_PARTS = ("rows", "hours")  # of its `data`


def is_number(value: object) -> bool:
    """Whether a JSON value is a number; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def read_json_if_there(path: Path) -> dict | list | None:
    """The content of a JSON file; None where there is no file."""
    return read_json(path) if path.exists() else None


def read_launches(run_folder: Path) -> list[dict]:
    """The commands that trained in a run's folder, of its `run.json`: `command`, `machine` and `started` of each.

    Raises:
        CheckpointError: the file holds something else.
    """
    path = run_folder / LAUNCHES_FILE
    launches = read_json(path) if path.exists() else []
    is_known = isinstance(launches, list) and all(
        isinstance(one, dict) and all(isinstance(one.get(name), str) for name in LAUNCH_PARTS) for one in launches
    )
    if not is_known:
        raise CheckpointError(
            f"{path} holds {launches!r:.60}, but must be a list of launches with the texts {', '.join(LAUNCH_PARTS)}: move it "
            "away, and the next start writes a new one."
        )
    return launches


def stage_folders(run_folder: Path) -> list[Path]:
    """The stage folders (those with stage.json), each after its parent."""
    folders = {path.parent.name: path.parent for path in sorted(run_folder.glob("*/stage.json"))}
    parents = {name: Path(_read_record(folder)["parent"]).name for name, folder in folders.items()}
    ordered: list[str] = []
    while len(ordered) < len(folders):
        ready = [name for name in folders if name not in ordered and parents[name] not in set(folders) - set(ordered)]
        if not ready:
            raise ValueError(
                f"The stages {sorted(set(folders) - set(ordered))} in {run_folder} are each other's parents."
            )
        ordered += ready
    return [folders[name] for name in ordered]


def _read_record(folder: Path) -> dict:
    """What the reports need of a `stage.json`; what is missing or null is empty, of another type an error."""
    path = folder / "stage.json"
    record = read_json(path)
    data = record.get("data") if isinstance(record, dict) else None
    parts = record if isinstance(record, dict) else {}
    inside = data if isinstance(data, dict) else {}
    for name, value, kind in (
        ("the file", record, dict),
        ("'parent'", parts.get("parent") or "", str),
        ("'data'", data or {}, dict),
        *((f"{key!r}", parts.get(key) or {}, dict) for key in RECORD_PARTS),
        *((f"{key!r} of 'data'", inside.get(key) or {}, dict) for key in DATA_PARTS),
    ):
        if not isinstance(value, kind):
            raise CheckpointError(
                f"{path}: {name} is {value!r:.60}, but must be {'text' if kind is str else 'an object'}; "
                "restore it from a checkpoint of the stage, or train the stage again."
            )
    return {
        "parent": parts.get("parent") or "",
        **{key: parts.get(key) or {} for key in RECORD_PARTS},
        **{key: _numbers(inside.get(key) or {}) for key in DATA_PARTS},
    }


def _numbers(values: Mapping) -> dict:
    return {name: value for name, value in values.items() if is_number(value)}


def read_log_history(folder: Path) -> list[dict]:
    """Lines of the log of a stage (`log_history.json`); none where there is no file."""
    path = folder / "log_history.json"
    history = read_json_if_there(path) or []
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
        raise CheckpointError(f"{path} is no list of objects; delete it to do without a loss curve.")
    return history


def training_seconds(history: Sequence[Mapping]) -> float | None:
    """How long a stage has trained, by the lines of its log; None where none says it.

    `train_runtime` is of the last start alone, with its evaluations; each line's `seconds` are of its steps.
    """
    of_steps, of_starts = (
        [entry[name] for entry in history if is_number(entry.get(name))] for name in ("seconds", "train_runtime")
    )
    return max(sum(of_steps), sum(of_starts)) if of_steps or of_starts else None


def choose_examples(predictions: Sequence[Mapping]) -> list[dict]:
    """A few pairs, each of another group, that differ in task and languages; the same ones for every stage of a run.

    Groups are taken in turn, next always the one whose task, source and target have been taken least.
    """
    by_group = defaultdict(list)
    for row in predictions:
        by_group[row["task"], row["source_lang"], row["target_lang"]].append(row)
    chosen: list[dict] = []
    taken: Counter = Counter()
    while by_group and len(chosen) < EXAMPLES_PER_STAGE:
        group = min(
            sorted(by_group),
            key=lambda key: (taken[key[0]], taken["from", key[0], key[1]] + taken["into", key[0], key[2]]),
        )
        rows = by_group.pop(group)
        row = rows[3 * len(chosen) % len(rows)]
        chosen.append({field: row[field] for field in EXAMPLE_FIELDS})
        taken.update([group[0], ("from", *group[:2]), ("into", group[0], group[2])])
    return sorted(chosen, key=lambda row: (row["task"], row["source_lang"], row["target_lang"]))


def _read_predictions(path: Path) -> list[dict]:
    rows = read_predictions(path)
    for row in rows:
        try:
            check_prediction(row)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return rows


def _read_alignments(path: Path) -> list[dict] | None:
    """What `alignments.write_alignments` left; None where it left nothing."""
    found = read_json_if_there(path)
    for one in found if isinstance(found, list) else [] if found is None else [found]:
        probabilities, tokens, places = (
            one.get(key) if isinstance(one, dict) else None for key in ("probabilities", "tokens", "path")
        )
        is_whole = (
            isinstance(tokens, list)
            and isinstance(places, list)
            and all(isinstance(text, str) for text in (*tokens, one.get("text"), one.get("language")))
            and all(is_number(value) for value in (one.get("seconds"), *places))
            and isinstance(probabilities, list)
            and bool(probabilities)
            and all(isinstance(row, list) and len(row) == len(tokens) + 1 for row in probabilities)
            and all(is_number(value) for row in probabilities for value in row)
        )
        if not is_whole:
            raise CheckpointError(f"{path} is no list of alignments; delete it to do without their pictures.")
    return found


def read_stage(folder: Path) -> dict:
    """All that the reports of a run and of a stage show of one stage.

    Args:
        folder: of a stage, or of predictions alone (`--do_predict`), which have no `stage.json`.

    Returns:
        `name`; `record` (`base_models`, `trainable_parameters`, `versions`, `hyperparameters`, `metrics`, `rows` and `hours`
        by group); `log_history`, lines with a step; `dev_loss`, `ctc_error` and `listens`, of the last evaluation;
        `report` or None; `predictions`, and a few of them as `examples`; `alignments` or None; `seconds` of training or
        None; `steps`.

    Raises:
        CheckpointError: a file is not what it must be.
        ValueError: a prediction is none.
    """
    empty = {"parent": "", **{key: {} for key in (*RECORD_PARTS, *DATA_PARTS)}}
    record = _read_record(folder) if (folder / "stage.json").exists() else empty
    history = read_log_history(folder)
    metrics = dict(record["metrics"])
    for entry in history:  # the last evaluation counts
        metrics.update({name: value for name, value in entry.items() if name.startswith("eval_")})
    metrics = _numbers(metrics)
    dev_loss = {
        name.removeprefix("eval_").removesuffix("_loss"): value
        for name, value in metrics.items()
        if name.startswith("eval_") and name.endswith("_loss") and name != "eval_loss"
    }
    if "eval_loss" in metrics:
        dev_loss["all"] = metrics["eval_loss"]
    ctc_error = {
        name.removeprefix("eval_ctc").removesuffix("error_rate").strip("/_") or "average": value
        for name, value in metrics.items()
        if name.startswith("eval_ctc") and name.endswith("error_rate")
    }
    predictions = folder / PREDICTIONS_FILE
    rows = _read_predictions(predictions) if predictions.exists() else []
    lines = [entry for entry in history if is_number(entry.get("step"))]
    return {
        "name": folder.resolve().name,
        "record": record,
        "dev_loss": dev_loss,
        "ctc_error": ctc_error,
        "listens": record["metrics"].get("listens"),
        "report": read_report(folder / "report.json") if (folder / "report.json").exists() else None,
        "predictions": rows,
        "examples": choose_examples(rows),
        "alignments": _read_alignments(folder / ALIGNMENTS_FILE),
        "log_history": lines,
        "seconds": training_seconds(history),
        "steps": max((entry["step"] for entry in lines), default=0),
    }
