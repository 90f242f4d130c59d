# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Every reader by the name that recipes use.

A reader is a function `read_NAME(spec, report, *, settings...)` in the file `NAME.py` of this folder that yields
canonical rows. Its keyword arguments are the settings that its entries of a recipe may have beside those of
`CorpusSpec`; their annotations say which values are taken.
"""

import inspect
from collections.abc import Callable, Iterator
from importlib import import_module

from ..rows import SPLITS


READERS = (
    "manifest",
    "nemo",
    "funasr",
    "kaldi",
    "lhotse",
    "asterisk",
    "common_voice",
    "fleurs",
    "covost2",
    "wenetspeech",
    "tuxpaint",
    "dataset",
    "text_pairs",
)
FROM_FILES = ("manifest", "nemo", "funasr", "kaldi", "lhotse", "text_pairs")  # of others a path may also be a Hub id
ONE_SPLIT = ("manifest", "nemo", "funasr", "lhotse", "text_pairs")  # a file of theirs is one
# Of those that have others than `SPLITS`; None for any.
SPLITS_BY_READER = {"common_voice": (*SPLITS, "validated"), "dataset": None}


def find_reader(name: str) -> Callable[..., Iterator[dict]]:
    """The function behind one of `READERS`; imported here, as readers know specs and specs know readers' settings."""
    return getattr(import_module(f"{__package__}.{name}"), f"read_{name}")


def find_place_check(name: str) -> Callable[[object], object]:
    """What raises `CorpusError` where the corpus of a spec is not there, before another one is downloaded.

    It is a reader's `check_place`, or where that has none `CorpusSpec.folder`.
    """
    return getattr(import_module(f"{__package__}.{name}"), "check_place", lambda spec: spec.folder())


def reader_settings(name: str) -> dict[str, object]:
    """The settings of a reader, by name, with the annotations of their values."""
    parameters = inspect.signature(find_reader(name), eval_str=True).parameters.values()
    return {one.name: one.annotation for one in parameters if one.kind is one.KEYWORD_ONLY}


def readers_with(setting: str) -> list[str]:
    """The readers that have a setting."""
    return [name for name in READERS if setting in reader_settings(name)]
