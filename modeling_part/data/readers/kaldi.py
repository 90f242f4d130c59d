# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Kaldi's data folders, as ESPnet, WeNet and icefall keep them too."""

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from ...prompts_part import code_of
from ..addresses import is_address, joined
from ..checking import DataReport
from ..corpus_spec import CorpusSpec, refuse_split
from ..files import OnBroken, handle, text_lines
from ..records import rows_of
from ..rows import SPLIT_NAMES, BrokenRowError, CorpusError, language_code


def read_kaldi(spec: CorpusSpec, report: DataReport, *, translation: str | None = None) -> Iterator[dict]:
    """asr, s2tt and mt rows of a Kaldi data folder: `wav.scp`, `text` and maybe `segments`, `utt2dur`, `utt2lang`.

    `path` is the folder, or one that has a folder for each split. Relative paths in `wav.scp` start in the working folder,
    as Kaldi's do, or in the data folder. Commands ("sox … |") are not run, and recordings inside archives ("x.ark:17")
    not opened: these rows are broken. The language is that of `utt2lang`, or the only one of `languages`.

    Args:
        spec: the entry of the recipe; without `tasks`, asr, with a `translation` also s2tt.
        report: counts the rows that are dropped.
        translation: file beside `text` with the translations of the utterances into the only one of `target_languages`.
            Default: no translations.
    """
    folder = kaldi_folder(spec)
    on_broken = partial(report.drop_line, spec.corpus)
    if not spec.tasks:
        spec = replace(spec, tasks=("asr", "s2tt") if translation else ("asr",))
    if not translation and (others := sorted(set(spec.tasks) - {"asr"})):
        raise CorpusError(
            f"kaldi at {folder}: {', '.join(others)} needs the translations; name their file beside `text`, for example "
            "translation: text.en"
        )
    tables = {name: table(folder / name, on_broken) for name in ("wav.scp", "text")}
    extras = {name: table(folder / name, on_broken, must_exist=False) for name in ("segments", "utt2dur", "utt2lang")}
    translations = table(folder / translation, on_broken) if translation else {}

    def records() -> Iterator[tuple[str, int, dict]]:
        for number, (utterance, transcript) in enumerate(tables["text"].items(), start=1):
            where = f"{folder / 'text'}, utterance {utterance}"
            try:
                record = {"id": utterance, "source_text": transcript}
                record |= sound_of(utterance, tables["wav.scp"], extras, folder)
                record["text"] = translations.get(utterance) if translation else transcript
                if language := extras["utt2lang"].get(utterance):
                    record["source_lang"] = language_code(code_of(language))
            except BrokenRowError as error:
                handle(on_broken, where, error)
            else:
                yield where, number, record

    yield from rows_of(records(), spec, None, None, on_broken)
    for name in ("segments",) if extras["segments"] else ("wav.scp",):
        for utterance in {**tables, **extras}[name].keys() - tables["text"].keys():
            on_broken(str(folder / name), BrokenRowError("no line in text", utterance))
    for utterance in translations.keys() - tables["text"].keys():
        on_broken(f"{folder / str(translation)}", BrokenRowError("a translation without a transcript", utterance))


def kaldi_folder(spec: CorpusSpec) -> Path:
    """The folder of the split."""
    root = spec.folder()
    names = SPLIT_NAMES.get(spec.split, (spec.split,))
    for folder in (root, *(root / name for name in names)):
        if (folder / "wav.scp").is_file():
            if folder == root:
                refuse_split(spec)
            return folder
    raise CorpusError(f"kaldi: no wav.scp in {root} or in its folder {' or '.join(names)}")


def table(path: Path, on_broken: OnBroken, must_exist: bool = True) -> dict[str, str]:
    """First word of each line -> the rest of it, in which tabs may stand as well."""
    if not must_exist and not path.is_file():
        return {}
    found: dict[str, str] = {}
    for number, line in text_lines(path, on_broken):
        key, *rest = line.split(maxsplit=1) or [""]
        if key in found:
            on_broken(f"{path}, line {number}", BrokenRowError("a key stands twice", key))
        elif key:
            found[key] = " ".join(rest).strip()
    return found


def sound_of(utterance: str, recordings: dict[str, str], extras: dict[str, dict[str, str]], folder: Path) -> dict:
    """Audio, duration and, of a segment, start and end of an utterance."""
    recording, found = utterance, {}
    if extras["segments"]:
        parts = extras["segments"].get(utterance, "").split()
        if len(parts) != 3 or not all(re.fullmatch(r"-?\d+(\.\d+)?", one) for one in parts[1:]):
            raise BrokenRowError("no line 'UTTERANCE RECORDING START END' in segments", " ".join(parts))
        recording, start, end = parts[0], float(parts[1]), float(parts[2])
        # An end of -1 is that of the recording.
        found = {"start": start} if end == -1 else {"start": start, "end": end, "duration": end - start}
    elif re.fullmatch(r"\d+(\.\d+)?", extras["utt2dur"].get(utterance, "")):
        found = {"duration": float(extras["utt2dur"][utterance])}
    address = recordings.get(recording)
    if not address:
        raise BrokenRowError("no recording in wav.scp", recording)
    if address.endswith("|"):
        raise BrokenRowError("a command in wav.scp is not run; write its output to a file", address)
    if re.search(r"\.ark:\d+$", address):
        raise BrokenRowError("a recording inside an archive is not opened; write it to a file", address)
    is_here = not is_address(folder) and os.path.exists(address)
    return {**found, "audio": address if is_here else joined(folder, address)}
