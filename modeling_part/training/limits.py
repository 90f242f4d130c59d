# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""The rows against what encoder and language model have positions and tokens for, before the first step."""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pyarrow
import pyarrow.compute
from torch import nn

from ..data.augmentation import build_augmentation
from ..data.loading import Rows
from ..data.row_tokens import audio_tokens, count_tokens
from ..data.rows import QUESTION
from ..loading_part import has_learned_positions
from ..processing_part import PARTProcessor
from ..prompts_part import TEXT_TASKS
from ..recipes.arguments import Recipe


if TYPE_CHECKING:
    from collections.abc import Callable

    import datasets


logger = logging.getLogger(__name__)

GROUP = ["task", "source_lang", "target_lang"]
IN_NO_VOCABULARY = "\U0010fffd"  # a private character: who can write it, in bytes, can write all


class TooLongError(ValueError):
    """A row is longer than a part of the model has positions for."""


def check_lengths(model: nn.Module, processor: PARTProcessor, rows: Rows, recipe: Recipe) -> None:
    """Compare the rows with the encoder's window and the language model's positions and tokens; streams cannot be looked into.

    A language model whose positions are rotations may go beyond what it was trained on: that is a warning, as are texts that
    its tokenizer cannot write.

    Raises:
        TooLongError: names the first row that is too long for the encoder, or the longest for the language model.
        ValueError: the tokenizer has tokens that the language model has no embedding of.
    """
    _check_vocabulary(model, processor)
    limit = getattr(model.config.text_config, "max_position_embeddings", None)
    learned = has_learned_positions(model.model.language_model)
    for name, dataset in rows.datasets.items():
        training = name == "train"
        answers = name == "test" or (name == "eval" and recipe.training.predict_with_generate)
        durations = _durations(dataset, recipe if training else None)
        _check_window(dataset, durations, processor, name)
        _warn_of_lost_characters(dataset, processor, name)
        if answers:
            _warn_of_cut_answers(dataset, processor, recipe.training.max_new_tokens, name)
        if not limit or not len(dataset):
            continue
        lengths = RowLengths(dataset, durations, processor, recipe.training.max_new_tokens if answers else 0)
        row, positions = lengths.longest_above(limit, 1 if answers else recipe.data.pad_tokens_multiple)
        if row is None:
            continue
        told = (
            f"Row {dataset[row]['id']!r} of `{name}_data` takes {positions} positions (prompt, audio, text and padding), "
            f"and {type(model.model.language_model).__name__} has {limit}"
        )
        if learned:
            raise TooLongError(
                f"{told}: lower `max_duration`{' or `max_new_tokens`' if answers else ''}, raise `adapter_conv_stride`, or "
                "take a language model with more positions."
            )
        logger.warning("%s: beyond those it was not trained", told)


def _warn_of_cut_answers(dataset: datasets.Dataset, processor: PARTProcessor, most: int, name: str) -> None:
    """Say how many texts are longer than an answer may be; those of text tasks, whose sources count too, are not looked at."""
    speech = dataset.select(np.flatnonzero(~_is_text(dataset)))
    speech = speech.remove_columns([column for column in QUESTION if column in speech.column_names])
    cut = int((count_tokens(speech, processor) > most).sum()) if len(speech) else 0
    if cut:
        message = (
            "%d of %d texts of `%s_data` have more tokens than `max_new_tokens` (%d): answers to them are cut off"
        )
        logger.warning(message, cut, len(speech), name, most)


def _warn_of_lost_characters(dataset: datasets.Dataset, processor: PARTProcessor, name: str) -> None:
    """Say how many rows hold characters that the tokenizer does not give back: it drops them, or has one token for all unknown."""
    tokenizer = processor.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    normalizer = None if backend is None else backend.normalizer

    @cache
    def is_lost(character: str) -> bool:
        written = tokenizer.decode(processor.text_ids(character), skip_special_tokens=True)
        return not character.isspace() and character not in written

    if not is_lost(IN_NO_VOCABULARY):
        return
    lost: dict[str, None] = {}
    rows = []
    for index, texts in enumerate(zip(dataset["text"], dataset["source_text"], strict=True)):
        text = "".join(filter(None, texts))
        text = text if normalizer is None else normalizer.normalize_str(text)
        if here := dict.fromkeys(filter(is_lost, text)):
            lost |= here
            rows.append(index)
    if rows:
        message = (
            "%d of %d rows of `%s_data`, the first is %r, hold characters that the language model's tokenizer cannot write, and "
            "learn without them: %s. Write them otherwise, or take a language model that has them, such as Qwen2.5"
        )
        told = " ".join([*list(lost)[:20], *(["..."] if len(lost) > 20 else [])])
        logger.warning(message, len(rows), len(dataset), name, dataset[rows[0]]["id"], told)


def _check_vocabulary(model: nn.Module, processor: PARTProcessor) -> None:
    known = model.get_input_embeddings().num_embeddings
    token, highest = max(processor.tokenizer.get_vocab().items(), key=lambda one: one[1])
    if highest >= known:
        raise ValueError(
            f"Token {token!r} of the tokenizer is number {highest}, and the language model has embeddings of {known}: call "
            "`model.resize_token_embeddings` and save the checkpoint, or take the token out."
        )


class RowLengths:
    """How many positions each row takes; texts are only counted where their bytes could be too many tokens.

    Args:
        dataset: the rows.
        durations: `(rows,)` seconds, 0 for text tasks.
        processor: the model's.
        new_tokens: of a generated answer; 0: the row's own text follows the prompt.
    """

    def __init__(
        self, dataset: datasets.Dataset, durations: np.ndarray, processor: PARTProcessor, new_tokens: int
    ) -> None:
        self.dataset, self.processor, self.new_tokens = dataset, processor, new_tokens
        self.audio = audio_tokens(durations, processor)
        self.is_text = _is_text(dataset)
        groups = _column(dataset, pyarrow.compute.binary_join_element_wise, GROUP, "\t").dictionary_encode()
        codes = groups.indices.to_numpy(zero_copy_only=False)
        _, first = np.unique(codes, return_index=True)
        # Of all at once: each call reads the tokenizer's settings.
        counts = count_tokens(dataset.select(first), processor)
        self.prompts = np.array([*map(self._prompt, first.tolist(), counts)], dtype=int)[codes]

    def longest_above(self, limit: int, multiple: int) -> tuple[int | None, int]:
        """The longest row and its positions, padded to a multiple, if there is one above a limit; else None."""
        sure = self.prompts + self.audio + self.new_tokens
        candidates = np.flatnonzero(sure + self._text_bytes() + multiple > limit)
        if not len(candidates):
            return None, 0
        rows = self.dataset.select(candidates)
        if self.new_tokens:  # in place of the row's own answer
            rows = rows.remove_columns("text").add_column("text", [""] * len(rows))
        lengths = sure[candidates] + count_tokens(rows, self.processor)
        lengths = np.ceil(lengths / multiple) * multiple
        longest = int(lengths.argmax())
        return (int(candidates[longest]), int(lengths[longest])) if lengths[longest] > limit else (None, 0)

    def _text_bytes(self) -> np.ndarray:
        """`(rows,)`, of the answer, of what a text task translates, and of what a row is asked in words of its own."""
        names = [name for name in ("text", "source_text", *QUESTION) if name in self.dataset.column_names]
        found = {name: _numbers(_column(self.dataset, pyarrow.compute.binary_length, [name])) for name in names}
        found["source_text"] = np.where(self.is_text, found["source_text"], 0)
        return sum(found.values()).astype(int)

    def _prompt(self, index: int, text_tokens: int) -> int:
        """Positions of a row's prompt without audio and its text's tokens."""
        row = self.dataset[index]
        silence = self.processor.silence().shape[self.processor.feature_time_axis]
        steps = [] if row["task"] in TEXT_TASKS else [silence]
        row = row | {"audio": None if row["task"] in TEXT_TASKS else "there"}
        tokens = self.processor.assemble_prompts([row], steps)["input_ids"].shape[1]
        audio = sum(map(self.processor.num_audio_tokens, steps))
        return tokens - audio - int(text_tokens)


def _column(
    dataset: datasets.Dataset, function: Callable[..., pyarrow.ChunkedArray], names: list[str], *arguments: object
) -> pyarrow.Array:
    """`(rows,)`: a function of Arrow over columns of all rows, never row by row."""
    table = dataset.select_columns(names).with_format("arrow")[:]
    result = function(*(table[name] for name in names), *arguments)
    return result.combine_chunks() if isinstance(result, pyarrow.ChunkedArray) else result


def _numbers(values: pyarrow.Array) -> np.ndarray:
    """`(rows,)` float64, 0 where there is none."""
    return np.nan_to_num(values.to_numpy(zero_copy_only=False).astype(np.float64))


def _is_text(dataset: datasets.Dataset) -> np.ndarray:
    """`(rows,)` bool, the rows of text tasks."""
    values = pyarrow.array(TEXT_TASKS)
    return _column(dataset, lambda task: pyarrow.compute.is_in(task, values), ["task"]).to_numpy(zero_copy_only=False)


def _durations(dataset: datasets.Dataset, recipe: Recipe | None) -> np.ndarray:
    """`(rows,)` seconds, those of the slowest speed where training changes it."""
    seconds = np.where(_is_text(dataset), 0.0, _numbers(_column(dataset, lambda column: column, ["duration"])))
    augmentation = None if recipe is None else build_augmentation(recipe.data.augmentation)
    if augmentation is not None and augmentation.speeds:
        played = seconds[:, None] / np.array([1.0, *(speed for speed in augmentation.speeds if speed < 1.0)])
        seconds = np.where(played <= augmentation.max_seconds, played, seconds[:, None]).max(axis=1)
    return seconds


def _check_window(dataset: datasets.Dataset, durations: np.ndarray, processor: PARTProcessor, name: str) -> None:
    samples = processor.encoder_window
    if samples is None:
        return
    too_long = np.flatnonzero(durations > samples / processor.sampling_rate + 0.01)
    if len(too_long):
        row = int(too_long[0])
        raise TooLongError(
            f"Row {dataset[row]['id']!r} of `{name}_data` has {durations[row]:.1f} s, and {len(too_long) - 1} more like it, but "
            f"the encoder's window is {samples / processor.sampling_rate:.0f} s: lower `max_duration`."
        )
