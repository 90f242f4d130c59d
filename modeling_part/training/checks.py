# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""What would otherwise fail after hours of training, looked at before it."""

from __future__ import annotations

import copy
import logging
from itertools import chain
from typing import TYPE_CHECKING

import pyarrow
import pyarrow.compute
import torch
from transformers import SchedulerType, Trainer, get_scheduler

from ..data.expansion import corpus_specs
from ..data.sounds import FILE as SOUNDS
from ..evaluation.prediction import planning_table
from ..evaluation.scoring import check_prediction, check_scorable, prediction_key, refuse_same_keys
from ..publishing.cards import render_card
from ..publishing.contents import check_processor
from ..recipes.arguments import DataArguments, PARTTrainingArguments


if TYPE_CHECKING:
    from collections.abc import Mapping

    import datasets

    from ..configuration_part import PARTConfig
    from ..data.loading import Rows
    from ..processing_part import PARTProcessor


logger = logging.getLogger(__name__)

AT_A_TIME = 250_000  # rows whose clips are looked up together
# Schedules that `get_scheduler` makes without `lr_scheduler_kwargs`.
WITHOUT_KWARGS = (SchedulerType.CONSTANT, SchedulerType.CONSTANT_WITH_WARMUP)


def check_languages_named(data: DataArguments) -> None:
    """[`check_languages_of`] for the languages that the recipe itself names, before hours of reading."""
    for name in ("train_data", "eval_data", "test_data"):
        for spec in corpus_specs(getattr(data, name) or ()):
            translates = spec.wants("s2tt") or spec.wants("mt")
            check_scorable(spec.languages or (), (spec.target_languages or ()) if translates else ())


def check_languages_of(dataset: datasets.Dataset) -> None:
    """Every language has a text normaliser, every translation a BLEU tokenizer."""
    table = dataset.select_columns(["task", "target_lang"]).with_format("arrow")[:]
    targets = table["target_lang"].filter(pyarrow.compute.not_equal(table["task"], "asr")).unique()
    check_scorable(dataset.unique("source_lang"), set(targets.to_pylist()))


def warn_of_clips_trained_on(rows: Rows) -> None:
    """Say how many clips of the dev and test data are those of training rows; of sounds without a file nobody can tell."""
    if "train" not in rows.datasets:  # streams
        return
    others = {name: dataset for name, dataset in rows.datasets.items() if name != "train"}
    clips = {name: _clips(dataset).to_pylist() for name, dataset in others.items()}
    asked = pyarrow.array({*chain(*clips.values())} - {None}, pyarrow.string())
    known = set()
    for first in range(0, len(rows.train) if len(asked) else 0, AT_A_TIME):
        trained = _clips(rows.train.select(range(first, min(first + AT_A_TIME, len(rows.train)))))
        known |= {*trained.filter(pyarrow.compute.is_in(trained, asked)).to_pylist()}
    for name, of_rows in clips.items():
        if found := [index for index, clip in enumerate(of_rows) if clip in known]:
            logger.warning(
                "%d of %d rows of `%s_data`, such as %r, have a clip of `train_data`: what is measured on them does not say how "
                "the model does on speech that is new to it",
                len(found),
                len(of_rows),
                name,
                others[name][found[0]]["id"],
            )


def _clips(dataset: datasets.Dataset) -> pyarrow.ChunkedArray:
    """`(rows,)`, what tells a row's clip from others: its file, and where it begins and ends in it; None without a file."""
    table = dataset.select_columns(["audio", "start", "end"]).with_format("arrow")[:]
    path = pyarrow.compute.struct_field(table["audio"], "path")
    is_file = pyarrow.compute.invert(pyarrow.compute.starts_with(path, SOUNDS))  # numbers in the split's own file
    span = [pyarrow.compute.fill_null(table[name].cast(pyarrow.string()), "") for name in ("start", "end")]
    clips = pyarrow.compute.binary_join_element_wise(path, *span, "\t")
    return pyarrow.compute.if_else(is_file, clips, pyarrow.scalar(None, pyarrow.string()))


def check_test_rows(dataset: datasets.Dataset, name: str = "test_data") -> None:
    """Every row that will be answered and scored has an id of its own and a text to score against, and can be scored.

    Raises:
        ValueError: names the rows.
    """
    keys, without_text = [], []
    for row in planning_table(dataset):
        if row["task"] == "text":
            raise ValueError(
                f"Row {row['id']!r} of `{name}` is of the task text, whose answers nothing here can score; leave such corpora "
                "to `train_data`."
            )
        keys.append(prediction_key(row))
        if not (row["text"] or "").strip():
            without_text.append(row["id"])
        else:
            check_prediction({**row, "reference": row["text"], "hypothesis": ""})
    fix = "their answers could not be told apart: give every row an id of its own, or every corpus a `name`."
    refuse_same_keys(keys, f"rows of `{name}`", fix)
    if without_text:
        raise ValueError(
            f"{len(without_text)} rows of `{name}` have no text to score against, such as {without_text[:5]}: fill it "
            "in, or take them out."
        )


def check_publishable(record: Mapping, config: PARTConfig, processor: PARTProcessor, repo_id: str | None) -> None:
    """What a stage's `stage.json` and model card could not say, and what must not be published, is known before it trains.

    Args:
        record: of the stage, without what training measures.
        config, processor: of its model; looked at where it will be published.
        repo_id: where it will be published; None: not by this run.

    Raises:
        CheckpointError: names the part of the record, or the file and what is private in it.
        ValueError: `repo_id` is none, or the card's metadata are not valid.
    """
    render_card({**record, "metrics": {}}, repo_id=repo_id or "user/name")
    if repo_id is not None:
        check_processor(config, processor)


def check_optimizer(args: PARTTrainingArguments) -> None:
    """Raise ValueError where optimizer or schedule cannot be made of the settings."""
    try:
        _check_optim_args(args)
    except (ImportError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"`optim` is {args.optim.value!r} (`optim_args`: {args.optim_args!r}): {error}") from error
    if args.lr_scheduler_kwargs and args.lr_scheduler_type in WITHOUT_KWARGS:
        raise ValueError(
            f"`lr_scheduler_kwargs` is {args.lr_scheduler_kwargs!r}, which would have no effect: the schedule "
            f"{args.lr_scheduler_type.value!r} has no settings; leave it out."
        )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    try:
        get_scheduler(
            args.lr_scheduler_type,
            optimizer,
            num_warmup_steps=1,
            num_training_steps=10,
            scheduler_specific_kwargs=dict(args.lr_scheduler_kwargs or {}),
        )
    except (TypeError, ValueError, KeyError, ZeroDivisionError) as error:
        raise ValueError(
            f"`lr_scheduler_type` is {args.lr_scheduler_type.value!r} and `lr_scheduler_kwargs` "
            f"{args.lr_scheduler_kwargs!r}, of which no schedule can be made: {error}"
        ) from error


def _check_optim_args(args: PARTTrainingArguments) -> None:
    """Raise ValueError for an optimizer's argument that changes nothing: `Trainer` hands on only what it knows."""
    whole, given = Trainer.get_optimizer_cls_and_kwargs(args), (args.optim_args or "").replace(" ", "").split(",")
    for one in filter(None, given):
        without = copy.copy(args)
        without.optim_args = ",".join(other for other in given if other != one) or None
        if Trainer.get_optimizer_cls_and_kwargs(without) == whole:
            raise ValueError(f"{one!r} would have no effect on it; leave that out.")
