# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Losses by task and language, as sums that add up over batches and ranks."""

import math

import torch

from ..data.rows import direction
from ..prompts_part import TASKS


# (task, source language, target language) -> nats and target tokens
GroupLosses = dict[tuple[str, str, str], tuple[float, int]]


def batch_losses(groups: list[tuple[str, str, str]], labels: torch.Tensor, token_losses: torch.Tensor) -> GroupLosses:
    """`(B, L)` labels of rows of these groups and `(targets,)` nats -> nats and target tokens per group."""
    counts = (labels[:, 1:] != -100).sum(-1).tolist()
    nats = torch.stack([row.sum() for row in token_losses.split(counts)]).tolist()
    losses: GroupLosses = {}
    for group, row_nats, tokens in zip(groups, nats, counts, strict=True):
        if math.isfinite(row_nats):  # skipped steps are counted apart
            add_losses(losses, {group: (row_nats, tokens)})
    return losses


def add_losses(total: GroupLosses, losses: GroupLosses) -> None:
    """Add `losses` to `total`, in place."""
    for group, (nats, tokens) in losses.items():
        before = total.get(group, (0.0, 0))
        total[group] = (before[0] + nats, before[1] + tokens)


def mean_losses(losses: GroupLosses, prefix: str) -> dict[str, float]:
    """`{prefix}asr_loss`, `{prefix}asr/fr_loss`, ... in nats per target token."""
    means = {}
    for task in TASKS:
        members = {group: sums for group, sums in sorted(losses.items()) if group[0] == task and sums[1] > 0}
        if members:
            means[f"{prefix}{task}_loss"] = sum(n for n, _ in members.values()) / sum(t for _, t in members.values())
        for (_, source, target), (nats, tokens) in members.items():
            means[f"{prefix}{task}/{direction(source, target)}_loss"] = nats / tokens
    return means
