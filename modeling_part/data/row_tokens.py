# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""How many tokens the texts of rows are: counted once for a run, and kept."""

import hashlib
import logging
import os
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow
import pyarrow.compute
from accelerate import PartialState

from ..processing_part import PARTProcessor
from ..prompts_part import TEXT_TASKS
from .rows import QUESTION
from .stored_corpora import fingerprint
from .text_pieces import TextTokens, text_tokens


if TYPE_CHECKING:
    import datasets


logger = logging.getLogger(__name__)
BATCH = 500_000  # rows whose words are gathered by one thread: the more, the fewer are met again
COLUMNS = ["task", "text", "source_text"]


@dataclass(frozen=True)
class RowTokens:
    """Tokens of the texts of a dataset's rows.

    Attributes:
        answers: `(rows,)` int32, of the answer with its end, of the source sentence of text tasks, and of the prompt and the
            context that a row has of its own.
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
    """Tokens of one row's answer with its end, of the source sentence of text tasks, and of its own prompt and context."""
    text = _scored_text(row["task"], row["text"], row["source_text"])
    question = " ".join(filter(None, map(row.get, QUESTION)))
    return sum(len(processor.tokenizer(one, add_special_tokens=False)["input_ids"]) for one in (text, question)) + 1


def count_tokens(dataset: "datasets.Dataset", processor: PARTProcessor) -> np.ndarray:
    """`count_row_tokens` of every row: `(rows,)` int32."""
    return row_tokens(dataset, processor).answers


def row_tokens(
    dataset: "datasets.Dataset",
    processor: PARTProcessor,
    with_transcripts: bool = False,
    folder: Path | None = None,
    digest: str | None = None,
) -> RowTokens:
    """The tokens of all rows.

    Args:
        dataset: canonical rows.
        processor: the model's.
        with_transcripts: also what is said.
        folder: where they are kept, by the rows' texts and the tokenizer: counted by the main process, read by the
            others and by later stages. Default: nowhere; every process that asks counts.
        digest: the rows' `fingerprint`, where it is known; it takes longer than the counting.
    """
    if folder is None:
        return _counted(dataset, processor, with_transcripts)
    with PartialState().main_process_first():
        name = f"tokens-{_key(digest or fingerprint(dataset), processor)}"
        whole = folder / f"{name}-transcripts.npz"
        path = whole if with_transcripts else folder / f"{name}.npz"
        for one in dict.fromkeys((whole, path)):  # with transcripts, all is there that is asked for without
            if one.is_file() and (kept := _read(one)) is not None:
                return kept if with_transcripts else RowTokens(kept.answers)
        found = _counted(dataset, processor, with_transcripts)
        arrays = {name: array for name, array in vars(found).items() if array is not None}
        partial = path.with_name(f"{path.stem}.{os.getpid()}.partial.npz")
        np.savez(partial, **arrays)
        partial.replace(path)
    return found


def _read(path: Path) -> RowTokens | None:
    """What is kept; None where the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return RowTokens(**arrays)
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        logger.warning("%s is damaged (%s): the tokens are counted again", path, error)
    return None


def _key(digest: str, processor: PARTProcessor) -> str:
    backend = getattr(processor.tokenizer, "backend_tokenizer", None)
    tokenizer = backend.to_str() if backend is not None else repr(sorted(processor.tokenizer.get_vocab().items()))
    return hashlib.sha256(f"{tokenizer}{digest}".encode()).hexdigest()[:16]


def _counted(dataset: "datasets.Dataset", processor: PARTProcessor, with_transcripts: bool) -> RowTokens:
    backend = getattr(processor.tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
    names = [*COLUMNS, *(name for name in QUESTION if name in dataset.column_names)]
    columns = dataset.select_columns(names).with_format("arrow")

    def of_batch(start: int) -> RowTokens:
        return _of_batch(columns[start : start + BATCH], processor, with_transcripts)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Arrow, numpy and the tokenizer leave Python's lock to others
        found = list(pool.map(of_batch, range(0, max(len(dataset), 1), BATCH)))
    counts = np.concatenate([one.answers for one in found])
    if not with_transcripts:
        return RowTokens(counts)
    return RowTokens(counts, np.concatenate([one.transcripts for one in found]), sum(one.occurrences for one in found))


def _of_batch(batch: pyarrow.Table, processor: PARTProcessor, with_transcripts: bool) -> RowTokens:
    task, text, source = (_strings(batch, name) for name in COLUMNS)
    scored, rows, asked = _scored_texts(task, text, source), len(batch), _question_lengths(batch, processor)
    if not with_transcripts:
        return RowTokens(_with_end(text_tokens(scored, processor.tokenizer)) + asked)
    # What is said in the clips of translations, after the answers; of transcriptions, the answer is what is said.
    is_s2tt = pyarrow.compute.equal(task, "s2tt")
    both = pyarrow.concat_arrays([scored, source.filter(is_s2tt)])
    found = text_tokens(both, processor.tokenizer)
    is_asr, is_s2tt = pyarrow.compute.equal(task, "asr").to_numpy(False), is_s2tt.to_numpy(False)
    needed = np.where(is_asr, (found.lengths + found.repeats)[:rows], 0)
    needed[is_s2tt] = (found.lengths + found.repeats)[rows:]
    is_said = np.concatenate([is_asr, np.ones(len(both) - rows, dtype=bool)])
    occurrences = found.occurrences(is_said, len(processor.tokenizer))
    return RowTokens(_with_end(found)[:rows] + asked, needed.astype(np.int32), occurrences)


def _question_lengths(batch: pyarrow.Table, processor: PARTProcessor) -> np.ndarray:
    """`(rows,)` int32, tokens of what rows are asked in words of their own."""
    own = [_strings(batch, name) for name in QUESTION if name in batch.column_names]
    if all(column.null_count == len(column) for column in own):
        return np.zeros(len(batch), dtype=np.int32)
    joined = pyarrow.compute.coalesce(pyarrow.compute.binary_join_element_wise(*own, " "), *own)
    return text_tokens(joined, processor.tokenizer).lengths.astype(np.int32)


def _strings(batch: pyarrow.Table, name: str) -> pyarrow.Array:
    """A column of texts; one that holds nothing at all may have no type."""
    return batch[name].cast(pyarrow.string()).combine_chunks()


def _with_end(found: TextTokens) -> np.ndarray:
    return (found.lengths + 1).astype(np.int32)


def _scored_texts(task: pyarrow.Array, text: pyarrow.Array, source: pyarrow.Array) -> pyarrow.Array:
    """[`_scored_text`] of rows."""
    is_text = pyarrow.compute.is_in(task, pyarrow.array(TEXT_TASKS))
    both = pyarrow.compute.binary_join_element_wise(source, text, " ")
    return pyarrow.compute.if_else(is_text, both, text)
