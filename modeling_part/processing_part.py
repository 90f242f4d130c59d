# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Processor of PART: audio, task and languages -> features, prompt with audio placeholders, labels."""

import json
from pathlib import Path

import numpy as np
import torch
from transformers import BatchFeature
from transformers.audio_utils import AudioInput
from transformers.processing_utils import Unpack

from .conventions_part import (
    ONLY_OF_PROMPTS,
    CallOptions,
    ConventionalProcessor,
    PARTProcessorKwargs,
    as_list,
    broadcast,
    check_texts,
    convert,
)
from .damage_part import explain_damage
from .prompts_part import (
    INSTRUCTIONS,
    LANGUAGE_NAMES,
    TASKS,
    TEXT_TASKS,
    check_instructions,
    code_of,
    one_context,
    task_of_row,
)
from .saved_prompt_part import RECORD, check_saved, saved_with
from .templates_part import freeze_clock


class PARTProcessor(ConventionalProcessor):
    r"""Turns audio, a task and languages into model inputs.

    It wraps the encoder's feature extractor and the language model's tokenizer, and asks in the language model's own
    chat template, in which today's date (Llama 3, Granite) is one day for ever: 26 July 2024.

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
            `""` gives an empty one (shorter prompts). Templates without a system role (Gemma 2) refuse both.
        chat_template (`str`, *optional*): instead of the tokenizer's own.

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
        for name, value in (("instructions", instructions), ("language_names", language_names)):
            if value is not None and not isinstance(value, dict):
                raise ValueError(f"`{name}` is {value!r}; give a mapping of text to text, or None.")
        self.instructions = {**INSTRUCTIONS, **(instructions or {})}
        check_instructions(self.instructions)
        self.language_names = dict(language_names or {})
        self.system_prompt = system_prompt
        tokenizer.chat_template = freeze_clock(tokenizer.chat_template)  # for those who take the tokenizer alone
        super().__init__(feature_extractor, tokenizer, chat_template=freeze_clock(chat_template))
        if self.tokenizer.eos_token_id is None:
            raise ValueError(
                "The tokenizer has no end token; set `tokenizer.eos_token` to the one that ends an answer."
            )
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, *args, **kwargs) -> "PARTProcessor":
        """See `ProcessorMixin.from_pretrained`.

        Raises:
            ValueError: files are damaged, or were changed by hand so that the model would be asked otherwise than it was
                trained; the message names the checkpoint.
        """
        with explain_damage(pretrained_model_name_or_path):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def from_args_and_dict(cls, args, processor_dict: dict, **kwargs):
        """See `ProcessorMixin.from_args_and_dict`; what the files hold must be what they were saved with."""
        loaded = super().from_args_and_dict(args, processor_dict, **kwargs)
        processor = loaded[0] if isinstance(loaded, tuple) else loaded
        if RECORD in processor_dict:  # earlier versions left none
            now = saved_with(processor_dict, processor.tokenizer, processor._plain_prompt())
            check_saved(processor_dict[RECORD], now, str(processor.tokenizer.name_or_path), kwargs)
        return loaded

    def to_json_file(self, json_file_path: str | Path) -> None:
        """See `ProcessorMixin.to_json_file`; adds what [`check_saved`] compares.

        Raises:
            ValueError: the chat template refuses the prompt.
        """
        settings = json.loads(self.to_json_string())
        if self._auto_class is None:  # of the installed package, whose code is not copied: as `PARTConfig.to_dict`
            settings.get("feature_extractor", {}).pop("auto_map", None)
        settings[RECORD] = saved_with(settings, self.tokenizer, self._plain_prompt())
        Path(json_file_path).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def _plain_prompt(self) -> list[int]:
        """Ids of the prompt for a transcript in a language that is not named, with one placeholder."""
        row = dict.fromkeys(("source_lang", "target_lang", "text"))
        return self._encode_row({**row, "task": "asr"}, 1)[0]

    @property
    def model_input_names(self) -> list[str]:
        """What `__call__` gives without labels."""
        return ["input_ids", "attention_mask", "input_features", "input_features_mask"]

    def __call__(
        self,
        audio: AudioInput | list | None = None,
        task: str | list[str] | None = None,
        source_lang: str | list[str | None] | None = None,
        target_lang: str | list[str | None] | None = None,
        text: str | list[str] | None = None,
        source_text: str | list[str] | None = None,
        prompt: str | list[str | None] | None = None,
        context: str | list[str] | list[str | list[str] | None] | None = None,
        **kwargs: Unpack[PARTProcessorKwargs],
    ) -> BatchFeature:
        """Audio or text, tasks and languages -> a batch for the model.

        Args:
            audio: one clip or a list: path, bytes, `{"path", "bytes"}`, `{"array", "sampling_rate"}`, an `AudioDecoder` of
                datasets, `(samples,)` or `(channels, samples)` array or tensor. None for `task="mt"` and `"text"`.
            task: `"asr"` (when None; also `"transcribe"`), `"s2tt"` (`"translate"`) or `"mt"`; one for all or one per row,
                as are the next six.
            source_lang: BCP-47 code or English name of the speech's or the source text's language; None: not named in the
                prompt.
            target_lang: BCP-47 code of the answer; not needed for `"asr"`, and refused without a task where it is another.
            text: the answer. Gives `labels` that cover the answer and its end token only. Where it holds the
                `audio_token`, or there is no audio, and none of the other arguments is given, it is instead a whole
                prompt, as other processors take it and `apply_chat_template` gives it: one placeholder per clip.
            source_text: the sentence to translate, for `"mt"`; what is asked, for `"text"`.
            prompt: replaces the instruction of the task.
            context: names, terms or sentences that what is said may be about, one on each line or as a list of words (with
                lists of the others, such a list for each row); put after the instruction, with commas between. Of use where
                training had such rows.
            kwargs: as of any processor, flat or in `text_kwargs`, `audio_kwargs` and `common_kwargs`. The defaults:
                `return_tensors="pt"` (also `"np"`; None: lists), `padding=True`, `padding_side` `"right"` with answers,
                else `"left"`, as generation needs; `sampling_rate` of arrays, the encoder's (files carry their own). For
                few distinct shapes `pad_to_multiple_of` pads positions, `pad_features_to_multiple_of` feature steps.

        Returns:
            `BatchFeature` with `input_ids` and `attention_mask` `(B, L)`; with audio, `input_features` (the encoder's
            layout, zero-padded) and `input_features_mask` `(B, T)`; with answers, `labels` `(B, L)`.

        Raises:
            ValueError: unknown task or language, an empty answer, audio that is empty, not finite, too short for one
                audio token or too long for a fixed window. Silence is valid audio.
        """
        options = self._read_options(kwargs)
        columns = {"task": task, "source_lang": source_lang, "target_lang": target_lang}
        columns |= {"source_text": source_text, "prompt": prompt}
        is_many = any(isinstance(one, (list, tuple)) for one in (audio, text, *columns.values()))
        # Beside single values a list is of the words of one context.
        is_for_each = is_many and isinstance(context, (list, tuple))
        columns["context"] = [*map(one_context, context)] if is_for_each else one_context(context)
        clips, texts = as_list(audio), as_list(text)
        check_texts(columns if options.of_tokenizer.get("is_split_into_words") else {"text": text, **columns})
        # With a task or a language beside it, a text is an answer whatever it holds.
        is_alone = text is not None and all(value is None for value in columns.values())
        is_prompt = is_alone and (audio is None or any(self.audio_token in one for one in texts if one))
        if is_prompt or options.with_offsets:
            return self._fill_prompts(texts, clips, options)
        if refused := [name for name in ONLY_OF_PROMPTS if options.of_tokenizer.get(name)]:
            raise ValueError(f"{refused} can be asked of whole prompts only, not of rows of a task.")
        rows = self.rows_of(audio=clips, text=texts, **columns)
        features = [
            self.extract_features(row["audio"], options.sampling_rate) for row in rows if row["audio"] is not None
        ]
        with_labels = any(row["text"] is not None for row in rows)
        batch = self.assemble(
            rows,
            features,
            options.padding_side or ("right" if with_labels else "left"),
            options.pad_to_multiple_of,
            options.pad_features_to_multiple_of,
            options,
        )
        if options.with_token_types:
            # 3 is what transformers calls audio.
            batch["mm_token_type_ids"] = 3 * (batch["input_ids"] == self.audio_token_id)
        return BatchFeature(convert(batch, options.return_tensors))

    @staticmethod
    def rows_of(audio=None, task=None, text=None, **columns) -> list[dict]:
        """Rows as [`assemble`] and [`assemble_prompts`] take them, of what `__call__` is given, one for all or one per row."""
        columns = {**dict.fromkeys(("source_lang", "target_lang", "source_text", "prompt", "context")), **columns}
        columns |= {"audio": audio, "task": task, "text": text}
        rows = broadcast(**{name: as_list(value) for name, value in columns.items()})
        for row in rows:  # Whisper's words
            row |= {"task": task_of_row(row["task"], row["source_lang"], row["target_lang"])}
            row |= {name: code_of(row[name]) for name in ("source_lang", "target_lang")}
        return rows

    def assemble(
        self,
        rows: list[dict],
        features: list[np.ndarray],
        padding_side: str = "right",
        pad_to_multiple_of: int | None = None,
        pad_features_to_multiple_of: int | None = None,
        options: CallOptions | None = None,
    ) -> BatchFeature:
        """Rows and their already extracted features -> the batch that `__call__` returns.

        Args:
            rows: mappings with `task`, `source_lang`, `target_lang`, `source_text`, `text`, `audio` (None: no audio)
                and maybe `prompt` and `context`.
            features: of the rows with audio, in order, from `extract_features`.
            padding_side, pad_to_multiple_of, pad_features_to_multiple_of: see `__call__`.
            options: of a call, for what it says about lengths.
        """
        lengths = [clip.shape[self.feature_time_axis] for clip in features]
        batch = self.assemble_prompts(rows, lengths, padding_side, pad_to_multiple_of, options)
        if features:
            batch.update(self.pad_features(features, pad_features_to_multiple_of))
        return BatchFeature(batch)

    def assemble_prompts(
        self,
        rows: list[dict],
        feature_lengths: list[int],
        padding_side: str = "right",
        pad_to_multiple_of: int | None = None,
        options: CallOptions | None = None,
    ) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask` and maybe `labels` of rows, given the feature steps of those with audio."""
        token_counts = iter([self.num_audio_tokens(length) for length in feature_lengths])
        encoded = [self._encode_row(row, next(token_counts) if row["audio"] is not None else 0) for row in rows]
        with_labels = any(row["text"] is not None for row in rows)
        longest = max(len(prompt) + len(answer) for prompt, answer in encoded)
        if options is not None:
            encoded, longest = self._fit_lengths(encoded, longest, options)
        if pad_to_multiple_of:
            longest = -(-longest // pad_to_multiple_of) * pad_to_multiple_of
        return self._pad_tokens(encoded, with_labels, padding_side, longest)

    def _fit_lengths(
        self, encoded: list[tuple[list[int], list[int]]], longest: int, options: CallOptions
    ) -> tuple[list[tuple[list[int], list[int]]], int]:
        """Rows cut to, and the length padded to, what a call's `truncation`, `padding` and `max_length` say."""
        limit = options.max_length or self.tokenizer.model_max_length
        if options.truncation and longest > limit:
            if any(self.audio_token_id in prompt[limit:] for prompt, _ in encoded):
                raise ValueError(f"`max_length={limit}` would cut off audio; raise it or leave out `truncation`.")
            encoded = [(prompt[:limit], answer[: max(limit - len(prompt), 0)]) for prompt, answer in encoded]
            longest = limit
        if options.padding in (False, "do_not_pad"):
            if len({len(prompt) + len(answer) for prompt, answer in encoded}) > 1:
                raise ValueError("The rows are of unequal lengths, which one batch cannot hold without `padding`.")
        elif options.padding == "max_length":
            longest = max(longest, limit if limit < 1e9 else longest)
        return encoded, longest

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

    def language_code(self, name: str) -> str:
        """The BCP-47 code of a language given by its code or its English name."""
        names = {**LANGUAGE_NAMES, **self.language_names}
        code = next((code for code, known in names.items() if known.casefold() == str(name).casefold()), name)
        self.language_name(code)  # an unknown code is an error
        return code

    def instruction(self, task: str, source_lang: str | None = None, target_lang: str | None = None) -> str:
        """The instruction of a task with the languages named."""
        if task not in TASKS:
            raise ValueError(f"Unknown task {task!r}; the tasks are {', '.join(TASKS)}.")
        if task == "text":  # what is asked says itself what to do
            return ""
        if task != "asr" and target_lang is None:
            raise ValueError(f"Task {task!r} needs a `target_lang` (a BCP-47 code such as 'en').")
        wording = self.instructions[task if source_lang is not None else f"{task}_unnamed"]
        return wording.format(
            source=None if source_lang is None else self.language_name(source_lang),
            target=None if target_lang is None else self.language_name(target_lang),
        )

    def question(self, row: dict) -> str:
        """What is asked of a row, in words: its prompt or the instruction of its task, and its context."""
        question = row.get("prompt")
        if question is None:
            question = self.instruction(row["task"], row["source_lang"], row["target_lang"])
        context = row.get("context")
        if context is None or not context.strip():
            return question
        context = ", ".join(filter(None, map(str.strip, context.splitlines())))
        return f"{question}\n".lstrip("\n") + f"{self.instructions['context'].format(context=context)}"

    def _encode_row(self, row: dict, num_audio_tokens: int) -> tuple[list[int], list[int]]:
        """Prompt ids and answer ids (with the end token; empty without `text`) of one row."""
        instruction = self.question(row)
        before, after = self.turn()
        if num_audio_tokens and row["task"] in TEXT_TASKS:
            raise ValueError(
                f"Task {row['task']!r} is of text, and there is audio: leave it out, or name another task."
            )
        if num_audio_tokens:
            content = [self.audio_token_id] * num_audio_tokens + self.text_ids(f"\n{instruction}")
        elif row["task"] in TEXT_TASKS:
            if not row["source_text"] or not row["source_text"].strip():
                what = "the sentence to translate" if row["task"] == "mt" else "what is asked"
                raise ValueError(f"Task {row['task']!r} needs a non-empty `source_text`, {what}.")
            content = self.text_ids("\n".join(filter(None, (instruction, row["source_text"]))))
        else:
            raise ValueError(f"Task {row['task']!r} needs `audio`.")
        answer = []
        if row["text"] is not None:
            if not row["text"].strip():
                raise ValueError("`text`, the answer to learn, is empty. Remove the row.")
            answer = [*self.text_ids(row["text"]), self.tokenizer.eos_token_id]
        return [*before, *content, *after], answer

    def _pad_tokens(
        self, encoded: list[tuple[list[int], list[int]]], with_labels: bool, padding_side: str, longest: int
    ) -> dict[str, torch.Tensor]:
        """Rows of (prompt, answer) ids -> padded `input_ids`, `attention_mask` and, with answers, `labels`."""
        if padding_side not in ("left", "right"):
            raise ValueError(f"`padding_side` is {padding_side!r}; it is 'left' or 'right'.")
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


__all__ = ["PARTProcessor"]
