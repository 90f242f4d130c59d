# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Canonical rows -> a batch for the model. Runs in the data loader's workers: decoding and features stay off the GPU."""

import math

import numpy as np
import torch
from torch import nn

from ..audio_part import load_clip
from ..layout_part import batch_layout
from ..processing_part import PARTProcessor
from ..prompts_part import TEXT_TASKS
from .augmentation import Augmentation, row_generator
from .budget import round_up
from .encoder_cache import EncoderOutputs, refuse_augmentation
from .row_tokens import transcript
from .rows import errors_of_row


class PARTCollator:
    """Decodes, augments, extracts features, writes prompts and labels.

    ```
    [{"id": "a", "task": "asr", "source_lang": "fr", "target_lang": "fr", "text": "bonjour", "audio": {"path": ...}}]
    ->
    {"input_ids":           (1, L)        <prompt with audio placeholders> bonjour <end>,
     "attention_mask":      (1, L)        1 for valid positions,
     "labels":              (1, L)        -100 ... -100 bonjour <end>,
     "transcript_ids":      (1, U)        bonjour, with `with_transcripts`; -100 where there is none,
     "input_features":      (1, mel, T),
     "input_features_mask": (1, T),
     "layout":              where audio and labels are in it, see `BatchLayout`,
     "batch_info":          {"task": "asr", "groups": [("asr", "fr", "fr")], "ids": ["a"], "audio_seconds": [1.7],
                             "padded_seconds": 1.8, "target_counts": [8], "transcript_counts": [7], "broken": []}}
    ```

    Args:
        processor: the model's.
        pad_seconds_multiple: features are padded to multiples of so many seconds.
        pad_tokens_multiple: positions are padded to a multiple of this.
        augmentation: for training only; None: off.
        seed: of the augmentation, which depends on it, the stage, the rows of the batch and its number (`batch_number` of
            the rows, where they have one) only.
        stage: name of the stage, so that the next one draws anew.
        unnamed_share: share of the rows whose prompt does not name the source language, so that the model can be asked
            without it; drawn as the augmentation is.
        context_drop_rate: share of the rows with a `context` whose prompt is without it, so that the model does not lean on it;
            drawn in the same way, as is the order of what stays.
        skip_broken: leave a row whose audio cannot be used out of the loss (silence stands in for it, and its labels
            are -100), and say in `batch_info["broken"]` what is wrong. Default: such a row raises.
        with_transcripts: also give the tokens of what is said, for the alignment loss.
        encoder_outputs: frames of the frozen encoder by row, computed before; the batch then holds `encoder_frames`
            `(B, F, encoder hidden)` instead of `input_features`, and no audio is decoded. Rows that were broken then
            are as with `skip_broken`.

    Raises:
        ValueError: rows of different tasks, or a row that cannot be used; the message names the row.
    """

    def __init__(
        self,
        processor: PARTProcessor,
        pad_seconds_multiple: float = 0.2,
        pad_tokens_multiple: int = 8,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        stage: str = "",
        unnamed_share: float = 0.0,
        context_drop_rate: float | None = None,
        skip_broken: bool = False,
        with_transcripts: bool = False,
        encoder_outputs: EncoderOutputs | None = None,
    ) -> None:
        if encoder_outputs is not None:
            refuse_augmentation(augmentation)
        if augmentation is not None and augmentation.spec_augment is not None and processor.silence().ndim != 2:
            raise ValueError(
                "`augmentation.spec_augment` masks mel features, and this encoder hears samples: leave it out of the recipe."
            )
        self.processor = processor
        self.pad_seconds_multiple = pad_seconds_multiple
        self.pad_tokens_multiple = pad_tokens_multiple
        self.augmentation = augmentation
        self.seed = seed
        self.stage = stage
        self.unnamed_share = unnamed_share
        self.context_drop_rate = context_drop_rate
        self.skip_broken = skip_broken
        self.with_transcripts = with_transcripts
        self.encoder_outputs = encoder_outputs

    def __call__(self, rows: list[dict]) -> dict:
        """Rows of one task -> a batch."""
        tasks = {row["task"] for row in rows}
        if len(tasks) != 1:
            raise ValueError(
                f"A batch holds rows of the tasks {sorted(tasks)}; the task gate needs one task per batch. Use "
                "TaskBatchSampler (or batches of one task)."
            )
        task = tasks.pop()
        if task in TEXT_TASKS:
            rows = [{**row, "audio": None} for row in rows]
        broken: dict[int, str] = {}  # place in the batch -> what is wrong
        cached = self.encoder_outputs is not None and any(row["audio"] is not None for row in rows)
        # As a plain dict: of a BatchFeature accelerate copies what it holds itself to a GPU, and not what is in `layout`.
        batch = dict(self._cached_batch(rows, broken) if cached else self._batch(rows, broken))
        if self.with_transcripts and task not in TEXT_TASKS:
            batch["transcript_ids"] = self._transcript_ids(rows)
        for index in broken:
            batch["labels"][index] = -100
            if "transcript_ids" in batch:
                batch["transcript_ids"][index] = -100
        layout = batch["layout"] = batch_layout(batch, self.processor.audio_token_id)
        counted = layout.get("is_counted")
        seconds = [float(row["duration"] or 0.0) for row in rows]
        batch["batch_info"] = {
            "task": task,
            "groups": [(row["task"], row["source_lang"], row["target_lang"]) for row in rows],
            "ids": [row["id"] for row in rows],
            "audio_seconds": seconds,
            "padded_seconds": int(round_up(max(seconds), self.pad_seconds_multiple)) * self.pad_seconds_multiple,
            "target_counts": (batch["labels"][:, 1:] != -100).sum(-1).tolist(),
            # 0 where the alignment leaves a row out.
            "transcript_counts": [] if counted is None else (layout["transcript_lengths"] * counted.numpy()).tolist(),
            "broken": list(broken.values()),
        }
        return batch

    def _batch(self, rows: list[dict], broken: dict[int, str]) -> dict:
        batch_key, features = self._batch_key(rows), []
        for index, row in enumerate(rows):
            if row["audio"] is None:
                continue
            try:
                features.append(self._features(row, batch_key, index))
            except ValueError as error:
                if not self.skip_broken:
                    raise
                broken[index] = str(error)
                features.append(self.processor.silence())
        return self.processor.assemble(
            self._prompt_rows(rows),
            features,
            pad_to_multiple_of=self.pad_tokens_multiple,
            pad_features_to_multiple_of=self._feature_multiple,
        )

    def _cached_batch(self, rows: list[dict], broken: dict[int, str]) -> dict:
        clips = {
            index: self.encoder_outputs.frames_or_silence(row)
            for index, row in enumerate(rows)
            if row["audio"] is not None
        }
        broken.update({index: fault for index, (_, _, fault) in clips.items() if fault is not None})
        frames, lengths, _ = zip(*clips.values(), strict=True)
        batch = self.processor.assemble_prompts(
            self._prompt_rows(rows), lengths, pad_to_multiple_of=self.pad_tokens_multiple
        )
        padded = math.ceil(max(lengths) / self._feature_multiple) * self._feature_multiple
        batch["input_features_mask"] = (torch.arange(padded) < torch.tensor(lengths)[:, None]).long()
        # As wide as the frames of the padded features would be: few distinct shapes here too.
        width = math.ceil(padded * max(map(len, frames)) / max(lengths))
        batch["encoder_frames"] = torch.stack(
            [nn.functional.pad(clip, (0, 0, 0, width - len(clip))) for clip in frames]
        )
        return batch

    def _prompt_rows(self, rows: list[dict]) -> list[dict]:
        """The rows as they are asked: some without the name of their source language, some without their context."""
        batch_key, asked = self._batch_key(rows), []
        for index, row in enumerate(rows):
            if self.unnamed_share:
                draw = row_generator(self.seed, "unnamed", batch_key, index).random()
                row = {**row, "source_lang": None} if draw < self.unnamed_share else row
            if self.context_drop_rate is not None and row.get("context"):
                generator = row_generator(self.seed, "context", batch_key, index)
                words = row["context"].splitlines()
                kept = generator.random() >= self.context_drop_rate
                row = {**row, "context": "\n".join(generator.permutation(words)) if kept else None}
            asked.append(row)
        return asked

    def _batch_key(self, rows: list[dict]) -> str:
        """What the draws for a batch depend on: they change with stage and epoch, and a resumed run repeats them."""
        return "/".join([self.stage, str(rows[0].get("batch_number", "")), *(row["id"] for row in rows)])

    def _transcript_ids(self, rows: list[dict]) -> torch.Tensor:
        """`(B, U)` tokens of what is said."""
        texts = [transcript(row["task"], row["text"], row["source_text"]) or "" for row in rows]
        ids = self.processor.text_ids(texts)
        width = max(1, *map(len, ids))
        return torch.tensor([row + [-100] * (width - len(row)) for row in ids])

    @property
    def _feature_multiple(self) -> int:
        return max(1, round(self.pad_seconds_multiple * self.processor.feature_rate))

    def _features(self, row: dict, batch_key: str, index: int) -> np.ndarray:
        """Features of the audio of a row at a place of a batch, augmented in training."""
        rate = self.processor.sampling_rate
        with errors_of_row(row):
            waveform = load_clip(row, rate)
            if self.augmentation is None:
                return self.processor.extract_features(waveform)
            generator = row_generator(self.seed, batch_key, index)
            waveform = self.augmentation.augment_waveform(waveform, rate, generator)
            features = self.processor.extract_features(waveform)
            of_features = (
                self.processor.feature_time_axis,
                self.processor.stacked_frames,
                self.processor.feature_rate,
                round(len(waveform) / rate * self.processor.feature_rate),
            )
            return self.augmentation.augment_features(features, generator, *of_features)
