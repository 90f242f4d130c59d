# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""WenetSpeech: one JSON and long recordings."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..checking import DataReport
from ..corpus_spec import CorpusSpec, described, fits
from ..rows import BrokenRowError, CorpusError, shortened, speech_row


SUBSETS = ("S", "M", "L", "W", "DEV", "TEST_NET", "TEST_MEETING")


def read_wenetspeech(
    spec: CorpusSpec, report: DataReport, *, subset: str | None = None, min_confidence: float | None = None
) -> Iterator[dict]:
    """Asr rows of WenetSpeech: segments, by begin and end, of the long opus files that `WenetSpeech.json` lists.

    Args:
        spec: the entry of the recipe.
        report: counts the rows that are dropped.
        subset: S, M, L, W, DEV, TEST_NET or TEST_MEETING. Default: L for train, DEV, TEST_NET.
        min_confidence: leaves out doubtful segments. Default: all stay.
    """
    if not spec.wants("asr", "zh", "zh"):
        raise CorpusError(f"wenetspeech: it has asr in zh only, not tasks {spec.tasks}, languages {spec.languages}")
    root = spec.folder()
    subset = subset or {"train": "L", "dev": "DEV", "test": "TEST_NET"}[spec.split]
    if subset not in SUBSETS:
        raise CorpusError(f"wenetspeech: subset {subset!r} is none of {', '.join(SUBSETS)}")
    index = root / "WenetSpeech.json" if root.is_dir() else root
    if not index.exists():
        raise CorpusError(f"wenetspeech: no WenetSpeech.json in {root}")
    for audio in json_array(index, "audios"):
        place = f"{index}, audio {shortened(audio.get('aid'))}"
        if not isinstance(segments := audio.get("segments"), list):
            report.drop_line(spec.corpus, place, BrokenRowError("an audio without 'segments'"))
            continue
        for segment in segments:
            try:
                if subset not in entry(segment, "subsets", list):
                    continue
                row_id, begin, end = segment_times(audio, segment)
                confidence = entry(segment, "confidence", float) if min_confidence is not None else None
                path, text = entry(audio, "path", str), entry(segment, "text", str)
            except BrokenRowError as error:
                report.drop_line(spec.corpus, place, error)
                continue
            if end > audio["duration"] + 0.5:
                report.drop(spec.corpus, row_id, "segment ends after its audio", broken=True)
            elif confidence is not None and confidence < min_confidence:
                report.drop(spec.corpus, row_id, f"confidence under {min_confidence:g}")
            else:
                speech = ("zh", "zh", text, text, end - begin, index.parent / path)
                yield speech_row(row_id, spec.corpus, *speech, span=(begin, end))


def segment_times(audio: dict, segment: dict) -> tuple[str, float, float]:
    """Id, begin and end of a segment, whose audio has a duration; `BrokenRowError` if one is missing."""
    entry(audio, "duration", float)
    return entry(segment, "sid", str), entry(segment, "begin_time", float), entry(segment, "end_time", float)


def entry(record: object, name: str, kind: type) -> Any:
    """A value of the index; `BrokenRowError` if it is missing or of another type."""
    if not isinstance(record, dict) or not fits(record.get(name), kind):
        value = record.get(name) if isinstance(record, dict) else record
        raise BrokenRowError(f"{name!r} must be {described(kind)}", repr(value))
    return record[name]


def json_array(path: Path, key: str, block: int = 1 << 20) -> Iterator[dict]:
    """The objects of the array under `key` of a JSON file, one by one: WenetSpeech's index has gigabytes.

    Raises:
        CorpusError: the file is not UTF-8, has no such array, or breaks inside it.
    """
    decoder = json.JSONDecoder()
    try:
        with path.open(encoding="utf-8-sig") as file:
            buffer = file.read(block)
            while not (start := re.search(rf'"{key}"\s*:\s*\[', buffer)):
                more = file.read(block)
                if not more:
                    raise CorpusError(f"{path}: no array {key!r} in it")
                buffer = buffer[-len(key) - 10 :] + more
            position = start.end()
            while True:
                position = re.compile(r"[\s,]*").match(buffer, position).end()
                try:
                    value, position = decoder.raw_decode(buffer, position)
                except json.JSONDecodeError as error:
                    if buffer.startswith("]", position):
                        return
                    more = file.read(max(block, len(buffer)))
                    if not more:
                        raise CorpusError(f"{path}: it ends or breaks inside the array {key!r} ({error})") from error
                    buffer, position = buffer[position:] + more, 0
                    continue
                if not isinstance(value, dict):
                    raise CorpusError(f"{path}: the array {key!r} holds {shortened(value)}, which is no object")
                yield value
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8 ({error.reason} near byte {error.start}); convert it") from error
