# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Answers without an end: greedy decoding that says the same again and again until no more tokens are allowed, or had more to say.

Whisper knows the first by how well they compress; here the answer has no end token, and its last tokens repeat.
"""

from collections.abc import Mapping, Sequence


# So many tokens in a row that repeat what stands before them, four times or more, are no speech.
LEAST_TOKENS = 16
LEAST_TIMES = 4
LONGEST_PHRASE = 64


def loop_start(ids: Sequence[int]) -> int | None:
    """Where an answer without an end begins to say once more what it has just said; None where it does not.

    Args:
        ids: tokens of the answer, up to the limit.

    Returns:
        How many tokens to keep: those before the loop, and the phrase of the loop once.

    >>> loop_start([7, 8, *[1, 2] * 10])
    4
    """
    for phrase in range(1, min(LONGEST_PHRASE, len(ids) // LEAST_TIMES) + 1):
        at = len(ids) - 1
        while at >= phrase and ids[at] == ids[at - phrase]:
            at -= 1
        repeated = len(ids) - 1 - at + phrase  # with the first time
        if repeated >= max(LEAST_TOKENS, LEAST_TIMES * phrase):
            return at + 1
    return None


def cut_loops(answers: Sequence[Sequence[int]], end_ids: set[int]) -> tuple[list[list[int]], list[bool]]:
    """Answers without their loops, and which had one; answers that have an end stay as they are.

    Args:
        answers: generated tokens, with padding after the end.
        end_ids: tokens that end an answer.
    """
    kept, looped = [], []
    for ids in answers:
        start = None if end_ids.intersection(ids) else loop_start(ids)
        kept.append(list(ids[:start]))
        looped.append(start is not None)
    return kept, looped


def cut_off(answers: Sequence[Sequence[int]], end_ids: set[int], limit: int) -> list[bool]:
    """Which answers were ended by the limit of tokens, not by themselves or by what else the caller stops them.

    Args:
        answers: generated tokens, with padding after the end.
        end_ids: see [`end_ids`].
        limit: see [`token_limit`].
    """
    return [len(ids) >= max(limit, 1) and not end_ids.intersection(ids) for ids in answers]


def end_ids(settings) -> set[int]:
    """Tokens that end an answer, or fill the room behind its end, by the `GenerationConfig` that `generate` went by."""
    ends = settings.eos_token_id if isinstance(settings.eos_token_id, (list, tuple)) else [settings.eos_token_id]
    return {token for token in (*ends, settings.pad_token_id) if token is not None}


def token_limit(settings, prompt: int, positions: int | None) -> int:
    """How many tokens an answer may have after `prompt` of them.

    Args:
        settings: see [`end_ids`].
        prompt: tokens before the answer.
        positions: that the language model has learned; None: there is no end to them.
    """
    most = settings.max_new_tokens
    if most is None:
        most = (settings.max_length or 0) - prompt  # below 0: transformers' own default of 20
    return most if positions is None else min(most, positions - prompt)


def remarks(answer: Mapping, offset: float = 0.0) -> list[str]:
    """What is to be said of an answer that has `"repetitions"`, or was `"cut_off"`, a sentence each.

    Args:
        answer: of [`PARTPipeline`].
        offset: seconds of a recording before what the answer heard.

    >>> remarks({"text": "one", "cut_off": [(0.0, 30.0)]})
    ['The text between 0.0 and 30.0 s was cut off at its limit of tokens (`max_new_tokens`).']
    """
    said = []
    for name, what, how in (
        ("repetitions", "A repetition without end", "was cut"),
        ("cut_off", "The text", "was cut off at its limit of tokens (`max_new_tokens`)"),
    ):
        for span in answer.get(name, ()):
            where = "" if span is None else f" between {span[0] + offset:.1f} and {span[1] + offset:.1f} s"
            said.append(f"{what}{where} {how}.")
    return said


__all__ = ["cut_loops", "cut_off", "end_ids", "loop_start", "remarks", "token_limit"]
