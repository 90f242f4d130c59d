# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""What the pipeline gives of a recording, as subtitles (SRT, WebVTT), a table (TSV), JSON or plain text."""

import json
import math
from collections.abc import Mapping
from typing import NamedTuple


# A subtitle ends after a sentence, before a pause (seconds), or where it would grow past two lines or too long a time.
PAUSE, LONGEST, CHARACTERS = 0.8, 7.0, 84
SENTENCE_ENDS = (".", "!", "?", "…", "。", "！", "？", "।", "؟")


class Cue(NamedTuple):
    """A subtitle: seconds and text."""

    start: float
    end: float
    text: str


def cues(answer: Mapping) -> list[Cue]:
    """The chunks of an answer as subtitles: windows as they are, words joined to sentences.

    Args:
        answer: what `PARTPipeline` returns of a recording.
    """
    found: list[Cue] = []
    for number, chunk in enumerate(answer["chunks"]):
        start, end = chunk["timestamp"]
        text = chunk["text"]
        last = found[-1] if found else Cue(0.0, 0.0, "")
        start = last.end if start is None else start
        # No times, as its window's words have none, or no time at all, which no player shows: until the next word that
        # has, but no longer than it is read.
        if end is None or end <= start:
            starts = (one["timestamp"][0] for one in answer["chunks"][number + 1 :])
            following = next((one for one in starts if one is not None), math.inf)
            end = max(start, min(following, start + len(text) * LONGEST / CHARACTERS))
        begins = (
            not found
            or last.text.rstrip("\"'”’»）)」』").endswith(SENTENCE_ENDS)
            or start - last.end >= PAUSE
            or end - last.start > LONGEST
            or len(last.text) + len(text) > CHARACTERS
        )
        if begins:
            found.append(Cue(start, max(start, end), text.lstrip()))
        else:
            found[-1] = Cue(last.start, max(last.end, end), last.text + text)
    return [cue for cue in found if cue.text.strip()]


def to_srt(answer: Mapping) -> str:
    """SubRip."""
    blocks = [
        f"{number}\n{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}\n{_one_line(cue.text)}\n"
        for number, cue in enumerate(cues(answer), start=1)
    ]
    return "\n".join(blocks)


def to_vtt(answer: Mapping) -> str:
    """WebVTT, in which `&` and `<` are written as in HTML."""
    blocks = ["WEBVTT\n"]
    for cue in cues(answer):
        text = _one_line(cue.text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        blocks.append(f"{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}\n{text}\n")
    return "\n".join(blocks)


def to_tsv(answer: Mapping) -> str:
    """Start and end in whole milliseconds, and text, as Whisper's command writes them."""
    lines = ["start\tend\ttext"]
    lines += [f"{round(1000 * cue.start)}\t{round(1000 * cue.end)}\t{_one_line(cue.text)}" for cue in cues(answer)]
    return "\n".join(lines) + "\n"


def to_txt(answer: Mapping) -> str:
    """The text alone."""
    return f"{answer['text']}\n"


def to_json(answer: Mapping) -> str:
    """All that is known: `text`, `segments` (subtitles), `chunks` (words, or windows) and maybe `confidence`."""
    segments = [cue._asdict() | {"text": cue.text.strip()} for cue in cues(answer)]
    return json.dumps({**answer, "segments": segments}, ensure_ascii=False, indent=2) + "\n"


FORMATS = {"srt": to_srt, "vtt": to_vtt, "tsv": to_tsv, "txt": to_txt, "json": to_json}


def _clock(seconds: float, point: str) -> str:
    """`HH:MM:SS,mmm`."""
    minutes, milliseconds = divmod(round(1000 * seconds), 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{milliseconds // 1000:02}{point}{milliseconds % 1000:03}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


__all__ = ["FORMATS", "Cue", "cues"]
