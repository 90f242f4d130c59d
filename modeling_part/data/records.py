# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""From records with columns of their own, of datasets or text files, to canonical rows.

A recipe says with `columns` under which name a record has a canonical column. A name with dots goes into mappings:
`columns: {text: translation.sv, source_text: translation.en}` reads `{"translation": {"en": "Hello", "sv": "Hej"}}`.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..prompts_part import TEXT_TASKS
from .addresses import is_address, joined, without_suffix
from .corpus_spec import CorpusSpec, fits
from .files import OnBroken, handle
from .rows import COLUMNS, QUESTION, BrokenRowError, CorpusError, check_direction, question_of, speech_row, text_row


if TYPE_CHECKING:
    import pyarrow


_OF_CACHE = re.compile(r"/.*/datasets--[^/]+/snapshots/[0-9a-f]{40}/")
_NUMBER = re.compile(r"\d+(\.\d+)?")
TEXTS = ("id", "task", "source_lang", "target_lang", "text", "source_text")


def rows_of(
    records: Iterable[tuple[str, int | None, dict]],
    spec: CorpusSpec,
    columns: Mapping[str, str] | None,
    folder: Path | None,
    on_broken: OnBroken,
    converted: Callable[[dict], dict] = dict,
) -> Iterator[dict]:
    """The canonical rows of records, each given with the place where it stands and its number (None in streams).

    `converted` gives a record of another format as one of these; `BrokenRowError` where it is not as it must be.
    """
    names: set[int] = set()
    for where, number, record in records:
        try:
            rows = list(record_rows(converted(record), spec, columns, folder, number, names))
        except BrokenRowError as error:
            handle(on_broken, where, error)
        else:
            yield from rows


def records_in(table: "pyarrow.Table") -> list[dict]:
    """The records of a table of `datasets`, which writes values of several types, such as text and lists, as JSON."""
    records = table.to_pylist()
    for field in table.schema:
        if _holds_json(field.type):
            for record in records:
                record[field.name] = _without_json(record[field.name], field.type)
    return records


def _holds_json(kind: "pyarrow.DataType") -> bool:
    import pyarrow

    inner = (kind.field(number).type for number in range(kind.num_fields))
    return isinstance(kind, pyarrow.JsonType) or any(map(_holds_json, inner))


def _without_json(value: object, kind: "pyarrow.DataType") -> object:
    import pyarrow

    if value is None:
        return None
    if isinstance(kind, pyarrow.JsonType):
        return json.loads(value)
    if isinstance(value, list):
        return [_without_json(one, kind.field(0).type) for one in value]
    if isinstance(value, dict):
        return {name: _without_json(one, kind.field(name).type) for name, one in value.items()}
    return value


def record_rows(
    record: dict,
    spec: CorpusSpec,
    columns: Mapping[str, str] | None = None,
    folder: Path | None = None,
    number: int | None = None,
    names_before: set[int] | None = None,
) -> Iterator[dict]:
    """The canonical rows of one record of a dataset or of one text pair; `BrokenRowError` if it cannot be one.

    `names_before` are hashes of the names that sounds of earlier records had, see [`record_id`]; this one's is added.

    Without a task column the record gives a row for each of the spec's tasks: `source_text` is what is spoken or to be
    translated and `text` the translation; with asr alone, `text` may be the transcript. For the task text they are what is
    asked and the answer, or the column `messages` holds both.
    """
    names = {name: name for name in COLUMNS} | dict(columns or {})
    value = {name: column_value(record, column) for name, column in names.items()}
    if "messages" in names:
        value["source_text"], value["text"] = first_exchange(value.pop("messages"))
    for name in TEXTS:
        if isinstance(value[name], (Mapping, list, bytes)):
            raise BrokenRowError(f"{name!r} (column {names[name]!r}) is no text but {kind_of(value[name])}")
    for name in ("duration", "start", "end"):  # tables hold texts
        if isinstance(value[name], str) and _NUMBER.fullmatch(value[name]):
            value[name] = float(value[name])
    row_id = str(value["id"]) if value["id"] is not None else record_id(value, spec, number, names_before)
    question = question_of(*(_own_words(name, value, columns or {}) for name in QUESTION))
    # 0, the number of a label, is not nothing: it would pass for the language that the recipe names.
    for name in ("source_lang", "target_lang", "task"):
        value[name] = None if value[name] == "" else value[name]
    source_lang = only(spec, "languages", "source_lang") if value["source_lang"] is None else value["source_lang"]
    for task in spec.tasks or () if value["task"] is None else (value["task"],):
        if task in ("asr", "text"):
            target_lang = source_lang
        else:
            target_lang = value["target_lang"]
            target_lang = only(spec, "target_languages", "target_lang") if target_lang is None else target_lang
        check_direction(task, source_lang, target_lang)
        if not spec.wants(task, source_lang, target_lang):
            continue
        text = _transcript(value, spec, columns or {}) if task == "asr" and not value["task"] else value["text"]
        if task in TEXT_TASKS:
            yield text_row(row_id, spec.corpus, source_lang, target_lang, text, value["source_text"], task, question)
            continue
        source_text = text if task == "asr" else value["source_text"]
        speech = (source_lang, target_lang, text, source_text, value["duration"])
        audio = audio_source(value["audio"], names["audio"], folder)
        if spec.reader == "dataset" and folder is None and isinstance(audio, str):
            _check_whole(audio)
        yield speech_row(row_id, spec.corpus, *speech, audio, span=(value["start"], value["end"]), question=question)


def _own_words(name: str, value: Mapping, columns: Mapping[str, str]) -> object:
    """A record's own prompt or context: nothing where it is empty, or where the recipe reads that column as another."""
    if name not in columns and ("messages" in columns or name in columns.values()):
        return None
    found = value[name]
    return None if isinstance(found, str) and not found.strip() else found


def _transcript(value: Mapping, spec: CorpusSpec, columns: Mapping[str, str]) -> object:
    """What is said. `text` is it where nothing else can be: with translations it is one, also of rows without transcript."""
    if value["source_text"] is not None or "source_text" in columns or set(spec.tasks or ()) & {"s2tt", "mt"}:
        return value["source_text"]
    return value["text"]


def column_value(record: Mapping, column: str) -> object:
    """The value of a column, "translation.sv" of the key `sv` of the mapping `translation`; None where it is empty.

    A column whose own name has dots comes first.

    Raises:
        BrokenRowError: a name leads into a list, into a value that is no mapping, or to a key that is not there.
    """
    if column in record or "." not in column:
        return record.get(column)
    value, path = record, column.split(".")
    for depth, key in enumerate(path):
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise BrokenRowError(f"{'.'.join(path[:depth])!r} is {kind_of(value)}, of which {key!r} is no part")
        if key not in value:
            inside = f"in {'.'.join(path[:depth])!r}, which has" if depth else "in the record, which has"
            raise BrokenRowError(f"no {key!r} {inside} {', '.join(map(str, value)) or 'no keys'}")
        value = value[key]
    return value


def first_exchange(messages: object) -> tuple[str, str]:
    """What is asked first in a conversation, after what the system says, and the answer.

    Later turns are left out: they answer what is no longer there.

    Args:
        messages: `[{"role": "user", "content": ...}, {"role": "assistant", "content": ...}, ...]`, maybe with a first one of
            the role `system`; or with `from` (human, gpt) and `value`.

    Raises:
        BrokenRowError: it is no such list, or does not begin so.
    """
    turns = []
    for message in messages if isinstance(messages, list) else ():
        message = message if isinstance(message, Mapping) else {}
        role = message.get("role") or message.get("from")
        content = message.get("content") if message.get("content") is not None else message.get("value")
        turns.append(({"human": "user", "gpt": "assistant"}.get(str(role), role), content))
    system = [content for role, content in turns[:1] if role == "system"]
    turns = turns[len(system) :]
    if [role for role, _ in turns[:2]] != ["user", "assistant"]:
        found = ", ".join(str(role) for role, _ in turns[:3]) or kind_of(messages)
        raise BrokenRowError("'messages' do not begin with a turn of the user and one of the assistant", found)
    texts = [*system, turns[0][1], turns[1][1]]
    if not all(isinstance(text, str) for text in texts):
        raise BrokenRowError("a turn of 'messages' is no text", repr(texts))
    return "\n\n".join(texts[:-1]), texts[-1]


def kind_of(value: object) -> str:
    """What a value is, in words."""
    names = {list: "a list", dict: "a mapping", bytes: "bytes", str: "text", bool: "true or false"}
    return names.get(type(value), "a number" if isinstance(value, (int, float)) else type(value).__name__)


def only(spec: CorpusSpec, setting: str, column: str) -> str:
    """The one language that `spec` names under `setting`, for rows without one; `BrokenRowError` if it does not."""
    languages = getattr(spec, setting)
    if not languages or len(languages) != 1:
        raise BrokenRowError(f"no {column!r}; name one language under {setting!r}, or give the row one")
    return languages[0]


def record_id(value: dict, spec: CorpusSpec, number: int | None, names_before: set[int] | None = None) -> str:
    """An id for a record without one: the audio's path and span, the number in its file, or a hash of it in streams.

    Bytes are often named alike in many folders or archives, so a name that stood before gets the record's number.
    """
    audio = value["audio"]
    path, data = (audio.get("path"), audio.get("bytes")) if isinstance(audio, dict) else (audio, None)
    if isinstance(path, str) and (path or data is None):  # bytes without a path have "" in some datasets
        name = clip_id(inside(path, spec), value["start"], value["end"])
        if data is None or number is None or names_before is None:
            return name
        known = len(names_before)
        names_before.add(hash(name))
        return name if len(names_before) > known else f"{name}-{number}"
    if number is not None:
        return f"{file_name(spec)}-{number}"
    content = f"{value['source_text']}\t{value['text']}\t{audio if not isinstance(audio, dict) else data!r}"
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def inside(path: str, spec: CorpusSpec) -> str:
    """A path within the corpus, wherever that lies: the cache of the Hub's files has another name on each machine."""
    if os.path.isabs(path):  # else nothing stands before it, and no row need ask for the working folder
        path = path.removeprefix(os.path.join(os.path.abspath(os.path.expanduser(spec.path)), ""))
    return _OF_CACHE.sub("", path)


def clip_id(path: str, start: object = None, end: object = None) -> str:
    """The id of a file, or of a part of it: its path without the ending, and the seconds."""
    return "-".join([without_suffix(path), *(f"{one:g}" for one in (start, end) if fits(one, float))])


def file_name(spec: CorpusSpec) -> str:
    """What tells the records of an entry from those of others: its file and folder, wherever these lie, and what of it."""
    place = "/".join(os.path.splitext(spec.path)[0].split("/")[-2:])
    parts = (
        spec.settings.get("config"),
        spec.settings.get("data_files"),
        spec.split if spec.split != "train" else None,
    )
    return "/".join([place, *(str(part) for part in parts if part)])


def audio_source(audio: object, column: str, folder: Path | None) -> str | bytes | None:
    """The bytes or the path of what an audio column holds: a path (relative to `folder`), bytes, or both.

    Raises:
        BrokenRowError: it holds something else, such as a list of samples.
    """
    if isinstance(audio, Mapping) and not {"bytes", "path"} & audio.keys():
        raise _no_audio(column, f"a mapping of {', '.join(map(str, audio))}")
    if isinstance(audio, Mapping) and audio.get("bytes") is None and audio.get("array") is not None:
        # Not those of the file, where somebody trimmed or cleaned them.
        raise _no_audio(column, "samples (`array`), which casting the column to `datasets.Audio()` makes a file of")
    if isinstance(audio, Mapping):
        audio = audio["bytes"] if audio.get("bytes") is not None else audio.get("path")
    if audio is not None and not isinstance(audio, (str, bytes)):
        raise _no_audio(column, kind_of(audio))
    if isinstance(audio, str) and folder is not None:
        return joined(folder, audio)
    return audio


def _check_whole(path: str) -> None:
    """Raise `BrokenRowError` for a path within a dataset that is not here: a file of that name here is another one."""
    if not os.path.isabs(path) and not is_address(path):
        raise BrokenRowError(
            "'audio' is a file of the dataset's own, which is not fetched; download all of it and give that folder as `path`",
            path,
        )


def _no_audio(column: str, kind: str) -> BrokenRowError:
    return BrokenRowError(
        f"'audio' (column {column!r}) holds {kind}; it must be a file's path or its bytes, "
        "alone or as a mapping of 'path' and 'bytes'"
    )


def check_columns(spec: CorpusSpec, columns: Mapping[str, str] | None, available: Mapping[str, object]) -> None:
    """Raise `CorpusError` if the recipe maps a column that is not there, or leaves open the text, task, audio or a language.

    Args:
        spec: the entry of the recipe.
        columns: canonical column -> column of the records.
        available: column of the records -> its feature (of `datasets`), or None where that is not known.
    """
    columns = dict(columns or {})
    where = f"{spec.reader} at {spec.path}"
    there = ", ".join(available)
    for name, column in columns.items():
        if name not in (*COLUMNS, "messages"):
            raise CorpusError(f"{where}: 'columns' maps {name!r}, which is none of {', '.join(COLUMNS)}, messages")
        if not isinstance(column, str):
            raise CorpusError(f"{where}: 'columns' maps {name!r} to {column!r}; it must be the name of a column")
        if column not in available and column.split(".")[0] not in available:
            raise CorpusError(f"{where}: no column {column!r}; there are {there}")
        if column not in available:
            _check_nested(column, available, where)
    top = {name: columns.get(name, name) for name in COLUMNS}
    present = {name for name, column in top.items() if column in available} | columns.keys()
    if not {"text", "source_text", "messages"} & present:
        raise CorpusError(
            f"{where}: no column 'text'; say under 'columns' which of {there} it is, "
            "for example columns: {text: sentence}"
        )
    if not spec.tasks and "task" not in present:
        raise CorpusError(f"{where}: no column gives the task; name it, for example tasks: [asr]")
    if set(spec.tasks or ()) - {*TEXT_TASKS} and not {"audio", "task"} & present:
        sounding = [name for name, feature in available.items() if type(feature).__name__ == "Audio"]
        hint = f"columns: {{audio: {sounding[0]}}}" if sounding else f"which of {there} it is"
        raise CorpusError(f"{where}: no column 'audio' for {', '.join(spec.tasks)}; say under 'columns' {hint}")
    needed = {"source_lang": "languages"}
    if "task" not in present and {"s2tt", "mt"} & set(spec.tasks or ()):
        needed["target_lang"] = "target_languages"
    for name, setting in needed.items():
        if name not in present and len(getattr(spec, setting) or ()) != 1:
            raise CorpusError(
                f"{where}: no column gives {name!r}; name one language under {setting!r}, or the column under 'columns'"
            )


def _check_nested(column: str, available: Mapping[str, object], where: str) -> None:
    """Raise `CorpusError` if a name with dots does not lead to a value of the known features."""
    path = column.split(".")
    features: object = available
    for depth, key in enumerate(path):
        before = ".".join(path[:depth])
        if type(features).__name__ == "Translation":
            features = dict.fromkeys(features.languages, "text")
        elif type(features).__name__ == "Audio":
            features = dict.fromkeys(("bytes", "path"), "a file")
        if depth and (features is None or type(features).__name__ == "Json"):  # not known before the records are read
            return
        if not isinstance(features, Mapping):
            kind = "a list" if "List" in type(features).__name__ or isinstance(features, list) else "no mapping"
            raise CorpusError(f"{where}: no column {column!r}: {before!r} is {kind}, of which {key!r} is no part")
        if key not in features:
            raise CorpusError(f"{where}: no column {column!r}: {before!r} has {', '.join(map(str, features))}")
        features = features[key]
