# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""JSONL manifests of canonical rows."""

import math
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from ...prompts_part import TEXT_TASKS, code_of, task_of
from ...recipes.suggestions import did_you_mean
from ..addresses import joined
from ..checking import DataReport
from ..corpus_spec import CorpusSpec, fits
from ..files import read_jsonl
from ..records import clip_id, column_value
from ..rows import (
    COLUMNS,
    FOR_PEOPLE,
    QUESTION,
    BrokenRowError,
    CorpusError,
    check_direction,
    question_of,
    shortened,
    speech_row,
    text_row,
)


REQUIRED = frozenset({"id", "task", "source_lang", "target_lang", "text"})  # when the record is completed
NUMBERS = frozenset({"duration", "start", "end"})
KNOWN = frozenset({*COLUMNS, *FOR_PEOPLE})
FIELDS = (*COLUMNS, "language", "translation")  # as they may stand in a file


def read_manifest(
    spec: CorpusSpec,
    report: DataReport,
    *,
    language: str | None = None,
    target_language: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> Iterator[dict]:
    """Rows of a JSONL manifest in the canonical columns; `audio` is a path relative to the manifest's folder.

    `language` is that of rows that name none, and `target_language` what their translations are in; without them, the
    only one of `languages` and of `target_languages`. What follows from the rest may be left out (see [`completed`]):
    `{"audio": "a.wav", "text": "..."}` is a row. A missing `duration` is measured. `speaker` and `license` may be there. A
    line that is no JSON object or whose columns are not as said is a broken row.

    `columns` are for lines with names of their own, canonical column -> theirs (`audio: wav`, `text: texts.fr` for a key of
    a mapping): what else such lines hold is not read.
    """
    path = spec.folder()
    for name in columns or ():
        if name not in FIELDS:
            raise CorpusError(f"manifest at {path}: 'columns' maps {name!r}, which is none of {', '.join(FIELDS)}")
        if not isinstance(columns[name], str):
            raise CorpusError(f"manifest at {path}: 'columns' maps {name!r} to {columns[name]!r}; give a name")
    on_broken = partial(report.drop_line, spec.name or path.stem)
    defaults = [
        code_of(one) if one else several[0] if several and len(several) == 1 else None
        for one, several in ((language, spec.languages), (target_language, spec.target_languages))
    ]
    folder, name = path.parent, path.stem  # of each row anew they would take a fifth of all time
    for number, record in read_jsonl(path, on_broken):
        try:
            record = renamed(record, columns) if columns else record
            row = manifest_row(completed(record, number, *defaults), folder)
        except BrokenRowError as error:
            on_broken(f"{path}, line {number}", error)
            continue
        row["corpus"] = spec.name or record.get("corpus") or name
        if spec.wants(row["task"], row["source_lang"], row["target_lang"]):
            yield row


def renamed(record: dict, columns: Mapping[str, str]) -> dict:
    """What a record holds under canonical names, where some of them stand for columns of other names."""
    read_as_others = {*columns.values()} & {*QUESTION}  # what a recipe reads as the source is not asked again
    found = {name: record[name] for name in FIELDS if name in record and name not in {*columns, *read_as_others}}
    values = {name: column_value(record, column) for name, column in columns.items()}
    return found | {name: value for name, value in values.items() if value is not None}


def completed(record: dict, number: int, language: str | None = None, target_language: str | None = None) -> dict:
    """A record with what follows from the rest of it.

    Whisper's words are understood: `language` for `source_lang`, names of languages, `transcribe` and `translate` (into
    English). A `translation`, or a `target_lang` that is not the language spoken, makes a row with audio s2tt, one without
    audio mt, and otherwise it is asr. The `id` is the audio's path.

    Args:
        record: of the manifest; not changed.
        number: its line, which names a row without audio.
        language, target_language: of a record that has none.
    """
    row = {name: value for name, value in record.items() if value is not None or name == "text"}
    if "language" in row:
        if row.setdefault("source_lang", row["language"]) != row.pop("language"):
            raise BrokenRowError("'language' and 'source_lang' name two languages; leave one of them out")
    is_english = row.get("task") == "translate" and target_language is None
    if isinstance(row.get("task"), str):
        row["task"] = task_of(row["task"])
    for name in ("source_lang", "target_lang"):
        if name in row:
            row[name] = code_of(row[name])
    if language is not None:
        row.setdefault("source_lang", language)
    if "translation" in row:
        if "source_text" in row:
            raise BrokenRowError("with a 'translation', 'text' is the transcript; leave 'source_text' out")
        if row.get("task") in ("asr", "text"):  # the translation would be trained as what was said
            raise BrokenRowError(
                "a row with a 'translation' is s2tt or mt; leave 'translation' or 'task' out", row["task"]
            )
        row |= {"text": row.pop("translation"), **({"source_text": row["text"]} if "text" in row else {})}
        row.setdefault("task", "s2tt" if "audio" in row else "mt")
    if "task" not in row:
        is_translated = row.get("target_lang", row.get("source_lang")) != row.get("source_lang")
        row["task"] = "mt" if "audio" not in row else "s2tt" if is_translated else "asr"
    target = row.get("source_lang") if row["task"] in ("asr", "text") else "en" if is_english else target_language
    if target is not None:
        row.setdefault("target_lang", target)
    if "id" not in row:
        is_clip = isinstance(row.get("audio"), str)
        row["id"] = clip_id(row["audio"], row.get("start"), row.get("end")) if is_clip else f"line-{number}"
    return row


def manifest_row(record: dict, folder: Path) -> dict:
    """The canonical row (except `corpus`) of a manifest record; `BrokenRowError` if its columns are not as said."""
    if not record.keys() <= KNOWN:
        unknown = next(name for name in record if name not in KNOWN)
        hint = did_you_mean(unknown, COLUMNS)
        raise BrokenRowError(f"unknown field {shortened(unknown)!r}.{hint} The fields are {', '.join(COLUMNS)}")
    if not record.keys() >= REQUIRED:
        missing = next(name for name in COLUMNS if name in REQUIRED and name not in record)
        setting = {"source_lang": "language", "target_lang": "target_language"}.get(missing)
        hint = f", or the corpus in the recipe a `{setting}`, such as fr" if setting else ""
        raise BrokenRowError(f"no {missing!r}; give the row one{hint}")
    for name, value in record.items():
        if isinstance(value, str) and name not in NUMBERS:
            continue
        if name in QUESTION or (value is None and name not in REQUIRED):
            continue
        if name not in NUMBERS:
            raise BrokenRowError(f"{name!r} must be a string", repr(value))
        if not fits(value, float) or not math.isfinite(value):
            raise BrokenRowError(f"{name!r} must be a number of seconds", repr(value))
    check_direction(record["task"], record["source_lang"], record["target_lang"])
    question = question_of(*map(record.get, QUESTION))
    audio = record.get("audio")
    if record["task"] in TEXT_TASKS:
        if audio is not None or record.get("source_text") is None:
            raise BrokenRowError(
                f"{'an mt' if record['task'] == 'mt' else 'a text'} row has a 'source_text' and no 'audio'"
            )
        languages = record["source_lang"], record["target_lang"]
        return text_row(record["id"], "", *languages, record["text"], record["source_text"], record["task"], question)
    if not audio:
        raise BrokenRowError(f"an {record['task']} row needs 'audio'")
    speech = (record["source_lang"], record["target_lang"], record["text"])
    span = (record.get("start"), record.get("end"))
    path = joined(folder, audio)
    return speech_row(
        record["id"], "", *speech, record.get("source_text"), record.get("duration"), path, span, question
    )
