# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Common Voice: `LANGUAGE/SPLIT.tsv` and MP3 clips."""

import logging
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ..checking import DataReport
from ..corpus_spec import CorpusSpec, chosen
from ..files import read_table, text_lines, unpack_tar, unquoted
from ..rows import BrokenRowError, CorpusError, language_code, speech_row
from ..where_to_get import how_to_get
from .dataset import is_hub_id


logger = logging.getLogger(__name__)
ARCHIVES = (".tar.gz", ".tgz", ".tar")
FOLDERS_DEEP = 3  # an unpacked archive of the Data Collective / cv-corpus-… / LOCALE
KEY = "MDC_API_KEY"


def read_common_voice(spec: CorpusSpec, report: DataReport, *, data_collective: list | None = None) -> Iterator[dict]:
    """Asr rows of a Common Voice release: `<locale>/{train,dev,test}.tsv` and `<locale>/clips/*.mp3`.

    `path` is a release's archive as it is downloaded, or a folder that holds locales, whole releases or archives; these
    are unpacked once, beside themselves. Works for every release, as columns are found by the header. Durations come from
    `clip_durations.tsv` (since 16.1) or `times.txt` (14 to 16.0), both in milliseconds; without them they are measured.

    Args:
        spec: the entry of the recipe.
        report: counts the rows that are dropped.
        data_collective: ids or slugs of datasets of Mozilla Data Collective, such as that of one language of a release,
            to be downloaded into `path` once. The terms of each must have been agreed to on its page, and
            `MDC_API_KEY` hold the account's key. Default: nothing is downloaded.
    """
    if data_collective:
        fetch_releases(data_collective, spec.local_path)
    if not spec.wants("asr"):
        return
    _check_folder(spec)
    root = unpacked(spec.folder())
    folders = locale_folders(root, spec.split)
    if not folders and (others := sorted(root.rglob("ss-corpus-*.tsv"))):
        raise CorpusError(
            f"common_voice: {others[0]} is spontaneous speech (ss-corpus-*.tsv beside audios/), which is another format than "
            "{train,dev,test}.tsv beside clips/; write its rows to a JSONL manifest and read that with the reader manifest"
        )
    on_broken = partial(report.drop_line, spec.corpus)
    for locale, language in chosen({locale: language_code(locale) for locale in folders}, spec).items():
        folder = folders[locale]
        durations = clip_durations(folder)
        table = folder / f"{spec.split}.tsv"
        for number, record in read_table(table, ("path", "sentence"), on_broken):
            if (said := record.get("locale") or locale) != locale and language_code(said) != language:
                reason = "'locale' is another language than the folder's name; rename the folder"
                on_broken(f"{table}, line {number}", BrokenRowError(reason, f"{said} in the folder {locale}"))
                continue
            clip, sentence = record["path"], unquoted(record["sentence"])
            speech = (language, language, sentence, sentence, durations.get(clip))
            yield speech_row(Path(clip).stem, spec.corpus, *speech, folder / "clips" / clip)


def check_place(spec: CorpusSpec) -> None:
    """Raise `CorpusError` where the release is neither here nor can be downloaded: package and key are looked for."""
    slugs = spec.settings.get("data_collective")
    if not slugs:
        _check_folder(spec)
    elif waiting_releases(slugs, spec.local_path):
        _check_data_collective()


def _check_folder(spec: CorpusSpec) -> None:
    if not spec.local_path.exists() and is_hub_id(spec.path):
        raise CorpusError(
            f"common_voice: {spec.path} is no folder here. {how_to_get('common_voice')}. A copy in parquet on the Hub is "
            "read with {reader: dataset, path: fixie-ai/common_voice_17_0, config: LOCALE, columns: {text: sentence}, "
            "tasks: [asr], languages: [LANGUAGE], name: common_voice}"
        )
    spec.folder()


def waiting_releases(slugs: list, folder: Path) -> dict[str, Path]:
    """Datasets of Mozilla Data Collective that `folder` has not got yet, and the file that will say that it has."""
    for slug in slugs:
        if not isinstance(slug, str) or not slug or os.sep in slug:
            raise CorpusError(f"common_voice: 'data_collective' must list ids or slugs of datasets, not {slug!r}")
    wanted = {slug: folder / f"{slug}.downloaded" for slug in slugs}
    return {slug: mark for slug, mark in wanted.items() if not mark.exists()}


def _check_data_collective() -> None:
    try:
        import datacollective  # noqa: F401
    except ImportError as error:
        raise CorpusError(
            "common_voice: 'data_collective' needs the package datacollective (Python 3.11 or newer): "
            "pip install 'modeling-part[common-voice]'"
        ) from error
    if not os.environ.get(KEY):
        raise CorpusError(
            f"common_voice: to download from Mozilla Data Collective, set {KEY} to the key of an account there "
            "(https://mozilladatacollective.com/api-reference), after agreeing to the dataset's terms on its page"
        )


def fetch_releases(slugs: list, folder: Path) -> None:
    """Download datasets of Mozilla Data Collective into `folder`; those that it has got are not asked for again."""
    wanted = waiting_releases(slugs, folder)
    if not wanted:
        return
    _check_data_collective()
    import datacollective
    from datacollective.errors import DownloadError

    for slug, mark in wanted.items():
        try:
            archive = datacollective.download_dataset(slug, download_directory=str(folder))
        except (OSError, ValueError, RuntimeError, DownloadError) as error:
            reason = " ".join(str(error).split())[:400]
            raise CorpusError(
                f"common_voice: {slug!r} could not be downloaded from Mozilla Data Collective: {reason}"
            ) from error
        mark.write_text(f"{archive.name}\n", encoding="utf-8")


def unpacked(path: Path) -> Path:
    """The folder of an archive, or a folder in which every archive has been unpacked beside itself."""
    for archive in (path,) if path.is_file() else sorted(path.iterdir()):
        ending = next((ending for ending in ARCHIVES if archive.name.endswith(ending)), None)
        if archive.is_file() and ending:
            folder = archive.with_name(archive.name.removesuffix(ending))
            if not folder.exists():
                logger.info("common_voice: unpacking %s", archive)
                unpack_tar(archive, folder, flat=False)
            if archive == path:
                return folder
    if path.is_file():
        raise CorpusError(f"common_voice: {path} is neither a folder nor an archive ({', '.join(ARCHIVES)})")
    return path


def locale_folders(root: Path, split: str) -> dict[str, Path]:
    """Locale -> its folder, for every folder at or under `root` that has the split's table.

    Raises:
        CorpusError: a locale is there twice, of two releases.
    """
    folders: dict[str, Path] = {}
    level = [root]
    for _ in range(FOLDERS_DEEP + 1):
        for folder in (one for one in level if (one / f"{split}.tsv").is_file()):
            locale = (root.resolve() if folder == root else folder).name  # a link to a locale has its own name
            if locale in folders:
                raise CorpusError(
                    f"common_voice: {locale} is there twice, in {folders[locale]} and {folder}; give one as `path`"
                )
            folders[locale] = folder
        inside = (one for folder in level if folder not in folders.values() for one in sorted(folder.iterdir()))
        level = [one for one in inside if one.is_dir() and one.name != "clips" and not one.name.endswith(".partial")]
    return folders


def clip_durations(folder: Path) -> dict[str, float]:
    """Seconds of each clip of a Common Voice locale, from the release's own table; empty if it has none.

    Lines without a number are passed over: those clips are measured.
    """
    for name in ("clip_durations.tsv", "times.txt"):
        if (folder / name).exists():
            fields = (line.split() for _, line in text_lines(folder / name, on_broken=lambda where, error: None))
            numbers = ((each[0], each[-1]) for each in fields if len(each) > 1)
            return {clip: int(last) / 1000 for clip, last in numbers if last.isascii() and last.isdigit()}
    return {}
