# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""The sounds of rows that hold them as bytes, each kept once, however many rows ask for it, and those at an address.

A clip of a translation corpus stands in several rows: its transcript, a translation, or one of each direction. Their `audio`
in the rows' file is `{"path": "sounds.arrow#17", "bytes": None}`; whoever reads a row gets the bytes. So it is with a sound
at an address, such as `s3://bucket/a.flac`, which is fetched whenever its row is read.
"""

import hashlib
import logging
import re
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from .addresses import AddressError, fetched, is_address


if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)


FILE = "sounds.arrow"
_REFERENCE = re.compile(rf"{re.escape(FILE)}#(\d+)")


class SoundStore:
    """Writes sounds into a folder's `sounds.arrow`; a context manager, after which the file is whole or not there.

    Where reading fails, the sounds that were there before stay.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._known: dict[bytes, int] = {}
        self._writer = None

    def __enter__(self) -> "SoundStore":
        return self

    def keep(self, rows: list[dict]) -> list[dict]:
        """The rows with references in place of their bytes, which are written."""
        new, referring = [], []
        for row in rows:
            data = (row["audio"] or {}).get("bytes")
            if data is None:
                referring.append(row)
                continue
            key = hashlib.blake2b(data, digest_size=16).digest()
            if key not in self._known:
                self._known[key] = len(self._known)
                new.append(data)
            referring.append({**row, "audio": {"path": f"{FILE}#{self._known[key]}", "bytes": None}})
        if new:
            self._write(new)
        return referring

    def _write(self, sounds: list[bytes]) -> None:
        import pyarrow

        table = pyarrow.table({"bytes": pyarrow.array(sounds, pyarrow.binary())})
        if self._writer is None:
            self._sink = pyarrow.OSFile(str(self.path.with_suffix(".partial")), "wb")
            self._writer = pyarrow.ipc.new_stream(self._sink, table.schema)
        self._writer.write_table(table)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()
            self._sink.close()
            if kind is None:
                self.path.with_suffix(".partial").replace(self.path)
        elif kind is None:
            self.path.unlink(missing_ok=True)


class SoundsOfRows:
    """Puts the sounds of a folder (None: of none) and of addresses into batches of rows that refer to them.

    A transform of `datasets`.
    """

    def __init__(self, folder: Path | None) -> None:
        self.path = None if folder is None else Path(folder).resolve() / FILE
        self._sounds = None

    def __getstate__(self) -> dict:
        return {"path": self.path, "_sounds": None}  # every process maps the file for itself

    def __call__(self, batch: dict) -> dict:
        """The columns of some rows, their sounds as bytes."""
        if "audio" not in batch:
            return batch
        return {**batch, "audio": [self._resolved(audio) for audio in batch["audio"]]}

    def _resolved(self, audio: dict | None) -> dict | None:
        match = _REFERENCE.fullmatch((audio or {}).get("path") or "")
        if match is None:
            return from_address(audio)
        if self._sounds is None:
            from datasets import Dataset

            self._sounds = Dataset.from_file(str(self.path))
        return {"path": None, "bytes": self._sounds[int(match[1])]["bytes"]}


def from_address(audio: dict | None) -> dict | None:
    """`audio` of a row with the bytes at its address, if it has one and no bytes; other audio as it is.

    Where they cannot be had it stays, too, and the row turns out as broken.
    """
    if audio is None or audio["bytes"] is not None or not is_address(audio["path"] or ""):
        return audio
    try:
        return {"path": None, "bytes": fetched(audio["path"])}
    except AddressError as error:
        logger.warning("%s", error)
        return audio


def with_sounds(dataset: "datasets.Dataset", folder: Path | None) -> "datasets.Dataset":
    """The rows of a folder; those that refer to a sound of it, or to an address, hold its bytes when they are read."""
    import pyarrow.compute

    paths = (pyarrow.compute.struct_field(chunk, "path") for chunk in dataset.data.column("audio").chunks)
    refers = folder is not None and (Path(folder) / FILE).is_file()
    if refers or any(pyarrow.compute.any(pyarrow.compute.match_substring(one, "://")).as_py() for one in paths):
        return dataset.with_transform(SoundsOfRows(folder))
    return dataset
