# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Pairs of sentences, for text translation."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import chain, islice

from ...prompts_part import TEXT_TASKS
from ..checking import DataReport
from ..corpus_spec import CorpusSpec
from ..files import as_values, read_csv, read_jsonl, read_table, unquoted
from ..records import check_columns, rows_of
from ..rows import ROWS_BEFORE_JUDGEMENT, CorpusError


def read_text_pairs(
    spec: CorpusSpec, report: DataReport, *, columns: Mapping[str, str] | None = None
) -> Iterator[dict]:
    """Mt rows from a TSV or CSV file with a header or a JSONL file, one pair a line; with `tasks: [text]`, text rows.

    The text side of a speech translation corpus needs no such file: read that corpus with `tasks: [mt]`.

    Args:
        spec: the entry of the recipe.
        report: counts the rows that are dropped.
        columns: canonical column -> column of the file, `translation.sv` for a key of a mapping in JSONL. Default: each
            has the canonical name.
    """
    path = spec.folder()
    tasks = tuple(task for task in spec.tasks or ("mt",) if task in TEXT_TASKS)
    if not tasks:
        raise CorpusError(f"text_pairs at {path}: it has mt and text, not {', '.join(spec.tasks)}; name one of these")
    spec = replace(spec, tasks=tasks)
    on_broken = partial(report.drop_line, spec.corpus)
    if path.suffix == ".tsv":
        lines = read_table(path, on_broken=on_broken)
        unquoted_lines = ((number, {name: unquoted(field) for name, field in line.items()}) for number, line in lines)
        records = ((number, as_values(line)) for number, line in unquoted_lines)
    elif path.suffix == ".csv":
        records = ((number, as_values(line)) for number, line in read_csv(path, on_broken=on_broken))
    elif path.suffix == ".jsonl":
        records = read_jsonl(path, on_broken)
    else:
        raise CorpusError(f"text_pairs: {path} is neither .tsv or .csv (with a header) nor .jsonl")
    if not (first := list(islice(records, ROWS_BEFORE_JUDGEMENT))):
        return
    check_columns(spec, columns, dict.fromkeys(chain.from_iterable(record for _, record in first)))
    placed = ((f"{path}, line {number}", number, record) for number, record in chain(first, records))
    yield from rows_of(placed, spec, columns, None, on_broken)
