# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""How many tokens the texts of rows are: counted once for a run, with all threads of the tokenizer, and kept."""

import hashlib
import os
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from accelerate import PartialState

from ..processing_part import PARTProcessor
from ..prompts_part import TEXT_TASKS
from .stored_corpora import fingerprint


if TYPE_CHECKING:
    import datasets


BATCH = 10_000  # rows that the tokenizer's threads share
COLUMNS = ["task", "text", "source_text"]


@dataclass(frozen=True)
class RowTokens:
    """Tokens of the texts of a dataset's rows.

    Attributes:
        answers: `(rows,)` int32, of the answer with its end (and of the source sentence, for text tasks).
        transcripts: `(rows,)` int32, of what is said, and one more for each two neighbours that are the same token: the
            audio tokens that CTC needs. 0 where there is no transcript; None where they were not asked for.
        occurrences: `(vocabulary,)` int64, how often each token occurs in the transcripts.
    """

    answers: np.ndarray
    transcripts: np.ndarray | None = None
    occurrences: np.ndarray | None = None


def transcript(task: str, text: str, source_text: str | None) -> str | None:
    """What is said in a row's clip: None for text tasks, and where a corpus of translations does not tell."""
    return {"asr": text, "s2tt": source_text}.get(task)


def _scored_text(task: str, text: str, source_text: str | None) -> str:
    """What counts against the token budget: the answer, and the source sentence of text tasks."""
    return f"{source_text} {text}" if task in TEXT_TASKS else text


def count_row_tokens(row: dict, processor: PARTProcessor) -> int:
    """Tokens of one row's answer with its end (and of its source sentence, for text tasks)."""
    text = _scored_text(row["task"], row["text"], row["source_text"])
    return len(processor.tokenizer(text, add_special_tokens=False)["input_ids"]) + 1


def count_tokens(dataset: "datasets.Dataset", processor: PARTProcessor) -> np.ndarray:
    """`count_row_tokens` of every row: `(rows,)` int32."""
    return row_tokens(dataset, processor).answers


def row_tokens(
    dataset: "datasets.Dataset", processor: PARTProcessor, with_transcripts: bool = False, folder: Path | None = None
) -> RowTokens:
    """The tokens of all rows.

    Args:
        dataset: canonical rows.
        processor: the model's.
        with_transcripts: also what is said.
        folder: where they are kept, by the rows' texts and the tokenizer: counted by the main process, read by the
            others and by later stages. Default: nowhere; every process that asks counts.
    """
    if folder is None:
        return _counted(dataset, processor, with_transcripts)
    with PartialState().main_process_first():
        path = folder / f"tokens-{_key(dataset, processor)}{'-transcripts' if with_transcripts else ''}.npz"
        if path.is_file():
            with np.load(path, allow_pickle=False) as arrays:
                return RowTokens(**arrays)
        found = _counted(dataset, processor, with_transcripts)
        arrays = {name: array for name, array in vars(found).items() if array is not None}
        partial = path.with_name(f"{path.stem}.{os.getpid()}.partial.npz")
        np.savez(partial, **arrays)
        partial.replace(path)
    return found


def _key(dataset: "datasets.Dataset", processor: PARTProcessor) -> str:
    backend = getattr(processor.tokenizer, "backend_tokenizer", None)
    tokenizer = backend.to_str() if backend is not None else repr(sorted(processor.tokenizer.get_vocab().items()))
    digest = hashlib.sha256(tokenizer.encode())
    digest.update(fingerprint(dataset).encode())
    return digest.hexdigest()[:16]


def _counted(dataset: "datasets.Dataset", processor: PARTProcessor, with_transcripts: bool) -> RowTokens:
    answers, spoken = [], []
    occurrences = np.zeros(len(processor.tokenizer), dtype=np.int64)
    for batch in dataset.select_columns(COLUMNS).with_format("arrow").iter(batch_size=BATCH):
        tasks, texts, sources = (batch[name].to_pylist() for name in COLUMNS)
        encoded = _encoded(list(map(_scored_text, tasks, texts, sources)), processor)
        answers.append(np.fromiter(map(len, encoded), dtype=np.int32, count=len(encoded)) + 1)
        if with_transcripts:
            said = _transcript_ids(tasks, sources, encoded, processor)
            spoken.append(_needed(said))
            flat = np.fromiter(chain.from_iterable(said), dtype=np.int64)
            occurrences += np.bincount(flat, minlength=len(occurrences))[: len(occurrences)]
    counts = np.concatenate(answers) if answers else np.zeros(0, dtype=np.int32)
    if not with_transcripts:
        return RowTokens(counts)
    return RowTokens(counts, np.concatenate(spoken) if spoken else np.zeros(0, dtype=np.int32), occurrences)


def _encoded(texts: list[str], processor: PARTProcessor) -> list:
    """The tokens of each text, without special ones: lists, or what a fast tokenizer has before it makes lists of them."""
    backend = getattr(processor.tokenizer, "backend_tokenizer", None)
    if backend is None:
        return processor.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    backend.no_truncation()
    backend.no_padding()
    return backend.encode_batch_fast(texts, add_special_tokens=False)


def _transcript_ids(tasks: list, sources: list, answers: list, processor: PARTProcessor) -> list[list[int]]:
    """The tokens of what is said in each row; those of an answer that is the transcript are known already."""
    translated = [index for index, task in enumerate(tasks) if task == "s2tt" and sources[index]]
    said: list = [answer if task == "asr" else [] for task, answer in zip(tasks, answers, strict=True)]
    for index, one in zip(translated, _encoded([sources[index] for index in translated], processor), strict=True):
        said[index] = one
    return [getattr(one, "ids", one) for one in said]


def _needed(said: list) -> np.ndarray:
    """`(rows,)`: tokens of each transcript, and the neighbours in it that are the same."""
    lengths = np.fromiter(map(len, said), dtype=np.int64, count=len(said))
    flat = np.fromiter(chain.from_iterable(said), dtype=np.int64, count=int(lengths.sum()))
    row = np.repeat(np.arange(len(said)), lengths)
    alike = (flat[1:] == flat[:-1]) & (row[1:] == row[:-1])
    return (lengths + np.bincount(row[1:][alike], minlength=len(said))).astype(np.int32)
