# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""What a checkpoint has learned: gradients, representations, weights, plain text."""

import argparse
from pathlib import Path

from .options import add_device, add_group, add_seed, add_verb, at_least, chosen


def gradients(options: argparse.Namespace) -> None:
    """Gradients of tasks and languages against each other."""
    from ..analysis.gradients import analyze_gradients

    settings = chosen(options, "device", "parameters", "rows_per_group", "batch_size", "seed")
    analyze_gradients(options.checkpoint, options.data, options.output, **settings)


def probes(options: argparse.Namespace) -> None:
    """What the layers hold."""
    from ..analysis.probes import analyze_probes

    settings = chosen(options, "device", "clips_per_language", "seed")
    analyze_probes(options.checkpoint, options.data, options.output, **settings)


def drift(options: argparse.Namespace) -> None:
    """How far the weights moved."""
    from ..analysis.drift import analyze_drift

    analyze_drift(options.checkpoint, options.since, options.output)


def text_loss(options: argparse.Namespace) -> None:
    """What the language model has kept of plain text."""
    from ..analysis.text_loss import analyze_text_loss

    analyze_text_loss(options.checkpoint, options.texts, options.output, options.since, options.device)


def add_analyses(verbs: argparse._SubParsersAction) -> None:
    """Add the group `analyze`."""
    group = add_group(verbs, "analyze", "gradients, representations and weights of a checkpoint")
    similarity = add_verb(group, gradients, "cosine similarity between the gradients of tasks and languages")
    similarity.add_argument(
        "--parameters", nargs="+", default=["adapter"], help="adapter, encoder, language_model, expressions"
    )
    similarity.add_argument("--rows_per_group", type=at_least(1), default=64)
    similarity.add_argument("--batch_size", type=at_least(1), default=8)
    layers = add_verb(group, probes, "language, content and similarity in the layers of encoder and adapter")
    layers.add_argument("--clips_per_language", type=at_least(1), default=200)
    weights = add_verb(group, drift, "how far each part moved since another checkpoint")
    weights.add_argument("--since", type=Path, required=True, help="the earlier checkpoint, mostly the stage before")
    kept = add_verb(group, text_loss, "loss of the language model on plain text, which the task gate protects")
    kept.add_argument("--texts", type=Path, nargs="+", required=True, help="UTF-8 files, a text on each line")
    kept.add_argument("--since", type=Path, help="a checkpoint to compare with, mostly the stage before")
    for verb in (similarity, layers):
        verb.add_argument("--data", nargs="+", required=True, help="JSONL manifests, or data/SPLIT folders of a run")
        add_seed(verb, "of what is drawn")
    for verb in (similarity, layers, kept):
        add_device(verb, "such as cpu; the first accelerator by default")
    for verb in (similarity, layers, weights, kept):
        verb.add_argument("checkpoint", type=Path, help="folder of a stage or a checkpoint")
        verb.add_argument("--output", type=Path, required=True, help="folder for JSON and pictures")
