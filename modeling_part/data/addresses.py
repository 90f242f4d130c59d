# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Files wherever fsspec reaches: `s3://`, `gs://`, `hf://`, `https://`, `memory://`, beside those here.

Paths to corpora and, within them, to sounds may be such addresses. `pathlib.Path` would make one slash of their two.
"""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from upath import UPath


logger = logging.getLogger(__name__)

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")  # of a repository, "owner/name": a model's or a dataset's
UNLISTED = ("http://", "https://")  # a web server need not say what it has


class AddressError(OSError):
    """A file at an address cannot be had: the message says why and what to do."""


def is_address(path: object) -> bool:
    """Whether a path, as text or as an object, is one of another file system than this machine's."""
    return "://" in str(path)


def path_of(place: str) -> "Path | UPath":
    """A path here, `~` resolved, or the same for an address.

    Raises:
        AddressError: there is no such protocol, or its package is not installed.
    """
    if not is_address(place):
        return Path(place).expanduser()
    from fsspec.registry import get_filesystem_class, known_implementations
    from upath import UPath

    protocol = place.split("://", maxsplit=1)[0].split("::", maxsplit=1)[0]
    try:
        get_filesystem_class(protocol)
    except ImportError as error:
        package = known_implementations[protocol]["class"].split(".")[0]
        raise AddressError(f"{place} needs a package more: pip install {package}") from error
    except ValueError as error:
        raise AddressError(f"{place}: fsspec has no protocol {protocol!r}; write s3, gs, hf or https") from error
    return UPath(place)


def joined(folder: "str | Path | UPath", name: str) -> str:
    """`name` in a folder, if it is not a whole path or address itself."""
    if is_address(name):
        return name
    place = str(folder)
    if not is_address(place):
        return os.path.join(place, name)
    return name if os.path.isabs(name) else str(folder / PurePosixPath(name))


def without_suffix(path: str) -> str:
    """A path or address without its ending; one that names no file as it is."""
    protocol, slashes, rest = path.rpartition("://")
    place = PurePosixPath(Path(rest).as_posix())
    return protocol + slashes + (place.with_suffix("") if place.name else place).as_posix()


def names_in(folder: str) -> frozenset[str] | None:
    """The names of what is in a folder at an address; none where there is no such folder.

    None: it does not say. A bucket may give its files and not their list.
    """
    try:
        with errors_at(folder):
            place = path_of(folder)
            return frozenset(one.name for one in place.iterdir()) if place.is_dir() else frozenset()
    except AddressError as error:
        logger.warning("The files of a folder are not listed, so each is known when it is fetched: %s", error)
        return None


@contextmanager
def errors_at(place: object) -> Iterator[None]:
    """What a file system raises as `AddressError`: exceptions of aiohttp, botocore and their like are no `OSError`."""
    try:
        yield
    except (AddressError, ValueError):  # ours, or about what was read
        raise
    except Exception as error:
        if not is_address(place):
            raise
        reason = " ".join(str(error).split())[:200]
        raise AddressError(
            f"{place} could not be fetched: {type(error).__name__}{f': {reason}' if reason else ''}"
        ) from error


def fetched(audio: str | Path | bytes) -> str | Path | bytes:
    """The content of a file at an address; all else as it is.

    Raises:
        AddressError: it cannot be had.
    """
    if isinstance(audio, bytes) or not is_address(audio):
        return audio
    with errors_at(audio):
        return path_of(str(audio)).read_bytes()
