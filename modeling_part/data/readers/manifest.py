# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""JSONL manifests of canonical rows."""

from collections.abc import Iterator
from pathlib import Path

from ..checking import DataReport
from ..corpus_spec import CorpusSpec
from ..files import read_jsonl
from ..rows import COLUMNS, FOR_PEOPLE, CorpusError, check_direction, speech_row, text_row


REQUIRED = ("id", "task", "source_lang", "target_lang", "text")
NUMBERS = ("duration", "start", "end")


def read_manifest(spec: CorpusSpec, report: DataReport) -> Iterator[dict]:
    """Rows of a JSONL manifest in the canonical columns; `audio` is a path relative to the manifest's folder.

    Columns that do not apply are left out. A missing `duration` is measured. `speaker` and `license` may be there.

    Raises:
        CorpusError: at the first line that is no JSON object or whose columns are not as said, naming the line.
    """
    path = spec.folder()
    for number, record in read_jsonl(path):
        row = manifest_row(record, path.parent, f"{path}, line {number}")
        row["corpus"] = spec.name or record.get("corpus") or path.stem
        if spec.wants(row["task"], row["source_lang"], row["target_lang"]):
            yield row


def manifest_row(record: dict, folder: Path, where: str) -> dict:
    """The canonical row (except `corpus`) of one manifest record; `CorpusError` if its columns are not as said."""
    unknown = [name for name in record if name not in COLUMNS and name not in FOR_PEOPLE]
    missing = [name for name in REQUIRED if name not in record]
    if unknown:
        raise CorpusError(f"{where}: unknown field {unknown[0]!r}; the fields are {', '.join(COLUMNS)}")
    if missing:
        raise CorpusError(f"{where}: no {missing[0]!r}; every row needs {', '.join(REQUIRED)}")
    for name, value in record.items():
        kind, described = (float | int, "a number of seconds") if name in NUMBERS else (str, "a string")
        if not isinstance(value, kind) and not (value is None and name not in REQUIRED):
            raise CorpusError(f"{where}: {name!r} must be {described}, not {value!r}")
    check_direction(record["task"], record["source_lang"], record["target_lang"], where)
    audio = record.get("audio")
    if record["task"] == "mt":
        if audio is not None or record.get("source_text") is None:
            raise CorpusError(f"{where}: an mt row has a 'source_text' and no 'audio'")
        languages = record["source_lang"], record["target_lang"]
        return text_row(record["id"], "", *languages, record["text"], record["source_text"])
    if audio is None:
        raise CorpusError(f"{where}: an {record['task']} row needs 'audio'")
    speech = (record[name] for name in ("source_lang", "target_lang", "text"))
    span = (record.get("start"), record.get("end"))
    return speech_row(
        record["id"], "", *speech, record.get("source_text"), record.get("duration"), folder / audio, span
    )
