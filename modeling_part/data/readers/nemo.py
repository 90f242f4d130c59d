# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""NeMo's manifests, those of Canary included."""

import zlib
from collections.abc import Iterator, Mapping
from functools import partial

from ...prompts_part import code_of
from ..addresses import joined, without_suffix
from ..checking import DataReport, FolderListings
from ..corpus_spec import CorpusSpec, fits
from ..files import read_jsonl
from ..records import rows_of
from ..rows import BrokenRowError, language_code


TASK_NAMED = {"asr": "asr", "transcribe": "asr", "ast": "s2tt", "s2t_translation": "s2tt", "translate": "s2tt"}
NO_ANSWER = (None, "na")  # "na" stands in Canary's manifests


def read_nemo(spec: CorpusSpec, report: DataReport) -> Iterator[dict]:
    """Asr and s2tt rows of a NeMo manifest: JSON lines with `audio_filepath`, `duration`, `offset` and `text`.

    As NeMo reads them, paths are relative to the manifest's folder, and with an `offset` the clip is the `duration` from
    there. Languages are `source_lang` (or `lang`) and `target_lang`, or the only ones of `languages` and
    `target_languages`; the task is `taskname` (asr, ast, s2t_translation), or what the languages say. A line of NeMo's speech
    language models, with `answer` in place of `text`, is asked with its `context` (or `question`); of a translation with
    both, `text` is the transcript. Other fields, such as `pnc`, are not read. The archives of a tarred manifest must be
    unpacked beside it.
    """
    path = spec.folder()
    on_broken = partial(report.drop_line, spec.corpus)
    listings = FolderListings()

    def converted(line: dict) -> dict:
        record = nemo_record(line)
        if fits(line.get("shard_id"), float) and line["shard_id"] >= 0:
            if listings.find(joined(path.parent, record["audio"])) is None:
                where = f"{record['audio']} of audio_{line['shard_id']}.tar"
                raise BrokenRowError("a tarred manifest's audio is not there; unpack audio_N.tar beside it", where)
        return record

    lines = ((f"{path}, line {number}", number, line) for number, line in read_jsonl(path, on_broken))
    yield from rows_of(lines, spec, None, path.parent, on_broken, converted)


def nemo_record(line: dict) -> dict:
    """A line's fields under their canonical names; `BrokenRowError` where one is not as it must be."""
    audio, offset, duration = (line.get(name) for name in ("audio_filepath", "offset", "duration"))
    if not isinstance(audio, str) or not audio:
        raise BrokenRowError("no 'audio_filepath'", repr(audio))
    for name, value in (("offset", offset), ("duration", duration)):
        if value is not None and not fits(value, float):
            raise BrokenRowError(f"{name!r} must be a number of seconds", repr(value))
    languages = languages_of(line)
    task = named_task(line, languages)
    text, source_text, is_answer = texts_of(line, task)
    record = {"audio": audio, "duration": duration, "task": task, "text": text, "source_text": source_text}
    record |= {"id": without_suffix(audio)}
    asked = line.get("context", line.get("question"))
    if is_answer and isinstance(asked, str) and asked.strip():  # a clip may be asked many things
        record |= {"prompt": asked, "id": f"{record['id']}-{zlib.crc32(asked.encode('utf-8', 'surrogatepass')):08x}"}
    if offset is not None:
        if duration is None:
            raise BrokenRowError("an 'offset' without a 'duration'", repr(offset))
        record |= {"start": float(offset), "end": offset + duration, "id": f"{record['id']}-{offset:g}"}
    return record | {name: language_code(code) if isinstance(code, str) else code for name, code in languages.items()}


def languages_of(line: dict) -> dict[str, object]:
    """`source_lang` and `target_lang` of a line, as far as it names them, as they are written or the codes of names."""
    fields = {"source_lang": ("source_lang", "lang"), "target_lang": ("target_lang",)}
    found = {name: next((line[one] for one in several if line.get(one)), None) for name, several in fields.items()}
    return {name: code_of(value) for name, value in found.items() if value is not None}


def named_task(line: dict, languages: Mapping[str, object]) -> str:
    """The task that a line names, or that follows from its languages: pt-BR is not pt-PT, though both are read as pt."""
    named = line.get("taskname", line.get("task"))
    if named is None:
        source, target = (
            str(languages.get(name, "")).replace("_", "-").casefold() for name in ("source_lang", "target_lang")
        )
        named = "ast" if target and source != target else "asr"
    if not isinstance(named, str) or named not in TASK_NAMED:
        raise BrokenRowError(f"'taskname' is none of {', '.join(TASK_NAMED)}", repr(named))
    return TASK_NAMED[named]


def texts_of(line: dict, task: str) -> tuple[object, object, bool]:
    """The text and, of a translation that has both, the transcript; and whether the text is the line's `answer`."""
    text, answer = line.get("text"), line.get("answer")
    # A translation whose answer is empty has none: its text would be the transcript.
    if answer in NO_ANSWER or text == answer or (answer == "" and task == "asr"):
        return text, None, False
    if text in (None, ""):
        return answer, None, True
    if task == "asr":
        raise BrokenRowError("'text' and 'answer' differ; leave one of them out", repr([text, answer]))
    return answer, text, True
