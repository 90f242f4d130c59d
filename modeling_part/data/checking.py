# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Rows that are broken or filtered out, counted by reason."""

import json
import math
import os
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import regex

from ..audio_part import alike
from ..file_names_part import composed, other_form
from ..prompts_part import TASKS, TEXT_TASKS
from .addresses import UNLISTED, is_address, names_in
from .corpus_spec import CorpusSpec, fits
from .rows import (
    EXAMPLES_PER_REASON,
    BrokenRowError,
    CorpusError,
    audio_durations,
    group_name,
    shortened,
    too_many_broken,
)


# Control characters (those of C1 are Windows-1252 read as Latin-1) and what stands for bytes that could not be decoded.
NO_TEXT = regex.compile(r"[\p{Cc}\uFFFD--\s]", regex.V1)
TEXTS = ("id", "corpus", "text", "source_text", "prompt", "context")
NEEDED_TEXTS = ("id", "corpus")
VISIBLE = regex.compile(r"[^\s\p{C}\p{Z}]")
# What a text that is misread must hold: the first byte of a character in UTF-8 and another one that is not ASCII.
BEGINS_MISREAD = regex.compile(r"[\u00C2-\u00F4][^\x00-\x7F]")
WRITTEN_FOR_NOTHING = frozenset({"nan", "NaN", "<NA>", "#N/A"})


class DataReport:
    """Counts what was kept and what was dropped and why, with a few examples of each, for `data_report.json`.

    A row that is dropped as `broken` is a fault of the data and counts against `max_bad_fraction`; one that a filter
    leaves out, or that the corpus never meant to be used, is not.
    """

    def __init__(self) -> None:
        self.corpora: Counter = Counter()
        self.rows: Counter = Counter()
        self.seconds: Counter = Counter()
        self.dropped: Counter = Counter()
        self.broken: Counter = Counter()
        self.examples: dict[tuple[str, str], list[str]] = {}

    def keep(self, row: dict) -> None:
        """Count one row that is used."""
        group = group_name(row)
        self.corpora[row["corpus"]] += 1
        self.rows[group] += 1
        self.seconds[group] += row["duration"] or 0.0

    def drop(self, corpus: str, row_id: str, reason: str, broken: bool = False) -> None:
        """Count one row that is left out."""
        self.dropped[corpus, reason] += 1
        self.broken[corpus, reason] += broken
        examples = self.examples.setdefault((corpus, reason), [])
        if len(examples) < EXAMPLES_PER_REASON:
            examples.append(row_id)

    def drop_line(self, corpus: str, where: str, error: BrokenRowError) -> None:
        """Count one row that could not be read, by the place where it stands."""
        self.drop(corpus, f"{where}: {error.detail}" if error.detail else where, error.reason, broken=True)

    def add(self, other: "DataReport") -> None:
        """Add the counts of another report to this one."""
        self.corpora.update(other.corpora)
        self.rows.update(other.rows)
        self.seconds.update(other.seconds)
        self.dropped.update(other.dropped)
        self.broken.update(other.broken)
        for key, examples in other.examples.items():
            self.examples[key] = (self.examples.get(key, []) + examples)[:EXAMPLES_PER_REASON]

    def as_dict(self) -> dict:
        """Rows and hours per direction ("asr/fr", "s2tt/fr-en"); dropped rows per corpus and reason, with examples."""
        dropped: dict = {}
        for (corpus, reason), count in sorted(self.dropped.items()):
            entry = {"rows": count, "broken": self.broken[corpus, reason], "examples": self.examples[corpus, reason]}
            dropped.setdefault(corpus, {})[reason] = entry
        return {
            "rows": dict(sorted(self.rows.items())),
            "hours": {key: round(seconds / 3600, 4) for key, seconds in sorted(self.seconds.items())},
            "dropped": dropped,
        }


def write_data_report(report: dict, path: str | Path) -> None:
    """Write a report as JSON, making the folder if needed."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(report, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def size_parts(rows: Mapping[str, int], hours: Mapping[str, float]) -> list[list[str]]:
    """For each task its rows and hours, and then the rows of up to ten directions, all by `task/direction`."""
    lines = []
    for task in TASKS:
        groups = [group for group in rows if group.startswith(f"{task}/")]
        if groups:
            time = f"{sum(hours[group] for group in groups):9.2f} h" if task not in TEXT_TASKS else " " * 11
            line = [f"{task:<4} {sum(rows[group] for group in groups):>10,} rows {time}"]
            line += [f"{group.split('/')[1]} {rows[group]:,}" for group in groups[:10]]
            lines.append([*line, f"and {len(groups) - 10} more"] if len(groups) > 10 else line)
    return lines


def summary(report: dict) -> str:
    """A report in a few lines for the screen: rows and hours per task and direction, and what was dropped and why."""
    lines = [f"{first}   {', '.join(rest)}" for first, *rest in size_parts(report["rows"], report["hours"])]
    for corpus, reasons in report["dropped"].items():
        for reason, entry in reasons.items():
            lines.append(f"dropped {entry['rows']:,} of {corpus}: {reason} (such as {entry['examples'][0]})")
    return "\n".join(lines)


@dataclass(frozen=True)
class RowFilters:
    """Which usable rows to leave out.

    Args:
        min_duration, max_duration: seconds of audio. Default: 0.1 to 30, Whisper's window.
        min_characters_per_second, max_characters_per_second: of the transcript over the audio; a text that is too
            short or too long for its recording is mostly not what was said. Depends on the script (about 3 to 25 for
            Latin, 1 to 10 for Chinese). Default: not applied. Rows without a transcript pass.
        languages: BCP 47 codes; rows with another source or target language are left out. Default: all stay.
    """

    min_duration: float = 0.1
    max_duration: float = 30.0
    min_characters_per_second: float | None = None
    max_characters_per_second: float | None = None
    languages: Sequence[str] | None = None

    def __post_init__(self) -> None:
        for name in ("min_duration", "max_duration", "min_characters_per_second", "max_characters_per_second"):
            value = getattr(self, name)
            if value is None and name.endswith("second"):
                continue
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not value >= 0:  # NaN neither
                raise CorpusError(f"`{name}` is {value!r}; it must be a number, 0 or more")
            if name.startswith("max") and not value > 0:
                raise CorpusError(f"`{name}` is {value!r}, which leaves out every row")

    def reason(self, row: dict) -> str | None:
        """Why the row is left out; None if it stays."""
        if self.languages and not {row["source_lang"], row["target_lang"]} <= set(self.languages):
            return "language not asked for"
        if row["task"] in TEXT_TASKS:
            return None
        if row["duration"] < self.min_duration:
            return f"shorter than {self.min_duration:g} s"
        if row["duration"] > self.max_duration:
            return f"longer than {self.max_duration:g} s"
        transcript = row["text"] if row["task"] == "asr" else row["source_text"]
        speed = len(transcript) / row["duration"] if transcript else None
        if speed is not None and self.min_characters_per_second and speed < self.min_characters_per_second:
            return f"fewer than {self.min_characters_per_second:g} characters per second"
        if speed is not None and self.max_characters_per_second and speed > self.max_characters_per_second:
            return f"more than {self.max_characters_per_second:g} characters per second"
        return None


class FolderListings:
    """Where files lie, by listing each folder once: corpora have millions of files in few folders."""

    def __init__(self) -> None:
        self._names: dict[str, frozenset[str] | None] = {}
        self._composed: dict[str, dict[str, str]] = {}

    def find(self, path: str) -> str | None:
        """The path itself, or where its name is written in another Unicode form, that; None if there is no such file.

        What is at a web address, or in a folder that is not listed, is only known when it is fetched.
        """
        if path.startswith(UNLISTED):
            return path
        folder, name = os.path.split(path)
        if folder not in self._names and is_address(folder):
            self._names[folder] = names_in(folder)
        if folder not in self._names:
            self._names[folder] = frozenset(os.listdir(folder or ".") if os.path.isdir(folder or ".") else ())
        if self._names[folder] is None or name in self._names[folder]:
            return path
        if path.isascii() or is_address(path):
            return None
        if not self._names[folder]:
            return other_form(path)
        if folder not in self._composed:
            self._composed[folder] = {composed(one): one for one in self._names[folder]}
        found = self._composed[folder].get(composed(name))
        return None if found is None else os.path.join(folder, found)


class Admission:
    """Decides row by row what is used: what is neither broken nor filtered out, and has an id of its own.

    Args:
        filters: which usable rows to leave out.
        unique: whether to compare the ids of all rows, which takes some 100 bytes for each. Default: True. A row that
            is there again is left out; another row under a known id is broken.
    """

    def __init__(self, filters: RowFilters, unique: bool = True) -> None:
        self.filters = filters
        self.listings = FolderListings()
        self._seen: dict[int, int] | None = {} if unique else None

    def admit(self, rows: list[dict], report: DataReport) -> list[dict]:
        """The rows that can be used and that the filters keep, with their durations; the others go to the report."""
        faults = [mistyped(row) for row in rows]
        missing = set()
        for row, broken in zip(rows, faults, strict=True):
            if broken is None and (path := (row["audio"] or {}).get("path")) is not None:
                if (found := self.listings.find(path)) is None:
                    missing.add(path)
                else:
                    row["audio"]["path"] = found
        measured = measure_durations([row for row, broken in zip(rows, faults, strict=True) if broken is None])
        kept = []
        for row, broken in zip(rows, faults, strict=True):
            broken = broken or fault(row, measured, missing)
            reason = broken or self.filters.reason(row)
            if reason is None and (is_same := self._compare(row)) is not None:
                reason = (
                    "the same row stands before it"
                    if is_same
                    else "id of another row; give each its own, name another column for it, or give each corpus a `name`"
                )
                broken = None if is_same else reason
            if reason:
                report.drop(shortened(row["corpus"]), shortened(row["id"]), reason, broken=broken is not None)
            else:
                report.keep(row)
                kept.append(row)
        return kept

    def _compare(self, row: dict) -> bool | None:
        """Whether an earlier row with the same id, task and languages is the same row; None where there is none."""
        if self._seen is None:
            return None
        key = hash((row["corpus"], row["task"], row["source_lang"], row["target_lang"], row["id"]))
        content = (
            f"{row['text']}\n{row['source_text']}\n{row['start']} {row['end']}\n{row['prompt']}\n{row['context']}"
        )
        audio = row["audio"] or {}
        sound = audio.get("bytes") or (audio.get("path") or "").encode()
        # One byte, which Python keeps once, tells enough of a row that is left out in any case.
        mark = zlib.crc32(sound, zlib.crc32(content.encode())) & 0xFF
        known = self._seen.get(key)
        if known is None:
            self._seen[key] = mark
            return None
        return known == mark


def mistyped(row: dict) -> str | None:
    """What is wrong with the types of a row's values; None if each is of its column's."""
    for name in () if _is_plain(row) else TEXTS:
        value = row[name]
        if value is None and name not in NEEDED_TEXTS:
            continue
        if not isinstance(value, str):
            return f"'{name}' is no text but {type(value).__name__}"
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            return f"'{name}' holds half of a surrogate pair, which is no character"
        if NO_TEXT.search(value):
            return (
                f"'{name}' holds control characters or U+FFFD: it was read in another encoding than it was written in"
            )
        if misread(value):
            return f"'{name}' is UTF-8 that was read as Latin-1 (cafÃ© for café)"
        if value in WRITTEN_FOR_NOTHING:
            return f"'{name}' is {value!r}, which programs write where there is nothing"
    for name in ("duration", "start", "end"):
        value = row[name]
        if value is None:
            continue
        if not fits(value, float):
            return f"'{name}' is no number of seconds but {type(value).__name__}"
        if not math.isfinite(value):
            return f"'{name}' is {value}, no number of seconds"
    path = (row["audio"] or {}).get("path")
    return None if path is None or isinstance(path, str) else f"'audio' is no path but {type(path).__name__}"


def _is_plain(row: dict) -> bool:
    """Whether all texts of a row are seen at once to be texts: of nearly all rows, in a fraction of the time."""
    texts = [row[name] for name in TEXTS if row[name] is not None or name in NEEDED_TEXTS]
    try:
        text = " ".join(texts)
    except TypeError:
        return False
    is_written = text.isprintable() and "\ufffd" not in text and WRITTEN_FOR_NOTHING.isdisjoint(texts)
    return is_written and (text.isascii() or BEGINS_MISREAD.search(text) is None)


def misread(text: str) -> bool:
    """Whether a text was written as UTF-8 and read as Latin-1 or Windows-1252.

    Every character that is not ASCII must be a part of such a sequence: hardly ever one that was meant.
    """
    for encoding in () if text.isascii() else ("cp1252", "latin-1"):
        try:
            text.encode(encoding).decode("utf-8")
        except UnicodeError:
            continue
        return True
    return False


def measure_durations(rows: Sequence[dict]) -> dict[str | bytes, float | CorpusError]:
    """Length of the audio, or the error, for the rows that do not know their duration; each file is opened once."""
    unknown = dict.fromkeys(_source(row["audio"]) for row in rows if row["duration"] is None and row["end"] is None)
    wanted = [audio for audio in unknown if audio is not None]
    return dict(zip(wanted, audio_durations(wanted), strict=True))


def _source(audio: Mapping) -> str | bytes | None:
    """What `load_audio` reads: the bytes where there are both."""
    return audio["path"] if audio["bytes"] is None else audio["bytes"]


def fault(row: dict, measured: Mapping, missing: Set[str]) -> str | None:
    """What is wrong with the data of a row, whose unknown duration is filled in; None if it can be used."""
    if not VISIBLE.search(row["text"] or ""):
        return "no text"
    if row["task"] in TEXT_TASKS:
        return None if VISIBLE.search(row["source_text"] or "") else "no source text"
    path, data = row["audio"]["path"], row["audio"]["bytes"]
    if path is None and data is None:
        return "no audio"
    if None not in (row["start"], row["duration"]) and row["end"] is None:
        row["end"] = row["start"] + row["duration"]  # a part of a recording, as MuST-C and others write it
    if row["duration"] is None:
        length = row["end"] if row["end"] is not None else measured[_source(row["audio"])]
        if isinstance(length, CorpusError):
            return str(length)
        row["duration"] = length - (row["start"] or 0.0)
    if row["duration"] <= 0 or (row["start"] or 0.0) < 0:
        return "start and end leave no audio"
    if row["end"] is not None and not alike(row["end"] - (row["start"] or 0.0), row["duration"]):
        return "duration is not the time from start to end"
    return "audio file not found" if data is None and path in missing else None


def refuse_if_broken(spec: CorpusSpec, report: DataReport, max_bad_fraction: float, at_least: int = 0) -> None:
    """Raise `CorpusError` with the list if more than `max_bad_fraction` of the rows so far are broken."""
    broken = sum(report.broken.values())
    seen = sum(report.rows.values()) + sum(report.dropped.values())
    if not too_many_broken(broken, seen, max_bad_fraction, at_least):
        return
    lines = [
        f"  {count:,} {'row' if count == 1 else 'rows'}: {reason}, such as {', '.join(report.examples[corpus, reason])}"
        for (corpus, reason), count in report.broken.items()
        if count
    ]
    raise CorpusError(
        f"{spec.reader} at {spec.path}: {broken:,} of {seen:,} rows are broken, more than max_bad_fraction = "
        f"{max_bad_fraction:g} allows:\n" + "\n".join(lines)
    )
