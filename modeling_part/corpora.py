# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""From a recipe's list of corpora to one dataset of canonical rows, checked, filtered and counted.

    dataset, report = read_corpora(
        [
            {"reader": "common_voice", "path": "cv-corpus-15.0-2023-09-08", "languages": ["de", "fr"]},
            {"reader": "manifest", "path": "my/train.jsonl", "weight": 2.0},
        ],
        report_path="data_report.json",
        cache_dir="runs/mine/data",
    )

Every reader yields canonical rows (see `canonical.py`) with audio still compressed. What is done to them is the same
for all: missing durations are measured, rows that cannot be used are dropped with a reason, the filters that the
recipe asks for are applied, and the rest goes to an Arrow file that the dataset reads memory-mapped. To add a corpus,
write a function `(spec, report) -> rows`, name it in `READERS`, and give it a test with a tiny replica.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from .asterisk import read_asterisk
from .canonical import (
    COLUMNS,
    ROWS_BEFORE_JUDGEMENT,
    CorpusError,
    CorpusSpec,
    DataReport,
    audio_durations,
    canonical_features,
    summary,
    too_many_broken,
    write_report,
)
from .generic_corpora import (
    check_columns,
    local_folder,
    open_dataset,
    read_dataset,
    read_manifest,
    read_text_pairs,
    record_rows,
)
from .public_corpora import read_common_voice, read_covost2, read_fleurs, read_tuxpaint, read_wenetspeech


if TYPE_CHECKING:
    import datasets
    import pyarrow

logger = logging.getLogger(__name__)

READERS = {
    "manifest": read_manifest,
    "asterisk": read_asterisk,
    "common_voice": read_common_voice,
    "fleurs": read_fleurs,
    "covost2": read_covost2,
    "wenetspeech": read_wenetspeech,
    "tuxpaint": read_tuxpaint,
    "dataset": read_dataset,
    "text_pairs": read_text_pairs,
}
ROWS_PER_CHUNK = 2000
BYTES_PER_CHUNK = 64 << 20


@dataclass(frozen=True)
class RowFilters:
    """Which usable rows to leave out.

    Args:
        min_duration, max_duration: seconds of audio. Default: 0.1 to 30, Whisper's window.
        min_characters_per_second, max_characters_per_second: of the transcript over the audio; a text that is too
            short or too long for its recording is mostly not what was said. Depends on the script (about 3 to 25 for
            Latin, 1 to 10 for Chinese). Default: not applied. Rows without a transcript pass.
        languages: BCP 47 codes; rows with another source or target language are left out. Default: all stay.
    """

    min_duration: float = 0.1
    max_duration: float = 30.0
    min_characters_per_second: float | None = None
    max_characters_per_second: float | None = None
    languages: Sequence[str] | None = None

    def reason(self, row: dict) -> str | None:
        """Why the row is left out; None if it stays."""
        if self.languages and not {row["source_lang"], row["target_lang"]} <= set(self.languages):
            return "language not asked for"
        if row["task"] == "mt":
            return None
        if row["duration"] < self.min_duration:
            return f"shorter than {self.min_duration:g} s"
        if row["duration"] > self.max_duration:
            return f"longer than {self.max_duration:g} s"
        transcript = row["text"] if row["task"] == "asr" else row["source_text"]
        speed = len(transcript) / row["duration"] if transcript else None
        if speed is not None and self.min_characters_per_second and speed < self.min_characters_per_second:
            return f"fewer than {self.min_characters_per_second:g} characters per second"
        if speed is not None and self.max_characters_per_second and speed > self.max_characters_per_second:
            return f"more than {self.max_characters_per_second:g} characters per second"
        return None


# ---------------------------------------------------------------------------------------------------- the one door


def read_corpora(
    specs: Sequence[Mapping],
    *,
    min_duration: float = 0.1,
    max_duration: float = 30.0,
    min_characters_per_second: float | None = None,
    max_characters_per_second: float | None = None,
    languages: Sequence[str] | None = None,
    max_bad_fraction: float = 0.01,
    report_path: str | Path | None = None,
    cache_dir: str | Path | None = None,
) -> tuple["datasets.Dataset | datasets.IterableDataset", dict]:
    """Read all corpora of a recipe into one dataset with exactly the canonical columns.

    Args:
        specs: one mapping per corpus, see `CorpusSpec`.
        min_duration, max_duration, min_characters_per_second, max_characters_per_second, languages: see `RowFilters`.
        max_bad_fraction: share of the rows of a corpus that may be broken (no text, missing or unreadable audio)
            before reading stops with the list. Default: 1 %.
        report_path: where to write the report as JSON. Default: not written.
        cache_dir: folder for `rows.arrow` and `report.json`, from which other processes open the same dataset with
            `open_corpora`. Default: the rows are kept in memory.

    Returns:
        The dataset (a `datasets.IterableDataset` as soon as one corpus is streamed; its corpora are then interleaved
        with probabilities in proportion to their weights, each row once) and the report: `rows` and `hours` per
        direction ("asr/fr", "s2tt/fr-en"), `dropped` per corpus and reason with examples, `corpora`, `weights` (per
        `corpus` column, for the sampler) and `fingerprint`. Streamed rows are not in the counts.

    Raises:
        `CorpusError`: a setting, path or file is not as it must be, a corpus gives no rows, or too many are broken.
    """
    checked = [CorpusSpec.from_dict(spec) for spec in specs]
    for spec in checked:
        if spec.reader not in READERS:
            raise CorpusError(f"unknown reader {spec.reader!r}; the readers are {', '.join(READERS)}")
    if not checked:
        raise CorpusError("the recipe names no corpora")
    corpus_weights((spec.corpus, spec.weight) for spec in checked if spec.name or spec.reader != "manifest")
    filters = RowFilters(min_duration, max_duration, min_characters_per_second, max_characters_per_second, languages)
    if any(spec.streaming for spec in checked):
        dataset, report = stream_corpora(checked, filters, max_bad_fraction)
    else:
        dataset, report = load_corpora(checked, filters, max_bad_fraction, cache_dir)
    for path in (report_path, Path(cache_dir, "report.json") if cache_dir else None):
        if path:
            write_report(report, path)
    logger.info("corpora read:\n%s", summary(report))
    return dataset, report


def open_corpora(cache_dir: str | Path) -> tuple["datasets.Dataset", dict]:
    """The dataset and report that `read_corpora(..., cache_dir=cache_dir)` left, for the other processes of a run."""
    from datasets import Dataset

    cache_dir = Path(cache_dir)
    if not (cache_dir / "rows.arrow").exists():
        raise CorpusError(f"no rows.arrow in {cache_dir}; read_corpora(..., cache_dir=...) writes it")
    report = json.loads((cache_dir / "report.json").read_text(encoding="utf-8"))
    return Dataset.from_file(str(cache_dir / "rows.arrow")), report


def fingerprint(dataset: "datasets.Dataset") -> str:
    """16 hex digits that change with any column of any row but `audio` (files may move), and with their order."""
    import pandas

    digest = hashlib.sha256()
    columns = [name for name in COLUMNS if name != "audio"]
    for batch in dataset.select_columns(columns).with_format("pandas").iter(batch_size=100_000):
        digest.update(pandas.util.hash_pandas_object(batch[columns], index=False).to_numpy().tobytes())
    return digest.hexdigest()[:16]


# ----------------------------------------------------------------------------------------------------------- rows


def load_corpora(
    specs: Sequence[CorpusSpec], filters: RowFilters, max_bad_fraction: float, cache_dir: str | Path | None
) -> tuple["datasets.Dataset", dict]:
    """The map-style dataset of all specs, memory-mapped if there is a `cache_dir`, and the report."""
    reports = [DataReport() for _ in specs]
    chunks = [corpus_chunks(*each, filters, max_bad_fraction) for each in zip(specs, reports, strict=True)]
    dataset = write_arrow(chain.from_iterable(chunks), cache_dir)
    total = DataReport()
    corpora = []
    for spec, report in zip(specs, reports, strict=True):
        total.add(report)
        counts = {"rows": sum(report.rows.values()), "hours": round(sum(report.seconds.values()) / 3600, 4)}
        corpora.append({"reader": spec.reader, "path": spec.path, "split": spec.split, **counts})
    weights = corpus_weights(
        (corpus, spec.weight) for spec, each in zip(specs, reports, strict=True) for corpus in each.corpora
    )
    return dataset, {**total.as_dict(), "corpora": corpora, "weights": weights, "fingerprint": fingerprint(dataset)}


def corpus_weights(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    """`corpus` column -> weight, for the sampler. Raises `CorpusError` if one corpus is given two weights."""
    weights: dict[str, float] = {}
    for corpus, weight in pairs:
        if weights.setdefault(corpus, weight) != weight:
            raise CorpusError(f"corpus {corpus!r} has two weights; tell its parts apart with `name`")
    return weights


def corpus_chunks(
    spec: CorpusSpec, report: DataReport, filters: RowFilters, max_bad_fraction: float
) -> Iterator[list[dict]]:
    """Rows of one corpus that can be used and are wanted, in chunks; stops if too many are broken."""
    from tqdm import tqdm

    listings = FolderListings()
    for chunk in chunked(tqdm(READERS[spec.reader](spec, report), desc=spec.corpus, unit=" rows", disable=None)):
        yield admit(chunk, filters, report, listings)
        refuse_if_broken(spec, report, max_bad_fraction, at_least=ROWS_BEFORE_JUDGEMENT)
    refuse_if_broken(spec, report, max_bad_fraction)
    if not report.rows:
        dropped = "; ".join(f"{count} dropped: {reason}" for (_, reason), count in report.dropped.items())
        raise CorpusError(
            f"{spec.reader} at {spec.path} gives no rows for split {spec.split!r}, tasks {spec.tasks or 'all'}, "
            f"languages {spec.languages or 'all'}{'; ' + dropped if dropped else ''}"
        )


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


class FolderListings:
    """Whether files exist, by listing each folder once: corpora have millions of files in few folders."""

    def __init__(self):
        self._names: dict[str, frozenset[str]] = {}

    def __contains__(self, path: str) -> bool:
        folder, name = os.path.split(path)
        if folder not in self._names:
            self._names[folder] = frozenset(os.listdir(folder or ".") if os.path.isdir(folder or ".") else ())
        return name in self._names[folder]


def admit(rows: list[dict], filters: RowFilters, report: DataReport, listings: FolderListings) -> list[dict]:
    """The rows that can be used and that the filters keep, with their durations; the others go to the report."""
    measured = measure_durations(rows)
    kept = []
    for row in rows:
        broken = fault(row, measured, listings)
        reason = broken or filters.reason(row)
        if reason:
            report.drop(row["corpus"], row["id"], reason, broken=broken is not None)
        else:
            report.keep(row)
            kept.append(row)
    return kept


def measure_durations(rows: Sequence[dict]) -> dict[str | bytes, float | CorpusError]:
    """Length of the audio, or the error, for the rows that do not know their duration; each file is opened once."""
    unknown = {}
    for row in rows:
        if row["duration"] is None and row["end"] is None:
            unknown[row["audio"]["bytes"] or row["audio"]["path"]] = None
    wanted = [audio for audio in unknown if audio is not None]
    return dict(zip(wanted, audio_durations(wanted), strict=True))


def fault(row: dict, measured: Mapping, listings: FolderListings) -> str | None:
    """What is wrong with the data of a row, whose unknown duration is filled in; None if it can be used."""
    if not row["text"] or not row["text"].strip():
        return "no text"
    if row["task"] == "mt":
        return None if row["source_text"] and row["source_text"].strip() else "no source text"
    path, data = row["audio"]["path"], row["audio"]["bytes"]
    if path is None and data is None:
        return "no audio"
    if row["duration"] is None:
        length = row["end"] if row["end"] is not None else measured[data or path]
        if isinstance(length, CorpusError):
            return str(length)
        row["duration"] = length - (row["start"] or 0.0)
    if row["duration"] <= 0 or (row["start"] or 0.0) < 0:
        return "start and end leave no audio"
    return None if data is not None or path in listings else "audio file not found"


def refuse_if_broken(spec: CorpusSpec, report: DataReport, max_bad_fraction: float, at_least: int = 0) -> None:
    """Raise `CorpusError` with the list if more than `max_bad_fraction` of the rows so far are broken."""
    broken = sum(report.broken.values())
    seen = sum(report.rows.values()) + sum(report.dropped.values())
    if not too_many_broken(broken, seen, max_bad_fraction, at_least):
        return
    lines = [
        f"  {count:,} rows: {reason}, such as {', '.join(report.examples[corpus, reason])}"
        for (corpus, reason), count in report.broken.items()
        if count
    ]
    raise CorpusError(
        f"{spec.reader} at {spec.path}: {broken:,} of {seen:,} rows are broken, more than max_bad_fraction = "
        f"{max_bad_fraction:g} allows:\n" + "\n".join(lines)
    )


def write_arrow(chunks: Iterable[list[dict]], cache_dir: str | Path | None) -> "datasets.Dataset":
    """A dataset of the rows, on disk (memory-mapped) or, without `cache_dir`, in memory."""
    import pyarrow
    from datasets import Dataset

    schema = canonical_features().arrow_schema
    target = None
    if cache_dir is not None:
        Path(cache_dir).mkdir(parents=True, exist_ok=True)
        target = Path(cache_dir) / "rows.arrow"
    partial = None if target is None else target.with_suffix(".partial")
    with pyarrow.BufferOutputStream() if partial is None else pyarrow.OSFile(str(partial), "wb") as sink:
        with pyarrow.ipc.new_stream(sink, schema) as writer:
            for chunk in chunks:
                writer.write_table(pyarrow.Table.from_pylist(chunk, schema=schema))
        if target is None:
            return Dataset.from_buffer(sink.getvalue())
    partial.replace(target)
    return Dataset.from_file(str(target))


# ------------------------------------------------------------------------------------------------------ streaming


def stream_corpora(
    specs: Sequence[CorpusSpec], filters: RowFilters, max_bad_fraction: float
) -> tuple["datasets.IterableDataset", dict]:
    """The corpora interleaved as one stream; those that are not streamed are read first."""
    from datasets import interleave_datasets

    local = [spec for spec in specs if not spec.streaming]
    report: dict = {**DataReport().as_dict(), "corpora": [], "weights": {}}
    streams, weights = [], []
    for spec in specs:
        if spec.streaming:
            streams.append(stream_dataset(spec, filters, max_bad_fraction))
            report["corpora"].append({"reader": spec.reader, "path": spec.path, "split": spec.split, "streamed": True})
            weights.append(spec.weight)
    if local:
        dataset, read = load_corpora(local, filters, max_bad_fraction, None)
        report = {**read, "corpora": read["corpora"] + report["corpora"]}
        streams.append(dataset.to_iterable_dataset(num_shards=min(64, len(dataset))))
        weights.append(sum(spec.weight for spec in local))
    settings = json.dumps([[asdict(spec) for spec in specs], asdict(filters)], sort_keys=True, default=str)
    report["fingerprint"] = hashlib.sha256(settings.encode("utf-8")).hexdigest()[:16]
    if len(streams) == 1:
        return streams[0], report
    shares = [weight / sum(weights) for weight in weights]
    strategy = "all_exhausted_without_replacement"
    return interleave_datasets(streams, probabilities=shares, seed=0, stopping_strategy=strategy), report


def stream_dataset(spec: CorpusSpec, filters: RowFilters, max_bad_fraction: float) -> "datasets.IterableDataset":
    """One dataset as a stream of canonical rows, checked and filtered while it is read."""
    from datasets import IterableDataset

    dataset = open_dataset(spec)
    if not isinstance(dataset, IterableDataset):
        dataset = dataset.to_iterable_dataset(num_shards=min(64, len(dataset)))
    check_columns(spec, dataset.column_names)
    stream = dataset.with_format("arrow").map(
        StreamedRows(spec, filters, max_bad_fraction),
        batched=True,
        batch_size=32,
        remove_columns=[name for name in dataset.column_names if name not in COLUMNS],  # the others are replaced
        features=canonical_features(),
    )
    return stream.with_format(None)


class StreamedRows:
    """Turns a table of a streamed dataset into a table of canonical rows, and counts the broken ones."""

    def __init__(self, spec: CorpusSpec, filters: RowFilters, max_bad_fraction: float):
        self.spec, self.filters, self.max_bad_fraction = spec, filters, max_bad_fraction
        self.report = DataReport()

    def __call__(self, table: "pyarrow.Table") -> "pyarrow.Table":
        """Canonical rows of the records in `table`, without those that are broken or filtered out."""
        import pyarrow

        folder = local_folder(self.spec)
        rows = [row for record in table.to_pylist() for row in record_rows(record, self.spec, folder)]
        before = sum(self.report.broken.values())
        kept = admit(rows, self.filters, self.report, FolderListings())
        if sum(self.report.broken.values()) > before:
            logger.warning("%s: broken rows so far: %s", self.spec.path, dict(self.report.broken))
        refuse_if_broken(self.spec, self.report, self.max_bad_fraction, at_least=ROWS_BEFORE_JUDGEMENT)
        return pyarrow.Table.from_pylist(kept, schema=canonical_features().arrow_schema)
