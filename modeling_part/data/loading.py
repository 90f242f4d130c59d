# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""A recipe's corpora -> the rows of a run: read once by the main process, opened by the others."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate import PartialState

from ..processing_part import PARTProcessor
from ..prompts_part import TASKS
from ..recipes.arguments import DataArguments, Recipe
from ..recipes.places import located
from .corpora import open_corpora, read_corpora
from .expansion import corpus_specs, is_streamed
from .readers.registry import find_place_check
from .streamed_corpora import interleaved


if TYPE_CHECKING:
    import datasets


LONGEST_WAIT = timedelta(days=7)
STREAMED_ROWS = 2000  # of each stream, whose transcripts stand for all
STREAMED_COLUMNS = ("task", "source_lang", "text", "source_text", "duration")


@dataclass(frozen=True)
class Rows:
    """The canonical rows of a run; None where the recipe names no corpora.

    Attributes:
        train: a dataset, or where corpora are streamed one stream for each task.
        eval, test: datasets.
        corpus_weights: how often the rows of each corpus are drawn in an epoch.
        fingerprint: of the training rows; of streams, whose rows nobody knows, of what the recipe says of them.
        is_streamed: whether `train` holds streams.
        folder: where the run keeps what it finds out about its rows; None: nowhere.
    """

    train: datasets.Dataset | Mapping[str, datasets.IterableDataset] | None = None
    eval: datasets.Dataset | None = None
    test: datasets.Dataset | None = None
    corpus_weights: Mapping[str, float] = field(default_factory=dict)
    fingerprint: str = ""
    is_streamed: bool = False
    folder: Path | None = None

    @property
    def record(self) -> dict:
        """What `stage.json` says of the training rows: their fingerprint, and the weight of each corpus, in the recipe's order.

        A stream's weights are in its fingerprint.
        """
        weights = {} if self.is_streamed else {"corpus_weights": list(self.corpus_weights.values())}
        return {"fingerprint": self.fingerprint, **weights}

    @property
    def datasets(self) -> dict[str, datasets.Dataset]:
        """Those that can be looked into, by name: streams cannot."""
        named = {"train": None if self.is_streamed else self.train, "eval": self.eval, "test": self.test}
        return {name: dataset for name, dataset in named.items() if dataset is not None}

    @cached_property
    def beginnings(self) -> datasets.Dataset:
        """The texts of the first rows of each stream, which are fetched once for all stages."""
        from datasets import Dataset

        first = chain.from_iterable(islice(stream, STREAMED_ROWS) for stream in self.train.values())
        return Dataset.from_list([{name: row[name] for name in STREAMED_COLUMNS} for row in first])


def load_rows(recipe: Recipe) -> Rows:
    """Read the corpora of `train_data`, `eval_data` and `test_data` into the run's folder, or open what is there.

    Raises:
        CorpusError: a corpus cannot be read, or more of its rows are broken than `max_bad_fraction` allows.
    """
    check_corpora(recipe)
    folder = Path(recipe.training.output_dir) / "data"
    eval_rows, test_rows = (_read(name, recipe)[0] for name in ("eval", "test"))
    if any(map(is_streamed, recipe.data.train_data or [])):
        streams, digest = _read_streams(recipe)
        return Rows(streams, eval_rows, test_rows, fingerprint=digest, is_streamed=True, folder=folder)
    train_rows, report = _read("train", recipe)
    return Rows(train_rows, eval_rows, test_rows, report["weights"], report["fingerprint"], folder=folder)


def load_test_rows(recipe: Recipe) -> datasets.Dataset:
    """The rows of `test_data` alone.

    Raises:
        ValueError: the recipe names none.
    """
    rows, _ = _read("test", recipe)
    if rows is None:
        raise ValueError("There is nothing to predict: name `test_data` in the recipe.")
    return rows


def check_prompts(rows: Iterable[datasets.Dataset], processor: PARTProcessor) -> None:
    """Raise ValueError where the prompts know no name for a language of the rows."""
    for dataset in rows:
        for code in chain(dataset.unique("source_lang"), dataset.unique("target_lang")):
            processor.language_name(code)


def check_corpora(recipe: Recipe) -> None:
    """Look at the settings of all corpora before the first is read.

    Raises:
        CorpusError: one is not as it must be, or what it is read from is neither here nor to be fetched.
    """
    for name in ("train_data", "eval_data", "test_data"):
        for number, entry in enumerate(getattr(recipe.data, name) or ()):
            with located(recipe.places, name, str(number)):
                for spec in corpus_specs([entry]):
                    find_place_check(spec.reader)(spec)


def _read(name: str, recipe: Recipe, specs: Sequence[dict] | None = None) -> tuple[datasets.Dataset | None, dict]:
    """The rows of `train_data`, `eval_data` or `test_data` (or of some of it), and the report on them (see `read_corpora`)."""
    specs = getattr(recipe.data, f"{name}_data") if specs is None else specs
    # Only training takes rows as they come; a recipe's entry for it may be the pattern of the others.
    specs = [{key: value for key, value in entry.items() if key != "streaming"} for entry in specs or ()]
    if not specs:
        return None, {"weights": {}, "fingerprint": ""}
    folder = Path(recipe.training.output_dir)
    with main_process_first():
        if PartialState().is_main_process:
            report_path = folder / f"data_report_{name}.json"
            read_corpora(specs, **_filters(recipe.data), report_path=report_path, cache_dir=folder / "data" / name)
    dataset, report = open_corpora(folder / "data" / name)
    most = recipe.training.max_eval_rows
    if name == "eval" and most is not None and len(dataset) > most:
        dataset = dataset.shuffle(seed=0).select(range(most))
    return dataset, report


@contextmanager
def main_process_first() -> Iterator[None]:
    """The other ranks wait at the end, however long: `ddp_timeout` is of a step; reading and the Hub may take hours."""
    if PartialState().num_processes == 1:
        yield
        return
    waiting = torch.distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)
    yield
    torch.distributed.barrier(group=waiting)
    torch.distributed.destroy_process_group(waiting)


def _read_streams(recipe: Recipe) -> tuple[dict[str, datasets.IterableDataset], str]:
    """One stream of canonical rows per task (a global step takes its rows from one of them), and their fingerprint.

    Corpora that are not streamed are read first, and interleaved with the others by weight.
    """
    streamed = list(filter(is_streamed, recipe.data.train_data))
    rows, report = _read("train", recipe, [entry for entry in recipe.data.train_data if entry not in streamed])
    streams, said = {}, [report["fingerprint"], sorted(report["weights"].items())]
    for task in TASKS:
        parts = [] if rows is None else _of_task(rows, task, report["weights"])
        specs = [
            {**entry, "tasks": [task]} for entry in streamed if any(spec.wants(task) for spec in corpus_specs([entry]))
        ]
        if specs:
            stream, read = read_corpora(specs, **_filters(recipe.data))
            said.append(read["fingerprint"])
            parts.append((stream, sum(spec.weight for spec in corpus_specs(specs))))
        if parts:
            streams[task] = interleaved(parts)
    return streams, hashlib.sha256(repr(said).encode("utf-8")).hexdigest()[:16]


def _of_task(rows: datasets.Dataset, task: str, weights: Mapping[str, float]) -> list[tuple[datasets.Dataset, float]]:
    """The rows of a task, each corpus for itself with its weight."""
    table = rows.select_columns(["task", "corpus"]).with_format("arrow")[:]
    of_task, corpora = table["task"].to_numpy() == task, table["corpus"].to_numpy()
    chosen = {corpus: np.flatnonzero(of_task & (corpora == corpus)) for corpus in weights}
    return [(rows.select(indices), weights[corpus]) for corpus, indices in chosen.items() if len(indices)]


def _filters(data: DataArguments) -> dict:
    names = ("min_duration", "max_duration", "min_characters_per_second", "max_characters_per_second")
    return {name: getattr(data, name) for name in (*names, "max_bad_fraction")}
