# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Shards of WebDataset: tar archives in which the files of one name, up to its first dot, are a sample.

A sample stays bytes until its row is made. So no field needs to be of one type, or there, in all samples, and one that
cannot be read costs its own row.
"""

import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from lzma import LZMAError
from typing import TYPE_CHECKING

from .addresses import errors_at
from .files import StrictHeader, members_of, parse_json
from .rows import BrokenRowError, CorpusError


if TYPE_CHECKING:
    import datasets


JSON_ENDINGS = frozenset({"json", "jsn"})
TEXT_ENDINGS = frozenset({"txt", "text", "transcript", "cls", "cls2", "index", "inx", "id"})
SAMPLES_LOOKED_AT = 20  # for the columns that there are
_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)
_FILES = "__files__"


def open_shards(shards: Sequence[str]) -> "datasets.IterableDataset":
    """The samples of archives, here or at addresses, each with its files as they are; see [`sample_record`]."""
    import datasets

    file = {"ending": datasets.Value("string"), "content": datasets.Value("large_binary")}
    features = datasets.Features(
        {"__key__": datasets.Value("string"), "__url__": datasets.Value("string"), _FILES: datasets.List(file)}
    )
    return datasets.IterableDataset.from_generator(
        samples_in, features=features, gen_kwargs={"shards": [str(shard) for shard in shards]}
    )


def samples_in(shards: Sequence[str]) -> Iterator[dict]:
    """The samples of archives, one after the other.

    Raises:
        CorpusError: an archive cannot be read to its end.
    """
    from datasets.utils.file_utils import xopen

    for shard in shards:
        sample: dict = {}
        try:
            with (
                errors_at(shard),
                xopen(shard, "rb", block_size=0) as stored,  # 0: in one request
                tarfile.open(fileobj=stored, mode="r|*", tarinfo=StrictHeader) as tar,
            ):
                for member in members_of(tar):
                    if not member.isreg() or not (parts := _NAME.fullmatch(member.name)):
                        continue
                    if sample and sample["__key__"] != parts[1]:
                        yield sample
                        sample = {}
                    sample = sample or {"__key__": parts[1], "__url__": shard, _FILES: []}
                    sample[_FILES].append({"ending": parts[2], "content": tar.extractfile(member).read()})
        except (OSError, EOFError, zlib.error, LZMAError, tarfile.TarError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise CorpusError(f"dataset: {shard} could not be read ({reason}). Is it whole?") from error
        if sample:
            yield sample


def is_sample(record: Mapping) -> bool:
    """Whether a record, or a table of them, is of shards."""
    return _FILES in record


def sample_record(sample: dict) -> dict:
    """A sample's files by their endings: JSON parsed, texts as such, others with their bytes, as sounds have them.

    Raises:
        BrokenRowError: one is not as its ending says.
    """
    record: dict = {}
    for file in sample[_FILES]:
        ending, content = file["ending"], file["content"]
        kind = ending.rsplit(".", 1)[-1].lower()
        if ending in record:
            raise BrokenRowError("a file stands twice in a sample", ending)
        if kind not in JSON_ENDINGS | TEXT_ENDINGS:
            record[ending] = {"path": f"{sample['__key__']}.{ending}", "bytes": content}
            continue
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise BrokenRowError(f"the file .{ending} of a sample is not UTF-8", error.reason) from error
        record[ending] = parse_json(text) if kind in JSON_ENDINGS else text
    return record | {"__key__": sample["__key__"], "__url__": sample["__url__"]}


def place_of(sample: Mapping) -> str:
    """Where a sample stands."""
    return f"{sample['__url__']}, sample {sample['__key__']}"


def columns_of(dataset: "datasets.IterableDataset") -> dict[str, object]:
    """Column -> its feature, as far as the first samples say: of JSON, the names that stand in it."""
    import datasets

    columns: dict[str, object] = {}
    for sample in islice(dataset, SAMPLES_LOOKED_AT):
        try:
            record = sample_record(sample)
        except BrokenRowError:  # counted when it is read
            continue
        for name, value in record.items():
            is_json = name.rsplit(".", 1)[-1].lower() in JSON_ENDINGS
            if not isinstance(value, Mapping):
                columns.setdefault(name)
            elif is_json:
                columns[name] = dict.fromkeys(value) | (columns.get(name) or {})
            else:
                columns[name] = datasets.Audio()
    return columns
