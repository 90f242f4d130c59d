# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Corpora that are read while training, as streams of canonical rows."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

from .checking import Admission, DataReport, RowFilters, refuse_if_broken
from .corpus_spec import CorpusSpec
from .readers.dataset import (
    audiofolder_records,
    classes_in,
    errors_of_dataset,
    features_of,
    is_csv,
    local_folder,
    open_dataset,
    plain_record,
)
from .records import check_columns, records_in, rows_of
from .rows import COLUMNS, ROWS_BEFORE_JUDGEMENT, canonical_features
from .shards import is_sample, place_of
from .sounds import from_address
from .stored_corpora import load_corpora


if TYPE_CHECKING:
    import datasets
    import pyarrow

logger = logging.getLogger(__name__)


def stream_corpora(
    specs: Sequence[CorpusSpec], filters: RowFilters, max_bad_fraction: float
) -> tuple["datasets.IterableDataset", dict]:
    """The corpora interleaved as one stream; those that are not streamed are read first."""
    local = [spec for spec in specs if not spec.streaming]
    report: dict = {**DataReport().as_dict(), "corpora": [], "weights": {}}
    parts: list[tuple] = []
    for spec in specs:
        if spec.streaming:
            parts.append((stream_dataset(spec, filters, max_bad_fraction), spec.weight))
            report["corpora"].append({**spec.place, "streamed": True})
    if local:
        dataset, read = load_corpora(local, filters, max_bad_fraction, None)
        report = {**read, "corpora": read["corpora"] + report["corpora"]}
        parts.append((dataset, sum(spec.weight for spec in local)))
    settings = json.dumps([[asdict(spec) for spec in specs], asdict(filters)], sort_keys=True, default=str)
    report["fingerprint"] = hashlib.sha256(settings.encode("utf-8")).hexdigest()[:16]
    return interleaved(parts), report


def interleaved(
    parts: Sequence[tuple["datasets.Dataset | datasets.IterableDataset", float]],
) -> "datasets.IterableDataset":
    """Datasets of canonical rows as one stream, each row once, drawn in proportion to the datasets' weights."""
    from datasets import interleave_datasets

    streams = [_as_stream(dataset) for dataset, _ in parts]
    if len(streams) == 1:
        return streams[0]
    total = sum(weight for _, weight in parts)
    shares = [weight / total for _, weight in parts]
    strategy = "all_exhausted_without_replacement"
    return interleave_datasets(streams, probabilities=shares, seed=0, stopping_strategy=strategy)


def _as_stream(dataset: "datasets.Dataset | datasets.IterableDataset") -> "datasets.IterableDataset":
    """A dataset as a stream; sounds that its rows only refer to are fetched as they come."""
    from datasets import IterableDataset

    if isinstance(dataset, IterableDataset):
        return dataset
    resolve = dataset.format["format_kwargs"].get("transform")
    stream = dataset.with_format(None).to_iterable_dataset(num_shards=min(64, len(dataset)))
    return stream if resolve is None else stream.map(resolve, batched=True, batch_size=32, features=stream.features)


def stream_dataset(spec: CorpusSpec, filters: RowFilters, max_bad_fraction: float) -> "datasets.IterableDataset":
    """One dataset as a stream of canonical rows, checked and filtered while it is read."""
    from datasets import Dataset, IterableDataset

    settings = dict(spec.settings)
    columns = settings.pop("columns", None)
    rows = StreamedRows(spec, filters, max_bad_fraction)
    with errors_of_dataset(spec):
        records = audiofolder_records(spec, partial(rows.report.drop_line, spec.corpus))
        if records is None:
            dataset = open_dataset(spec, **settings)
        else:
            # `from_list` looks at the columns of the first alone.
            names = dict.fromkeys(name for record in records for name in record)
            complete = [{name: record.get(name) for name in names} for record in records]
            dataset = Dataset.from_list(complete, on_mixed_types="use_json")
    if not isinstance(dataset, IterableDataset):
        dataset = dataset.to_iterable_dataset(num_shards=min(64, len(dataset)))
    available = features_of(dataset)
    check_columns(spec, columns, available)
    rows.classes, rows.of_csv = classes_in(available), is_csv(dataset)
    columns_there = dataset.column_names or list(available)
    stream = dataset.with_format("arrow").map(
        rows,
        batched=True,
        batch_size=32,
        remove_columns=[name for name in columns_there if name not in COLUMNS],  # the others are replaced
        features=canonical_features(),
    )
    return stream.with_format(None)


class StreamedRows:
    """Turns a table of a streamed dataset into a table of canonical rows, and counts the broken ones."""

    def __init__(self, spec: CorpusSpec, filters: RowFilters, max_bad_fraction: float) -> None:
        self.spec, self.max_bad_fraction = spec, max_bad_fraction
        self.admission = Admission(filters, unique=False)
        self.report = DataReport()
        self.records, self.looks_at = 0, ROWS_BEFORE_JUDGEMENT
        self.languages: set[str] = set()
        self.classes: dict[str, dict[int, str]] = {}  # of columns that hold numbers of them
        self.of_csv = False

    def __call__(self, table: "pyarrow.Table") -> "pyarrow.Table":
        """Canonical rows of the records in `table`, without those that are broken or filtered out."""
        import pyarrow

        folder, columns = local_folder(self.spec), self.spec.settings.get("columns")
        before = sum(self.report.broken.values())
        records = (
            (place_of(record) if is_sample(record) else f"{self.spec.path}, a record of a stream", None, record)
            for record in records_in(table)
        )
        on_broken = partial(self.report.drop_line, self.spec.corpus)
        converted = partial(plain_record, classes=self.classes, of_csv=self.of_csv)
        rows = list(rows_of(records, self.spec, columns, folder, on_broken, converted))
        self._look_for_languages(table.num_rows, rows)
        kept = self.admission.admit(rows, self.report)
        if sum(self.report.broken.values()) > before:
            logger.warning("%s: broken rows so far: %s", self.spec.path, dict(self.report.broken))
        refuse_if_broken(self.spec, self.report, self.max_bad_fraction, at_least=ROWS_BEFORE_JUDGEMENT)
        kept = [{**row, "audio": from_address(row["audio"])} for row in kept]
        return pyarrow.Table.from_pylist(kept, schema=canonical_features().arrow_schema)

    def _look_for_languages(self, records: int, rows: list[dict]) -> None:
        """Say from time to time which of the languages that were asked for have not come yet: a stream has no end."""
        self.records += records
        self.languages.update(code for row in rows for code in (row["source_lang"], row["target_lang"]))
        if self.records < self.looks_at:
            return
        self.looks_at *= 10
        if missing := sorted(self.spec.asked_languages - self.languages):
            message = (
                "%s: none of the first %d records is in %s; so far there are %s. See to `languages` in the recipe."
            )
            there = ", ".join(sorted(self.languages)) or "none that were asked for"
            logger.warning(message, self.spec.path, self.records, ", ".join(missing), there)
