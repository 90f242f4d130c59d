# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Which rows make which batch: mixing of tasks and languages, length buckets, one task per global step.

A *global step* is what one optimizer step sees: `world_size * gradient_accumulation_steps` batches. All of them
hold rows of one task (the language model is frozen on transcription steps and trained on the others, so ranks must
agree) and of similar length (so that no rank waits for another). `TaskBatchSampler` plans a dataset that can be
indexed; `streaming.StreamingTaskBatches` does it for streams.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Any

import numpy as np
import torch

from ..prompts_part import TASKS, TEXT_TASKS
from .budget import Budget, refuse_not_positive, round_up
from .mixture import Mixture, RowTable, largest_remainder


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EpochPlan:
    """One epoch: batch `i` is `rows[bounds[i]:bounds[i + 1]]`, step `s` is the batches from `s * batches_per_step`."""

    rows: np.ndarray
    bounds: np.ndarray
    step_order: np.ndarray
    carried: np.ndarray  # rows that could not fill a step and are drawn in the next epoch
    repeated: int  # rows drawn once more at the end of the last epoch to fill a step


MOST_DRAWS = 1000  # of each row in an epoch, on average: one that draws more would not end


def leave_out_long_texts(table: RowTable, budget: Budget) -> None:
    """Rows of text tasks that alone are over `max_tokens` get no weight: what a chat holds has no other limit.

    Speech is limited by `max_duration` and by characters per second; a row of it over the budget is an error.
    """
    is_text = np.isin(table.task, [TASKS.index(task) for task in TEXT_TASKS])
    padded = round_up(table.target_tokens, budget.pad_tokens_multiple) * budget.pad_tokens_multiple
    left_out = np.flatnonzero(is_text & (table.weight > 0) & (padded > budget.max_tokens))
    if len(left_out):
        table.weight[left_out] = 0.0
        longest = int(left_out[np.argmax(table.target_tokens[left_out])])
        logger.warning(
            "%d rows of text tasks alone have more tokens than a batch may (max_tokens: %d) and are left out; the longest, "
            "row %d, has %d",
            len(left_out),
            budget.max_tokens,
            longest,
            table.target_tokens[longest],
        )


class TaskBatchSampler(torch.utils.data.Sampler[list[int]]):
    """Lists of row indices; every `world_size * gradient_accumulation_steps` in a row are one task and one length.

    One iteration is a whole stage, all its epochs one after the other: to the trainer it is a single pass over the
    data loader, so that skipping the first batches resumes exactly. `accelerate` deals batch `i` to rank
    `i % world_size`; every rank gets equally many. The plan depends on `world_size` and
    `gradient_accumulation_steps` only by their product: half the ranks with twice the accumulation see the same steps.

    An epoch draws what its `Mixture` says, each row of a group once before any of them a second time, also across
    epochs. Rows are never wrapped around: the last step of a task is filled by splitting its batches. Only where a
    task has fewer rows left than the step has batches they are *carried* into the next epoch, so that no row counts
    twice in the loss; in the last of `epochs` they are repeated instead (both counted in `epoch_report`).

    Args:
        table: the rows.
        mixture: draws per task and language.
        budget: what a batch may hold.
        world_size: number of ranks.
        gradient_accumulation_steps: batches per rank and optimizer step.
        epochs: length of the stage in epochs; give this or `num_steps`.
        num_steps: length of the stage in optimizer steps; epochs repeat until it is reached.
        seed: every rank must be given the same.
        history: `(batches per step, optimizer steps)` of the stage's earlier parts, if it was resumed with another
            product of ranks and accumulation. The rows those steps have not seen are dealt anew; in place of the
            steps themselves come empty batches, which the trainer skips.

    Raises:
        ValueError: if one row alone is over a budget, or the settings contradict each other or the data.
    """

    # Without an integer batch size accelerate's BatchSamplerShard takes batches of any length; with one it would
    # silently drop those of another length.
    batch_size = None
    drop_last = False

    def __init__(
        self,
        table: RowTable,
        mixture: Mixture,
        budget: Budget,
        *,
        world_size: int = 1,
        gradient_accumulation_steps: int = 1,
        epochs: int | None = None,
        num_steps: int | None = None,
        seed: int = 0,
        history: Sequence[tuple[int, int]] = (),
    ) -> None:
        if (epochs is None) == (num_steps is None):
            raise ValueError(f"Give either `epochs` or `num_steps`, got epochs={epochs} and num_steps={num_steps}.")
        lengths = {"epochs": epochs, "num_steps": num_steps}
        for name, value in {
            "world_size": world_size,
            "gradient_accumulation_steps": gradient_accumulation_steps,
            **lengths,
        }.items():
            refuse_not_positive(name, value)
        self.table = table
        self.mixture = mixture
        self.budget = budget
        self.epochs = epochs
        self.seed = seed
        # In padded units: seconds and tokens of a batch, and its rows.
        max_seconds, max_tokens, max_rows = budget.limits
        self._limits = (max_seconds, max_tokens, len(table) if max_rows is None else max_rows)
        self._seconds = round_up(table.audio_seconds, budget.pad_seconds_multiple)
        self._tokens = np.maximum(round_up(table.target_tokens, budget.pad_tokens_multiple), 1)
        self._strata = self._split_into_strata()
        self._refuse_rows_over_budget()
        self._steps_before, self._first_epoch, self._rows_left = 0, 0, None
        for batches_per_step, steps in history:
            self._begin(batches_per_step)
            self._first_epoch, self._rows_left = self._position_after(steps)
            self._steps_before += steps
        self._begin(world_size * gradient_accumulation_steps)
        if num_steps is None:
            plans = (self.plan(epoch) for epoch in range(self._first_epoch, epochs))
            num_steps = self._steps_before + sum(len(plan.step_order) for plan in plans)
        self.num_steps = num_steps  # optimizer steps of the whole stage

    def __len__(self) -> int:
        """Batches of the whole stage over all ranks."""
        return self.num_steps * self.batches_per_step

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(self._steps_before * self.batches_per_step):
            yield []
        steps_left = self.num_steps - self._steps_before
        for epoch in count(self._first_epoch):
            if steps_left <= 0:
                return
            plan = self.plan(epoch)
            for step in plan.step_order[:steps_left]:
                first = step * self.batches_per_step
                bounds = plan.bounds[first : first + self.batches_per_step + 1].tolist()
                rows = plan.rows[bounds[0] : bounds[-1]].tolist()
                for start, end in pairwise(bounds):
                    yield rows[start - bounds[0] : end - bounds[0]]
            steps_left -= len(plan.step_order)

    def plan(self, epoch: int) -> EpochPlan:
        """All batches of one epoch; the same for the same arguments, on every rank and every machine."""
        if epoch < self._first_epoch:
            raise ValueError(f"epoch {epoch} was trained with another number of batches per step (see history)")
        if epoch not in self._plans:
            for earlier in range(max(self._carried), epoch):  # what is carried into an epoch follows from the earlier
                self.plan(earlier)
            self._plans = {epoch: self._build_plan(epoch)}
            self._carried[epoch + 1] = self._plans[epoch].carried
        return self._plans[epoch]

    def epoch_report(self, epoch: int) -> dict[str, Any]:
        """What an epoch draws, for the log and the stage's record.

        Returns:
            `steps`, `rows` and `hours` (each `{"asr/sv": ...}`), `carried_rows`, `repeated_rows`, and
            `padding_share`, the part of the padded audio that is padding.
        """
        plan = self.plan(epoch)
        table = self.table
        rows = np.bincount(table.group[plan.rows], minlength=len(table.groups))
        seconds = table.audio_seconds[plan.rows].astype(np.float64)
        hours = np.bincount(table.group[plan.rows], weights=seconds, minlength=len(table.groups)) / 3600
        longest = np.maximum.reduceat(self._seconds[plan.rows], plan.bounds[:-1]) if len(plan.rows) else np.zeros(0)
        padded = float((longest * np.diff(plan.bounds)).sum()) * self.budget.pad_seconds_multiple
        return {
            "epoch": epoch,
            "steps": len(plan.step_order),
            "rows": {label: int(n) for label, n in zip(table.labels, rows, strict=True) if n},
            "hours": {label: float(h) for label, h, n in zip(table.labels, hours, rows, strict=True) if n},
            "carried_rows": len(plan.carried),
            "repeated_rows": plan.repeated,
            "padding_share": 1.0 - float(seconds.sum()) / padded if padded else 0.0,
        }

    def _begin(self, batches_per_step: int) -> None:
        """Forgets what was planned for another number of batches per step."""
        self.batches_per_step = batches_per_step
        self._plans: dict[int, EpochPlan] = {}  # the latest only
        self._carried = {self._first_epoch: np.zeros(0, dtype=np.int32)}  # into each epoch

    def _position_after(self, steps: int) -> tuple[int, np.ndarray]:
        """The epoch in which step number `steps` falls, and the rows of that epoch from there on."""
        epoch = self._first_epoch
        while epoch != self.epochs and steps >= len(self.plan(epoch).step_order):
            steps -= len(self.plan(epoch).step_order)
            epoch += 1
        if epoch == self.epochs:
            return epoch, np.zeros(0, dtype=np.int32)
        plan = self.plan(epoch)
        first = plan.step_order[steps:] * self.batches_per_step
        left = [plan.rows[plan.bounds[i] : plan.bounds[i + self.batches_per_step]] for i in first]
        return epoch, np.concatenate([plan.carried, *left])

    def _split_into_strata(self) -> list[tuple[int, np.ndarray, int]]:
        """(task code, rows, draws per epoch) of every group and, within it, every corpus weight."""
        table = self.table
        values, codes = np.unique(table.weight, return_inverse=True) if len(table) else (np.ones(1), table.group)
        if not (values >= 0).all() or not np.isfinite(values).all():
            raise ValueError(f"row weights must be finite and not negative, got {values}")
        codes = (table.group.astype(np.int64) * len(values) + codes).astype(np.int32)
        sizes = np.bincount(codes, minlength=len(table.groups) * len(values))
        weighted = (sizes.reshape(-1, len(values)) * values).astype(np.float64)
        group_draws = self.mixture.draws(table.groups, weighted.sum(axis=1))
        shares = weighted * (group_draws / np.maximum(weighted.sum(axis=1), 1e-30))[:, None]
        draws = np.zeros(shares.shape, dtype=np.int64)
        for task in TASKS:
            members = [i for i, group in enumerate(table.groups) if group[0] == task]
            draws[members] = largest_remainder(shares[members].ravel()).reshape(-1, len(values))
        never = np.flatnonzero(((shares > 0) & (draws == 0)).any(axis=1))
        if len(never):
            logger.warning(
                "Some rows of %s are never drawn: weights of corpora, tasks and directions leave them less than one draw in an "
                "epoch; raise the weights",
                ", ".join(table.labels[i] for i in never),
            )
        draws = draws.ravel()
        if not draws.sum():
            raise ValueError("the mixture draws no row at all: check the corpora, task_weights and corpus weights")
        if draws.sum() > MOST_DRAWS * len(table):
            raise ValueError(
                f"An epoch would draw {draws.sum():,} rows of {len(table):,}, each more than {MOST_DRAWS} times: lower the "
                "weights of corpora, `tasks` and `direction_weights`, whose product counts."
            )
        order = np.argsort(codes, kind="stable").astype(np.int32)
        strata = np.split(order, np.cumsum(sizes)[:-1])
        task_of = [TASKS.index(group[0]) for group in table.groups for _ in values]
        return [(task, rows, int(n)) for task, rows, n in zip(task_of, strata, draws, strict=True) if n]

    def _refuse_rows_over_budget(self) -> None:
        drawn = np.zeros(len(self.table), dtype=bool)
        for _, rows, _ in self._strata:
            drawn[rows] = True
        for lengths, budget, name, value in (
            (self._seconds, self._limits[0], "max_audio_seconds", self.budget.max_audio_seconds),
            (self._tokens, self._limits[1], "max_tokens", self.budget.max_tokens),
        ):
            too_long = np.flatnonzero(drawn & (lengths > budget))
            if len(too_long):
                row = too_long[np.argmax(lengths[too_long])]
                group = self.table.labels[self.table.group[row]]
                raise ValueError(
                    f"{len(too_long)} rows are over the budget alone; the longest is row {row} ({group}, "
                    f"{self.table.audio_seconds[row]:.2f} s, {self.table.target_tokens[row]}"
                    f" tokens) with {name}={value}: raise {name} or filter such rows out"
                )

    def _draw(self, stratum: int, epoch: int) -> np.ndarray:
        """The rows of one stratum in one epoch: a window of an endless row of permutations of the stratum."""
        _, rows, draws = self._strata[stratum]
        first, size = epoch * draws, len(rows)
        windows = []
        for repeat in range(first // size, -(-(first + draws) // size)):
            start, end = max(first - repeat * size, 0), min(first + draws - repeat * size, size)
            if end - start < size:
                shuffled = np.random.default_rng([self.seed, 1, stratum, repeat]).permutation(rows)
                windows.append(shuffled[start:end])
            else:
                windows.append(rows)
        return np.concatenate(windows)

    def _rows_of(self, epoch: int, task: int) -> np.ndarray:
        """Row numbers of one task in one epoch, each as often as it is drawn."""
        if epoch == self._first_epoch and self._rows_left is not None:
            return self._rows_left[self.table.task[self._rows_left] == task]
        carried = self._carried[epoch]
        drawn = [self._draw(i, epoch) for i, stratum in enumerate(self._strata) if stratum[0] == task]
        return np.concatenate([carried[self.table.task[carried] == task], *drawn])

    def _build_plan(self, epoch: int) -> EpochPlan:
        rng = np.random.default_rng([self.seed, 0, epoch])
        final = self.epochs is not None and epoch == self.epochs - 1
        rows, sizes, leftover, repeated = [], [], [np.zeros(0, dtype=np.int32)], 0
        for task in range(len(TASKS)):
            order = self._sort_by_length(rng.permutation(self._rows_of(epoch, task)))
            order, batch_sizes, left = self._fill_last_step(order, self._cut(order), rng)
            if final and len(left):
                # one row per batch, so the step is as short as it can be
                filled = np.resize(left, self.batches_per_step)
                repeated += len(filled) - len(left)
                order, batch_sizes = np.append(order, filled), np.append(batch_sizes, np.ones(len(filled), dtype=int))
            elif len(left):
                leftover.append(left)
            rows.append(order)
            sizes.append(batch_sizes)
        bounds = np.concatenate([[0], np.cumsum(np.concatenate(sizes))])
        steps = rng.permutation((len(bounds) - 1) // self.batches_per_step)
        return EpochPlan(np.concatenate(rows), bounds, steps, np.concatenate(leftover), repeated)

    def _sort_by_length(self, rows: np.ndarray) -> np.ndarray:
        """Longest audio first; within a padded audio length by tokens, up and down in turn so that neighbours fit.

        Rows of one padded length keep the random order they came in: the sort is stable, which also makes it the
        same on machines whose numpy sorts with other instructions.
        """
        seconds, tokens = self._seconds[rows], self._tokens[rows]
        return rows[np.lexsort((np.where(seconds % 2, tokens, -tokens), -seconds))]

    def _cut(self, rows: np.ndarray) -> np.ndarray:
        """Sizes of consecutive batches of the sorted rows, each as large as the budgets allow."""
        seconds, tokens = self._seconds[rows], self._tokens[rows]
        max_seconds, max_tokens, max_rows = self._limits
        sizes, start = [], 0
        ordinals = np.arange(1, max(max_seconds, max_tokens, 1) + 1)
        while start < len(rows):
            # the first row has the longest audio, but others may have more tokens
            longest = int(seconds[start])
            size = min(max_rows, max_tokens // int(tokens[start]), max_seconds // longest if longest else len(rows))
            window = tokens[start : start + size]
            if int(window.max()) * len(window) > max_tokens:
                too_many = np.maximum.accumulate(window) * ordinals[: len(window)] > max_tokens
                sizes.append(int(too_many.argmax()))
            else:
                sizes.append(len(window))
            start += sizes[-1]
        return np.array(sizes, dtype=np.int64)

    def _fill_last_step(
        self, rows: np.ndarray, sizes: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Makes the batches of a task a whole number of steps.

        Returns:
            rows, batch sizes, and the rows left over because no splitting could fill a step with them.
        """
        width = self.batches_per_step
        surplus = len(sizes) % width
        if not surplus:
            return rows, sizes, rows[:0]
        tail = surplus  # the last batches have the shortest rows and the most of them: they split best
        while sizes[-tail:].sum() < tail + width - surplus and tail < len(sizes):
            tail += width
        if sizes[-tail:].sum() >= tail + width - surplus:
            pieces = split_batches(sizes[-tail:], tail + width - surplus)
            return rows, np.append(sizes[:-tail], pieces), rows[:0]
        # Nearly every batch is a single row now, else splitting would have worked. Which ones must wait is random,
        # or the shortest would have to wait in every epoch.
        if len(sizes) < width:
            return rows[:0], sizes[:0], rows
        waiting = np.sort(rng.choice(np.flatnonzero(sizes == 1), surplus, replace=False))
        positions = (np.cumsum(sizes) - sizes)[waiting]
        return np.delete(rows, positions), np.delete(sizes, waiting), rows[positions]


def split_batches(sizes: np.ndarray, total: int) -> np.ndarray:
    """Splits batches of the given sizes into `total` batches in the same order, the largest first and evenly."""
    pieces = np.ones(len(sizes), dtype=np.int64)
    for _ in range(total - len(sizes)):
        pieces[np.argmax(sizes / pieces)] += 1
    return np.concatenate([np.diff(np.arange(n + 1) * size // n) for size, n in zip(sizes, pieces, strict=True)])
