# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""The rows as a table of numbers, and how often each task, language and direction is drawn."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..prompts_part import TASKS, TEXT_TASKS
from .rows import direction


if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)


Group = tuple[str, str, str]  # (task, source language, target language)


def largest_remainder(shares: np.ndarray) -> np.ndarray:
    """Whole numbers nearest to `shares` (each less than one away) whose sum is the rounded sum of `shares`."""
    counts = np.floor(shares + 1e-9).astype(np.int64)
    missing = int(np.rint(shares.sum())) - int(counts.sum())
    largest = np.argsort(counts - shares, kind="stable")[: max(missing, 0)]
    counts[largest] += 1
    return counts


@dataclass(frozen=True)
class RowTable:
    """What batching must know of a dataset: one entry per dataset row in each array, 17 bytes a row.

    Attributes:
        task: `int8`, index into `TASKS`.
        group: `int32`, index into `groups`.
        audio_seconds: `float32`, 0 for text tasks.
        target_tokens: `int32`, tokens of the target; of source and target for text tasks.
        weight: `float32`, how often the recipe wants the row per epoch (1 = once).
        groups: every (task, source language, target language) of the dataset.
    """

    task: np.ndarray
    group: np.ndarray
    audio_seconds: np.ndarray
    target_tokens: np.ndarray
    weight: np.ndarray
    groups: tuple[Group, ...]

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in ("task", "group", "audio_seconds", "target_tokens")}
        if len({*lengths.values(), len(self.weight)}) != 1:
            raise ValueError(
                f"the columns of a RowTable must be equally long, got {lengths | {'weight': len(self.weight)}}"
            )

    def __len__(self) -> int:
        return len(self.task)

    @property
    def labels(self) -> list[str]:
        """The groups in words, as [`rows.group_name`] gives them."""
        return [f"{task}/{direction(source, target)}" for task, source, target in self.groups]

    @classmethod
    def from_dataset(
        cls,
        dataset: "datasets.Dataset",
        target_tokens: Sequence[int] | np.ndarray,
        corpus_weights: Mapping[str, float] | None = None,
    ) -> "RowTable":
        """Reads `task`, `source_lang`, `target_lang`, `duration` and `corpus` column by column, never row by row.

        Args:
            dataset: canonical rows.
            target_tokens: tokens per row, in the order of the dataset.
            corpus_weights: draws per epoch of the rows of a corpus; corpora that are not named count 1.

        Raises:
            ValueError: for an unknown task, or a speech row without a duration.
        """
        import pyarrow.compute

        columns = ["task", "source_lang", "target_lang", "duration", "corpus"]
        groups: dict[Group, int] = {}
        parts: dict[str, list[np.ndarray]] = {"group": [], "audio_seconds": [], "weight": []}
        weights = dict(corpus_weights or {})
        for chunk in dataset.select_columns(columns).with_format("arrow").iter(batch_size=100_000):
            keys = pyarrow.compute.binary_join_element_wise(
                chunk["task"], chunk["source_lang"], chunk["target_lang"], "\t"
            )
            keys = keys.combine_chunks().dictionary_encode()
            names = [tuple(key.split("\t")) if key else None for key in keys.dictionary.to_pylist()]
            if keys.null_count or any(name is None or name[0] not in TASKS for name in names):
                raise ValueError(
                    f"every row needs a task of {TASKS}, a source_lang and a target_lang; found {names}"
                    f" and {keys.null_count} rows without one of them"
                )
            codes = np.array([groups.setdefault(name, len(groups)) for name in names], dtype=np.int32)
            parts["group"].append(codes[keys.indices.to_numpy(zero_copy_only=False)])
            seconds = chunk["duration"].to_numpy(zero_copy_only=False)
            parts["audio_seconds"].append(np.nan_to_num(seconds.astype(np.float32), nan=0.0))
            corpora = chunk["corpus"].combine_chunks().dictionary_encode()
            corpus_weight = np.array([weights.get(name, 1.0) for name in corpora.dictionary.to_pylist()] or [1.0])
            indices = corpora.indices.fill_null(0).to_numpy(zero_copy_only=False)
            parts["weight"].append(corpus_weight[indices].astype(np.float32))
        arrays = {name: np.concatenate(chunks) if chunks else np.zeros(0) for name, chunks in parts.items()}
        task_of_group = np.array([TASKS.index(group[0]) for group in groups], dtype=np.int8)
        task = task_of_group[arrays["group"]] if groups else np.zeros(0, dtype=np.int8)
        silent = np.flatnonzero(
            ~np.isin(task, [TASKS.index(name) for name in TEXT_TASKS]) & (arrays["audio_seconds"] <= 0)
        )
        if len(silent):
            raise ValueError(
                f"{len(silent)} speech rows have no duration (the first is row {silent[0]}); the reader must fill it in"
            )
        return cls(task=task, target_tokens=np.asarray(target_tokens, dtype=np.int32), groups=tuple(groups), **arrays)


@dataclass(frozen=True)
class Mixture:
    """How often rows are drawn in one epoch.

    With the defaults every row of the named tasks is drawn once. Otherwise a group of n rows (n weighted by
    `RowTable.weight`) is drawn `task weight * direction weight * N * n^(1/T) / sum of n^(1/T)` times, where N is the
    sum of n over the groups of the task: the temperature T moves draws from the large languages of a task to its
    small ones, and the weights multiply afterwards.

    Attributes:
        task_weights: draws per row and epoch of each task, 1.0 = every row once. Tasks not named are not drawn.
        temperature: T >= 1 of p ∝ n^(1/T). 1.0 keeps the proportions of the data.
        direction_weights: hand-raised directions, such as `{"en-sv": 3.0}`; a transcription is named by its language.
    """

    task_weights: Mapping[str, float] = field(default_factory=lambda: {"asr": 1.0, "s2tt": 1.0, "mt": 1.0})
    temperature: float = 1.0
    direction_weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.task_weights) - set(TASKS))
        if unknown:
            raise ValueError(f"task_weights names {unknown}; the tasks are {TASKS}")
        if self.temperature < 1.0:
            raise ValueError(f"temperature is {self.temperature}; it must be at least 1.0 (1.0 keeps the proportions)")
        for name, weights in (("task_weights", self.task_weights), ("direction_weights", self.direction_weights)):
            wrong = {key: weight for key, weight in weights.items() if not 0 <= weight < np.inf}
            if wrong:
                raise ValueError(f"{name} must be finite and not negative, got {wrong}")

    def draws(self, groups: Sequence[Group], sizes: np.ndarray) -> np.ndarray:
        """Draws per epoch of every group, `float64`, not yet rounded. `sizes` are the (weighted) rows per group."""
        names = {direction(*group[1:]) for group in groups}
        unknown = sorted(set(self.direction_weights) - names)
        if unknown:
            raise ValueError(f"direction_weights names {unknown}, but the data only has {sorted(names)}")
        absent = [task for task, weight in self.task_weights.items() if weight and task not in {g[0] for g in groups}]
        if absent:
            logger.warning("the data has no rows of %s, which the mixture asks for", " and ".join(absent))
        draws = np.zeros(len(groups))
        for task, weight in self.task_weights.items():
            members = np.array([i for i, group in enumerate(groups) if group[0] == task and sizes[i] > 0], dtype=int)
            tempered = sizes[members] ** (1.0 / self.temperature)
            raised = [self.direction_weights.get(direction(*groups[i][1:]), 1.0) for i in members]
            if len(members):
                draws[members] = weight * np.array(raised) * sizes[members].sum() * tempered / tempered.sum()
        return draws
