# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Tux Paint's stamps: spoken names in many languages."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

from ...audio_part import AudioError, load_audio
from ..checking import DataReport
from ..corpus_spec import CorpusSpec, chosen
from ..files import filled_once, unpack_package
from ..rows import CorpusError, direction, language_code, speech_bounds, speech_row, split_of, text_row


RATE = 16_000  # Hz, at which the recordings are looked at


def read_tuxpaint(spec: CorpusSpec, report: DataReport) -> Iterator[dict]:
    """asr, s2tt and mt rows of Tux Paint's stamps: volunteers read what each stamp shows, in ten languages and more.

    `path` is the Debian package `tuxpaint-stamps-default_*.deb` (unpacked once, beside itself) or the folder it is
    unpacked in. `NAME.txt` has the English text and `lang.utf8=` lines, `NAME_desc_LANG.ogg` the recordings, of which
    `start` and `end` leave out the silence around the speech. Splits by hash of the English text, so that the same
    content is in one split in all languages. Translations go into the languages that are spoken, or
    `target_languages` (about sixty are there).
    """
    stamps = stamp_folder(spec)
    texts = {path.with_suffix(""): stamp_texts(path) for path in sorted(stamps.rglob("*.txt"))}
    texts = {stamp: found for stamp, found in texts.items() if found.get("en") and split_of(found["en"]) == spec.split}
    recordings = {}
    for stamp in texts:
        for path in sorted(stamp.parent.glob(f"{stamp.name}_desc*.ogg")):
            tag = path.stem.removeprefix(f"{stamp.name}_desc").removeprefix("_") or "en"
            recordings[path] = (stamp, language_code(tag, keep_region=True))
    if spec.wants("asr") or spec.wants("s2tt"):
        chosen({code: code for _, code in recordings.values()}, spec)
    targets = spec.target_languages or spec.languages or sorted({code for _, code in recordings.values()})
    wanted = [path for path, (_, code) in recordings.items() if spec.wants("asr", code) or spec.wants("s2tt", code)]
    for path, bounds in zip(wanted, spoken_parts(wanted), strict=True):
        stamp, source = recordings[path]
        name, text = stamp.relative_to(stamps).as_posix(), texts[stamp].get(source)
        if isinstance(bounds, CorpusError) or text is None:
            reason = "recording without a text" if text is None else str(bounds)
            report.drop(spec.corpus, f"{name}/{source}", reason, broken=text is not None)
            continue
        for target in (source, *(code for code in targets if code != source)):
            answer = texts[stamp].get(target)
            if answer and spec.wants("asr" if source == target else "s2tt", source, target):
                speech = (source, target, answer, text, bounds[1] - bounds[0])
                yield speech_row(f"{name}/{direction(source, target)}", spec.corpus, *speech, path, span=bounds)
    if spec.wants("mt"):
        by_name = {stamp.relative_to(stamps).as_posix(): found for stamp, found in texts.items()}
        yield from stamp_pairs(spec, by_name, targets)


def stamp_pairs(spec: CorpusSpec, texts: dict[str, dict[str, str]], targets: list[str]) -> Iterator[dict]:
    """Mt rows between the texts of each stamp, from `languages` (or all targets) into all targets."""
    for name, found in texts.items():
        for source, target in product(spec.languages or targets, targets):
            if source != target and source in found and target in found:
                pair = found[target], found[source]
                yield text_row(f"{name}/{source}-{target}", spec.corpus, source, target, *pair)


def stamp_folder(spec: CorpusSpec) -> Path:
    """The folder `stamps` of an unpacked package; a `.deb` file is unpacked first."""
    folder = spec.folder()
    if folder.suffix == ".deb":
        package, folder = folder, folder.with_suffix(".unpacked")
        if not folder.exists():
            with filled_once(folder) as partial:
                if partial:
                    unpack_package(package, partial, "give the unpacked folder")
    found = [path for path in (folder, *sorted(folder.rglob("stamps"))) if path.name == "stamps" and path.is_dir()]
    if not found:
        raise CorpusError(f"tuxpaint: no folder 'stamps' in {folder}; is it tuxpaint-stamps-default, unpacked?")
    return found[0]


def stamp_texts(path: Path) -> dict[str, str]:
    """BCP 47 code -> text of a `NAME.txt`: the first line is English, the others `lang.utf8=TEXT`."""
    first, *lines = path.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    texts = {"en": first.strip()}
    for line in lines:
        tag, _, text = line.partition(".utf8=")
        if text.strip() and "\ufffd" not in text:
            texts.setdefault(language_code(tag, keep_region=True), text.strip())
    return texts


def spoken_parts(paths: list[Path]) -> list[tuple[float, float] | CorpusError]:
    """(start, end) seconds of the speech in each file, or what is wrong with the file, decoded on all cores."""
    from tqdm import tqdm

    def measure(path: Path) -> tuple[float, float] | CorpusError:
        try:
            first, last = speech_bounds(load_audio(path, RATE), RATE, margin=0.12)
        except AudioError as error:
            return CorpusError(error.reason)
        except CorpusError as error:
            return error
        return first / RATE, last / RATE

    with ThreadPoolExecutor() as pool:
        return list(tqdm(pool.map(measure, paths), total=len(paths), desc="tuxpaint", unit="file", disable=None))
