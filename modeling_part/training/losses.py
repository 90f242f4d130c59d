# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""What the log says of training: losses by task and language, as sums that add up over batches and ranks."""

import math
import time

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

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


def batch_ctc_losses(
    groups: list[tuple[str, str, str]], transcript_ids: torch.Tensor, ctc_losses: torch.Tensor, counted: torch.Tensor
) -> GroupLosses:
    """`(B, U)` tokens of what is said, `(B,)` nats and which of them count -> nats and transcript tokens per group."""
    tokens = (transcript_ids != -100).sum(-1).tolist()
    losses: GroupLosses = {}
    for group, nats, size, counts in zip(groups, ctc_losses.tolist(), tokens, counted.tolist(), strict=True):
        if counts and math.isfinite(nats):
            add_losses(losses, {group: (nats, size)})
    return losses


def add_losses(total: GroupLosses, losses: GroupLosses) -> None:
    """Add `losses` to `total`, in place."""
    for group, (nats, tokens) in losses.items():
        before = total.get(group, (0.0, 0))
        total[group] = (before[0] + nats, before[1] + tokens)


def losses_over_ranks(losses: GroupLosses) -> GroupLosses:
    """The sums of all ranks, which may have met different languages."""
    total: GroupLosses = {}
    for one in gather_object([losses]):
        add_losses(total, one)
    return total


def mean_losses(losses: GroupLosses, prefix: str, name: str = "loss") -> dict[str, float]:
    """`{prefix}asr_loss`, `{prefix}asr/fr_loss`, ... in nats per token; `name` stands in the place of `loss`."""
    means = {}
    for task in TASKS:
        members = {group: sums for group, sums in sorted(losses.items()) if group[0] == task and sums[1] > 0}
        if members:
            means[f"{prefix}{task}_{name}"] = sum(n for n, _ in members.values()) / sum(t for _, t in members.values())
        for (_, source, target), (nats, tokens) in members.items():
            means[f"{prefix}{task}/{direction(source, target)}_{name}"] = nats / tokens
    return means


def add_output(losses: GroupLosses, ctc_losses: GroupLosses, info: dict, inputs: dict, outputs: dict) -> None:
    """Add what a forward pass over a batch of the collator gave: of the answers, and of the alignment."""
    if outputs.get("token_losses") is not None:
        add_losses(losses, batch_losses(info["groups"], inputs["labels"], outputs["token_losses"]))
    if outputs.get("ctc_losses") is not None:
        parts = (inputs["transcript_ids"], outputs["ctc_losses"], outputs["ctc_counted"])
        add_losses(ctc_losses, batch_ctc_losses(info["groups"], *parts))


class StepStatistics:
    """Sums over the batches since the last line of the log: losses per group, tokens, audio, padding, speed, gate."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin a new line."""
        self.losses: GroupLosses = {}
        self.ctc_losses: GroupLosses = {}
        self.totals = torch.zeros(4, dtype=torch.float64)  # positions, valid positions, audio s, padded audio s
        self.part_norms: dict[str, tuple[float, int]] = {}  # sum, steps
        self.open_batches = self.batches = 0
        self.since = time.perf_counter()

    def add_batch(self, info: dict, inputs: dict, outputs: dict, gate_is_open: bool) -> None:
        """Add a batch of the collator: its `batch_info`, the model's inputs and outputs."""
        add_output(self.losses, self.ctc_losses, info, inputs, outputs)
        mask = inputs["attention_mask"]
        padded = info["padded_seconds"] * len(info["ids"])
        sums = [mask.numel(), float(mask.sum()), sum(info["audio_seconds"]), padded]
        self.totals += torch.tensor(sums, dtype=torch.float64)
        self.open_batches += gate_is_open
        self.batches += 1

    def add_norms(self, norms: dict[str, float]) -> None:
        """Add the gradient norms of a step: of the parts that it trains."""
        for part, norm in norms.items():
            total, steps = self.part_norms.get(part, (0.0, 0))
            self.part_norms[part] = (total + norm, steps + 1)

    def pause(self, seconds: float) -> None:
        """Leave out time that was not training."""
        self.since += seconds

    def figures(self, accelerator: Accelerator) -> dict[str, float]:
        """One line of the log, over all ranks; every rank must make the call."""
        totals = self.totals
        if accelerator.num_processes > 1:
            dtype = torch.float32 if accelerator.device.type == "mps" else torch.float64
            totals = accelerator.reduce(totals.to(accelerator.device, dtype), "sum").cpu()
        seconds = time.perf_counter() - self.since
        positions, valid, audio, padded = totals.tolist()
        figures = mean_losses(losses_over_ranks(self.losses), "")
        figures |= mean_losses(losses_over_ranks(self.ctc_losses), "", "ctc_loss")
        figures |= {f"grad_norm/{part}": total / steps for part, (total, steps) in self.part_norms.items()}
        return figures | {
            "tokens_per_second": valid / seconds,
            "audio_hours_per_second": audio / 3600 / seconds,
            "position_padding_share": 1.0 - valid / max(positions, 1),
            "audio_padding_share": 1.0 - audio / padded if padded else 0.0,
            "gate_open_share": self.open_batches / max(self.batches, 1),
        }
