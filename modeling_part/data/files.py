# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Tables, JSONL files and archives of corpora, read with file and line in every message."""

import codecs
import csv
import gzip
import json
import lzma
import os
import shutil
import subprocess
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from filelock import FileLock

from .addresses import errors_at
from .rows import COLUMNS, BrokenRowError, CorpusError


OnBroken = Callable[[str, BrokenRowError], None]
HEADER_AGAIN = "the header again: were files put one after the other?"
LINES_PER_FIELD = 50  # a quoted field of CSV that goes on for longer was never closed


@contextmanager
def filled_once(folder: Path) -> Iterator[Path | None]:
    """A folder to fill, which becomes `folder` when it is whole; runs that begin together fill it one after the other.

    Yields:
        The folder to write into, which may hold what an interrupted call left; None where another run has filled it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if folder.exists():
            yield None
            return
        partial = folder.with_name(f"{folder.name}.partial")
        partial.mkdir(exist_ok=True)
        yield partial
        partial.rename(folder)


class StrictHeader(tarfile.TarInfo):
    """A member's header; one that is damaged or not there, which `tarfile` takes for the end of the archive, is an error."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "StrictHeader":
        """The next header; EOFHeaderError at the blocks that end an archive."""
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {tar.offset}") from error


def members_of(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members of an archive that was opened as a stream, with [`StrictHeader`].

    Raises:
        tarfile.ReadError: it breaks off, or another archive follows its end.
    """
    for member in tar:
        yield member
        tar.members = []  # of millions
    while block := tar.fileobj.read(tarfile.RECORDSIZE):
        if block.strip(b"\0"):
            raise tarfile.ReadError("more follows its end: were archives put one after the other?")


def unpack_tar(archive: Path, folder: Path, flat: bool = True) -> None:
    """Unpack the files of a tar archive into `folder`, which is there when all of them are.

    Args:
        archive: compressed or not.
        folder: see [`filled_once`].
        flat: side by side, whatever folders they had in the archive; else in these folders. Default: True.

    Raises:
        CorpusError: the archive is damaged, or two of its files have one name.
    """
    names = set()
    try:
        with filled_once(folder) as partial, tarfile.open(archive, "r|*", tarinfo=StrictHeader) as tar:
            for member in members_of(tar) if partial else ():
                if member.isfile():
                    member.name = Path(member.name).name if flat else member.name
                    if member.name in names:
                        raise CorpusError(
                            f"{archive} holds two files named {member.name}; unpack it by hand into {folder}"
                        )
                    names.add(member.name)
                    tar.extract(member, partial, filter="data")
    except (OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError) as error:
        raise CorpusError(f"{archive} could not be unpacked into {folder}: {error}") from error


def unpack_package(archive: Path, folder: Path, otherwise: str) -> None:
    """Unpack a Debian package into a folder that is there: no root, nothing is installed.

    Raises:
        CorpusError: it is damaged, or there is no dpkg-deb; `otherwise` says what to do without.
    """
    if not shutil.which("dpkg-deb"):
        raise CorpusError(f"{archive} needs dpkg-deb (package dpkg) to be unpacked; without it, {otherwise}")
    command = ["dpkg-deb", "-x", archive.resolve(), folder.resolve()]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        said = (result.stderr or result.stdout).strip()
        raise CorpusError(
            f"{archive} could not be unpacked: {said}\n{archive} may be cut off: delete it to fetch it again."
        )


def as_values(record: dict[str, str]) -> dict[str, str | None]:
    """The fields of a CSV or TSV line, which has texts alone: nothing where one is empty."""
    return {name: field or None for name, field in record.items()}


def text_lines(path: Path, on_broken: OnBroken | None = None) -> Iterator[tuple[int, str]]:
    """Number and text of each line of a UTF-8 file (`.gz`: compressed), without its end and a byte order mark.

    Lines end with a line feed (and maybe a carriage return before it); other separators stay within a text.

    Args:
        path: of the file.
        on_broken: is given the place of each line that is not UTF-8, and what is wrong. Default: it raises.

    Raises:
        CorpusError: the file cannot be opened or is no text.
    """
    if path.exists() and not path.is_file():  # a pipe might never begin, and is read once
        raise CorpusError(f"{path} cannot be read: it is a folder or a pipe, no file")
    try:
        with (
            errors_at(path),
            path.open("rb") as file,
            gzip.open(file) if path.suffix == ".gz" else nullcontext(file) as lines,
        ):
            for number, line in enumerate(lines, start=1):
                if number == 1:
                    check_text(path, line)
                line = line.removeprefix(codecs.BOM_UTF8)  # in the middle as well: files were put one after the other
                try:
                    text = line.decode("utf-8")
                except UnicodeDecodeError as error:
                    byte = (
                        f"byte 0x{line[error.start]:02x} after {line[: error.start][-20:].decode(errors='replace')!r}"
                    )
                    fault = BrokenRowError("not UTF-8 (convert the file, for example with `iconv -t utf-8`)", byte)
                    handle(on_broken, f"{path}, line {number}", fault)
                    continue
                yield number, text.removesuffix("\n").removesuffix("\r")
    except (OSError, EOFError, zlib.error) as error:
        raise CorpusError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def check_text(path: Path, line: bytes) -> None:
    """Raise `CorpusError` if a file that begins with this line is no UTF-8 text at all."""
    if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise CorpusError(f"{path} is UTF-16; convert it with `iconv -f utf-16 -t utf-8`")
    if line.startswith((b"\x1f\x8b", b"PK\x03\x04", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        raise CorpusError(f"{path} is compressed; unpack it")
    if b"\0" in line:
        raise CorpusError(f"{path} is no text: its first line holds NUL bytes")


def handle(on_broken: OnBroken | None, where: str, error: BrokenRowError) -> None:
    """Count a broken row, or raise where nobody counts."""
    if on_broken is None:
        raise CorpusError(f"{where}: {error}") from error
    on_broken(where, error)


def read_table(
    path: Path,
    columns: Sequence[str] = (),
    on_broken: OnBroken | None = None,
    split: Callable[[str], list[str]] = lambda line: line.split("\t"),
) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and fields by column of a tab-separated file with a header and no quoting, as in Common Voice.

    Args:
        path: of the file.
        columns: that the header must have.
        on_broken: is given each line with more or fewer fields than the header. Default: it raises.
        split: the fields of a line; may raise `BrokenRowError`.

    Raises:
        CorpusError: the header lacks a column, or has one twice.
    """
    lines = text_lines(path, on_broken)
    header = next(lines, (1, ""))[1].split("\t")
    check_header(path, header, columns)
    for number, line in lines:
        if not line.strip():
            continue
        try:
            values = split(line)
            if len(values) != len(header):
                raise BrokenRowError(f"not the header's {len(header)} fields", f"{len(values)} fields")
            if values == header:
                raise BrokenRowError(HEADER_AGAIN)
        except BrokenRowError as error:
            handle(on_broken, f"{path}, line {number}", error)
        else:
            yield number, dict(zip(header, values, strict=True))


def unquoted(text: str) -> str:
    """A field of a tab-separated file that was written the CSV way: in quotes, with its own quotes doubled.

    Others in quotes stay as they are: CSV does not quote what needs no quoting.
    """
    inner = text[1:-1]
    doubled = len(text) > 3 and text[0] == text[-1] == '"' and '""' in inner and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if doubled else text


def check_header(path: Path, header: Sequence[str], columns: Sequence[str]) -> None:
    """Raise `CorpusError` if a table's header lacks one of the columns, or has one twice."""
    missing = [name for name in columns if name not in header]
    if missing:
        raise CorpusError(f"{path} has no column {missing[0]!r}; its header is {', '.join(header)[:200]}")
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise CorpusError(f"{path} has two columns {twice[0]!r}; rename or remove one of them")


def read_csv(path: Path, columns: Sequence[str] = (), on_broken: OnBroken | None = None) -> Iterator[tuple[int, dict]]:
    """Line number and fields by column of a CSV file with a header, whose quoted fields may go over several lines.

    A quote that is never closed would swallow the rest of the file: that line alone is broken.
    """
    lines = list(text_lines(path, on_broken))
    header, position = None, 0
    while position < len(lines):
        number, fields, used = lines[position][0], None, 0
        for used in range(1, LINES_PER_FIELD + 1):
            fields = _csv_fields([text for _, text in lines[position : position + used]])
            if fields is not None or position + used >= len(lines):
                break
        if header is None:
            header = fields or lines[position][1].split(",")
            check_header(path, header, columns)
        elif fields == header:
            handle(on_broken, f"{path}, line {number}", BrokenRowError(HEADER_AGAIN))
        elif fields and len(fields) == len(header):
            yield number, dict(zip(header, fields, strict=True))
        elif fields is None or lines[position][1].strip():
            reason = (
                f"not the header's {len(header)} fields"
                if fields
                else "a quote is never closed, or the field is too long"
            )
            handle(on_broken, f"{path}, line {number}", BrokenRowError(reason, lines[position][1]))
        position += used if fields is not None else 1


def _csv_fields(lines: list[str]) -> list[str] | None:
    """The fields of one CSV record; None if these lines are none."""
    try:
        records = list(csv.reader(("\n".join(lines),), strict=True))
    except csv.Error:
        return None
    return records[0] if len(records) == 1 else [] if not records else None


def read_jsonl(path: Path, on_broken: OnBroken | None = None) -> Iterator[tuple[int, dict]]:
    """Line number and JSON object of each line that is not blank.

    Args:
        path: of the file.
        on_broken: is given each line that is no JSON object. Default: it raises `CorpusError`.
    """
    for number, line in text_lines(path, on_broken):
        if line.strip():
            try:
                record = parse_record(line)
            except BrokenRowError as error:
                handle(on_broken, f"{path}, line {number}", error)
            else:
                yield number, record


def parse_record(line: str) -> dict:
    """The JSON object in one line of a JSONL file; `BrokenRowError` if it is none or has a field twice."""
    record = parse_json(line)
    if not isinstance(record, dict):
        raise BrokenRowError("no JSON object", line.strip())
    return record


def parse_json(text: str) -> object:
    """What a JSON text says; `BrokenRowError` if it is none or has a field twice."""
    try:
        return _DECODER.decode(text)
    except BrokenRowError:
        raise
    except json.JSONDecodeError as error:
        raise BrokenRowError("no valid JSON", f"{error.msg} at character {error.pos + 1}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
        raise BrokenRowError("no valid JSON", str(error)) from error


def _fields_once(pairs: list[tuple[str, object]]) -> dict:
    record = dict(pairs)
    if len(record) != len(pairs):
        twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
        raise BrokenRowError("a field stands twice in a row", repr(twice[0]))
    return record


_DECODER = json.JSONDecoder(object_pairs_hook=_fields_once)


def write_manifest(rows: Iterable[dict], path: str | Path) -> int:
    """Write canonical rows as a JSONL manifest with audio paths relative to its folder; return how many.

    Columns that are None are left out. Rows must hold audio as a path (bytes have no place in a text file).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with path.open("w", encoding="utf-8") as manifest:
        for row in rows:
            record = {name: row[name] for name in COLUMNS if row.get(name) is not None}
            if "audio" in record:
                record["audio"] = Path(os.path.relpath(record["audio"]["path"], path.parent)).as_posix()
                record["duration"] = round(record["duration"], 4)
            else:
                record.pop("duration")
            manifest.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
    return count
