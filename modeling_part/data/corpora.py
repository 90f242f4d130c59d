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

Every reader yields canonical rows (see `rows.py`) with audio still compressed. What is done to them is the same
for all: missing durations are measured, rows that cannot be used are dropped with a reason, the filters that the
recipe asks for are applied, and the rest goes to an Arrow file that the dataset reads memory-mapped. To add a corpus,
write `readers/NAME.py` with a function `read_NAME(spec, report, *, settings) -> rows`, name it in `READERS` of
`readers/registry.py`, and give it a test with a tiny replica.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .checking import RowFilters, summary, write_data_report
from .expansion import corpus_specs
from .rows import CorpusError
from .sounds import with_sounds
from .stored_corpora import corpus_weights, load_corpora
from .streamed_corpora import stream_corpora


if TYPE_CHECKING:
    import datasets


logger = logging.getLogger(__name__)


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
        specs: one mapping per corpus, see `CorpusSpec`, or for a corpus in many languages, see `expanded`.
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
        CorpusError: a setting, path or file is not as it must be, a corpus gives no rows, or too many are broken.
    """
    checked = corpus_specs(specs)
    if not isinstance(max_bad_fraction, (int, float)) or not 0 <= max_bad_fraction <= 1:
        raise CorpusError(f"`max_bad_fraction` is {max_bad_fraction!r}; it must be a share from 0 to 1")
    if not checked:
        raise CorpusError("The recipe names no corpora")
    corpus_weights((spec.corpus, spec.weight) for spec in checked if spec.name or spec.reader != "manifest")
    filters = RowFilters(min_duration, max_duration, min_characters_per_second, max_characters_per_second, languages)
    if any(spec.streaming for spec in checked):
        dataset, report = stream_corpora(checked, filters, max_bad_fraction)
    else:
        dataset, report = load_corpora(checked, filters, max_bad_fraction, cache_dir)
    for path in (report_path, Path(cache_dir, "report.json") if cache_dir else None):
        if path:
            write_data_report(report, path)
    logger.info("corpora read:\n%s", summary(report))
    return dataset, report


def kept_rows(folder: Path) -> "datasets.Dataset | None":
    """The rows that a run keeps in a folder, such as `data/test`; None where it has left none."""
    from datasets import Dataset

    path = folder / "rows.arrow"
    return with_sounds(Dataset.from_file(str(path)), folder) if path.is_file() else None


def open_corpora(cache_dir: str | Path) -> tuple["datasets.Dataset", dict]:
    """The dataset and report that `read_corpora(..., cache_dir=cache_dir)` left, for the other processes of a run."""
    import pyarrow

    cache_dir = Path(cache_dir)
    if not (cache_dir / "rows.arrow").exists():
        raise CorpusError(f"No rows.arrow in {cache_dir}; read_corpora(..., cache_dir=...) writes it")
    try:
        report = json.loads((cache_dir / "report.json").read_text(encoding="utf-8"))
        return kept_rows(cache_dir), report
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise CorpusError(
            f"The rows in {cache_dir} cannot be read ({error}); remove the folder and run again"
        ) from error
