# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""How many tokens the texts of rows are: counted once for a run, and kept."""

import hashlib
import logging
import os
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
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
BATCH = 250_000  # rows whose words are gathered by one thread
TOGETHER = 16  # batches whose words are tokenised together, once: as many as memory takes without being noticed
TEXT_COLUMNS = ["task", "text", "source_text"]


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


def audio_tokens(seconds: np.ndarray, processor: PARTProcessor) -> np.ndarray:
    """`(rows,)`: how many audio tokens clips of `(rows,)` seconds have; 0 where there is no clip.

    Where the encoder always gets its whole window, that is as many for each.
    """
    steps = np.floor(seconds * processor.feature_rate + 1e-6).astype(int)
    silence = processor.silence().shape[processor.feature_time_axis]  # of a second, or of the whole window
    if silence > 1.5 * processor.feature_rate:
        steps = np.where(seconds > 0, silence, 0)
    different, places = np.unique(steps, return_inverse=True)
    return np.array([processor.num_audio_tokens(int(one)) if one else 0 for one in different], dtype=int)[places]


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
    ids = processor.text_ids([text, question])
    return sum(map(len, ids)) + 1


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
        backend.encode_special_tokens = True  # what looks like one in a text is text, as for the model
    names = [*TEXT_COLUMNS, *(name for name in QUESTION if name in dataset.column_names)]
    columns = dataset.select_columns(names).with_format("arrow")

    def texts_of(start: int) -> _Texts:
        return _texts(columns[start : start + BATCH], with_transcripts)

    found = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Arrow, numpy and the tokenizer leave Python's lock to others
        starts = range(0, max(len(dataset), 1), BATCH)
        for first in range(0, len(starts), TOGETHER):
            batches = list(pool.map(texts_of, starts[first : first + TOGETHER]))
            tokens = text_tokens([one.texts for one in batches], processor.tokenizer, pool.map)
            found += pool.map(partial(_counts, vocabulary_size=len(processor.tokenizer)), batches, tokens)
    counts = np.concatenate([one.answers for one in found])
    if not with_transcripts:
        return RowTokens(counts)
    return RowTokens(counts, np.concatenate([one.transcripts for one in found]), sum(one.occurrences for one in found))


@dataclass(frozen=True)
class _Texts:
    """Texts of a batch of rows whose tokens are asked for.

    Attributes:
        texts: each row's own, then what is said in the clips of translations, then what rows are asked in their own words.
        rows: how many rows.
        is_asr: `(rows,)` bool, what is said in a transcription's clip is its answer.
        is_s2tt: `(rows,)` bool; both are None where no transcripts are asked for.
    """

    texts: pyarrow.Array
    rows: int
    is_asr: np.ndarray | None = None
    is_s2tt: np.ndarray | None = None


def _texts(batch: pyarrow.Table, with_transcripts: bool) -> _Texts:
    task, text, source = (_strings(batch, name) for name in TEXT_COLUMNS)
    own = [_strings(batch, name) for name in QUESTION if name in batch.column_names]
    asked = []
    if any(column.null_count < len(column) for column in own):
        asked = [pyarrow.compute.coalesce(pyarrow.compute.binary_join_element_wise(*own, " "), *own)]
    scored = _scored_texts(task, text, source)
    if not with_transcripts:
        return _Texts(pyarrow.concat_arrays([scored, *asked]), len(batch))
    is_asr, is_s2tt = (pyarrow.compute.equal(task, one) for one in ("asr", "s2tt"))
    texts = pyarrow.concat_arrays([scored, source.filter(is_s2tt), *asked])
    return _Texts(texts, len(batch), is_asr.to_numpy(False), is_s2tt.to_numpy(False))


def _counts(batch: _Texts, found: TextTokens, vocabulary_size: int) -> RowTokens:
    rows = batch.rows
    said = rows + (0 if batch.is_s2tt is None else int(batch.is_s2tt.sum()))
    asked = found.lengths[said:] if len(found.lengths) > said else 0
    answers = (found.lengths[:rows] + asked + 1).astype(np.int32)
    if batch.is_asr is None:
        return RowTokens(answers)
    places = found.lengths + found.repeats
    needed = np.where(batch.is_asr, places[:rows], 0)
    needed[batch.is_s2tt] = places[rows:said]
    is_said = np.concatenate([batch.is_asr, np.arange(rows, len(places)) < said])
    return RowTokens(answers, needed.astype(np.int32), found.occurrences(is_said, vocabulary_size))


def _strings(batch: pyarrow.Table, name: str) -> pyarrow.Array:
    """A column of texts; one that holds nothing at all may have no type."""
    return batch[name].cast(pyarrow.string()).combine_chunks()


def _scored_texts(task: pyarrow.Array, text: pyarrow.Array, source: pyarrow.Array) -> pyarrow.Array:
    """[`_scored_text`] of rows."""
    is_text = pyarrow.compute.is_in(task, pyarrow.array(TEXT_TASKS))
    both = pyarrow.compute.binary_join_element_wise(source, text, " ")
    return pyarrow.compute.if_else(is_text, both, text)
