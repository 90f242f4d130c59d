# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""WenetSpeech: one JSON and long recordings."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from ..checking import DataReport
from ..corpus_spec import CorpusSpec
from ..rows import CorpusError, speech_row


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
    index = root / "WenetSpeech.json" if root.is_dir() else root
    if not index.exists():
        raise CorpusError(f"wenetspeech: no WenetSpeech.json in {root}")
    for audio in json_array(index, "audios"):
        path = index.parent / audio["path"]
        for segment in audio["segments"]:
            if subset not in segment["subsets"]:
                continue
            begin, end = segment["begin_time"], segment["end_time"]
            if end > audio["duration"] + 0.5:
                report.drop(spec.corpus, segment["sid"], "segment ends after its audio", broken=True)
            elif min_confidence is not None and segment["confidence"] < min_confidence:
                report.drop(spec.corpus, segment["sid"], f"confidence under {min_confidence:g}")
            else:
                speech = ("zh", "zh", segment["text"], segment["text"], end - begin)
                yield speech_row(segment["sid"], spec.corpus, *speech, path, span=(begin, end))


def json_array(path: Path, key: str, block: int = 1 << 20) -> Iterator[dict]:
    """The objects of the array under `key` of a JSON file, one by one: WenetSpeech's index has gigabytes."""
    decoder = json.JSONDecoder()
    with path.open(encoding="utf-8") as file:
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
            yield value
