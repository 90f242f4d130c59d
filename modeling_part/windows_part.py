# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Long audio in overlapping windows, and their texts joined again."""

import math
import unicodedata

import numpy as np


# Scripts written without spaces, as (first, last) code point: Thai, Lao, Tibetan, Myanmar, Khmer, CJK (with its
# punctuation, kana, extensions and full-width forms). Their texts are aligned by character, others by word.
UNSPACED_SCRIPTS = (
    (0x0E00, 0x0EFF),
    (0x0F00, 0x109F),
    (0x1780, 0x17FF),
    (0x3000, 0x30FF),
    (0x31F0, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF00, 0xFFEF),
    (0x20000, 0x3FFFF),
)


LEAST_OVERLAP = 0.01  # of a window: less is rounding, or too short for a word


def cut_windows(samples: int, window: int, overlap: int) -> list[tuple[int, int]]:
    """Cut `samples` into the fewest equal windows of at most `window` that overlap by `overlap`.

    The last one overlaps by up to the number of windows more, from rounding. Equal, so that no short tail is left
    without context.

    >>> cut_windows(100, 40, 10)
    [(0, 40), (30, 70), (60, 100)]
    """
    if samples <= window:
        return [(0, samples)]
    count = math.ceil((samples - overlap) / (window - overlap))
    length = math.ceil((samples + (count - 1) * overlap) / count)
    starts = [min(index * (length - overlap), samples - length) for index in range(count)]
    return [(start, start + length) for start in starts]


def overlap_share(spans: list[tuple[float, float]]) -> float:
    """Which part of a window its neighbour hears too, 0 to 1; 0 for less than `LEAST_OVERLAP`."""
    if len(spans) < 2:
        return 0.0
    (_, end), (start, stop) = spans[0], spans[1]
    share = max(0.0, end - start) / (stop - start)  # 0 where they are apart, with silence between
    return share if share >= LEAST_OVERLAP else 0.0


def merge_texts(texts: list[str], share: float = 1.0) -> list[str]:
    """Join the texts of overlapping windows: what two neighbours both heard is kept once.

    The end of the text so far and the beginning of the next are aligned as overlapping strings: a word heard by both
    counts 1, a word that only one heard, or heard differently, costs 1/2; what lies before and after the overlap is
    free, and so are the two words at the windows' edges, which may be cut. Case and punctuation do not matter. The
    seam is put in the middle of the words that agree: the left window hears the beginning of the overlap best, the
    right one its end. Scripts without spaces are aligned by character.

    Limits. Where nothing in the overlap agrees (two different translations of it), the texts are put one after the
    other: rather twice than lost. A word that is said again and again across a seam ("no no no no") can be joined in
    several ways, and the longest agreement within the expected overlap is taken, which may be too long.

    Args:
        texts: of the windows, in order.
        share: part of a window that its neighbour heard too; only twice as many words are aligned.

    Returns:
        The texts without what the neighbour keeps; their concatenation is the whole text.

    >>> merge_texts(["the cat sat on", "sat on the mat."])
    ['the cat sat', ' on the mat.']
    """
    merged = merge_units(texts, share)
    return ["".join(unit for unit, window, _ in merged if window == number) for number in range(len(texts))]


def merge_units(texts: list[str], share: float = 1.0) -> list[tuple[str, int, int]]:
    """The units of the whole text, each with its window and its place among that window's units: see [`merge_texts`].

    >>> merge_units(["the cat sat", "cat sat on"])
    [('the', 0, 0), (' cat', 0, 1), (' sat', 1, 1), (' on', 1, 2)]
    """
    merged: list[str] = []
    origins: list[tuple[int, int]] = []
    previous = 0
    for window, text in enumerate(texts):
        units = split_units(text.strip())
        left, new = join_window(merged, previous, units, share)
        previous = len(units)
        merged[left:] = new
        origins[left:] = [(window, place) for place in range(len(units) - len(new), len(units))]
    return [(unit, *origin) for unit, origin in zip(merged, origins, strict=True)]


def join_window(merged: list[str], previous: int, units: list[str], share: float) -> tuple[int, list[str]]:
    """How many units of the text so far to keep, and what of a window's units follows them.

    Args:
        merged: units of the text so far, of which the last window gave `previous` before they were joined.
        units: of the window.
        share: see [`merge_texts`].
    """
    tail = max(0, len(merged) - math.ceil(2 * share * previous))
    head = math.ceil(2 * share * len(units))
    left, right = _find_seam([unit_key(unit) for unit in merged[tail:]], [unit_key(unit) for unit in units[:head]])
    left += tail
    new = units[right:]
    if new and left == 0:
        new[0] = new[0].lstrip()
    elif new and right == 0 and not (_is_unspaced(merged[left - 1][-1]) or _is_unspaced(new[0][0])):
        new[0] = f" {new[0]}"
    return left, new


def split_units(text: str) -> list[str]:
    """Words with the space before them; single characters (with their marks) of scripts written without spaces.

    >>> split_units("say 你好 now")
    ['say', ' 你', '好', ' now']
    """
    units: list[str] = []
    space = ""
    for character in text:
        if character.isspace():
            space += character
        elif units and not space and _continues(units[-1][-1], character):
            units[-1] += character
        else:
            units.append(space + character)
            space = ""
    return units


def _continues(previous: str, character: str) -> bool:
    """Whether a character belongs to the unit of the one before it."""
    if unicodedata.category(character).startswith("M"):
        return True
    return not (_is_unspaced(previous) or _is_unspaced(character))


def _is_unspaced(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in UNSPACED_SCRIPTS)


def unit_key(unit: str) -> str:
    """What two units must share to agree: letters, marks and digits without case; the whole unit if it has none."""
    unit = unit.strip()
    letters = "".join(character for character in unit if unicodedata.category(character)[0] in "LMN")
    return letters.casefold() or unit


def _find_seam(left: list[str], right: list[str]) -> tuple[int, int]:
    """Align a suffix of `left` with a prefix of `right`: how many units of `left` to keep, how many of `right` to drop.

    Dynamic programming over `(i, j)`, the best score of `left[?:i]` against `right[:j]`.
    """
    # The last word of a window and the first one may be cut by its edge: that they disagree costs nothing.
    left_cost = np.where(np.arange(len(left) + 1) == len(left), 0.0, 0.5)
    right_cost = np.where(np.arange(len(right) + 1) <= 1, 0.0, 0.5)
    score = np.zeros((len(left) + 1, len(right) + 1))
    score[0] = -np.cumsum(right_cost)
    came_from = np.zeros(score.shape, dtype=np.int8)  # 1: a unit of both, 2: one of left, 3: one of right
    came_from[0] = 3
    for i in range(1, len(left) + 1):
        for j in range(1, len(right) + 1):
            both = 1.0 if left[i - 1] == right[j - 1] else -min(left_cost[i], right_cost[j])
            steps = (score[i - 1, j - 1] + both, score[i - 1, j] - left_cost[i], score[i, j - 1] - right_cost[j])
            best = max(range(3), key=steps.__getitem__)
            score[i, j], came_from[i, j] = steps[best], best + 1
    i, j = len(left), int(score[len(left)].argmax())
    pairs = []
    while j > 0:
        step = came_from[i, j]
        if step == 1 and left[i - 1] == right[j - 1]:
            pairs.append((i - 1, j - 1))
        i, j = i - (step in (1, 2)), j - (step in (1, 3))
    if not pairs:
        return len(left), 0
    return pairs[(len(pairs) - 1) // 2]  # from the end: the middle pair, the right one of two
