# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Any dataset that `datasets` reads: on the Hub, from a folder, or an audiofolder."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..addresses import HUB_ID, AddressError, is_address, path_of
from ..checking import DataReport
from ..corpus_spec import CorpusSpec, refuse_split
from ..files import OnBroken, as_values, handle, read_csv, read_jsonl
from ..records import check_columns, records_in, rows_of
from ..rows import SPLIT_NAMES, BrokenRowError, CorpusError
from ..shards import columns_of, is_sample, open_shards, place_of, sample_record
from ..where_to_get import how_to_get, hub_id_of


if TYPE_CHECKING:
    import datasets


KINDS = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}  # ending -> what `datasets` reads it with
OF_REPOSITORIES = ("config", "revision", "data_files")  # settings that choose among its files, or a folder's


def read_dataset(
    spec: CorpusSpec,
    report: DataReport,
    *,
    columns: Mapping[str, str] | None = None,
    streaming: bool = False,
    config: str | None = None,
    revision: str | None = None,
    data_files: str | None = None,
) -> Iterator[dict]:
    """Rows of any dataset: a folder (parquet, arrow, save_to_disk, audiofolder, tar), a Hub id, or files by their address.

    An address is a path or a pattern wherever fsspec reaches, such as `s3://bucket/data/*.parquet`.

    Audio stays as it is stored: paths, or bytes from parquet (which a run keeps once, see `sounds.py`). Of a dataset on the
    Hub only the files of the split are downloaded.

    Args:
        spec: the entry of the recipe.
        report: counts the rows that are dropped.
        columns: canonical column -> column of the dataset, `translation.sv` for a key of a mapping. Default: each has
            the canonical name.
        streaming: read while training instead of before.
        config: of the dataset.
        revision: of a Hub dataset.
        data_files: pattern of the split's files in the folder or repository, such as `en/partial-train/*.parquet`.
            Default: what the dataset says, or the names of its files.
    """
    on_broken = partial(report.drop_line, spec.corpus)
    of_csv = False
    with errors_of_dataset(spec):
        records: Iterable[dict] | None = audiofolder_records(spec, on_broken)
        if records is None:
            dataset = open_dataset(spec, streaming, config, revision, data_files)
            available, of_csv = features_of(dataset), is_csv(dataset)
            batches = dataset.with_format("arrow").iter(batch_size=100)
            records = (record for batch in batches for record in records_in(batch))
        else:
            available = dict.fromkeys(name for record in records for name in record)
        check_columns(spec, columns, available)
        placed = (
            (place_of(record) if is_sample(record) else f"{spec.path}, record {number}", number, record)
            for number, record in enumerate(records)
        )
        converted = partial(plain_record, classes=classes_in(available), of_csv=of_csv)
        yield from rows_of(placed, spec, columns, local_folder(spec), on_broken, converted)


def is_csv(dataset: "datasets.Dataset | datasets.IterableDataset") -> bool:
    """Whether pandas reads a dataset from CSV or TSV files."""
    return dataset.info.builder_name == "csv"


def plain_record(record: dict, classes: Mapping[str, Mapping[int, str]], of_csv: bool = False) -> dict:
    """A record by its columns; of a sample of WebDataset, these are in its files. Classes have their names for numbers.

    Raises:
        BrokenRowError: a file of a sample is not as its ending says, or a field of TSV holds the lines after it.
    """
    if is_sample(record):
        return sample_record(record)
    for value in record.values() if of_csv else ():
        if isinstance(value, str) and "\t" in value and "\n" in value:
            raise BrokenRowError(
                "a field begins with a quote that is not closed before other lines: they are in it", value
            )
    numbers = {column: record[column] for column in classes if record.get(column) is not None}
    return record | {column: classes[column].get(number) for column, number in numbers.items()}


def classes_in(available: Mapping[str, object]) -> dict[str, dict[int, str]]:
    """Column -> the names of its numbers, of the columns that hold classes, such as VoxPopuli's `language`."""
    classes = {name: feature for name, feature in available.items() if type(feature).__name__ == "ClassLabel"}
    return {name: dict(enumerate(feature.names)) for name, feature in classes.items()}


def features_of(dataset: "datasets.Dataset | datasets.IterableDataset") -> dict[str, object]:
    """Column -> its feature; None for each where the features of a stream are not known before it is read."""
    if is_sample(dataset.column_names or ()):
        return columns_of(dataset)
    if dataset.features is not None:
        return dict(dataset.features)
    return dict.fromkeys(next(iter(dataset), ()))


@contextmanager
def errors_of_dataset(spec: CorpusSpec) -> Iterator[None]:
    """Say which dataset an error of reading it is about."""
    import datasets
    import pyarrow

    try:
        yield
    except CorpusError:
        raise
    except (OSError, ValueError, pyarrow.ArrowException, datasets.exceptions.DatasetGenerationError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CorpusError(
            f"{spec.reader}: {spec.path} could not be read ({type(error).__name__}: {reason}). Is it whole?"
        ) from error


def local_folder(spec: CorpusSpec) -> Path | None:
    """The folder to which relative audio paths in the dataset refer; None for a dataset on the Hub."""
    path = spec.local_path
    if is_address(spec.path) or not path.exists():
        return None
    return path if path.is_dir() else path.parent


def open_dataset(
    spec: CorpusSpec,
    streaming: bool = False,
    config: str | None = None,
    revision: str | None = None,
    data_files: str | None = None,
) -> "datasets.Dataset | datasets.IterableDataset":
    """The `datasets.Dataset` or `IterableDataset` behind a spec; local files are read where they lie, not copied.

    Not of a folder of which there are [`audiofolder_records`].
    """
    import datasets

    path = spec.local_path
    if is_address(spec.path) or path.is_file():
        refuse_settings(spec)
        refuse_split(spec)
        return open_files(spec.path if is_address(spec.path) else str(path))
    if not path.exists():
        return open_hub_dataset(spec, streaming, config, revision, data_files)
    if (path / "state.json").exists():
        saved = datasets.load_from_disk(str(path))
        refuse_settings(spec)
        if str(saved.split) not in SPLIT_NAMES.get(spec.split, (spec.split,)):
            refuse_split(spec)
        return saved
    if (path / "dataset_dict.json").exists():
        refuse_settings(spec)
        saved = datasets.load_from_disk(str(path))
        return saved[split_name(saved, spec)]
    refuse_settings(spec, ("revision",))
    files = data_files and {spec.split: data_files}
    # As a whole path: `parquet` alone is what reads such files, of the working folder and all below it.
    builder = keeping_words(datasets.load_dataset_builder(os.path.abspath(path), name=config, data_files=files))
    refuse_to_stream(spec, builder.name)
    if not data_files:
        refuse_other_cases(spec, [os.path.relpath(one, path) for one in builder.config.data_files.get("train", ())])
    if builder.name == "webdataset":
        return open_shards(builder.config.data_files[split_name(builder.config.data_files, spec)])
    found = builder.as_streaming_dataset()
    return found[split_name(found, spec)]


def refuse_settings(spec: CorpusSpec, names: Sequence[str] = OF_REPOSITORIES) -> None:
    """Raise `CorpusError` where an entry has settings that mean nothing for what lies at its path."""
    if given := [name for name in names if spec.settings.get(name) is not None]:
        raise CorpusError(f"{spec.reader}: {', '.join(given)} would have no effect on {spec.path}: leave that out")


def refuse_to_stream(spec: CorpusSpec, kind: str) -> None:
    """Raise `CorpusError` where a corpus would only fail when its first sound is asked for, in training."""
    import datasets

    if spec.streaming and kind == "audiofolder" and not datasets.config.TORCHCODEC_AVAILABLE:
        raise CorpusError(
            f"{spec.reader}: {spec.path} is an audiofolder, which `datasets` streams with the package torchcodec alone: leave "
            "`streaming` out, so that it is read before training, or install that package"
        )


def open_files(path: str) -> "datasets.IterableDataset":
    """The records of a file, or of files by a pattern wherever fsspec reaches (`s3://`, `gs://`, `hf://`, `https://`)."""
    import datasets

    kind = next((kind for ending, kind in KINDS.items() if path.endswith(ending)), None)
    if kind is None:
        raise CorpusError(
            f"dataset: {path} is no {', '.join(KINDS)} file, nor a pattern of such as s3://bucket/data/*.parquet; for JSONL "
            "use the reader 'manifest'"
        )
    try:
        path_of(path)
    except AddressError as error:
        raise CorpusError(f"dataset: {error}") from error
    files = {"train": path}
    if kind == "webdataset":
        return open_shards(datasets.load_dataset_builder(kind, data_files=files).config.data_files["train"])
    return datasets.load_dataset(kind, data_files=files, split="train", streaming=True)


def open_hub_dataset(
    spec: CorpusSpec, streaming: bool, config: str | None, revision: str | None, data_files: str | None
) -> "datasets.Dataset | datasets.IterableDataset":
    """One split of a dataset of the Hugging Face Hub, whose files are downloaded first and read where they lie, or streamed.

    One clear error where it cannot be had.
    """
    import datasets
    from huggingface_hub import snapshot_download

    with errors_of_hub(spec):
        files = hub_files(spec, config, revision, data_files)
        refuse_to_stream(spec, files.kind)
        addresses = files.addresses
        if not streaming:
            settings = {"repo_type": "dataset", "revision": files.commit, "allow_patterns": files.paths}
            folder = Path(snapshot_download(spec.path, **settings))
            addresses = [str(folder / path) for path in files.paths]
        if files.kind == "webdataset":
            return open_shards(addresses)
        settings = {"data_files": {files.split: addresses}, "split": files.split, "streaming": True}
        return datasets.load_dataset(files.kind, **settings, **files.options)


@dataclass(frozen=True)
class HubFiles:
    """The files of one split of a dataset on the Hub.

    Attributes:
        kind: of files, as `datasets` names what reads them, such as `parquet`.
        split: the dataset's own name of it.
        commit: of the repository.
        paths: in the repository.
        addresses: the same, as `hf://datasets/...`.
        options: what else `datasets` reads them with, such as the `sep` of a table.
    """

    kind: str
    split: str
    commit: str
    paths: list[str]
    addresses: list[str]
    options: dict[str, object]


def hub_files(
    spec: CorpusSpec, config: str | None = None, revision: str | None = None, data_files: str | None = None
) -> HubFiles:
    """The files of the split that `spec` asks for, of which none is downloaded."""
    import datasets
    from huggingface_hub import HfFileSystem

    check_place(spec)
    files = data_files and {spec.split: data_files}
    builder = keeping_words(datasets.load_dataset_builder(spec.path, name=config, revision=revision, data_files=files))
    split = split_name(builder.config.data_files, spec)
    addresses = list(builder.config.data_files[split])
    places = [HfFileSystem().resolve_path(address) for address in addresses]
    if split == "train" and not data_files:
        refuse_other_cases(spec, [place.path_in_repo for place in places])
    paths = [place.path_in_repo for place in places]
    return HubFiles(builder.name, split, places[0].revision, paths, addresses, options_of(builder.config))


def keeping_words(builder: "datasets.DatasetBuilder") -> "datasets.DatasetBuilder":
    """The builder itself; of tables an empty field alone is nothing, where pandas takes `null`, `NA` and `nan`, too.

    These are words, and the code of Min Nan. A dataset that says itself what stands for nothing is right.
    """
    if builder.name == "csv" and builder.config.na_values is None:
        builder.config.keep_default_na, builder.config.na_values = False, [""]
    return builder


def options_of(config: "datasets.BuilderConfig") -> dict[str, object]:
    """What a dataset says of how its files are read, beside which they are."""
    from datasets import BuilderConfig

    of_all = {one.name for one in fields(BuilderConfig)}
    own = {one.name: getattr(config, one.name) for one in fields(config) if one.name not in of_all}
    usual = type(config)()
    return {name: value for name, value in own.items() if value != getattr(usual, name)}


@contextmanager
def errors_of_hub(spec: CorpusSpec) -> Iterator[None]:
    """Say of an error which dataset of the Hub it is about."""
    import datasets
    from huggingface_hub.errors import HTTPError

    try:
        yield
    except CorpusError:
        raise
    except (OSError, ValueError, RuntimeError, HTTPError, datasets.exceptions.DatasetGenerationError) as error:
        raise unreachable(spec, error) from error


def check_place(spec: CorpusSpec) -> None:
    """Raise `CorpusError` where a path is neither here nor an address nor the id of a dataset on the Hub."""
    if not (is_address(spec.path) or spec.local_path.exists() or is_hub_id(spec.path)):
        raise CorpusError(f"{spec.reader}: {spec.path} is neither a file or folder nor a Hub id such as 'owner/name'")


def is_hub_id(path: str) -> bool:
    """Whether `path` is shaped like the id of a Hub repository, "owner/name", and `owner` is no folder here."""
    return HUB_ID.fullmatch(path) is not None and not Path(path).parent.is_dir()


def unreachable(spec: CorpusSpec, error: Exception) -> CorpusError:
    """The error for a Hub id that could not be read: what happened, and what to give instead."""
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    reason = " ".join(str(error).split())[:300]
    is_gated = isinstance(error, GatedRepoError) or "is a gated dataset" in reason
    if isinstance(error, (DatasetNotFoundError, RepositoryNotFoundError)) and not is_gated:
        where = how_to_get(spec.reader)
        return CorpusError(
            f"{spec.reader}: {spec.path} is neither a folder here nor a dataset on the Hub that this account may read; "
            f"give one of them as `path`{f'. {where}.' if where else ''}"
        )
    if "scripts are no longer supported" in reason:
        return CorpusError(
            f"{spec.reader}: the Hub dataset {spec.path!r} is a script, which `datasets` does not run any more; give the "
            "files of another branch, such as revision: refs/convert/parquet with data_files: CONFIG/SPLIT/*.parquet"
        )
    known = hub_id_of(spec.reader) or spec.path
    return CorpusError(
        f"{spec.reader}: the Hub dataset {spec.path!r} could not be read ({type(error).__name__}: {reason}). "
        f"Check the name and the connection, or give a local copy as `path`: the folder that "
        f"`hf download {known} --repo-type dataset --local-dir FOLDER` fills on a machine that reaches the Hub."
    )


def split_name(splits: Mapping, spec: CorpusSpec) -> str:
    """The name among `splits` of the split that `spec` asks for, which may be any of its usual names."""
    for name in SPLIT_NAMES.get(spec.split, (spec.split,)):
        if name in splits:
            return str(name)
    raise CorpusError(f"{spec.reader}: {spec.path} has no split {spec.split!r}; it has {', '.join(map(str, splits))}")


def audiofolder_records(spec: CorpusSpec, on_broken: OnBroken | None = None) -> list[dict] | None:
    """Records of the split of an audiofolder: `metadata.jsonl` or `.csv` with `file_name`, beside the files.

    Read here because 🤗 Datasets wants torchcodec even for the paths. None if the folder is no audiofolder.
    """
    folder = spec.local_path
    if is_address(spec.path) or (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
        return None
    tables = sorted((*folder.rglob("metadata.jsonl"), *folder.rglob("metadata.csv")))
    if not tables:
        return None
    refuse_settings(spec)
    asked = SPLIT_NAMES.get(spec.split, (spec.split,))
    of_split, of_none, has_splits = [], [], False
    for path in tables:
        if (place := split_place(path.parent.relative_to(folder), asked)) and not place[1]:
            has_splits = True
            continue
        read = partial(read_csv, columns=("file_name",)) if path.suffix == ".csv" else read_jsonl
        for number, record in read(path, on_broken=on_broken):
            name = record.get("file_name")
            if not isinstance(name, str) or not name:
                handle(on_broken, f"{path}, line {number}", BrokenRowError("no 'file_name'", repr(name)))
                continue
            if path.suffix == ".csv":
                record = as_values(record)
            audio = os.path.abspath(path.parent / name)
            inside = Path(os.path.relpath(audio, folder))
            place = split_place(inside.parent, asked)
            own_id = os.path.splitext(inside.relative_to(place[0]) if place else inside)[0]
            has_splits = has_splits or place is not None
            if place is None or place[1]:
                (of_none if place is None else of_split).append({"id": own_id, **record, "audio": audio})
    if not has_splits:
        refuse_split(spec)
    records = of_split if has_splits else of_none
    if not records:
        raise CorpusError(f"dataset: no metadata.jsonl or metadata.csv for the split {spec.split!r} in {folder}")
    return records


def refuse_other_cases(spec: CorpusSpec, files: Iterable[str]) -> None:
    """Raise `CorpusError` where a file of training is named after another split, but for its case: Test.parquet.

    `datasets` takes what it knows no split of for training.
    """
    for name in files:
        place = split_place(Path(name), SPLIT_NAMES["train"])
        if place and not place[1] and place[0].name != place[0].name.lower():
            raise CorpusError(
                f"{spec.reader}: {name} in {spec.path} would be read as 'train', as `datasets` knows splits by names in lower "
                "case alone: rename it, or say with `data_files` which files are the split's"
            )


def split_place(place: Path, asked: Sequence[str]) -> tuple[Path, bool] | None:
    """The folder in a path that is named after a split, as `datasets` reads names, and whether it is one of `asked`.

    None: none is. `Train`, `data/train` and `train-clean-100` are the split train; what lies outside a corpus is of none.
    """
    known = {name for names in SPLIT_NAMES.values() for name in names}
    asked = {name.lower() for name in asked}
    for number, part in enumerate(place.parts, start=1):
        words = {part.lower(), *re.split(r"[-._ \d]+", part.lower())}
        if part == os.pardir:
            return None
        if words & {*asked, *known}:
            return Path(*place.parts[:number]), not words.isdisjoint(asked)
    return None
