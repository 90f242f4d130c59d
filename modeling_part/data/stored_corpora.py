# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Corpora that are read once and kept as Arrow files of canonical rows."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from .checking import Admission, DataReport, RowFilters, refuse_if_broken
from .corpus_spec import CorpusSpec
from .readers.registry import FROM_FILES, find_reader
from .rows import COLUMNS, ROWS_BEFORE_JUDGEMENT, CorpusError, canonical_features, direction
from .sounds import SoundStore, with_sounds


if TYPE_CHECKING:
    import datasets
    import pyarrow


ROWS_PER_CHUNK = 2000
BYTES_PER_CHUNK = 64 << 20


def load_corpora(
    specs: Sequence[CorpusSpec], filters: RowFilters, max_bad_fraction: float, cache_dir: str | Path | None
) -> tuple["datasets.Dataset", dict]:
    """The map-style dataset of all specs, memory-mapped if there is a `cache_dir`, and the report."""
    reports = [DataReport() for _ in specs]
    admission = Admission(filters)
    chunks = [corpus_chunks(*each, admission, max_bad_fraction) for each in zip(specs, reports, strict=True)]
    dataset = write_arrow(chain.from_iterable(chunks), cache_dir)
    total = DataReport()
    corpora = []
    for spec, report in zip(specs, reports, strict=True):
        total.add(report)
        counts = {"rows": sum(report.rows.values()), "hours": round(sum(report.seconds.values()) / 3600, 4)}
        corpora.append({**spec.place, **counts})
    weights = corpus_weights(
        (corpus, spec.weight) for spec, each in zip(specs, reports, strict=True) for corpus in each.corpora
    )
    return dataset, {**total.as_dict(), "corpora": corpora, "weights": weights, "fingerprint": fingerprint(dataset)}


def corpus_weights(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    """`corpus` column -> weight, for the sampler. Raises `CorpusError` if one corpus is given two weights."""
    weights: dict[str, float] = {}
    for corpus, weight in pairs:
        if weights.setdefault(corpus, weight) != weight:
            raise CorpusError(f"Corpus {corpus!r} has two weights; tell its parts apart with `name`")
    return weights


def corpus_chunks(
    spec: CorpusSpec, report: DataReport, admission: Admission, max_bad_fraction: float
) -> Iterator[list[dict]]:
    """Rows of one corpus that can be used and are wanted, in chunks; stops if too many are broken."""
    from tqdm import tqdm

    languages: set[str] = set()
    rows = find_reader(spec.reader)(spec, report, **spec.settings)
    for chunk in chunked(tqdm(rows, desc=spec.corpus, unit=" rows", disable=None)):
        languages.update(code for row in chunk for code in (row["source_lang"], row["target_lang"]))
        yield admission.admit(chunk, report)
        refuse_if_broken(spec, report, max_bad_fraction, at_least=ROWS_BEFORE_JUDGEMENT)
    refuse_if_broken(spec, report, max_bad_fraction)
    if not report.rows:
        dropped = "; ".join(f"{count} dropped: {reason}" for (_, reason), count in report.dropped.items())
        raise CorpusError(
            f"{spec.reader} at {spec.path} gives no rows for split {spec.split!r}, tasks {spec.tasks or 'all'}, "
            f"languages {spec.languages or 'all'}{'; ' + dropped if dropped else ''}{others_there(spec)}"
        )
    if missing := sorted(spec.asked_languages - languages):
        raise CorpusError(
            f"{spec.reader} at {spec.path} has no rows in {', '.join(missing)}; it has {', '.join(sorted(languages))}"
        )


def others_there(spec: CorpusSpec) -> str:
    """For an error about none: the languages of the first rows of files, which are read as if any were asked for."""
    if spec.reader not in FROM_FILES or not (spec.languages or spec.target_languages):
        return ""
    rows = find_reader(spec.reader)(
        replace(spec, languages=None, target_languages=None), DataReport(), **spec.settings
    )
    try:
        found = {direction(row["source_lang"], row["target_lang"]) for row in islice(rows, ROWS_BEFORE_JUDGEMENT)}
    except CorpusError:  # no language stands in the file itself
        found = set()
    return f"; without `languages` it has {', '.join(sorted(found))}" if found else ""


def chunked(rows: Iterable[dict]) -> Iterator[list[dict]]:
    """Lists of at most `ROWS_PER_CHUNK` rows and about `BYTES_PER_CHUNK` of audio bytes."""
    chunk, size = [], 0
    for row in rows:
        chunk.append(row)
        size += len((row["audio"] or {}).get("bytes") or b"")
        if len(chunk) == ROWS_PER_CHUNK or size >= BYTES_PER_CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def write_arrow(chunks: Iterable[list[dict]], cache_dir: str | Path | None) -> "datasets.Dataset":
    """A dataset of the rows, on disk (memory-mapped, each sound once) or, without `cache_dir`, in memory."""
    import pyarrow
    from datasets import Dataset

    schema = canonical_features().arrow_schema
    if cache_dir is None:
        with pyarrow.BufferOutputStream() as sink:
            _write(chunks, sink, schema)
            return with_sounds(Dataset.from_buffer(sink.getvalue()), None)
    folder = Path(cache_dir)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "rows.arrow"
    partial = target.with_suffix(".partial")
    with SoundStore(folder) as sounds, pyarrow.OSFile(str(partial), "wb") as sink:
        _write(map(sounds.keep, chunks), sink, schema)
    partial.replace(target)
    return with_sounds(Dataset.from_file(str(target)), folder)


def _write(chunks: Iterable[list[dict]], sink: "pyarrow.NativeFile", schema: "pyarrow.Schema") -> None:
    import pyarrow

    with pyarrow.ipc.new_stream(sink, schema) as writer:
        for chunk in chunks:
            columns = {name: [row[name] for row in chunk] for name in schema.names}
            writer.write_table(pyarrow.Table.from_pydict(columns, schema=schema))


def fingerprint(dataset: "datasets.Dataset") -> str:
    """16 hex digits that change with any column of any row but `audio` (files may move), and with their order."""
    import pandas

    digest = hashlib.sha256()
    columns = [name for name in COLUMNS if name != "audio" and name in dataset.column_names]
    for batch in dataset.select_columns(columns).with_format("pandas").iter(batch_size=100_000):
        digest.update(pandas.util.hash_pandas_object(batch[columns], index=False).to_numpy().tobytes())
    return digest.hexdigest()[:16]
