# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""The number of a batch in its stage, told to its rows: what is drawn for a row is another thing each time it comes."""

from collections.abc import Iterator, Sequence

import torch

from .sampling import TaskBatchSampler


class NumberedBatches(torch.utils.data.Sampler[list[int]]):
    """The batches of a sampler, the number of each before its indices; empty ones, which are skipped, stay empty."""

    batch_size = None  # as the sampler's
    drop_last = False

    def __init__(self, sampler: TaskBatchSampler) -> None:
        self.sampler = sampler

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[int]]:
        for number, batch in enumerate(self.sampler):
            yield [number, *batch] if batch else []


class NumberedRows(torch.utils.data.Dataset):
    """Rows that are fetched by the batches of [`NumberedBatches`]; each says in `batch_number` which it is in."""

    def __init__(self, rows: Sequence[dict]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, numbered: list[int]) -> list[dict]:
        number, *indices = numbered
        fetch = getattr(self.rows, "__getitems__", None)
        rows = fetch(indices) if fetch is not None else [self.rows[index] for index in indices]
        return [{**row, "batch_number": number} for row in rows]
