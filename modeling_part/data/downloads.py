# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""What a recipe's corpora would download, and how large it is, before anything is."""

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from glob import has_magic
from pathlib import Path

from .addresses import errors_at, is_address
from .corpus_spec import CorpusSpec
from .readers.common_voice import waiting_releases
from .readers.dataset import errors_of_dataset, errors_of_hub, hub_files, is_hub_id
from .readers.fleurs import fleurs_patterns


@dataclass(frozen=True)
class Download:
    """Files of one repository that one corpus needs.

    Attributes:
        name: of the corpus: repository, config and split.
        sizes: file -> bytes, those that are here already included; None: nobody says before they are downloaded.
        missing: the files that are not here yet; none of those that are not kept.
        passes_by: when the files pass by without being kept: "streamed" while training, or "read now". Default: they stay.
    """

    name: str
    sizes: Mapping[str, int | None]
    missing: frozenset[str]
    passes_by: str = ""

    def bytes_missing(self) -> int:
        """Bytes that are still to be downloaded."""
        return sum(self.sizes[file] or 0 for file in self.missing)


def planned_downloads(specs: Iterable[CorpusSpec]) -> list[Download]:
    """What each corpus fetches; a file that two of them need is told of the first.

    Raises:
        CorpusError: a repository, config or split is not there, or the Hub cannot be reached.
    """
    found: list[Download] = []
    known: set[str] = set()
    for spec in specs:
        download = _planned(spec)
        if download is None:
            continue
        sizes = {file: size for file, size in download.sizes.items() if file not in known}
        known |= sizes.keys()
        if sizes:
            found.append(Download(download.name, sizes, download.missing & sizes.keys(), download.passes_by))
    return found


def _planned(spec: CorpusSpec) -> Download | None:
    """Of one corpus; None where all that it needs is here."""
    if spec.reader == "common_voice" and spec.settings.get("data_collective"):
        return _of_data_collective(spec)
    if spec.reader == "dataset" and is_address(spec.path):
        return _of_address(spec)
    if spec.local_path.exists() or not is_hub_id(spec.path):
        return None
    return {"dataset": _of_dataset, "fleurs": _of_fleurs}.get(spec.reader, lambda spec: None)(spec)


def _of_data_collective(spec: CorpusSpec) -> Download | None:
    slugs = waiting_releases(spec.settings["data_collective"], spec.local_path)
    names = {f"{spec.path}/{slug}": None for slug in slugs}
    return Download(f"{', '.join(slugs)} of Mozilla Data Collective", names, frozenset(names)) if names else None


def _of_address(spec: CorpusSpec) -> Download:
    import fsspec

    with errors_of_dataset(spec), errors_at(spec.path):
        filesystem, path = fsspec.core.url_to_fs(spec.path)
        files = filesystem.glob(path) if has_magic(path) else filesystem.find(path)
        sizes = {f"{spec.path}: {file}": filesystem.size(file) for file in files}
    return Download(spec.path, sizes, frozenset(), "streamed" if spec.streaming else "read now")


def _of_dataset(spec: CorpusSpec) -> Download:
    from huggingface_hub import HfApi

    settings = {name: spec.settings.get(name) for name in ("config", "revision", "data_files")}
    with errors_of_hub(spec):
        files = hub_files(spec, **settings)
        infos = HfApi().get_paths_info(spec.path, files.paths, revision=files.commit, repo_type="dataset")
        sizes = {info.path: info.size for info in infos}
    name = " ".join(filter(None, (spec.path, spec.settings.get("config"), files.split)))
    return _download(name, spec, sizes, files.commit)


def _of_fleurs(spec: CorpusSpec) -> Download:
    from huggingface_hub import HfApi

    with errors_of_hub(spec):
        api, revision = HfApi(), spec.settings.get("revision")
        commit = api.dataset_info(spec.path, revision=revision).sha
        entries = api.list_repo_tree(spec.path, recursive=True, revision=commit, repo_type="dataset")
        files = {entry.path: entry.size for entry in entries if hasattr(entry, "size")}
    patterns = fleurs_patterns(spec)
    sizes = {path: size for path, size in files.items() if any(fnmatch(path, one) for one in patterns)}
    languages = ", ".join(spec.languages or ("all languages",))
    return _download(f"{spec.path} {languages} {spec.split}", spec, sizes, commit)


def _download(name: str, spec: CorpusSpec, sizes: dict[str, int], commit: str) -> Download:
    from huggingface_hub import try_to_load_from_cache

    def is_here(path: str) -> bool:
        return isinstance(try_to_load_from_cache(spec.path, path, revision=commit, repo_type="dataset"), str)

    missing = frozenset() if spec.streaming else frozenset(path for path in sizes if not is_here(path))
    full = {f"{spec.path}@{commit}/{path}": size for path, size in sizes.items()}
    keys = frozenset(f"{spec.path}@{commit}/{path}" for path in missing)
    return Download(name, full, keys, "streamed" if spec.streaming else "")


def as_lines(downloads: list[Download]) -> list[str]:
    """The downloads for the screen: each corpus, then all together, and the space that there is for them."""
    from huggingface_hub.constants import HF_HUB_CACHE

    lines = []
    for one in downloads:
        state = one.passes_by or ("to download" if one.missing else "here already")
        sizes = one.sizes.values()
        size = "?" if None in sizes else gigabytes(sum(sizes))
        lines.append(f"{size:>10}  {len(sizes):>4} files  {state:<12}  {one.name}")
    folder = Path(HF_HUB_CACHE)
    place = next(one for one in (folder, *folder.parents) if one.exists())
    missing = sum(one.bytes_missing() for one in downloads)
    lines.append(
        f"{gigabytes(missing):>10}  to download into {folder}, where {gigabytes(shutil.disk_usage(place).free)} are free"
    )
    return lines


def gigabytes(size: int) -> str:
    """Bytes in words, such as "1.25 GB" or "12 kB"."""
    for unit, name in ((10**9, "GB"), (10**6, "MB")):
        if size >= unit:
            return f"{size / unit:.2f} {name}"
    return f"{size / 1000:.0f} kB"
