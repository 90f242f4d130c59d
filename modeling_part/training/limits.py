# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""The longest row against what encoder and language model have positions for, before the first step."""

from __future__ import annotations

import logging
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from ..data.augmentation import build_augmentation
from ..data.loading import Rows
from ..data.row_tokens import count_tokens
from ..loading_part import has_learned_positions
from ..processing_part import PARTProcessor
from ..prompts_part import TEXT_TASKS
from ..recipes.arguments import Recipe


if TYPE_CHECKING:
    import datasets


logger = logging.getLogger(__name__)

GROUP = ["task", "source_lang", "target_lang"]


class TooLongError(ValueError):
    """A row is longer than a part of the model has positions for."""


def check_lengths(model: nn.Module, processor: PARTProcessor, rows: Rows, recipe: Recipe) -> None:
    """Compare the rows with the encoder's window and the language model's positions; streams cannot be looked into.

    A language model whose positions are rotations may go beyond what it was trained on: that is a warning.

    Raises:
        TooLongError: names the first row that is too long for the encoder, or the longest for the language model.
    """
    limit = getattr(model.config.text_config, "max_position_embeddings", None)
    learned = has_learned_positions(model.model.language_model)
    for name, dataset in rows.datasets.items():
        training = name == "train"
        answers = name == "test" or (name == "eval" and recipe.training.predict_with_generate)
        durations = _durations(dataset, recipe if training else None)
        _check_window(dataset, durations, processor, name)
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
        self.audio = self._audio_tokens(durations)
        groups = list(zip(*(dataset[name] for name in GROUP), strict=True))
        prompts = {group: self._prompt(groups.index(group)) for group in set(groups)}
        self.prompts = np.array([prompts[group] for group in groups])

    def longest_above(self, limit: int, multiple: int) -> tuple[int | None, int]:
        """The longest row and its positions, padded to a multiple, if there is one above a limit; else None."""
        sure = self.prompts + self.audio + self.new_tokens
        candidates = np.flatnonzero(sure + self._text_bytes() + multiple > limit)
        if not len(candidates):
            return None, 0
        tokens = count_tokens(self.dataset.select(candidates), self.processor)
        lengths = sure[candidates] + (self._source_share(candidates, tokens) if self.new_tokens else tokens)
        lengths = np.ceil(lengths / multiple) * multiple
        longest = int(lengths.argmax())
        return (int(candidates[longest]), int(lengths[longest])) if lengths[longest] > limit else (None, 0)

    def _source_share(self, candidates: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """What is in the prompt of a text task; nothing of it for a speech task."""
        is_text = np.array([task in TEXT_TASKS for task in self.dataset.select(candidates)["task"]])
        return np.where(is_text, tokens, 0)

    def _text_bytes(self) -> np.ndarray:
        pairs = zip(self.dataset["task"], self.dataset["text"], self.dataset["source_text"], strict=True)
        return np.array(
            [
                len(f"{text or ''}{(source or '') if task in TEXT_TASKS else ''}".encode())
                for task, text, source in pairs
            ]
        )

    def _prompt(self, index: int) -> int:
        """Positions of a row's prompt without audio and text."""
        row = self.dataset[index]
        steps = [] if row["task"] in TEXT_TASKS else [self._silence]
        row = row | {"audio": None if row["task"] in TEXT_TASKS else "there"}
        tokens = self.processor.assemble_prompts([row], steps)["input_ids"].shape[1]
        audio = sum(map(self.processor.num_audio_tokens, steps))
        return tokens - audio - int(count_tokens(self.dataset.select([index]), self.processor)[0])

    @cached_property
    def _silence(self) -> int:
        """Feature steps of a second; of the whole window where the encoder always gets that."""
        return self.processor.silence().shape[self.processor.feature_time_axis]

    def _audio_tokens(self, durations: np.ndarray) -> np.ndarray:
        steps = np.floor(durations * self.processor.feature_rate + 1e-6).astype(int)
        if self._silence > 1.5 * self.processor.feature_rate:  # the whole window
            steps = np.where(durations > 0, self._silence, 0)
        different, places = np.unique(steps, return_inverse=True)
        return np.array([self.processor.num_audio_tokens(int(one)) if one else 0 for one in different])[places]


def _durations(dataset: datasets.Dataset, recipe: Recipe | None) -> np.ndarray:
    """`(rows,)` seconds, those of the slowest speed where training changes it."""
    pairs = zip(dataset["task"], dataset["duration"], strict=True)
    seconds = np.array([0.0 if task in TEXT_TASKS else value or 0.0 for task, value in pairs])
    augmentation = None if recipe is None else build_augmentation(recipe.data.augmentation)
    if augmentation is not None and augmentation.speeds:
        slower = seconds / min(1.0, *augmentation.speeds)
        seconds = np.where(slower <= augmentation.max_seconds, slower, seconds)
    return seconds


def _check_window(dataset: datasets.Dataset, durations: np.ndarray, processor: PARTProcessor, name: str) -> None:
    samples = getattr(processor.feature_extractor, "n_samples", None)
    if samples is None:
        return
    too_long = np.flatnonzero(durations > samples / processor.sampling_rate + 0.01)
    if len(too_long):
        row = int(too_long[0])
        raise TooLongError(
            f"Row {dataset[row]['id']!r} of `{name}_data` has {durations[row]:.1f} s, and {len(too_long) - 1} more like it, but "
            f"the encoder's window is {samples / processor.sampling_rate:.0f} s: lower `max_duration`."
        )
