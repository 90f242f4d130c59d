# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Arguments of the pipeline: which there are, what they may be, and which of its steps takes them."""

from collections.abc import Mapping
from numbers import Real

from .features_part import MINIMUM_SECONDS
from .language_part import known_languages
from .prompts_part import one_context


# What each of a list of inputs may have its own of.
OF_A_ROW = ("task", "source_lang", "target_lang", "prompt", "context")
OF_PREPROCESS = (*OF_A_ROW, "chunk_length_s", "stride_length_s", "voice_activity")
OF_FORWARD = ("max_new_tokens", "generate_kwargs", "ctc_draft", "return_confidence", "languages")
SWITCHES = ("voice_activity", "ctc_draft", "return_confidence")
DEFAULT_CHUNK_LENGTH = 30.0  # seconds, for encoders without a window of their own


def sorted_options(given: Mapping, processor, has_head: bool) -> tuple[dict, dict]:
    """The arguments of a call, checked: those of `preprocess` and those of `_forward`, without what is None.

    Args:
        given: as [`PARTPipeline`] describes them.
        processor: the model's [`PARTProcessor`].
        has_head: whether the model has an alignment head.

    Raises:
        TypeError: there is no such argument.
        ValueError: one cannot be what it is.
    """
    options = {name: value for name, value in given.items() if name not in ("return_timestamps", "ignore_warning")}
    if unknown := sorted(set(options) - {*OF_PREPROCESS, *OF_FORWARD}):
        known = [*OF_PREPROCESS, *OF_FORWARD, "return_timestamps"]
        raise TypeError(f"Unknown options {unknown}; the pipeline takes {known}.")
    preprocess = {name: options.get(name) for name in OF_PREPROCESS}
    preprocess["context"] = one_context(preprocess["context"])
    if listed := [name for name in OF_A_ROW if isinstance(preprocess[name], (list, tuple))]:
        raise ValueError(f"{listed} are lists: those are for a call with a list of inputs; give one value here.")
    for name in SWITCHES:
        if not isinstance(options.get(name), (bool, type(None))):
            raise ValueError(f"`{name}` is {options[name]!r}; give True or False.")
    forward = {name: options.get(name) for name in OF_FORWARD}
    if options.get("languages") is not None:
        forward["languages"] = known_languages(processor, options["languages"])
    _check_generation(options.get("max_new_tokens"), options.get("generate_kwargs"))
    forward["with_words"] = _with_words(given.get("return_timestamps"), has_head)
    preprocess, forward = (
        {name: value for name, value in part.items() if value is not None} for part in (preprocess, forward)
    )
    return preprocess, forward


def _check_generation(most: object, generate_kwargs: object) -> None:
    """Refuse what `generate` cannot be given through the pipeline."""
    if not isinstance(generate_kwargs, (dict, type(None))):
        raise ValueError(f"`generate_kwargs` is {generate_kwargs!r}; give a dict of arguments of `generate`.")
    if most is not None and (isinstance(most, bool) or not isinstance(most, int)):
        raise ValueError(f"`max_new_tokens` is {most!r}; give a whole number of tokens.")
    given = generate_kwargs or {}
    if of_whisper := {"language", "task"} & set(given):
        raise ValueError(
            f"`generate_kwargs` hold {sorted(of_whisper)}, which are Whisper's: give `task`, `source_lang` and "
            "`target_lang` to the pipeline, as codes such as 'fr'."
        )
    of_config = getattr(given.get("generation_config"), "num_return_sequences", None)
    if (given.get("num_return_sequences", of_config) or 1) != 1:
        raise ValueError(
            "The pipeline gives one text per recording; for n-best lists call `model.generate` with "
            "`num_return_sequences`, `return_dict_in_generate=True` and `output_scores=True`."
        )


def _with_words(return_timestamps: object, has_head: bool) -> bool | None:
    """Whether words get times; None where nothing is said of it."""
    if return_timestamps not in (None, False, True, "word"):
        raise ValueError(
            f"`return_timestamps` is {return_timestamps!r}; PART gives the times of windows (True) or words ('word')."
        )
    if return_timestamps == "word" and not has_head:
        raise ValueError(
            "`return_timestamps='word'` needs a checkpoint with an alignment head, as the recipe part_aligned trains "
            "it; this one has none."
        )
    return None if return_timestamps is None else return_timestamps == "word"


def window_samples(
    chunk_length_s: float | None, stride_length_s: float | tuple[float, float] | None, rate: int, longest: int | None
) -> tuple[int, int]:
    """Longest window and overlap, in samples.

    Args:
        chunk_length_s, stride_length_s: see [`PARTPipeline`].
        rate: that the encoder hears, Hz.
        longest: samples of the encoder's own window, where it has one.

    Raises:
        ValueError: there are no such windows.
    """
    if chunk_length_s is None:
        chunk_length_s = DEFAULT_CHUNK_LENGTH if longest is None else longest / rate
    strides = stride_length_s if isinstance(stride_length_s, (list, tuple)) else [stride_length_s] * 2
    numbers = [chunk_length_s, *(stride for stride in strides if stride_length_s is not None)]
    if len(strides) != 2 or any(isinstance(one, bool) or not isinstance(one, Real) for one in numbers):
        raise ValueError(
            f"`chunk_length_s` is {chunk_length_s!r} and `stride_length_s` {stride_length_s!r}: give seconds, and of "
            "the second one number, or the left one and the right one."
        )
    if stride_length_s is None:
        strides = [chunk_length_s / 12] * 2
    step = chunk_length_s - sum(strides)  # a recording in steps of a few samples would never be at its end
    if not (chunk_length_s < float("inf") and min(strides) >= 0 and step >= MINIMUM_SECONDS):
        raise ValueError(
            f"`chunk_length_s` is {chunk_length_s} and `stride_length_s` {stride_length_s}: the first must be "
            f"{MINIMUM_SECONDS} or more and the second at least 0 and less than half of the first (of two: their sum less "
            f"than it), so that each window begins {MINIMUM_SECONDS} s or more after the one before."
        )
    if longest is not None and round(chunk_length_s * rate) > longest:
        raise ValueError(
            f"`chunk_length_s` is {chunk_length_s}, longer than the encoder's window of {longest / rate:g} s; "
            "lower it or leave it out."
        )
    return round(chunk_length_s * rate), round(sum(strides) * rate)


__all__ = ["OF_A_ROW", "sorted_options", "window_samples"]
