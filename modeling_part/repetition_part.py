# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Answers that end in a loop: greedy decoding that says the same again and again until no more tokens are allowed.

Whisper knows such answers by how well they compress; here the answer has no end token, and its last tokens repeat.
"""

from collections.abc import Sequence


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


__all__ = ["cut_loops", "loop_start"]
