# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""What is said in the training clips, as tokens: how often each occurs, and which transcripts do not fit their clip."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice, pairwise

import torch

from ..configuration_part import convolved_length
from ..processing_part import PARTProcessor
from .collator import transcript
from .loading import Rows


# Of each stream; all rows of datasets are counted.
STREAMED_ROWS = 2000
TEXT_COLUMNS = ("task", "source_lang", "text", "source_text", "duration")


def count_transcript_tokens(rows: Rows, processor: PARTProcessor, vocabulary_size: int) -> torch.Tensor:
    """`(vocabulary_size,)`: how often each token occurs in the training transcripts; of streams, in their beginning."""
    counts = torch.zeros(vocabulary_size, dtype=torch.long)
    for _, ids in transcripts(rows, processor):
        tokens = torch.tensor(ids, dtype=torch.long)
        counts.index_add_(0, tokens, torch.ones_like(tokens))  # a vocabulary is long, a transcript short
    return counts


def count_too_long(rows: Rows, processor: PARTProcessor) -> dict[str, tuple[int, int]]:
    """By language, transcripts with more tokens than their clip has audio tokens, and all transcripts.

    Where two neighbouring tokens are the same, CTC needs one audio token more.
    """
    found: dict[str, tuple[int, int]] = {}
    for row, ids in transcripts(rows, processor):
        needed = len(ids) + sum(left == right for left, right in pairwise(ids))
        steps = round((row["duration"] or 0.0) * processor.feature_rate)
        too_long = needed > convolved_length(steps, processor.audio_token_convolutions)
        before = found.get(row["source_lang"], (0, 0))
        found[row["source_lang"]] = (before[0] + too_long, before[1] + 1)
    return found


def transcripts(rows: Rows, processor: PARTProcessor, batch_size: int = 1000) -> Iterator[tuple[dict, list[int]]]:
    """The training rows whose transcript is known, without their audio, and its tokens."""
    for batch in _batches(_text_rows(rows), batch_size):
        spoken = [(row, transcript(row["task"], row["text"], row["source_text"])) for row in batch]
        spoken = [(row, text) for row, text in spoken if text]
        if spoken:
            ids = processor.tokenizer([text for _, text in spoken], add_special_tokens=False)["input_ids"]
            yield from zip((row for row, _ in spoken), ids, strict=True)


def _text_rows(rows: Rows) -> Iterable[dict]:
    if rows.is_streamed:
        return chain.from_iterable(islice(stream, STREAMED_ROWS) for stream in rows.train.values())
    return rows.train.select_columns(list(TEXT_COLUMNS))


def _batches(rows: Iterable[dict], size: int) -> Iterator[list[dict]]:
    rows = iter(rows)
    while batch := list(islice(rows, size)):
        yield batch
