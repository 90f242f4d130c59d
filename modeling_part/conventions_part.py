# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""What transformers' conventions ask of a processor: keyword arguments, whole prompts, chats, transcription requests."""

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import BatchFeature
from transformers.processing_utils import AudioKwargs, ProcessingKwargs

from .audio_part import load_audio
from .features_part import FeatureProcessor
from .prompts_part import PROMPT_MARK, SURROGATES, context_of
from .templates_part import CHAT_OF_PARTS, freeze_clock


try:
    from jinja2 import TemplateError
except ImportError:  # transformers says so where a template is to be rendered
    TemplateError = ()


logger = logging.getLogger(__name__)

# What a tokenizer can say about text, and PART about a whole prompt, but not about rows of a task.
ONLY_OF_PROMPTS = (
    "is_split_into_words",
    "return_length",
    "return_offsets_mapping",
    "return_overflowing_tokens",
    "return_special_tokens_mask",
    "return_token_type_ids",
    "stride",
    "text_pair",
    "text_pair_target",
    "text_target",
)


# What may be said of lengths in words.
WORDS = {
    "padding": ("longest", "max_length", "do_not_pad"),
    "truncation": ("longest_first", "only_first", "only_second", "do_not_truncate"),
}


class PARTAudioKwargs(AudioKwargs, total=False):
    """`AudioKwargs`, and `pad_features_to_multiple_of`: feature steps, for few distinct shapes."""

    pad_features_to_multiple_of: int | None


class PARTProcessorKwargs(ProcessingKwargs, total=False):
    """The keyword arguments of `PARTProcessor.__call__`: those of any processor, and [`PARTAudioKwargs`]."""

    _defaults = {}  # noqa: RUF012  transformers 5.20 reads it

    audio_kwargs: PARTAudioKwargs


@dataclass
class CallOptions:
    """How a batch is padded, cut and returned, read from the keyword arguments of a call."""

    padding: bool | str = True
    padding_side: str | None = None
    max_length: int | None = None
    truncation: bool = False
    pad_to_multiple_of: int | None = None
    pad_features_to_multiple_of: int | None = None
    sampling_rate: int | None = None
    return_tensors: str | None = "pt"
    with_token_types: bool = False
    with_offsets: bool = False
    of_tokenizer: dict = field(default_factory=dict)


class ConventionalProcessor(FeatureProcessor):
    """What callers expect of any processor of transformers; [`PARTProcessor`] sets the attributes that it uses."""

    valid_processor_kwargs = PARTProcessorKwargs
    audio_token: str
    audio_token_id: int
    instructions: dict[str, str]
    system_prompt: str | None

    def replace_audio_token(self, audio_inputs: dict, audio_idx: int, **kwargs) -> str:
        """The placeholders of a clip, given the padded features' mask."""
        return self.audio_token * self.num_audio_tokens(int(audio_inputs["input_features_mask"][audio_idx].sum()))

    def apply_chat_template(
        self, conversation, chat_template: str | None = None, **kwargs
    ) -> str | list | BatchFeature:
        """See `ProcessorMixin.apply_chat_template`; a turn's content may hold several clips and texts, in any order.

        Args:
            conversation: messages, or a list of conversations. The content of a message is a text or a list of
                `{"type": "text", "text": ...}` and `{"type": "audio", "audio" or "path" or "url": ...}`.
            chat_template: the language model's own when None, for which content in parts is joined line by line, as
                `PARTProcessor.__call__` does: the same text, and the same tokens where special tokens end a turn (in
                what old templates write as plain text, tokens may reach across). Another template must place the
                `audio_token` itself.
            kwargs: `tokenize`, `return_dict`, `add_generation_prompt`, ...

        Returns:
            The prompt; with `tokenize=True` and `return_dict=True` what `PARTProcessor.__call__` gives.
        """
        if chat_template is None:
            own = self._template()
            if own is None:
                raise ValueError("The language model has no chat template, so that it cannot be asked in messages.")
            words = {
                "AUDIO": self.audio_token,
                "SYSTEM": self.system_prompt,
                "INSTRUCTION": self.instructions["asr_unnamed"],
            }
            # As they are: Jinja would take the escapes of what lies beyond U+FFFF for two characters.
            constants = "".join(
                f"{{%- set {name} = {'none' if word is None else json.dumps(word, ensure_ascii=False)} -%}}"
                for name, word in words.items()
            )
            chat_template = constants + CHAT_OF_PARTS.lstrip() + own
        options = {**kwargs, **(kwargs.get("processor_kwargs") or {})}  # transformers takes them from both
        rate = (
            options.get("sampling_rate") or options.get("audio_kwargs", {}).get("sampling_rate") or self.sampling_rate
        )
        if kwargs.get("tokenize"):
            conversation = self._decode_files(conversation, rate)
        return super().apply_chat_template(conversation, chat_template, **kwargs)

    def _decode_files(self, conversation: list | dict, rate: int) -> list | dict:
        """Decode the audio of a conversation as `__call__` does, except what only transformers can fetch."""
        if isinstance(conversation, (list, tuple)):
            return [self._decode_files(item, rate) for item in conversation]
        if not isinstance(conversation, dict) or isinstance(conversation.get("content"), (str, type(None))):
            return conversation
        content = []
        for part in conversation["content"]:
            for key in ("audio", "path", "url"):
                audio = part.get(key) if part.get("type") == "audio" else None
                is_file = isinstance(audio, str) and is_file_name(audio)
                if is_file or (audio is not None and not isinstance(audio, (str, np.ndarray))):
                    part = {"type": "audio", "audio": load_audio(audio, rate)}
            content.append(part)
        return {**conversation, "content": content}

    def apply_transcription_request(
        self, audio, language=None, prompt=None, keywords=None, tokenize: bool = True, **kwargs
    ) -> BatchFeature | list[str]:
        """A batch that asks for transcripts, as in transformers' other processors of speech LLMs.

        Args:
            audio: one clip or a list, as for a call.
            language: BCP-47 code or English name, one for all or one per clip; None leaves it to the model.
            prompt: replaces the instruction.
            keywords: words that may be said, which become the `context` of a call: one or a list for all clips, or a
                list for each.
            tokenize: False gives the prompts as text, with one placeholder each.
            kwargs: for `__call__`, such as `sampling_rate`.
        """
        languages = [None if name is None else self.language_code(name) for name in as_list(language)]
        contexts = contexts_of(keywords)
        if tokenize:
            audio = self._beginnings(audio, kwargs)
            return self(audio, source_lang=languages, prompt=prompt, context=contexts, task="asr", **kwargs)
        rows = broadcast(audio=as_list(audio), source_lang=languages, prompt=as_list(prompt), context=contexts)
        texts = [self.question({**row, "task": "asr", "target_lang": None}) for row in rows]
        turns = [[{"type": "audio"}, {"type": "text", "text": text}] for text in texts]
        conversations = [[{"role": "user", "content": content}] for content in turns]
        return self.apply_chat_template(conversations, add_generation_prompt=True)

    def _beginnings(self, audio, kwargs: dict) -> list:
        """Clips cut to the encoder's window, as other processors do where a transcript is asked for, and not in silence."""
        window = self.encoder_window
        rate = kwargs.get("sampling_rate") or kwargs.get("audio_kwargs", {}).get("sampling_rate") or self.sampling_rate
        if window is None:
            return audio
        window = round(window / self.sampling_rate * rate)
        clips = [load_audio(one, rate) for one in as_list(audio)]
        if too_long := sum(len(one) > window for one in clips):
            logger.warning(
                "%d of %d clips are longer than the encoder's window of %.0f s: what comes after it is not heard "
                "(PARTPipeline takes any length)",
                too_long,
                len(clips),
                window / rate,
            )
        return [one[:window] for one in clips]

    def decode(
        self, token_ids, skip_special_tokens: bool = False, return_format: str = "raw", **kwargs
    ) -> str | dict | list:
        """Token ids of one sequence or of a batch -> a text or a list of texts.

        Args:
            token_ids: of one sequence, or a batch of them.
            skip_special_tokens: see `batch_decode`.
            return_format: `"raw"`; `"transcription_only"`, stripped and without special tokens; or `"parsed"`, that as
                `{"language": None, "transcription": text}`.
            kwargs: for the tokenizer.
        """
        if return_format not in ("raw", "transcription_only", "parsed"):
            raise ValueError(f"`return_format` is {return_format!r}; it is 'raw', 'transcription_only' or 'parsed'.")
        if isinstance(token_ids, (torch.Tensor, np.ndarray)):
            token_ids = token_ids.tolist()
        token_ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        is_batch = bool(token_ids) and not isinstance(token_ids[0], (int, np.integer)) and np.ndim(token_ids[0]) > 0
        is_plain = return_format == "raw" and not skip_special_tokens
        texts = self.batch_decode(token_ids if is_batch else [token_ids], skip_special_tokens=not is_plain, **kwargs)
        if return_format != "raw":
            texts = [text.strip() for text in texts]
        if return_format == "parsed":
            texts = [{"language": None, "transcription": text} for text in texts]
        return texts if is_batch else texts[0]

    def batch_decode(self, sequences, skip_special_tokens: bool = False, **kwargs) -> list[str]:
        """Token ids of B sequences -> B texts, as a tokenizer's `batch_decode`.

        With `skip_special_tokens` a prompt with audio is skipped too, for callers who pass on what `generate` returns
        without cutting the prompt (`transformers serve`). Text-only prompts must be cut: nothing marks them.
        """
        sequences = [ids.tolist() if isinstance(ids, (torch.Tensor, np.ndarray)) else list(ids) for ids in sequences]
        if skip_special_tokens:
            sequences = [self._skip_prompt(ids) for ids in sequences]
        return self.tokenizer.batch_decode(sequences, skip_special_tokens=skip_special_tokens, **kwargs)

    def _read_options(self, kwargs: dict) -> CallOptions:
        """The keyword arguments of a call by their names, flat or in `text_kwargs`, `audio_kwargs`, `common_kwargs`."""
        valid = self.valid_processor_kwargs.__annotations__
        names = {*valid, "common_kwargs", "images", "videos"}
        names |= {name for group in valid.values() for name in getattr(group, "__annotations__", ())}
        if unknown := set(kwargs) - names:
            raise TypeError(f"PARTProcessor got unknown arguments {sorted(unknown)}; see its docstring.")
        if any(kwargs.pop(name, None) is not None for name in ("images", "videos")):
            raise ValueError("PART takes audio and text, no images or videos.")
        given_audio = kwargs.get("audio_kwargs", {})
        refused = {name for name in ("max_length", "truncation", "pad_to_multiple_of") if given_audio.get(name)}
        if given_audio.get("padding") not in (None, True, "longest"):
            refused.add("padding")
        if refused:
            raise ValueError(
                f"`audio_kwargs` hold {sorted(refused)}, but each clip is extracted alone and padded with zeros to the "
                "longest; `pad_features_to_multiple_of` pads further."
            )
        merged = self._merge_kwargs(
            self.valid_processor_kwargs, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs
        )
        text, audio = merged["text_kwargs"], merged["audio_kwargs"]
        # Newer transformers keep these two beside the groups, older ones among the text's.
        flags = {name: merged.get(name) for name in ("return_mm_token_type_ids", "return_text_replacement_offsets")}
        flags = {name: bool(text.pop(name, None) or value) for name, value in flags.items()}
        groups = (kwargs, kwargs.get("text_kwargs", {}), kwargs.get("common_kwargs", {}))
        # A tokenizer's own side and truncation are those of its training; PART pads for what the batch is for, and
        # cuts nothing unasked.
        for name in ("padding_side", "truncation"):
            text[name] = next((group[name] for group in groups if group.get(name) is not None), None)
        text.setdefault("return_tensors", "pt")
        text["padding"] = True if text.get("padding") is None else text["padding"]
        for name, known in WORDS.items():
            if isinstance(text[name], str) and text[name] not in known:
                raise ValueError(f"`{name}` is {text[name]!r}; it is True, False, or one of {', '.join(known)}.")
        return CallOptions(
            padding=text["padding"],
            padding_side=text["padding_side"],
            max_length=text.get("max_length"),
            truncation=text["truncation"] not in (None, False, "do_not_truncate"),
            pad_to_multiple_of=text.get("pad_to_multiple_of"),
            pad_features_to_multiple_of=audio.get("pad_features_to_multiple_of"),
            sampling_rate=audio.get("sampling_rate"),
            return_tensors=text["return_tensors"],
            with_token_types=flags["return_mm_token_type_ids"],
            with_offsets=flags["return_text_replacement_offsets"],
            of_tokenizer={name: value for name, value in text.items() if value is not None},
        )

    def _fill_prompts(self, prompts: list[str], clips: list, options: CallOptions) -> BatchFeature:
        """Whole prompts with one placeholder per clip -> the batch, its placeholders as many as the audio tokens."""
        clips = [clip for clip in clips if clip is not None]
        placeholders = sum(prompt.count(self.audio_token) for prompt in prompts)
        if placeholders != len(clips):
            raise ValueError(
                f"The number of {self.audio_token!r} tokens in the prompts should be the same as the number of clips: "
                f"there are {placeholders} placeholders for {len(clips)} clips."
            )
        features = [self.extract_features(clip, options.sampling_rate) for clip in clips]
        counts = [self.num_audio_tokens(clip.shape[self.feature_time_axis]) for clip in features]
        filled, offsets = self.get_text_with_replacements(
            list(prompts), audio_replacements=[self.audio_token * count for count in counts]
        )
        arguments = {"padding_side": "left", "add_special_tokens": False, **options.of_tokenizer}
        arguments.setdefault("return_token_type_ids", False)
        encoded = self.tokenizer(filled, **arguments)
        self._check_special_mm_tokens(filled, encoded, modalities=["audio"])
        batch = {**encoded}
        tensors = self.pad_features(features, options.pad_features_to_multiple_of) if features else {}
        if options.with_token_types:
            tensors["mm_token_type_ids"] = torch.tensor(self.create_mm_token_type_ids(encoded["input_ids"]))
        if options.with_offsets:
            batch["text_replacement_offsets"] = offsets
        return BatchFeature({**batch, **convert(tensors, options.return_tensors)})

    def _skip_prompt(self, ids: list[int]) -> list[int]:
        """What follows the user's turn with audio; all ids if there is none."""
        if self.audio_token_id not in ids:
            return ids
        _, after = self.turn()
        # The instruction begins with a line break, which in a base model's prompt is also what ends the turn.
        first = len(ids) - ids[::-1].index(self.audio_token_id) + 1
        for start in range(first, len(ids) - len(after) + 1):
            if after and ids[start : start + len(after)] == after:
                return ids[start + len(after) :]
        return ids

    def _template(self) -> str | None:
        """The chat template that every prompt is written with; None for a base model."""
        for template in (self.chat_template, self.tokenizer.chat_template):
            template = template.get("default") if isinstance(template, dict) else template
            if template:
                return freeze_clock(template)
        return None

    def turn(self) -> tuple[list[int], list[int]]:
        """Token ids before and after the user's content in the language model's chat template.

        Raises:
            ValueError: the template refuses or drops the system prompt or the user's message.
        """
        if self._template() is None:  # a base model: the start token, the content, a line break
            start = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
            return start, self.text_ids("\n")
        messages = [{"role": "user", "content": PROMPT_MARK}]
        if self.system_prompt is not None:
            messages.insert(0, {"role": "system", "content": self.system_prompt})
        rendered = self._render(messages)
        before, mark, after = rendered.partition(PROMPT_MARK)
        if not mark:
            raise ValueError("The tokenizer's chat template drops the user's message; fix the template.")
        if (self.system_prompt or "").strip() not in rendered:
            raise ValueError(
                f"The language model's chat template drops the system prompt {self.system_prompt!r}: leave "
                "`system_prompt` out (null in a recipe)."
            )
        return (
            self.tokenizer(before, add_special_tokens=False)["input_ids"],
            self.tokenizer(after, add_special_tokens=False)["input_ids"],
        )

    def _render(self, messages: list[dict]) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                messages, chat_template=self._template(), tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            fix = "Fix the template"
            if self.system_prompt is not None:
                fix = (
                    f"`system_prompt` is {self.system_prompt!r}; leave it out (null in a recipe), or fix the template"
                )
            raise ValueError(f"The language model's chat template refuses the prompt: {error}. {fix}.") from error

    def text_ids(self, text: str | list[str]) -> list[int] | list[list[int]]:
        """Token ids of plain text, or of each of several: what looks like a special token in it stays text."""
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def text_ids_and_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """`text_ids`, and which characters of the text each token is of (first, last + 1)."""
        encoded = self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
        )
        return encoded["input_ids"], encoded["offset_mapping"]


def is_file_name(text: str) -> bool:
    """Whether a text names a file, there or not: an address has "://", and what is Base64 no dot, but "data:" before it."""
    if len(text) >= 4096 or "://" in text or text.startswith("data:"):
        return False
    return "." in text or Path(text).is_file()


def as_list(value) -> list:
    """A list of one or of the values."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def check_texts(columns: dict) -> None:
    """Refuse, by the name of its argument, a value that is neither text nor None, and text that is none in Unicode."""
    for name, value in columns.items():
        if strange := [one for one in as_list(value) if one is not None and not isinstance(one, str)]:
            raise ValueError(f"`{name}` holds {strange[0]!r}, a {type(strange[0]).__name__}; give text, or None.")
        if halves := [one for one in as_list(value) if one and SURROGATES.search(one)]:
            raise ValueError(f"`{name}` holds half of a surrogate pair, which is no character: {halves[0]!r}.")


def broadcast(**columns: list) -> list[dict]:
    """Columns of one or B values -> B rows."""
    size = max(len(values) for values in columns.values())
    wrong = {name: len(values) for name, values in columns.items() if len(values) not in (1, size)}
    if wrong or min(len(values) for values in columns.values()) == 0:
        raise ValueError(
            f"The batch has {size} rows, but {wrong or 'an argument is an empty list'}; give one value or one per row."
        )
    columns = {name: values * size if len(values) == 1 else values for name, values in columns.items()}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def contexts_of(keywords: str | list | None) -> list[str | None]:
    """Words for all clips, or a list of words for each, -> one context for all or one for each; None without words."""
    per_clip = keywords if isinstance(keywords, (list, tuple)) else [keywords]
    if all(isinstance(word, str) for word in per_clip):
        per_clip = [per_clip]
    contexts = []
    for words in per_clip:
        words = [] if words is None else as_list(words)
        if not all(isinstance(word, str) and word.strip() for word in words):
            raise ValueError(f"`keywords` hold {words!r}; give words, a list of words, or such a list for each clip.")
        contexts.append(context_of(words))
    return contexts


def convert(batch: dict[str, torch.Tensor], return_tensors: str | None) -> dict:
    """PyTorch tensors -> `"pt"`, `"np"` arrays, or lists (None)."""
    if return_tensors in ("pt", None):
        return batch if return_tensors == "pt" else {name: tensor.tolist() for name, tensor in batch.items()}
    if return_tensors == "np":
        return {name: tensor.numpy() for name, tensor in batch.items()}
    raise ValueError(f"`return_tensors` is {return_tensors!r}; PART gives 'pt', 'np' or lists (None).")
