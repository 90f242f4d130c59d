# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Processor of PART: audio, task and languages -> features, prompt with audio placeholders, labels."""

from functools import cached_property

import numpy as np
import torch
from transformers import BatchFeature, ProcessorMixin, WhisperFeatureExtractor

from .audio_part import load_audio
from .configuration_part import convolved_length
from .prompts_part import INSTRUCTIONS, LANGUAGE_NAMES, PROMPT_MARK, TASKS


# One analysis window of Whisper, Kaldi's filter banks and wav2vec2: less gives no feature step.
MINIMUM_SECONDS = 0.025


class PARTProcessor(ProcessorMixin):
    r"""Turns audio, a task and languages into model inputs.

    It wraps the encoder's feature extractor and the language model's tokenizer, and asks in the language model's own
    chat template.

    Args:
        feature_extractor: that of the speech encoder.
        tokenizer: that of the language model, with `audio_token` in its vocabulary.
        audio_token (`str`, defaults to `"<|audio|>"`): placeholder, repeated once per audio token.
        audio_token_convolutions (list of `[kernel, stride, padding]`): `PARTConfig.audio_token_convolutions`. Defaults
            to those of Whisper with PART's default adapter.
        variable_length (`bool`, defaults to `True`): False pads to the feature extractor's window (Whisper: 30 s).
        instructions (`dict[str, str]`, *optional*): wording per task, see `INSTRUCTIONS`.
        language_names (`dict[str, str]`, *optional*): names of further BCP-47 codes, or other names for known ones.
        system_prompt (`str`, *optional*): system message. None leaves it to the chat template, which may add its own;
            `""` gives an empty one (shorter prompts).

    Example:
    ```python
    >>> processor = PARTProcessor.from_pretrained("runs/quickstart/joint")
    >>> processor("clip.mp3")                                       # a transcript, the language not named
    >>> processor(["a.wav", "b.flac"], task="s2tt", source_lang=["fr", "ru"], target_lang="en")
    >>> processor(task="mt", source_text="Bonjour", source_lang="fr", target_lang="en")
    >>> processor("clip.mp3", source_lang="fr", text="bonjour")     # with labels, for training
    ```
    """

    def __init__(
        self,
        feature_extractor,
        tokenizer,
        audio_token: str = "<|audio|>",
        audio_token_convolutions: list[list[int]] | None = None,
        variable_length: bool = True,
        instructions: dict[str, str] | None = None,
        language_names: dict[str, str] | None = None,
        system_prompt: str | None = None,
        chat_template: str | None = None,
        **kwargs,
    ) -> None:
        self.audio_token = audio_token
        self.audio_token_id = tokenizer.convert_tokens_to_ids(audio_token)
        if self.audio_token_id in (None, tokenizer.unk_token_id):
            raise ValueError(
                f"The tokenizer has no token {audio_token!r}. Add it with `tokenizer.add_special_tokens` and resize "
                "the model's embeddings, or name an existing token as `audio_token`."
            )
        self.audio_token_convolutions = audio_token_convolutions or [[3, 1, 1], [3, 2, 1], [5, 4, 2]]
        self.variable_length = variable_length
        self.instructions = {**INSTRUCTIONS, **(instructions or {})}
        unknown = set(self.instructions) - set(INSTRUCTIONS)
        if unknown:
            raise ValueError(f"Unknown instructions {sorted(unknown)}; the tasks are {sorted(INSTRUCTIONS)}.")
        self.language_names = dict(language_names or {})
        self.system_prompt = system_prompt
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template)
        if self.tokenizer.eos_token_id is None:
            raise ValueError(
                "The tokenizer has no end token; set `tokenizer.eos_token` to the one that ends an answer."
            )
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    @property
    def model_input_names(self) -> list[str]:
        """What `__call__` gives without labels."""
        return ["input_ids", "attention_mask", "input_features", "input_features_mask"]

    @property
    def sampling_rate(self) -> int:
        """Rate that the encoder expects, Hz."""
        return self.feature_extractor.sampling_rate

    @cached_property
    def feature_rate(self) -> float:
        """Feature steps per second (Whisper: 100), measured on silence: a full window, or ten seconds."""
        samples = getattr(self.feature_extractor, "n_samples", 10 * self.sampling_rate)
        features = self.extract_features(np.zeros(samples, dtype=np.float32))
        return features.shape[self.feature_time_axis] * self.sampling_rate / samples

    @property
    def feature_time_axis(self) -> int:
        """Axis of one clip's features that runs over time: Whisper's are `(mel, T)`, others `(T, mel)` or `(T,)`."""
        return -1 if isinstance(self.feature_extractor, WhisperFeatureExtractor) else 0

    def __call__(
        self,
        audio=None,
        task: str | list[str] = "asr",
        source_lang: str | list[str | None] | None = None,
        target_lang: str | list[str | None] | None = None,
        text: str | list[str] | None = None,
        source_text: str | list[str] | None = None,
        prompt: str | list[str | None] | None = None,
        sampling_rate: int | None = None,
        padding_side: str | None = None,
        pad_to_multiple_of: int | None = None,
        pad_features_to_multiple_of: int | None = None,
        return_tensors: str = "pt",
        **kwargs,
    ) -> BatchFeature:
        """Audio or text, tasks and languages -> a batch for the model.

        Args:
            audio: one clip or a list: path, bytes, `{"path", "bytes"}`, `{"array", "sampling_rate"}`, an `AudioDecoder` of
                datasets, `(samples,)` or `(channels, samples)` array or tensor. None for `task="mt"`.
            task: `"asr"`, `"s2tt"` or `"mt"`; one for all or one per row, as are the next five.
            source_lang: BCP-47 code of the speech or the source text; None: not named in the prompt.
            target_lang: BCP-47 code of the answer; not needed for `"asr"`.
            text: the answer. Gives `labels` that cover the answer and its end token only. With
                `return_text_replacement_offsets=True` it is instead a whole prompt with one placeholder per clip, as
                vLLM's Transformers backend gives it; the other arguments then say nothing, and the batch says what
                the placeholders became.
            source_text: the sentence to translate, for `"mt"`.
            prompt: replaces the instruction of the task.
            sampling_rate: of arrays, Hz; the encoder's when None. Files carry their own.
            padding_side: `"right"` with `text`, else `"left"`, as generation needs.
            pad_to_multiple_of, pad_features_to_multiple_of: for few distinct shapes; positions and feature steps.
            return_tensors: only `"pt"`.

        Returns:
            `BatchFeature` with `input_ids` and `attention_mask` `(B, L)`; with audio, `input_features` (the encoder's
            layout, zero-padded) and `input_features_mask` `(B, T)`; with `text`, `labels` `(B, L)`.

        Raises:
            ValueError: unknown task or language, an empty answer, audio that is empty, not finite, too short for one
                audio token or too long for a fixed window. Silence is valid audio.
        """
        if return_tensors not in ("pt", None):
            raise ValueError(f"`return_tensors` is {return_tensors!r}; PARTProcessor gives PyTorch tensors (`'pt'`).")
        with_offsets = kwargs.pop("return_text_replacement_offsets", False)
        if kwargs.get("truncation") is False:  # vLLM says so; nothing is ever truncated here
            del kwargs["truncation"]
        if kwargs:
            raise TypeError(f"PARTProcessor got unknown arguments {sorted(kwargs)}; see its docstring.")
        clips = _as_list(audio)
        # Only on demand: otherwise a transcript that holds the placeholder would be taken for a prompt.
        if with_offsets:
            batch, offsets = self._fill_prompts(_as_list(text), clips, sampling_rate, padding_side or "left")
            return BatchFeature({**batch, "text_replacement_offsets": offsets})
        rows = _broadcast(
            audio=clips,
            task=_as_list(task),
            source_lang=_as_list(source_lang),
            target_lang=_as_list(target_lang),
            text=_as_list(text),
            source_text=_as_list(source_text),
            prompt=_as_list(prompt),
        )
        features = [self.extract_features(row["audio"], sampling_rate) for row in rows if row["audio"] is not None]
        with_labels = any(row["text"] is not None for row in rows)
        return self.assemble(
            rows,
            features,
            padding_side or ("right" if with_labels else "left"),
            pad_to_multiple_of,
            pad_features_to_multiple_of,
        )

    def _fill_prompts(
        self, prompts: list[str], clips: list, sampling_rate: int | None, padding_side: str
    ) -> tuple[dict[str, torch.Tensor], list[list[dict]]]:
        """Whole prompts with one placeholder per clip -> the batch, and the offsets of what replaced them."""
        clips = [clip for clip in clips if clip is not None]
        placeholders = sum(prompt.count(self.audio_token) for prompt in prompts)
        if placeholders != len(clips):
            raise ValueError(
                f"The prompts hold {placeholders} placeholders {self.audio_token!r} for {len(clips)} clips; give one "
                "for each clip."
            )
        features = [self.extract_features(clip, sampling_rate) for clip in clips]
        counts = [self.num_audio_tokens(clip.shape[self.feature_time_axis]) for clip in features]
        filled, offsets = self.get_text_with_replacements(
            list(prompts), audio_replacements=[self.audio_token * count for count in counts]
        )
        encoded = [(self.tokenizer(prompt, add_special_tokens=False)["input_ids"], []) for prompt in filled]
        batch = self._pad_tokens(encoded, False, padding_side, None)
        return {**batch, **self.pad_features(features)}, offsets

    def assemble(
        self,
        rows: list[dict],
        features: list[np.ndarray],
        padding_side: str = "right",
        pad_to_multiple_of: int | None = None,
        pad_features_to_multiple_of: int | None = None,
    ) -> BatchFeature:
        """Rows and their already extracted features -> the batch that `__call__` returns.

        Args:
            rows: mappings with `task`, `source_lang`, `target_lang`, `source_text`, `text`, `audio` (None: no audio)
                and maybe `prompt`.
            features: of the rows with audio, in order, from `extract_features`.
            padding_side, pad_to_multiple_of, pad_features_to_multiple_of: see `__call__`.
        """
        lengths = [clip.shape[self.feature_time_axis] for clip in features]
        batch = self.assemble_prompts(rows, lengths, padding_side, pad_to_multiple_of)
        if features:
            batch.update(self.pad_features(features, pad_features_to_multiple_of))
        return BatchFeature(batch)

    def assemble_prompts(
        self,
        rows: list[dict],
        feature_lengths: list[int],
        padding_side: str = "right",
        pad_to_multiple_of: int | None = None,
    ) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask` and maybe `labels` of rows, given the feature steps of those with audio."""
        token_counts = iter([self.num_audio_tokens(length) for length in feature_lengths])
        encoded = [self._encode_row(row, next(token_counts) if row["audio"] is not None else 0) for row in rows]
        with_labels = any(row["text"] is not None for row in rows)
        return self._pad_tokens(encoded, with_labels, padding_side, pad_to_multiple_of)

    def language_name(self, code: str) -> str:
        """English name of a BCP-47 code; `pt-BR` falls back to `pt`. An unknown code is an error."""
        names = {**LANGUAGE_NAMES, **self.language_names}
        for candidate in (code, str(code).replace("_", "-").split("-")[0].lower()):
            if candidate in names:
                return names[candidate]
        raise ValueError(
            f"Unknown language {code!r}. Known BCP-47 codes: {' '.join(sorted(names))}. "
            "Name others with `language_names={code: name}`."
        )

    def num_audio_tokens(self, feature_length: int) -> int:
        """Audio tokens (placeholders) of a clip with so many feature steps."""
        return convolved_length(feature_length, self.audio_token_convolutions)

    def extract_features(self, audio, sampling_rate: int | None = None) -> np.ndarray:
        """Features of one clip, `(mel, T)` for Whisper, `(T, mel)` or `(T,)` for others, unpadded.

        Each clip is extracted alone: its features do not depend on what it is batched with.
        """
        waveform = self.waveform(audio, sampling_rate)
        window = getattr(self.feature_extractor, "n_samples", None)
        if window is not None and len(waveform) > window:
            raise ValueError(
                f"Audio of {len(waveform) / self.sampling_rate:.1f} s is longer than the encoder's window of "
                f"{window / self.sampling_rate:.0f} s. Cut it into pieces (PARTPipeline does) or filter it by "
                "`max_duration` in training."
            )
        options = {"padding": "longest", "return_attention_mask": True}
        if isinstance(self.feature_extractor, WhisperFeatureExtractor) and not self.variable_length:
            options["padding"] = "max_length"
        outputs = self.feature_extractor(waveform, sampling_rate=self.sampling_rate, return_tensors="np", **options)
        features = outputs["input_features" if "input_features" in outputs else "input_values"][0]
        mask = outputs.get("input_features_mask", outputs.get("attention_mask"))
        if mask is not None and self.variable_length:  # some extractors pad to a multiple of their stride
            features = np.take(features, np.arange(int(mask[0].sum())), axis=self.feature_time_axis)
        if self.num_audio_tokens(features.shape[self.feature_time_axis]) < 1:
            raise ValueError(
                f"Audio of {len(waveform)} samples at {self.sampling_rate} Hz is too short for one audio token. "
                "Remove it or raise `min_duration`."
            )
        return features.astype(np.float32)

    def silence(self) -> np.ndarray:
        """Features of a second of nothing: in training they stand in for audio that cannot be decoded."""
        return self.extract_features(np.zeros(self.sampling_rate, dtype=np.float32))

    def waveform(self, audio, sampling_rate: int | None) -> np.ndarray:
        """`(samples,)` float32 at the encoder's rate from a file, bytes, an array or a tensor; checked."""
        waveform = load_audio(audio, self.sampling_rate, array_rate=sampling_rate)
        if len(waveform) < MINIMUM_SECONDS * self.sampling_rate:
            raise ValueError(
                f"Audio of {len(waveform)} samples at {self.sampling_rate} Hz is shorter than {MINIMUM_SECONDS} s, the "
                "analysis window of the encoders. Remove the clip or raise `min_duration`."
            )
        return waveform

    def pad_features(self, features: list[np.ndarray], multiple: int | None = None) -> dict[str, torch.Tensor]:
        """Clips' features -> zero-padded `input_features` and `input_features_mask` `(B, T)`."""
        axis = self.feature_time_axis
        lengths = torch.tensor([clip.shape[axis] for clip in features])
        longest = int(lengths.max())
        if multiple:
            window = getattr(self.feature_extractor, "nb_max_frames", longest + multiple)
            longest = max(longest, min(-(-longest // multiple) * multiple, window))
        padded = []
        for clip in features:
            widths = [(0, 0)] * clip.ndim
            widths[axis] = (0, longest - clip.shape[axis])
            padded.append(np.pad(clip, widths))
        mask = (torch.arange(longest) < lengths[:, None]).long()
        return {"input_features": torch.from_numpy(np.stack(padded)), "input_features_mask": mask}

    def instruction(self, task: str, source_lang: str | None = None, target_lang: str | None = None) -> str:
        """The instruction of a task with the languages named."""
        if task not in TASKS:
            raise ValueError(f"Unknown task {task!r}; the tasks are {', '.join(TASKS)}.")
        if task != "asr" and target_lang is None:
            raise ValueError(f"Task {task!r} needs a `target_lang` (a BCP-47 code such as 'en').")
        wording = self.instructions[task if source_lang is not None else f"{task}_unnamed"]
        return wording.format(
            source=None if source_lang is None else self.language_name(source_lang),
            target=None if target_lang is None else self.language_name(target_lang),
        )

    def batch_decode(self, sequences, skip_special_tokens: bool = False, **kwargs) -> list[str]:
        """Token ids of B sequences -> B texts, as a tokenizer's `batch_decode`.

        With `skip_special_tokens` a prompt with audio is skipped too, for callers who pass on what `generate` returns
        without cutting the prompt (`transformers serve`). Text-only prompts must be cut: nothing marks them.
        """
        if isinstance(sequences, (torch.Tensor, np.ndarray)):
            sequences = sequences.tolist()
        if skip_special_tokens:
            sequences = [self._skip_prompt(ids) for ids in sequences]
        return self.tokenizer.batch_decode(sequences, skip_special_tokens=skip_special_tokens, **kwargs)

    def _skip_prompt(self, ids: list[int]) -> list[int]:
        """What follows the user's turn with audio; all ids if there is none."""
        if self.audio_token_id not in ids:
            return ids
        _, after = self._turn()
        # The instruction begins with a line break, which in a base model's prompt is also what ends the turn.
        first = len(ids) - ids[::-1].index(self.audio_token_id) + 1
        for start in range(first, len(ids) - len(after) + 1):
            if after and ids[start : start + len(after)] == after:
                return ids[start + len(after) :]
        return ids

    def _encode_row(self, row: dict, num_audio_tokens: int) -> tuple[list[int], list[int]]:
        """Prompt ids and answer ids (with the end token; empty without `text`) of one row."""
        instruction = row.get("prompt")
        if instruction is None:
            instruction = self.instruction(row["task"], row["source_lang"], row["target_lang"])
        before, after = self._turn()
        if num_audio_tokens:
            content = [self.audio_token_id] * num_audio_tokens + self._tokens(f"\n{instruction}")
        elif row["task"] == "mt":
            if not row["source_text"] or not row["source_text"].strip():
                raise ValueError("Task 'mt' needs a non-empty `source_text`, the sentence to translate.")
            content = self._tokens(f"{instruction}\n{row['source_text']}")
        else:
            raise ValueError(f"Task {row['task']!r} needs `audio`.")
        answer = []
        if row["text"] is not None:
            if not row["text"].strip():
                raise ValueError("`text`, the answer to learn, is empty. Remove the row.")
            answer = [*self._tokens(row["text"]), self.tokenizer.eos_token_id]
        return [*before, *content, *after], answer

    def _turn(self) -> tuple[list[int], list[int]]:
        """Token ids before and after the user's content in the language model's chat template."""
        if self.tokenizer.chat_template is None:  # a base model: the start token, the content, a line break
            start = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
            return start, self._tokens("\n")
        messages = [{"role": "user", "content": PROMPT_MARK}]
        if self.system_prompt is not None:
            messages.insert(0, {"role": "system", "content": self.system_prompt})
        rendered = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        before, mark, after = rendered.partition(PROMPT_MARK)
        if not mark:
            raise ValueError("The tokenizer's chat template drops the user's message; fix the template.")
        return (
            self.tokenizer(before, add_special_tokens=False)["input_ids"],
            self.tokenizer(after, add_special_tokens=False)["input_ids"],
        )

    def _tokens(self, text: str) -> list[int]:
        """Tokens of plain text: what looks like a special token in it stays text."""
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def _pad_tokens(
        self, encoded: list[tuple[list[int], list[int]]], with_labels: bool, padding_side: str, multiple: int | None
    ) -> dict[str, torch.Tensor]:
        """Rows of (prompt, answer) ids -> padded `input_ids`, `attention_mask` and, with answers, `labels`."""
        if padding_side not in ("left", "right"):
            raise ValueError(f"`padding_side` is {padding_side!r}; it is 'left' or 'right'.")
        longest = max(len(prompt) + len(answer) for prompt, answer in encoded)
        if multiple:
            longest = -(-longest // multiple) * multiple
        input_ids = torch.full((len(encoded), longest), self.tokenizer.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        labels = torch.full_like(input_ids, -100)
        for index, (prompt, answer) in enumerate(encoded):
            length = len(prompt) + len(answer)
            first = longest - length if padding_side == "left" else 0
            input_ids[index, first : first + length] = torch.tensor(prompt + answer)
            attention_mask[index, first : first + length] = 1
            labels[index, first + len(prompt) : first + length] = torch.tensor(answer, dtype=torch.long)
        batch = {"input_ids": input_ids, "attention_mask": attention_mask}
        return {**batch, "labels": labels} if with_labels else batch


def _as_list(value) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _broadcast(**columns: list) -> list[dict]:
    """Columns of one or B values -> B rows."""
    size = max(len(values) for values in columns.values())
    wrong = {name: len(values) for name, values in columns.items() if len(values) not in (1, size)}
    if wrong or min(len(values) for values in columns.values()) == 0:
        raise ValueError(
            f"The batch has {size} rows, but {wrong or 'an argument is an empty list'}; give one value or one per row."
        )
    columns = {name: values * size if len(values) == 1 else values for name, values in columns.items()}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


__all__ = ["PARTProcessor", "load_audio"]
