# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""NeMo's manifests, those of Canary included."""

import zlib
from collections.abc import Iterator
from functools import partial

from ...prompts_part import code_of
from ..addresses import without_suffix
from ..checking import DataReport
from ..corpus_spec import CorpusSpec, fits
from ..files import read_jsonl
from ..records import rows_of
from ..rows import BrokenRowError, language_code


TASKS = {"asr": "asr", "transcribe": "asr", "ast": "s2tt", "s2t_translation": "s2tt", "translate": "s2tt"}


def read_nemo(spec: CorpusSpec, report: DataReport) -> Iterator[dict]:
    """Asr and s2tt rows of a NeMo manifest: JSON lines with `audio_filepath`, `duration`, `offset` and `text`.

    As NeMo reads them, paths are relative to the manifest's folder, and with an `offset` the clip is the `duration` from
    there. Languages are `source_lang` (or `lang`) and `target_lang`, or the only ones of `languages` and
    `target_languages`; the task is `taskname` (asr, ast, s2t_translation), or what the languages say. A line of NeMo's speech
    language models, with `answer` in place of `text`, is asked with its `context` (or `question`). Other fields, such as
    `pnc`, are not read. Tarred manifests are not either: read their archives with the reader `dataset`.
    """
    path = spec.folder()
    on_broken = partial(report.drop_line, spec.corpus)
    lines = ((f"{path}, line {number}", number, line) for number, line in read_jsonl(path, on_broken))
    yield from rows_of(lines, spec, None, path.parent, on_broken, nemo_record)


def nemo_record(line: dict) -> dict:
    """A line's fields under their canonical names; `BrokenRowError` where one is not as it must be."""
    audio, offset, duration = (line.get(name) for name in ("audio_filepath", "offset", "duration"))
    if not isinstance(audio, str) or not audio:
        raise BrokenRowError("no 'audio_filepath'", repr(audio))
    for name, value in (("offset", offset), ("duration", duration)):
        if value is not None and not fits(value, float):
            raise BrokenRowError(f"{name!r} must be a number of seconds", repr(value))
    record = {"audio": audio, "duration": duration, "text": line.get("text", line.get("answer"))}
    record["id"] = without_suffix(audio)
    asked = line.get("context", line.get("question"))
    if "text" not in line and isinstance(asked, str) and asked.strip():  # a clip may be asked many things
        record |= {"prompt": asked, "id": f"{record['id']}-{zlib.crc32(asked.encode('utf-8', 'surrogatepass')):08x}"}
    if offset is not None:
        if duration is None:
            raise BrokenRowError("an 'offset' without a 'duration'", repr(offset))
        record |= {"start": float(offset), "end": offset + duration, "id": f"{record['id']}-{offset:g}"}
    for name, fields in (("source_lang", ("source_lang", "lang")), ("target_lang", ("target_lang",))):
        found = next((line[field] for field in fields if line.get(field)), None)
        if found is not None:
            record[name] = language_code(code_of(found)) if isinstance(found, str) else found
    named = line.get("taskname", line.get("task"))
    if named is None:
        is_translated = record.get("target_lang", record.get("source_lang")) != record.get("source_lang")
        named = "ast" if is_translated else "asr"
    if not isinstance(named, str) or named not in TASKS:
        raise BrokenRowError(f"'taskname' is none of {', '.join(TASKS)}", repr(named))
    return record | {"task": TASKS[named]}
