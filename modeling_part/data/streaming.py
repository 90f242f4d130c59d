# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Batches from streams that cannot be indexed: same-task global steps on all ranks without communication."""

import logging
from bisect import insort
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info

from ..prompts_part import TASKS, TEXT_TASKS
from .budget import Budget, round_up
from .mixture import largest_remainder


logger = logging.getLogger(__name__)
Row = dict[str, Any]


class StreamingTaskBatches(torch.utils.data.IterableDataset):
    """Lists of canonical rows, formed from one stream of rows per task.

    Every rank draws the task of step k, and how long its rows shall be, from the same seeded schedule, so all ranks
    work on one task and on similar lengths although none knows what the others read. Each rank and each data loader
    worker reads its own share of a stream: its own shards where a `datasets.IterableDataset` has enough of them, else
    every n-th row. Rows wait in a buffer sorted by length, from which a batch takes neighbours at a random place: this
    is the shuffling, bounded by `buffer_rows`. A stream that ends begins again (`set_epoch` is called where it
    exists): within one pass a share gives every row once, but nothing ties passes to steps, and rows still in
    the buffers after the last step are not used. Passes begun are counted in `passes` and logged.

    Read it with `DataLoader(stream, batch_size=None, collate_fn=..., num_workers=...)` and do not let accelerate
    prepare that loader: it would read everything on rank 0 and broadcast it, or take every n-th batch once more.

    Each row says in `batch_number` which batch of the stage it is in, as those of `NumberedRows` do. The batches follow
    from the arguments and the number of workers. To resume, begin `steps` later: the rows of the
    earlier steps are read again but neither collated nor decoded.

    Args:
        streams: task -> rows that can be iterated several times, such as a `datasets.IterableDataset` or a list. Mix
            languages before, for example with `datasets.interleave_datasets`.
        task_weights: share of the global steps of each task, up to a factor (streams have no length to go by).
        count_tokens: row -> tokens of its target (of source and target for text tasks).
        budget: what a batch may hold.
        steps: optimizer steps to make, such as `range(100)`; `range(40, 100)` where 40 are already trained.
        rank: of this process.
        world_size: number of ranks.
        gradient_accumulation_steps: batches per rank and optimizer step.
        seed: every rank must be given the same.
        buffer_rows: rows waiting per task and worker; more gives less padding and better shuffling for more memory.

    Raises:
        ValueError: if tasks and streams do not match, a stream gives no rows, or a row is over a budget alone.
    """

    def __init__(
        self,
        streams: Mapping[str, Iterable[Row]],
        task_weights: Mapping[str, float],
        count_tokens: Callable[[Row], int],
        budget: Budget,
        *,
        steps: range,
        rank: int = 0,
        world_size: int = 1,
        gradient_accumulation_steps: int = 1,
        seed: int = 0,
        buffer_rows: int = 2000,
    ) -> None:
        unknown = sorted(set(task_weights) - set(TASKS))
        missing = sorted(task for task, weight in task_weights.items() if weight and task not in streams)
        if unknown or missing:
            raise ValueError(f"task_weights names tasks without a stream {missing} or unknown ones {unknown}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}, which is not one of {world_size} ranks")
        self.streams = streams
        self.count_tokens = count_tokens
        self.budget = budget
        self._limits = budget.limits
        self.num_steps = steps.stop
        self.rank = rank
        self.world_size = world_size
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self.batches_per_step = world_size * gradient_accumulation_steps
        self.seed = seed
        self.buffer_rows = buffer_rows
        self.first_step = steps.start
        self.passes: dict[str, int] = {}
        self.left_out: dict[str, int] = {}
        tasks = [task for task in TASKS if task_weights.get(task)]
        weights = np.array([task_weights[task] for task in tasks])
        steps_of_tasks = largest_remainder(steps.stop * weights / weights.sum())
        self.schedule = np.random.default_rng([seed, 0]).permutation(np.repeat(tasks, steps_of_tasks)).tolist()

    def __len__(self) -> int:
        """Batches of the whole stage on one rank, those already trained included."""
        return self.num_steps * self.gradient_accumulation_steps

    def __iter__(self) -> Iterator[list[Row]]:
        worker = get_worker_info()
        index, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        # The loader takes its first batch from worker 0, wherever the stage goes on; a share stays with its batches.
        index = (index + self.first_step * self.gradient_accumulation_steps) % workers
        self.passes, self.left_out = {}, {}
        rows = {
            task: self._read_forever(task, self.rank * workers + index, self.world_size * workers)
            for task in sorted(set(self.schedule))
        }
        buffers: dict[str, list[tuple[int, int, int, Row]]] = {task: [] for task in rows}
        # the data loader takes batch i from worker i % workers
        for batch_index in range(index, len(self), workers):
            step = batch_index // self.gradient_accumulation_steps
            task = self.schedule[step]
            for entry in islice(rows[task], self.buffer_rows - len(buffers[task])):
                insort(buffers[task], entry)
            batch = self._take(buffers[task], np.random.default_rng([self.seed, 1, step]).random())
            if step >= self.first_step:
                yield [{**row, "batch_number": batch_index} for row in batch]

    def _read_forever(self, task: str, share: int, shares: int) -> Iterator[tuple[int, int, int, Row]]:
        """(padded audio, padded tokens, serial number, row) of one share of a stream, pass after pass."""
        serial, rows_before = 0, -1
        while serial > rows_before:
            rows_before = serial
            self.passes[task] = self.passes.get(task, 0) + 1
            logger.info("%s stream: share %d of %d begins pass %d", task, share + 1, shares, self.passes[task])
            for row in read_share(self.streams[task], share, shares, epoch=self.passes[task] - 1):
                if (size := self._measure(task, row)) is None:
                    self._leave_out(task, row)
                    continue
                yield *size, serial, row
                serial += 1
        raise ValueError(
            f"the {task} stream gave no rows to share {share + 1} of {shares} (one per rank and worker):"
            " it is empty, or has fewer rows than that"
        )

    def _measure(self, task: str, row: Row) -> tuple[int, int] | None:
        """Padded seconds and tokens of a row in multiples, after checking that it may be trained on at all.

        None: a row of a text task that alone is over the budget, see [`sampling.leave_out_long_texts`].
        """
        if row["task"] != task:
            raise ValueError(f"row {row['id']} of the {task} stream has the task {row['task']}")
        if task not in TEXT_TASKS and not row["duration"]:
            raise ValueError(f"row {row['id']} has no duration; the reader must fill it in")
        target_tokens = self.count_tokens(row)
        seconds = int(round_up(row["duration"] or 0.0, self.budget.pad_seconds_multiple))
        tokens = max(int(round_up(target_tokens, self.budget.pad_tokens_multiple)), 1)
        if not self._fits(1, seconds, tokens):
            if task in TEXT_TASKS:
                return None
            raise ValueError(
                f"row {row['id']} ({row['duration']} s, {target_tokens} tokens) is over the budget alone: raise"
                f" max_audio_seconds={self.budget.max_audio_seconds} or max_tokens={self.budget.max_tokens}, or filter such rows out"
            )
        return seconds, tokens

    def _leave_out(self, task: str, row: Row) -> None:
        """Count a text that is too long, and say so the first time and at every tenfold."""
        count = self.left_out[task] = self.left_out.get(task, 0) + 1
        if str(count).strip("0") == "1":
            message = "%s stream: %d rows so far alone have more tokens than a batch may (max_tokens: %d) and are left out, such as %s"
            logger.warning(message, task, count, self.budget.max_tokens, row["id"])

    def _fits(self, rows: int, seconds: int, tokens: int) -> bool:
        max_seconds, max_tokens, max_rows = self._limits
        return rows * seconds <= max_seconds and rows * tokens <= max_tokens and (max_rows is None or rows <= max_rows)

    def _take(self, buffer: list[tuple[int, int, int, Row]], quantile: float) -> list[Row]:
        """Removes a batch of neighbours from the sorted buffer: from the quantile downwards, then upwards."""
        start = int(quantile * len(buffer))
        end = start + 1
        tokens = buffer[start][1]
        while start > 0:
            with_next = max(tokens, buffer[start - 1][1])
            if not self._fits(end - start + 1, buffer[end - 1][0], with_next):
                break
            start, tokens = start - 1, with_next
        while end < len(buffer):
            with_next = max(tokens, buffer[end][1])
            if not self._fits(end - start + 1, buffer[end][0], with_next):
                break
            end, tokens = end + 1, with_next
        batch = [row for _, _, _, row in buffer[start:end]]
        del buffer[start:end]
        return batch


def read_share(stream: Iterable[Row], share: int, shares: int, epoch: int = 0) -> Iterator[Row]:
    """One pass over share number `share` of `shares` of a stream; the shares are disjoint and complete."""
    from datasets import IterableDataset
    from datasets.distributed import split_dataset_by_node

    if hasattr(stream, "set_epoch"):
        stream.set_epoch(epoch)
    if not isinstance(stream, IterableDataset):
        yield from islice(stream, share, None, shares)
        return
    # Iterating it plainly would divide the share by worker once more and lose rows; `iter` does not.
    for batch in split_dataset_by_node(stream, rank=share, world_size=shares).iter(batch_size=1):
        yield {name: values[0] for name, values in batch.items()}
