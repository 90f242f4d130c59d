# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""What the log says of training: losses by task and language, as sums that add up over batches and ranks."""

import math
import time
from collections.abc import Hashable, Mapping

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from ..data.rows import direction
from ..prompts_part import TASKS


# (task, source language, target language) -> nats and target tokens
GroupLosses = dict[tuple[str, str, str], tuple[float, int]]


MOST_WAITING = 1000  # batches whose losses stay on the device: a long time without a line of the log fills no memory


class LossSums:
    """Losses per group whose nats stay tensors until they are asked for: no batch waits for the device, but every 1000th."""

    def __init__(self) -> None:
        self._sums: GroupLosses = {}  # of the rows before these
        self._groups: list[tuple[str, str, str]] = []  # of rows, as are the next two
        self._tokens: list[int] = []
        self._nats: list[torch.Tensor] = []

    def add(self, groups: list[tuple[str, str, str]], tokens: list[int], nats: torch.Tensor) -> None:
        """Add rows of these groups with so many tokens each, and their nats `(B,)`."""
        self._groups += groups
        self._tokens += tokens
        self._nats.append(nats.detach())
        if len(self._nats) >= MOST_WAITING:
            self._sums = self.sums()
            self._groups, self._tokens, self._nats = [], [], []

    def sums(self) -> GroupLosses:
        """Nats and tokens per group of the rows that have tokens and a finite loss; waits for the device."""
        losses = dict(self._sums)
        for group, row_nats, tokens in zip(self._groups, self._row_nats(), self._tokens, strict=True):
            if tokens and math.isfinite(row_nats):  # skipped steps are counted apart
                add_sums(losses, {group: (row_nats, tokens)})
        return losses

    def not_finite(self) -> list[int]:
        """Places, in a batch added alone, of the rows that have tokens and no finite loss; waits for the device."""
        rows = enumerate(zip(self._row_nats(), self._tokens, strict=True))
        return [place for place, (row_nats, tokens) in rows if tokens and not math.isfinite(row_nats)]

    def _row_nats(self) -> list[float]:
        return torch.cat(self._nats).tolist() if self._nats else []


def row_sums(token_losses: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """`(targets,)` nats of rows with so many targets each -> `(B,)`."""
    return torch.stack([row.sum() for row in token_losses.split(counts)])


def add_sums(total: dict, sums: Mapping[Hashable, tuple[float, int]]) -> None:
    """Add `sums` (nats and tokens by group, errors and units by language) to those of `total`, in place."""
    for key, (one, other) in sums.items():
        before = total.get(key, (0, 0))
        total[key] = (before[0] + one, before[1] + other)


def losses_over_ranks(losses: list[GroupLosses]) -> list[GroupLosses]:
    """The sums of all ranks, which may have met different languages, of each kind of loss."""
    totals: list[GroupLosses] = [{} for _ in losses]
    for of_rank in gather_object([losses]):
        for total, one in zip(totals, of_rank, strict=True):
            add_sums(total, one)
    return totals


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


def add_output(losses: LossSums, ctc_losses: LossSums, info: dict, outputs: dict) -> None:
    """Add what a forward pass over a batch with this `batch_info` gave: of the answers, and of the alignment."""
    if outputs.get("token_losses") is not None:
        counts = info["target_counts"]
        losses.add(info["groups"], counts, row_sums(outputs["token_losses"], counts))
    if outputs.get("ctc_losses") is not None:
        ctc_losses.add(info["groups"], info["transcript_counts"], outputs["ctc_losses"])


class StepStatistics:
    """Sums over the batches since the last line of the log: losses per group, tokens, audio, padding, speed, gate."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin a new line."""
        self.losses, self.ctc_losses, self.divergences = LossSums(), LossSums(), LossSums()
        self.totals = torch.zeros(4, dtype=torch.float64)  # positions, valid positions, audio s, padded audio s
        self.part_norms: dict[str, tuple[torch.Tensor, int]] = {}  # their sum on the device, and the steps
        self.open_batches = self.batches = 0
        self.steps = self.steps_with_rows = 0
        self.since = time.perf_counter()

    def add_batch(self, info: dict, inputs: dict, outputs: dict, gate_is_open: bool) -> None:
        """Add a batch of the collator: its `batch_info`, the model's inputs and outputs."""
        add_output(self.losses, self.ctc_losses, info, outputs)
        if outputs.get("kl_divergences") is not None:
            counts = info["target_counts"]
            self.divergences.add(info["groups"], counts, row_sums(outputs["kl_divergences"], counts))
        positions, valid = inputs["attention_mask"].numel(), len(inputs["layout"]["positions"])
        padded = info["padded_seconds"] * len(info["ids"])
        sums = [positions, valid, sum(info["audio_seconds"]), padded]
        self.totals += torch.tensor(sums, dtype=torch.float64)
        self.open_batches += gate_is_open
        self.batches += 1

    def add_step(self, has_rows: bool) -> None:
        """Add an optimizer step, and whether any of its rows, those of all ranks, is in the loss."""
        self.steps += 1
        self.steps_with_rows += has_rows

    def mean_over_steps_with_rows(self, loss: float) -> float | None:
        """`Trainer`'s mean loss over all steps, where one of broken rows alone counts as 0; None where all are such."""
        return loss * self.steps / self.steps_with_rows if self.steps_with_rows else None

    def add_norms(self, norms: dict[str, torch.Tensor]) -> None:
        """Add the gradient norms of a step that is not skipped: of the parts that it trains."""
        for part, norm in norms.items():
            before, steps = self.part_norms.get(part, (0.0, 0))
            self.part_norms[part] = (before + norm, steps + 1)

    def _mean_norms(self) -> dict[str, float]:
        """Of each part, over the steps that trained it."""
        if not self.part_norms:
            return {}
        means = torch.stack([total / steps for total, steps in self.part_norms.values()]).tolist()
        return dict(zip(self.part_norms, means, strict=True))

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
        sums = [one.sums() for one in (self.losses, self.ctc_losses, self.divergences)]
        figures = {}
        for name, total in zip(("loss", "ctc_loss", "kl"), losses_over_ranks(sums), strict=True):
            figures |= mean_losses(total, "", name)
        figures |= {f"grad_norm/{part}": norm for part, norm in self._mean_norms().items()}
        return figures | {
            "seconds": seconds,
            "tokens_per_second": valid / seconds,
            "audio_hours_per_second": audio / 3600 / seconds,
            "position_padding_share": 1.0 - valid / max(positions, 1),
            "audio_padding_share": 1.0 - audio / padded if padded else 0.0,
            "gate_open_share": self.open_batches / max(self.batches, 1),
        }
