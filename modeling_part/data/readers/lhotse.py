# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Lhotse's cuts, as files of manifests or as Shar."""

import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ...prompts_part import code_of
from ..addresses import is_address
from ..checking import DataReport
from ..corpus_spec import CorpusSpec, fits
from ..files import OnBroken, StrictHeader, read_jsonl, text_lines
from ..records import check_columns, rows_of
from ..rows import BrokenRowError, CorpusError, language_code


if TYPE_CHECKING:
    from lhotse import SupervisionSegment
    from lhotse.cut import Cut


ROUNDING = 0.1  # seconds that a supervision may go beyond its cut
# What lhotse raises for a record that is not as it must be.
NOT_A_CUT = (ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError)


def read_lhotse(spec: CorpusSpec, report: DataReport, *, columns: Mapping[str, str] | None = None) -> Iterator[dict]:
    """Rows of Lhotse's cuts, one for each supervision: `cuts.jsonl.gz`, or a folder of Shar. Needs the package lhotse.

    The language is that of the supervision, or the only one of `languages`. Cuts that are mixed, padded or augmented, or
    have several channels, are broken rows: what they hold is not what a file holds. So is a supervision of which a cut,
    truncated or a window, has only a part: nobody knows which of its words that is.

    Args:
        spec: the entry of the recipe; `tasks` are asr where none are named.
        report: counts the rows that are dropped.
        columns: canonical column -> field of the supervision, such as `text: custom.translation` with
            `source_text: text`. Default: `text` and `language`.
    """
    on_broken = partial(report.drop_line, spec.corpus)
    spec = replace(spec, tasks=spec.tasks or ("asr",))
    folder = spec.folder()
    names = {"source_lang": "language", **(columns or {})}
    fields = ("id", "audio", "duration", "start", "end", "text", "language", "speaker", "custom")
    check_columns(spec, names, dict.fromkeys(fields))

    def records() -> Iterator[tuple[str, int, dict]]:
        number = 0
        for where, cut in open_cuts(folder, on_broken):
            try:
                audio = sound_of(cut)
            except BrokenRowError as error:
                on_broken(where, error)
                continue
            for supervision in cut.supervisions:
                number += 1
                yield where, number, {"cut": cut, "supervision": supervision, "audio": audio}

    yield from rows_of(records(), spec, names, None, on_broken, lambda part: supervised(**part))


def open_cuts(path: Path, on_broken: OnBroken) -> Iterator[tuple[str, "Cut"]]:
    """The place and the cut of each line of a file, or of each cut of a folder of Shar.

    Raises:
        CorpusError: lhotse is not there, or the path holds no cuts or damaged archives.
    """
    try:
        from lhotse import CutSet
        from lhotse.serialization import deserialize_item
    except ImportError as error:
        raise CorpusError("lhotse: it needs the package lhotse: pip install 'modeling-part[lhotse]'") from error
    if path.is_file():
        if not path.name.endswith((".jsonl", ".jsonl.gz")):
            raise CorpusError(f"lhotse: {path} is no .jsonl or .jsonl.gz file, in which cuts stand one a line")
        for number, record in read_jsonl(path, on_broken):
            where = f"{path}, line {number}"
            try:
                yield where, deserialize_item(record)
            except NOT_A_CUT as error:
                on_broken(where, BrokenRowError("no cut that lhotse reads", f"{type(error).__name__}: {error}"))
        return
    if is_address(path):
        raise CorpusError(
            f"lhotse: Shar is read from a folder here, not from {path}; its cuts in a .jsonl.gz file may lie there"
        )
    if not list(path.glob("cuts.*.jsonl*")):
        raise CorpusError(f"lhotse: {path} holds no Shar (cuts.000000.jsonl.gz beside recording.000000.tar)")
    try:
        check_shar(path)
        for cut in CutSet.from_shar(in_dir=path, shuffle_shards=False):
            yield f"{path}, cut {cut.id}", cut
    except (OSError, *NOT_A_CUT, EOFError, zlib.error, tarfile.TarError) as error:
        reason = " ".join(str(error).split())
        raise CorpusError(
            f"lhotse: the Shar in {path} is damaged ({type(error).__name__}: {reason}). Is it whole?"
        ) from error


def check_shar(folder: Path) -> None:
    """Raise ValueError where an archive holds more or fewer things than there are cuts: lhotse stops where one ends."""
    for cuts in sorted(folder.glob("cuts.*.jsonl*")):
        count = sum(bool(line.strip()) for _, line in text_lines(cuts))
        for archive in sorted(folder.glob(f"*.{cuts.name.split('.')[1]}.tar*")):
            with tarfile.open(archive, tarinfo=StrictHeader) as tar:
                stored = len(tar.getnames()) / 2  # beside each thing is what is said of it
            if stored != count:
                raise ValueError(f"{cuts.name} has {count} cuts, {archive.name} {stored:g}")


def sound_of(cut: "Cut") -> str | bytes:
    """The file of a cut's recording, or its bytes where Shar holds them; `BrokenRowError` for a cut that is not read."""
    kind = type(cut).__name__
    if kind != "MonoCut" or not cut.has_recording:
        raise BrokenRowError(
            f"a {kind}, not a cut of one channel" if kind != "MonoCut" else "a cut without a recording"
        )
    recording = cut.recording
    if recording.transforms:
        raise BrokenRowError("the recording is augmented", recording.id)
    if len(recording.channel_ids or [0]) > 1:
        raise BrokenRowError("the recording has several channels", recording.id)
    if not cut.supervisions:
        raise BrokenRowError("a cut without a supervision", cut.id)
    times = [recording.duration, *(value for one in (cut, *cut.supervisions) for value in (one.start, one.duration))]
    if odd := [value for value in times if not fits(value, float)]:
        raise BrokenRowError("a start or duration is no number of seconds", repr(odd[0]))
    if len(recording.sources) != 1:
        raise BrokenRowError("the recording has several sources", recording.id)
    source = recording.sources[0]
    if source.type not in ("file", "url", "memory"):
        raise BrokenRowError(f"a source of type {source.type!r}; it must be a file, a URL or in Shar", recording.id)
    return source.source


def supervised(cut: "Cut", supervision: "SupervisionSegment", audio: str | bytes) -> dict:
    """The record of one supervision of a cut; `BrokenRowError` where the cut leaves out a part of what was said."""
    if supervision.start < -ROUNDING or supervision.end > cut.duration + ROUNDING:
        times = f"{supervision.start:g} to {supervision.end:g} s of {cut.duration:g} s"
        raise BrokenRowError("a supervision that goes beyond its cut: the text is of more than is heard", times)
    start = cut.start + max(0.0, supervision.start)
    end = cut.start + min(cut.duration, supervision.end)
    is_whole = start == 0 and abs(end - cut.recording.duration) < 0.01
    span = {} if is_whole else {"start": start, "end": end}
    language = supervision.language
    if isinstance(language, str):  # lhotse's own recipes write names, such as English
        language = language_code(code_of(language))
    record = {"id": supervision.id, "audio": audio, "duration": end - start, **span, "text": supervision.text}
    record |= {"speaker": supervision.speaker, "custom": supervision.custom or {}}
    return record | ({"language": language} if language else {})
