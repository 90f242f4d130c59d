# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Rows -> the batches of a stage: how many, of which rows, and what makes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..processing_part import PARTProcessor
from ..recipes.arguments import DataArguments, Recipe
from ..recipes.stages import Stage
from .augmentation import build_augmentation
from .budget import Budget
from .collator import PARTCollator
from .loading import Rows, check_prompts
from .mixture import Mixture, RowTable
from .row_tokens import count_row_tokens, row_tokens
from .sampling import TaskBatchSampler, leave_out_long_texts
from .streaming import StreamingTaskBatches
from .transcripts import count_too_long


if TYPE_CHECKING:
    import datasets

Batch = dict  # what a collator gives


def _uncounted(steps: int) -> dict:
    """The `report` of [`Batches`] of streams, whose rows nobody has counted."""
    return {"steps": steps, "rows": {}, "hours": {}, "padding_share": 0.0}


@dataclass(frozen=True)
class Progress:
    """Where a stage stands that was interrupted.

    Attributes:
        steps: optimizer steps done.
        history: `(batches per optimizer step, steps)` of the parts that ran with another number of ranks times
            accumulation.
    """

    steps: int = 0
    history: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True)
class Batches:
    """All that a trainer draws from.

    Attributes:
        train_rows: what `sampler` gives indices of; the stream of batches itself where corpora are streamed.
        sampler: the batches of the whole stage; every global step is of one task.
        collator: rows to a batch, augmented where the recipe says so.
        eval_rows: dev rows; None without.
        eval_batches: lists of their indices, each of one task.
        eval_collator: never augments.
        report: what the stage's first epoch draws: `steps`, `rows` and `hours` by group, `padding_share`.
        max_bad_fraction: share of the rows drawn that may be broken.
        progress: of an interrupted stage.
    """

    train_rows: datasets.Dataset | StreamingTaskBatches
    sampler: TaskBatchSampler | StreamingTaskBatches
    collator: Callable[[list[dict]], Batch]
    eval_rows: datasets.Dataset | None = None
    eval_batches: list[list[int]] | None = None
    eval_collator: Callable[[list[dict]], Batch] | None = None
    report: Mapping = field(default_factory=partial(_uncounted, 0))
    max_bad_fraction: float = 0.01
    progress: Progress = Progress()

    @property
    def is_streamed(self) -> bool:
        """Whether the training rows can be met once only."""
        return isinstance(self.sampler, StreamingTaskBatches)


def plan_batches(stage: Stage, rows: Rows, processor: PARTProcessor, recipe: Recipe, progress: Progress) -> Batches:
    """The batches of a whole stage.

    Raises:
        ValueError: a language that the prompts do not know, a row that is over a budget, a stream without `max_steps`, a
            stage with CTC alone and no transcripts that fit.
    """
    check_prompts(rows.datasets.values(), processor)
    data, seed = recipe.data, recipe.training.seed
    budget = batch_budget(data)
    aligns = bool(stage.losses.get("ctc"))
    if rows.is_streamed:
        sampler = _stream(stage, rows.train, processor, budget, recipe, progress)
        report = _uncounted(stage.max_steps)
    else:
        tokens = row_tokens(rows.train, processor, aligns, rows.folder, rows.fingerprint)
        table = RowTable.from_dataset(rows.train, tokens.answers, rows.corpus_weights)
        leave_out_long_texts(table, budget)
        sampler = _sampler(stage, table, budget, recipe, progress.history)
        # Of a stage's own epochs, not of what is left of them when it is resumed with another number of ranks.
        whole = _sampler(stage, table, budget, recipe) if progress.history else sampler
        report = whole.epoch_report(0)
    if aligns:
        counts = count_too_long(rows, processor, stage.active_tasks)
        _refuse_ctc_of_nothing(stage, counts)
        report |= {"transcripts_too_long": counts}
    multiples = (data.pad_seconds_multiple, data.pad_tokens_multiple)
    augmentation = build_augmentation(data.augmentation)
    return Batches(
        train_rows=sampler if rows.is_streamed else rows.train,
        sampler=sampler,
        collator=PARTCollator(
            processor,
            *multiples,
            augmentation,
            seed,
            stage.name,
            unnamed_share=data.unnamed_share,
            context_drop_rate=data.context_drop_rate,
            skip_broken=True,
            with_transcripts=aligns,
        ),
        eval_rows=rows.eval,
        eval_batches=None if rows.eval is None else plan_eval_batches(rows.eval, processor, budget, rows.folder),
        eval_collator=PARTCollator(processor, *multiples, skip_broken=True, with_transcripts=aligns),
        report=report,
        max_bad_fraction=data.max_bad_fraction,
        progress=progress,
    )


def _refuse_ctc_of_nothing(stage: Stage, counts: Mapping[str, Sequence[int]]) -> None:
    """Raise ValueError for a stage with CTC alone where no transcript fits (see `count_too_long`)."""
    if stage.losses.get("nll") or any(too_long < total for too_long, total in counts.values()):
        return
    wanting = "transcript: train on asr rows, or give the s2tt rows a `source_text`."
    if counts:
        wanting = "transcript that fits its clip: give clips more audio tokens (a smaller `adapter_conv_stride`)."
    tasks = ", ".join(stage.active_tasks)
    raise ValueError(f"Stage {stage.name!r} trains by CTC alone, and none of its rows ({tasks}) has a {wanting}")


def check_streamed_draws(data: DataArguments) -> None:
    """Raise ValueError for settings of the draws, which streams, whose languages nobody has counted, do not follow."""
    for name, default in (("temperature", 1.0), ("direction_weights", None)):
        if (value := getattr(data, name)) not in (default, {}):
            raise ValueError(
                f"`{name}` is {value!r}, which has no effect on streamed corpora: give them a `weight` each, read them before "
                "training (`streaming: false`), or leave it out."
            )


def check_number_of_steps(stage: Stage) -> None:
    """Raise ValueError where a stage on streams is not given its steps."""
    if stage.max_steps is None:
        raise ValueError(f"Stage {stage.name!r} streams its corpora, whose size is not known: give it `max_steps`.")


def batch_budget(data: DataArguments) -> Budget:
    """What the recipe lets a batch hold."""
    return Budget(
        data.max_audio_seconds, data.max_tokens, data.max_rows, data.pad_seconds_multiple, data.pad_tokens_multiple
    )


def plan_eval_batches(
    rows: datasets.Dataset, processor: PARTProcessor, budget: Budget, folder: Path | None = None
) -> list[list[int]]:
    """Batches for the dev loss: every row once, one task per batch. What is counted for them is kept in `folder`."""
    table = RowTable.from_dataset(rows, row_tokens(rows, processor, folder=folder).answers)
    leave_out_long_texts(table, budget)
    tasks = {group[0]: 1.0 for group in table.groups}
    return list(TaskBatchSampler(table, Mixture(tasks), budget, epochs=1))


def _sampler(
    stage: Stage, table: RowTable, budget: Budget, recipe: Recipe, history: Sequence[tuple[int, int]] = ()
) -> TaskBatchSampler:
    data, args = recipe.data, recipe.training
    return TaskBatchSampler(
        table,
        Mixture(stage.tasks, data.temperature, data.direction_weights or {}),
        budget,
        world_size=args.world_size,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        epochs=None if stage.max_steps else stage.epochs,
        num_steps=stage.max_steps,
        seed=args.seed,
        history=history,
    )


def _stream(
    stage: Stage,
    streams: Mapping[str, datasets.IterableDataset],
    processor: PARTProcessor,
    budget: Budget,
    recipe: Recipe,
    progress: Progress,
) -> StreamingTaskBatches:
    """Batches of streamed corpora: their number is given, not counted."""
    args = recipe.training
    check_number_of_steps(stage)
    return StreamingTaskBatches(
        {task: streams[task] for task in stage.active_tasks if task in streams},
        {task: weight for task, weight in stage.tasks.items() if task in streams},
        lambda row: count_row_tokens(row, processor),
        budget,
        steps=range(progress.steps, stage.max_steps),
        rank=args.process_index,
        world_size=args.world_size,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        seed=args.seed,
    )
