# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Pairs of sentences, for text translation."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from ..checking import DataReport
from ..corpus_spec import CorpusSpec
from ..files import read_jsonl, read_table
from ..rows import CorpusError
from .dataset import check_columns, record_rows


def read_text_pairs(
    spec: CorpusSpec, report: DataReport, *, columns: Mapping[str, str] | None = None
) -> Iterator[dict]:
    """Mt rows from a TSV file with a header or a JSONL file, one pair a line.

    The text side of a speech translation corpus needs no such file: read that corpus with `tasks: [mt]`.

    Args:
        spec: the entry of the recipe.
        report: counts the rows that are dropped.
        columns: canonical column -> column of the file. Default: each has the canonical name.
    """
    path = spec.folder()
    if path.suffix == ".tsv":
        records = read_table(path)
    elif path.suffix == ".jsonl":
        records = (record for _, record in read_jsonl(path))
    else:
        raise CorpusError(f"text_pairs: {path} is neither .tsv (with a header) nor .jsonl")
    spec = replace(spec, tasks=("mt",))
    for number, record in enumerate(records, start=1):
        if number == 1:
            check_columns(spec, columns, list(record))
        yield from record_rows(record, spec, columns)
