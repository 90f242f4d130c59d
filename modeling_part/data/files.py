# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Tables, JSONL files and archives of corpora, read with file and line in every message."""

import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from .rows import COLUMNS, CorpusError


def unpack_tar(archive: Path, folder: Path) -> None:
    """Unpack the files of a tar archive side by side into `folder`, whatever folders they had in it.

    Raises:
        CorpusError: the archive is damaged, or two of its files have one name.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    names = set()
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive, "r|*") as tar:
            for member in tar:
                if member.isfile():
                    member.name = Path(member.name).name
                    if member.name in names:
                        raise CorpusError(
                            f"{archive} holds two files named {member.name}; unpack it by hand into {folder}"
                        )
                    names.add(member.name)
                    tar.extract(member, partial, filter="data")
    except (OSError, tarfile.TarError) as error:
        raise CorpusError(f"{archive} could not be unpacked into {folder}: {error}") from error
    partial.rename(folder)


def read_table(path: Path) -> Iterator[dict[str, str]]:
    """Rows of a tab-separated file with a header and no quoting, as in Common Voice and CoVoST 2.

    Raises:
        CorpusError: a row has more or fewer fields than the header.
    """
    with path.open(encoding="utf-8", newline="\n") as lines:  # a field may hold any other line separator
        header = next(lines, "").rstrip("\r\n").split("\t")
        for number, line in enumerate(lines, start=2):
            values = line.rstrip("\r\n").split("\t")
            if len(values) != len(header):
                raise CorpusError(f"{path}, line {number}: {len(values)} fields, but the header has {len(header)}")
            yield dict(zip(header, values, strict=True))


def read_jsonl(path: Path) -> Iterator[tuple[int, dict]]:
    """Line number and JSON object of each line that is not blank; `CorpusError` for one that is no JSON object."""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, parse_record(line, f"{path}, line {number}")


def parse_record(line: str, where: str) -> dict:
    """The JSON object in one line of a JSONL file."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise CorpusError(f"{where}: no valid JSON ({error})") from error
    if not isinstance(record, dict):
        raise CorpusError(f"{where}: a JSON object is needed, not {line.strip()[:60]!r}")
    return record


def write_manifest(rows: Iterable[dict], path: str | Path) -> int:
    """Write canonical rows as a JSONL manifest with audio paths relative to its folder; return how many.

    Columns that are None are left out. Rows must hold audio as a path (bytes have no place in a text file).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with path.open("w", encoding="utf-8") as manifest:
        for row in rows:
            record = {name: row[name] for name in COLUMNS if row[name] is not None}
            if "audio" in record:
                record["audio"] = Path(os.path.relpath(record["audio"]["path"], path.parent)).as_posix()
                record["duration"] = round(record["duration"], 4)
            else:
                record.pop("duration")
            manifest.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
    return count
