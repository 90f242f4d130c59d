# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Any dataset that `datasets` reads: on the Hub, from a folder, or an audiofolder."""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..checking import DataReport
from ..corpus_spec import CorpusSpec
from ..files import OnBroken, handle, read_csv, read_jsonl
from ..rows import COLUMNS, BrokenRowError, CorpusError, check_direction, speech_row, text_row


if TYPE_CHECKING:
    import datasets


SPLIT_NAMES = {"train": ("train",), "dev": ("dev", "validation", "valid"), "test": ("test",)}


def rows_of(
    records: Iterable[tuple[str, int | None, dict]],
    spec: CorpusSpec,
    columns: Mapping[str, str] | None,
    folder: Path | None,
    on_broken: OnBroken,
) -> Iterator[dict]:
    """The canonical rows of records, each given with the place where it stands and its number (None in streams)."""
    for where, number, record in records:
        try:
            rows = list(record_rows(record, spec, columns, folder, number))
        except BrokenRowError as error:
            handle(on_broken, where, error)
        else:
            yield from rows


def record_rows(
    record: dict,
    spec: CorpusSpec,
    columns: Mapping[str, str] | None = None,
    folder: Path | None = None,
    number: int | None = None,
) -> Iterator[dict]:
    """The canonical rows of one record of a dataset or of one text pair; `BrokenRowError` if it cannot be one.

    Without a task column the record gives a row for each of the spec's tasks: `source_text` is what is spoken or to be
    translated and `text` the translation; with asr alone, `text` may be the transcript.
    """
    names = {name: name for name in COLUMNS} | dict(columns or {})
    value = {name: record.get(column) for name, column in names.items()}
    source_lang = value["source_lang"] or only(spec, "languages", "source_lang", names["source_lang"] in record)
    for task in (value["task"],) if value["task"] else spec.tasks or ():
        if task == "asr":
            target_lang = source_lang
        else:
            has_column = names["target_lang"] in record
            target_lang = value["target_lang"] or only(spec, "target_languages", "target_lang", has_column)
        check_direction(task, source_lang, target_lang)
        if not spec.wants(task, source_lang, target_lang):
            continue
        transcript = value["source_text"] if value["source_text"] is not None else value["text"]
        text = transcript if task == "asr" and not value["task"] else value["text"]
        row_id = str(value["id"]) if value["id"] is not None else record_id(value, number)
        if task == "mt":
            yield text_row(row_id, spec.corpus, source_lang, target_lang, text, value["source_text"])
            continue
        source_text = text if task == "asr" else value["source_text"]
        speech = (source_lang, target_lang, text, source_text, value["duration"])
        audio = audio_source(value["audio"], folder)
        yield speech_row(row_id, spec.corpus, *speech, audio, span=(value["start"], value["end"]))


def only(spec: CorpusSpec, setting: str, column: str, has_column: bool) -> str:
    """The one language that `spec` names under `setting`, for data or rows without one."""
    languages = getattr(spec, setting)
    if not languages or len(languages) != 1:
        if has_column:
            raise BrokenRowError(f"no {column!r}")
        raise CorpusError(
            f"{spec.reader} at {spec.path}: no column gives {column!r}; name one language under {setting!r}, "
            f"or the column under 'columns'"
        )
    return languages[0]


def record_id(value: dict, number: int | None) -> str:
    """An id for a record without one: the audio file's path in its folder, the record's number, or a hash of it."""
    audio = value["audio"]
    path = audio.get("path") if isinstance(audio, dict) else audio
    if isinstance(path, str):
        path = Path(path)
        return path.stem if path.is_absolute() else path.with_suffix("").as_posix()
    if number is not None:
        return str(number)
    content = (
        f"{value['source_text']}\t{value['text']}\t{audio if not isinstance(audio, dict) else audio.get('bytes')!r}"
    )
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def audio_source(audio: str | bytes | dict | None, folder: Path | None) -> str | bytes | None:
    """The bytes or the path of what an audio column holds: a path (relative to `folder`), bytes, or both."""
    if isinstance(audio, dict):
        audio = audio["bytes"] if audio.get("bytes") is not None else audio.get("path")
    if isinstance(audio, str) and folder is not None:
        return str(folder / audio)
    return audio


def check_columns(spec: CorpusSpec, columns: Mapping[str, str] | None, available: Sequence[str]) -> None:
    """Raise `CorpusError` if the recipe maps a column that is not there, or leaves open the text or the task."""
    columns = dict(columns or {})
    where = f"{spec.reader} at {spec.path}"
    for name, column in columns.items():
        if name not in COLUMNS:
            raise CorpusError(f"{where}: 'columns' maps {name!r}, which is none of {', '.join(COLUMNS)}")
        if column not in available:
            raise CorpusError(f"{where}: no column {column!r}; there are {', '.join(available)}")
    if not {columns.get("text", "text"), columns.get("source_text", "source_text")} & set(available):
        raise CorpusError(
            f"{where}: no column 'text'; say under 'columns' which of {', '.join(available)} it is, "
            "for example columns: {text: sentence}"
        )
    if not spec.tasks and columns.get("task", "task") not in available:
        raise CorpusError(f"{where}: no column gives the task; name it, for example tasks: [asr]")


def read_dataset(
    spec: CorpusSpec,
    report: DataReport,
    *,
    columns: Mapping[str, str] | None = None,
    streaming: bool = False,
    config: str | None = None,
    revision: str | None = None,
) -> Iterator[dict]:
    """Rows of any dataset: a local folder (parquet, arrow, save_to_disk, audiofolder), a file, or a Hub id.

    Audio stays as it is stored: paths, or bytes from parquet (which the rows then hold).

    Args:
        spec: the entry of the recipe.
        report: counts the rows that are dropped.
        columns: canonical column -> column of the dataset. Default: each has the canonical name.
        streaming: read while training instead of before.
        config: of the dataset.
        revision: of a Hub dataset.
    """
    on_broken = partial(report.drop_line, spec.corpus)
    with errors_of_dataset(spec):
        records: Iterable[dict] | None = audiofolder_records(spec, on_broken)
        if records is None:
            dataset = open_dataset(spec, streaming, config, revision)
            available = dataset.column_names
            batches = dataset.with_format("arrow").iter(batch_size=100)
            records = (record for batch in batches for record in batch.to_pylist())
        else:
            available = list(dict.fromkeys(name for record in records for name in record))
        check_columns(spec, columns, available)
        placed = ((f"{spec.path}, record {number}", number, record) for number, record in enumerate(records))
        yield from rows_of(placed, spec, columns, local_folder(spec), on_broken)


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
    path = Path(spec.path).expanduser()
    if not path.exists():
        return None
    return path if path.is_dir() else path.parent


def open_dataset(
    spec: CorpusSpec, streaming: bool = False, config: str | None = None, revision: str | None = None
) -> "datasets.Dataset | datasets.IterableDataset":
    """The `datasets.Dataset` or `IterableDataset` behind a spec; local files are read where they lie, not copied."""
    import datasets

    path = Path(spec.path).expanduser()
    if not path.exists():
        return open_hub_dataset(spec, streaming, config, revision)
    if path.is_file():
        kind = {".parquet": "parquet", ".arrow": "arrow"}.get(path.suffix)
        if kind is None:
            raise CorpusError(f"dataset: {path} is no .parquet or .arrow file; for JSONL use the reader 'manifest'")
        return datasets.load_dataset(kind, data_files=str(path), split="train", streaming=True)
    if (path / "state.json").exists():
        return datasets.load_from_disk(str(path))
    if (path / "dataset_dict.json").exists():
        return choose_split(datasets.load_from_disk(str(path)), spec)
    if (records := audiofolder_records(spec)) is not None:
        return datasets.Dataset.from_list(records)
    return choose_split(datasets.load_dataset(str(path), name=config, streaming=True), spec)


def open_hub_dataset(
    spec: CorpusSpec, streaming: bool, config: str | None, revision: str | None
) -> "datasets.Dataset | datasets.IterableDataset":
    """A dataset of the Hugging Face Hub; one clear error where it cannot be had."""
    import datasets

    if not is_hub_id(spec.path):
        raise CorpusError(f"{spec.reader}: {spec.path} is neither a file or folder nor a Hub id such as 'owner/name'")
    try:
        found = datasets.load_dataset(spec.path, name=config, revision=revision, streaming=streaming)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetGenerationError) as error:
        raise unreachable(spec, error) from error
    return choose_split(found, spec)


def is_hub_id(path: str) -> bool:
    """Whether `path` is shaped like the id of a Hub repository, "owner/name"."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path) is not None


def unreachable(spec: CorpusSpec, error: Exception) -> CorpusError:
    """The error for a Hub id that could not be read: what happened, and which folder to give instead."""
    reason = " ".join(str(error).split())[:300]
    return CorpusError(
        f"{spec.reader}: the Hub dataset {spec.path!r} could not be read ({type(error).__name__}: {reason}). "
        f"Check the name and the connection, or give a local copy as `path`: the folder that "
        f"`hf download {spec.path} --repo-type dataset --local-dir FOLDER` fills on a machine that reaches the Hub."
    )


def choose_split(splits: Mapping, spec: CorpusSpec) -> "datasets.Dataset | datasets.IterableDataset":
    """The split of a `DatasetDict` that `spec` asks for, under any of its usual names."""
    for name in SPLIT_NAMES.get(spec.split, (spec.split,)):
        if name in splits:
            return splits[name]
    raise CorpusError(f"{spec.reader}: {spec.path} has no split {spec.split!r}; it has {', '.join(splits)}")


def audiofolder_records(spec: CorpusSpec, on_broken: OnBroken | None = None) -> list[dict] | None:
    """Records of the split of an audiofolder: `metadata.jsonl` or `.csv` with `file_name`, beside the files.

    Read here because 🤗 Datasets wants torchcodec even for the paths. None if the folder is no audiofolder.
    """
    folder = Path(spec.path).expanduser()
    if (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
        return None
    if not any(folder.rglob("metadata.jsonl")) and not any(folder.rglob("metadata.csv")):
        return None
    places = [folder / name for name in SPLIT_NAMES[spec.split] if (folder / name).is_dir()]
    if not places and not any((folder / name).is_dir() for names in SPLIT_NAMES.values() for name in names):
        places = [folder]
    records = []
    for place in places:
        for path in sorted((*place.rglob("metadata.jsonl"), *place.rglob("metadata.csv"))):
            read = partial(read_csv, columns=("file_name",)) if path.suffix == ".csv" else read_jsonl
            for number, record in read(path, on_broken=on_broken):
                name = record.get("file_name")
                if not isinstance(name, str) or not name:
                    handle(on_broken, f"{path}, line {number}", BrokenRowError("no 'file_name'", repr(name)))
                    continue
                audio = os.path.abspath(path.parent / name)
                own_id = os.path.splitext(os.path.relpath(audio, place))[0]
                records.append({"id": own_id, **record, "audio": audio})
    if not records:
        raise CorpusError(f"dataset: no metadata.jsonl or metadata.csv for the split {spec.split!r} in {folder}")
    return records
