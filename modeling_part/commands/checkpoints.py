# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""A checkpoint for others: on the Hub, as a web page; and an encoder made into one."""

import argparse
import logging
from pathlib import Path

from .options import add_device, add_verb, add_window, chosen


def publish(options: argparse.Namespace) -> None:
    """Finished stages to the Hub."""
    from ..publishing.hub import finished_stages, preview, publish

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    for folder in finished_stages(options.checkpoint, options.stage):
        if options.preview:
            print(preview(folder, options.repo_id, **chosen(options, "license", "samples")))
        else:
            settings = chosen(options, "private", "license", "overwrite_card", "samples")
            print(publish(folder, options.repo_id, **settings).url)


def demo(options: argparse.Namespace) -> None:
    """The web page."""
    from ..demo import serve

    names = ("revision", "device", "dtype", "host", "port", "share", "max_minutes", "window")
    serve(options.checkpoint, **chosen(options, *names))


def convert_encoder(options: argparse.Namespace) -> None:
    """A SAN-M encoder's folder."""
    from ..quickstart.encoders import convert_encoder

    encoder = convert_encoder(options.source, options.folder, revision=options.revision)
    print(f"{options.folder}: {type(encoder).__name__}, {encoder.num_parameters():,} parameters")


def add_checkpoints(verbs: argparse._SubParsersAction) -> None:
    """Add `publish`, `demo` and `convert-encoder`."""
    summary = "put finished stages on the Hub, each a commit and a tag of one repository"
    verb = add_verb(verbs, publish, summary, goes_on=lambda options: True)
    verb.add_argument("checkpoint", type=Path, help="folder of a stage, or of a run with stages")
    verb.add_argument("--repo_id", required=True, help="USER/NAME on the Hub")
    verb.add_argument("--stage", nargs="+", help="of a run: only these stages")
    verb.add_argument("--private", action="store_true", help="create the repository private")
    verb.add_argument("--license", help="identifier for the card's metadata, such as apache-2.0")
    verb.add_argument(
        "--overwrite_card", action="store_true", help="replace a README.md written or edited by hand there"
    )
    verb.add_argument("--samples", action="store_true", help="quote a few test rows with their answers in the card")
    verb.add_argument("--preview", action="store_true", help="print the files and the card; send nothing")
    verb = add_verb(verbs, demo, "a web page that transcribes and translates; nothing leaves the machine")
    verb.add_argument("checkpoint", help="folder or Hub repository")
    verb.add_argument("--revision", help="of the repository, such as stage-encoder")
    add_device(verb)
    verb.add_argument("--dtype", default="auto", help="such as bfloat16; that of the checkpoint by default")
    verb.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    verb.add_argument("--port", type=int, default=7860)
    verb.add_argument("--max_minutes", type=float, default=60.0, help="longest recording (default 60)")
    add_window(verb)
    verb.add_argument("--share", action="store_true", help=argparse.SUPPRESS)  # refused, with what to do instead
    verb = add_verb(verbs, convert_encoder, "an encoder folder of FunASR's SenseVoice-Small, or of a Fun-ASR-Nano")
    verb.add_argument("source", help="FunASR's folder (model.pt, config.yaml, am.mvn); for Fun-ASR-Nano also a Hub id")
    verb.add_argument("folder", type=Path, help="new; a recipe names it as `audio_model`")
    verb.add_argument("--revision", help="of a repository on the Hub")
