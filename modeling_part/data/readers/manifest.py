# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""JSONL manifests of canonical rows."""

import math
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ...recipes.suggestions import did_you_mean
from ..checking import DataReport
from ..corpus_spec import CorpusSpec, fits
from ..files import read_jsonl
from ..rows import COLUMNS, FOR_PEOPLE, BrokenRowError, check_direction, shortened, speech_row, text_row


REQUIRED = frozenset({"id", "task", "source_lang", "target_lang", "text"})
NUMBERS = frozenset({"duration", "start", "end"})
KNOWN = frozenset({*COLUMNS, *FOR_PEOPLE})


def read_manifest(spec: CorpusSpec, report: DataReport) -> Iterator[dict]:
    """Rows of a JSONL manifest in the canonical columns; `audio` is a path relative to the manifest's folder.

    Columns that do not apply are left out. A missing `duration` is measured. `speaker` and `license` may be there. A
    line that is no JSON object or whose columns are not as said is a broken row.
    """
    path = spec.folder()
    on_broken = partial(report.drop_line, spec.name or path.stem)
    for number, record in read_jsonl(path, on_broken):
        try:
            row = manifest_row(record, path.parent)
        except BrokenRowError as error:
            on_broken(f"{path}, line {number}", error)
            continue
        row["corpus"] = spec.name or record.get("corpus") or path.stem
        if spec.wants(row["task"], row["source_lang"], row["target_lang"]):
            yield row


def manifest_row(record: dict, folder: Path) -> dict:
    """The canonical row (except `corpus`) of a manifest record; `BrokenRowError` if its columns are not as said."""
    if not record.keys() <= KNOWN:
        unknown = next(name for name in record if name not in KNOWN)
        hint = did_you_mean(unknown, COLUMNS)
        raise BrokenRowError(f"unknown field {shortened(unknown)!r}.{hint} The fields are {', '.join(COLUMNS)}")
    if not record.keys() >= REQUIRED:
        missing = next(name for name in COLUMNS if name in REQUIRED and name not in record)
        raise BrokenRowError(f"no {missing!r}; every row needs {', '.join(sorted(REQUIRED))}")
    for name, value in record.items():
        if value is None and name not in REQUIRED:
            continue
        if name in NUMBERS:
            if not fits(value, float) or not math.isfinite(value):
                raise BrokenRowError(f"{name!r} must be a number of seconds", repr(value))
        elif not isinstance(value, str):
            raise BrokenRowError(f"{name!r} must be a string", repr(value))
    check_direction(record["task"], record["source_lang"], record["target_lang"])
    audio = record.get("audio")
    if record["task"] == "mt":
        if audio is not None or record.get("source_text") is None:
            raise BrokenRowError("an mt row has a 'source_text' and no 'audio'")
        languages = record["source_lang"], record["target_lang"]
        return text_row(record["id"], "", *languages, record["text"], record["source_text"])
    if not audio:
        raise BrokenRowError(f"an {record['task']} row needs 'audio'")
    speech = (record[name] for name in ("source_lang", "target_lang", "text"))
    span = (record.get("start"), record.get("end"))
    path = os.path.join(folder, audio)
    return speech_row(record["id"], "", *speech, record.get("source_text"), record.get("duration"), path, span)
