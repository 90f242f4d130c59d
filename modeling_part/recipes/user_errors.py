# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""A mistake of the user's is a message and exit status 2; the traceback, which is for us, comes with `--debug`."""

import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


PACKAGE = Path(__file__).parents[1]

# What unfit files, options, packages, paths, ports, disks and networks raise. Anything else is an error of ours.
EXPECTED = (ImportError, OSError, ValueError, subprocess.CalledProcessError)
THEIRS = (
    ("safetensors", "SafetensorError"),
    ("torch", "OutOfMemoryError"),  # what has no phase of its own, such as commands that do not train
    ("torch.distributed", "DistError"),
    ("httpx2", "InvalidURL"),  # of a proxy or HF_ENDPOINT
)


class UserError(RuntimeError):
    """What somebody must see to before it can go on: the message says how."""


@contextmanager
def mistakes_in_one_message(
    program: str, debug: bool = False, interrupted: Callable[[], str] | None = None
) -> Iterator[None]:
    """Turn an expected error into its message on stderr and exit status 2.

    Args:
        program: what the message begins with.
        debug: let errors through with their traceback.
        interrupted: what to say after Ctrl-C, and exit status 130; None lets KeyboardInterrupt through.
    """
    try:
        yield
    except KeyboardInterrupt:
        if interrupted is None or debug:
            raise
        sys.stderr.write(f"\n{program}: {interrupted()}\n")
        sys.exit(130)
    except Exception as error:
        if debug or not is_expected(error):
            raise
        rank = os.environ.get("RANK", "0")
        sys.stderr.write(f"{program}{'' if rank == '0' else f' (rank {rank})'}: {message(error)}\n")
        sys.exit(2)


def is_expected(error: Exception) -> bool:
    """Whether an error is one that a user can do something about; of packages that are loaded, theirs too."""
    kinds = [*EXPECTED, UserError]
    for package, name in THEIRS:
        if package in sys.modules:
            kinds.append(getattr(sys.modules[package], name))
    return isinstance(error, tuple(kinds))


def message(error: Exception) -> str:
    """What an error says; of one that is not ours also where to see more."""
    text = str(error).strip()
    if isinstance(error, OSError) and error.strerror and error.filename and error.strerror in text:
        text = f"{error.filename}: {error.strerror}"  # without the number of the error
    if isinstance(error, ImportError) and error.name and not text.endswith("."):
        text = f"{text}; install it with: pip install {error.name.split('.')[0]}"
    frames = traceback.extract_tb(error.__traceback__)
    is_ours = bool(frames) and Path(frames[-1].filename).is_relative_to(PACKAGE)
    return f"{text or type(error).__name__}{'' if is_ours else ' (--debug shows where)'}"


def take_debug(argv: Sequence[str]) -> tuple[list[str], bool]:
    """Words without a `--debug` that has no value, and whether there was one (`Trainer` has a `debug` with a value)."""
    words = list(argv)
    for place, word in enumerate(words):
        if word == "--debug" and (place + 1 == len(words) or words[place + 1].startswith("-")):
            return words[:place] + words[place + 1 :], True
    return words, False
