# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""What is said in the training clips, as tokens: how often each occurs, and which transcripts do not fit their clip."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..processing_part import PARTProcessor
from ..prompts_part import TASKS
from .loading import Rows
from .row_tokens import RowTokens, audio_tokens, row_tokens


if TYPE_CHECKING:
    import datasets


def count_transcript_tokens(rows: Rows, processor: PARTProcessor, vocabulary_size: int) -> torch.Tensor:
    """`(vocabulary_size,)`: how often each token occurs in the training transcripts; of streams, in their beginning."""
    _, tokens = _text_rows(rows, processor)
    counts = torch.zeros(vocabulary_size, dtype=torch.long)
    counts[: len(tokens.occurrences)] = torch.from_numpy(tokens.occurrences)[:vocabulary_size]
    return counts


def count_too_long(rows: Rows, processor: PARTProcessor, tasks: Collection[str] = TASKS) -> dict[str, tuple[int, int]]:
    """By language, transcripts with more tokens than their clip has audio tokens, and all transcripts.

    Where two neighbouring tokens are the same, CTC needs one audio token more.

    Args:
        rows: of the run.
        processor: whose tokens.
        tasks: whose rows are counted.
    """
    dataset, tokens = _text_rows(rows, processor)
    if not len(dataset):
        return {}
    columns = dataset.select_columns(["task", "source_lang", "duration"]).with_format("arrow")[:]
    chosen = np.isin(columns["task"].to_numpy(zero_copy_only=False).astype(str), list(tasks))
    languages = columns["source_lang"].combine_chunks().dictionary_encode()
    seconds = np.nan_to_num(columns["duration"].to_numpy(zero_copy_only=False).astype(np.float64))
    room = audio_tokens(seconds, processor)
    codes, spoken = languages.indices.to_numpy(zero_copy_only=False), chosen & (tokens.transcripts > 0)
    every = np.bincount(codes[spoken], minlength=len(languages.dictionary))
    wrong = np.bincount(codes[spoken & (tokens.transcripts > room)], minlength=len(languages.dictionary))
    names = languages.dictionary.to_pylist()
    return {name: (int(bad), int(count)) for name, bad, count in zip(names, wrong, every, strict=True) if count}


def _text_rows(rows: Rows, processor: PARTProcessor) -> tuple[datasets.Dataset, RowTokens]:
    """The training rows without their audio, and their tokens; of streams, those at their beginning."""
    if not rows.is_streamed:
        return rows.train, row_tokens(rows.train, processor, True, rows.folder, rows.fingerprint)
    return rows.beginnings, row_tokens(rows.beginnings, processor, True)
