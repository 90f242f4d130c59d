# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""The JSON lines of FunASR and SLAM-LLM."""

import re
from collections.abc import Iterator
from functools import partial

from ..addresses import without_suffix
from ..checking import DataReport
from ..corpus_spec import CorpusSpec
from ..files import read_jsonl
from ..records import rows_of
from ..rows import BrokenRowError, CorpusError, language_code


_SPEECH = re.compile(r"<\|startofspeech\|>!?(.+?)<\|endofspeech\|>")  # `!!` before base64 is not a path
_LANGUAGE = re.compile(r"(?:<\|)?([a-z]{2,3})(?:\|>)?")


def read_funasr(spec: CorpusSpec, report: DataReport) -> Iterator[dict]:
    """Asr rows (or those of the one task of `tasks`) of FunASR's or SLAM-LLM's JSON lines: `key`, `source`, `target`.

    Also FunASR's conversations for Fun-ASR-Nano: `messages` whose user's turn holds the audio's path between
    `<|startofspeech|>!` and `<|endofspeech|>`. Paths are relative to the file's folder. The language is `text_language`
    ("<|zh|>"), or the only one of `languages`; translations are into the only one of `target_languages`. Lengths
    (`source_len`) are in frames of whatever made them, so the audio is measured.
    """
    if len(spec.tasks or ()) > 1:
        raise CorpusError(
            f"funasr at {spec.path}: a line does not say which task it is of; name one of {', '.join(spec.tasks)}, and give the "
            "file again for another"
        )
    path = spec.folder()
    on_broken = partial(report.drop_line, spec.corpus)
    (task,) = spec.tasks or ("asr",)
    lines = ((f"{path}, line {number}", number, line) for number, line in read_jsonl(path, on_broken))
    yield from rows_of(lines, spec, None, path.parent, on_broken, lambda line: funasr_record(line) | {"task": task})


def funasr_record(line: dict) -> dict:
    """A line's fields under their canonical names; `BrokenRowError` where one is not as it must be."""
    source, target = _of_messages(line) if "messages" in line else (line.get("source"), line.get("target"))
    if not isinstance(source, str) or not source:
        raise BrokenRowError("no 'source'", repr(source))
    key = line.get("key")
    record = {"audio": source, "text": target, "id": without_suffix(source)}
    if key is not None:
        record["id"] = str(key)
    if (language := line.get("text_language")) is None:
        return record
    if not isinstance(language, str) or not (named := _LANGUAGE.fullmatch(language)):
        raise BrokenRowError("'text_language' is no language such as <|zh|>", repr(language))
    return record | {"source_lang": language_code(named[1])}


def _of_messages(line: dict) -> tuple[str, object]:
    """The audio's path and the answer of a conversation of one question."""
    turns: dict[str, list] = {"user": [], "assistant": []}
    messages = line["messages"]
    for message in messages if isinstance(messages, list) else ():
        role = message.get("role") if isinstance(message, dict) else None
        if isinstance(role, str) and role in turns:
            turns[role].append(message.get("content"))
    if len(turns["user"]) != 1 or len(turns["assistant"]) != 1:
        raise BrokenRowError("'messages' are not one turn of the user and one of the assistant")
    found = _SPEECH.findall(turns["user"][0]) if isinstance(turns["user"][0], str) else []
    if len(found) != 1 or found[0].startswith("!"):
        raise BrokenRowError("the user's turn does not hold the path of one audio file", repr(turns["user"][0]))
    return found[0], turns["assistant"][0]
