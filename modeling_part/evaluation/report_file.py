# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""`report.json` of a stage, checked where it is read: people edit, cut and copy it."""

import math
from collections.abc import Mapping
from pathlib import Path

from ..prompts_part import TASKS
from ..recipes.files import CheckpointError, read_json


FIX = "make it anew with `part score predictions.jsonl`"
COUNTS = ("utterances", "failed", "hits", "substitutions", "deletions", "insertions")
SHARES = ("empty", "looping", "wrong_language")
TEXTS = ("source_lang", "target_lang", "error_metric")
MEASURES = ("error_rate", "bleu", "chrf")
NO_FIGURES = {"groups": {}, "macro": {}}  # in the place of a report where nothing was scored
# Lists of utterances, with their texts -> the figure of an annotated prediction that they are sorted by.
LISTS = {"disagreements": "disagreement", "doubtful_labels": "label_distance"}


def read_report(path: str | Path) -> dict:
    """The checked content of a `report.json` that `scoring.score` made.

    Raises:
        CheckpointError: the file is missing, is not JSON, or no such report; names the part and the fix.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is no file; {FIX}.")
    return check_report(read_json(path), path)


def check_report(report: object, name: str | Path = "report") -> dict:
    """Return `report` where it has all parts of a report of `scoring.score`, each of its type.

    Raises:
        CheckpointError: otherwise; names the part and the fix.
    """
    _check_part(report, str(name))
    settings = _mapping(report.get("settings"), f"{name}: 'settings'")
    for key in ("confidence", "bootstrap_samples", "seed"):
        _check_number(settings.get(key), f"{name}: {key!r} of 'settings'")
    for key in ("simplify_chinese", "bleu_tokenizer"):
        if key not in settings:
            raise CheckpointError(f"{name}: 'settings' has no {key!r}; {FIX}.")
    _check_two_heads(report, str(name))
    if "unnamed" in report:
        _check_part(report["unnamed"], f"{name}: 'unnamed'")
    for corpus, part in _mapping(report.get("corpora", {}), f"{name}: 'corpora'").items():
        _check_part(part, f"{name}: corpus {corpus!r}")
    return report


def bounds(figures: Mapping, measure: str) -> list[float]:
    """The interval of a measure of a group or an average; the measure itself twice where it has none."""
    return figures.get(f"{measure}_interval") or [figures[measure]] * 2


def _check_part(report: object, name: str) -> None:
    """The figures of all corpora, or of one."""
    report = _mapping(report, name)
    for group, figures in _mapping(report.get("groups"), f"{name}: 'groups'").items():
        where = f"{name}: group {group!r}"
        figures = _mapping(figures, where)
        if figures.get("task") not in TASKS:
            raise CheckpointError(f"{where}: 'task' is {figures.get('task')!r}, none of {', '.join(TASKS)}; {FIX}.")
        for key in TEXTS:
            if not isinstance(figures.get(key), str):
                raise CheckpointError(f"{where}: {key!r} is {figures.get(key)!r}, but must be text; {FIX}.")
        if not isinstance(figures.get("normalizer", ""), str):
            raise CheckpointError(f"{where}: 'normalizer' is {figures['normalizer']!r}, but must be text; {FIX}.")
        for key in (*COUNTS, *SHARES):
            _check_number(figures.get(key), f"{where}: {key!r}")
        if "error_rate" not in figures:
            raise CheckpointError(f"{where} has no 'error_rate'; {FIX}.")
        _check_measures(figures, where)
    for task, average in _mapping(report.get("macro"), f"{name}: 'macro'").items():
        where = f"{name}: average {task!r}"
        _check_number(_mapping(average, where).get("groups"), f"{where}: 'groups'")
        _check_measures(average, where)


def _check_two_heads(report: Mapping, name: str) -> None:
    """What `two_heads.py` found, where there is an alignment head."""
    for listed, by in LISTS.items():
        rows = report.get(listed, [])
        if not isinstance(rows, list):
            raise CheckpointError(f"{name}: {listed!r} is {_shown(rows)}, but must be a list; {FIX}.")
        for row in rows:
            row = _mapping(row, f"{name}: one of {listed!r}")
            for key in (by, "error_rate"):
                _check_number(row.get(key), f"{name}: {key!r} of {listed!r}")
            for key in ("source_lang", "id", "reference", "hypothesis", "ctc_hypothesis"):
                if not isinstance(row.get(key), str):
                    raise CheckpointError(
                        f"{name}: {key!r} of {listed!r} is {row.get(key)!r}, but must be text; {FIX}."
                    )
    for kind, found in _mapping(report.get("calibration", {}), f"{name}: 'calibration'").items():
        where = f"{name}: calibration {kind!r}"
        found = _mapping(found, where)
        for key in ("error", "utterances"):
            _check_number(found.get(key), f"{where}: {key!r}")
        if not isinstance(found.get("bins"), list):
            raise CheckpointError(f"{where}: 'bins' is {_shown(found.get('bins'))}, but must be a list; {FIX}.")
        for one in found["bins"]:
            for key in ("confidence", "accuracy"):
                _check_number(_mapping(one, f"{where}: a bin").get(key), f"{where}: {key!r} of a bin")


def _check_measures(figures: Mapping, where: str) -> None:
    for key in MEASURES:
        if figures.get(key) is not None:
            _check_number(figures[key], f"{where}: {key!r}")
        interval = figures.get(f"{key}_interval")
        if interval is not None:
            if not isinstance(interval, (list, tuple)) or len(interval) != 2:
                raise CheckpointError(f"{where}: '{key}_interval' is {interval!r}, but must be two numbers; {FIX}.")
            for bound in interval:
                _check_number(bound, f"{where}: '{key}_interval'")
        signature = figures.get(f"{key}_signature", "")
        if not isinstance(signature, str):
            raise CheckpointError(f"{where}: '{key}_signature' is {signature!r}, but must be text; {FIX}.")


def _mapping(value: object, where: str) -> Mapping:
    if not isinstance(value, Mapping):
        raise CheckpointError(f"{where} is {_shown(value)}, but must be an object; {FIX}.")
    return value


def _check_number(value: object, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise CheckpointError(f"{where} is {_shown(value)}, but must be a number; {FIX}.")


def _shown(value: object) -> str:
    return "missing" if value is None else f"{value!r:.60}"
