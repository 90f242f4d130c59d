# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""When each word was said: the text of a window aligned with its audio tokens by the alignment head."""

import logging
import math
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from .alignment_part import AlignedText
from .confidence_part import overall
from .windows_part import merge_units, overlap_share, split_units


logger = logging.getLogger(__name__)
FRAME = 0.01  # seconds of sound of which one level is taken


class TokenClock(NamedTuple):
    """When audio tokens are heard, from the convolutions between the waveform and them."""

    step: float  # seconds from one to the next
    first: float  # the middle of the first one, in seconds

    @classmethod
    def of(cls, processor) -> "TokenClock":
        """That of a [`PARTProcessor`]."""
        stride, first = 1, 0.0
        for kernel, own, padding in processor.audio_token_convolutions:
            first += ((kernel - 1) / 2 - padding) * stride
            stride *= own
        return cls(stride / processor.feature_rate, first / processor.feature_rate)


def word_times(aligned: AlignedText, processor, waveform: np.ndarray) -> list[tuple[float, float]]:
    """Start and end of each unit of a text, see [`split_units`].

    The most probable CTC path of the text's tokens gives each token the audio tokens at which it is emitted. A token of
    several characters is spread evenly over them, a character of several tokens (of a byte-level tokenizer) takes their
    whole span. The sound then says where the words between silences begin and end, see [`fit_to_sound`].

    Args:
        aligned: see [`align_text`].
        processor: the model's [`PARTProcessor`].
        waveform: `(samples,)` of the window, at the processor's rate.

    Returns:
        Seconds from the window's beginning, in order; NaN for all of a text without path.
    """
    units = split_units(aligned.text)
    if aligned.path is None:
        if units:
            logger.warning(
                "The words of %r get no times: it has more tokens than there are audio tokens.", aligned.text
            )
        return [(math.nan, math.nan)] * len(units)
    clock, seconds = TokenClock.of(processor), len(waveform) / processor.sampling_rate
    of_characters = _character_times(aligned.text, aligned.offsets, token_times(aligned.path, clock, seconds))
    return fit_to_sound(_unit_times(units, of_characters), clock.step, sound_levels(waveform, processor.sampling_rate))


def token_times(path: Sequence[int], clock: TokenClock, seconds: float) -> np.ndarray:
    """`(tokens, 2)` seconds in which each token of a CTC path is said, by the audio tokens that emit it."""
    emitted = np.array(path)
    tokens = int(emitted.max()) + 1
    spans = np.array([np.flatnonzero(emitted == token)[[0, -1]] for token in range(tokens)])
    times = clock.first + clock.step * (spans + np.array([-0.5, 0.5]))
    return times.clip(0.0, seconds)


def _character_times(text: str, offsets: Sequence[tuple[int, int]], of_tokens: np.ndarray) -> np.ndarray:
    """`(characters, 2)` seconds; NaN where no token is, and for spaces."""
    times = np.full((len(text), 2), np.nan)
    for (first, last), (start, end) in zip(offsets, of_tokens, strict=True):
        places = [place for place in range(first, last) if not text[place].isspace()]
        edges = np.linspace(start, end, len(places) + 1)
        for place, span in zip(places, pairwise(edges), strict=True):
            times[place] = np.fmin(times[place][0], span[0]), np.fmax(times[place][1], span[1])
    return times


def _unit_times(units: Sequence[str], of_characters: np.ndarray) -> list[tuple[float, float]]:
    """From the first to the last character of each unit; one without any takes the moment before it."""
    times, place, previous = [], 0, 0.0
    for unit in units:
        inside = of_characters[place : place + len(unit)]
        place += len(unit)
        known = inside[~np.isnan(inside[:, 0])]
        times.append((float(known[:, 0].min()), float(known[:, 1].max())) if len(known) else (previous, previous))
        previous = times[-1][1]
    return times


def sound_levels(waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Peak of every [`FRAME`] of a waveform."""
    length = round(FRAME * sampling_rate)
    whole = np.abs(waveform[: max(1, len(waveform) // length) * length])
    return np.pad(whole, (0, -len(whole) % length)).reshape(-1, length).max(1)


def fit_to_sound(emitted: Sequence[tuple[float, float]], step: float, levels: np.ndarray) -> list[tuple[float, float]]:
    """Move the times at which words are emitted to where they are heard to begin and end.

    CTC emits a word once it has heard enough of it, and falls silent before its end. So a word begins at the end of the
    silence before it, if there is one close by, else an audio token before the first that emits it; and it ends where a
    silence begins, else with the next word, or half a second after the last audio token that emits it.

    Silent is what is 30 dB below the word's peak, or 12 dB below it and hardly louder than the quietest tenth of the
    window, which is noise.

    Args:
        emitted: seconds, of words in order.
        step: seconds of an audio token.
        levels: see [`sound_levels`].
    """
    noise = 1.5 * np.quantile(levels, 0.1)
    peaks = [levels[_frame(start - 0.1) : _frame(end + 0.1)].max(initial=0.0) for start, end in emitted]
    loud = [levels >= max(0.03 * peak, min(noise, 0.25 * peak)) for peak in peaks]
    starts, before = [], 0.0
    for (start, end), is_loud in zip(emitted, loud, strict=True):
        inside = min(start + step / 2, (start + end) / 2)
        starts.append(max(before, _onset(is_loud, max(before, inside - 0.3), inside, start - step / 2)))
        before = end
    times = []
    for (_, end), start, following, is_loud in zip(
        emitted, starts, [*starts[1:], len(levels) * FRAME], loud, strict=True
    ):
        inside = max(start, end - step / 2)
        times.append((start, max(inside, min(following, _offset(is_loud, inside, following)))))
    return times


def _onset(is_loud: np.ndarray, earliest: float, latest: float, otherwise: float) -> float:
    """The end of the last silence of 50 ms in a span, which may reach into it from its beginning."""
    first, last = _frame(earliest), min(_frame(latest), len(is_loud) - 1)
    quiet = 0
    for frame in range(last, first - 1, -1):
        quiet = 0 if is_loud[frame] else quiet + 1
        if quiet * FRAME >= 0.05 or (quiet and frame == 0):
            return min(latest, (frame + quiet) * FRAME)
    return max(earliest, otherwise)


def _offset(is_loud: np.ndarray, earliest: float, latest: float) -> float:
    """The beginning of the first silence of 100 ms in a span, which may reach to its end; else half a second at most."""
    quiet = 0
    for frame in range(_frame(earliest), min(_frame(latest), len(is_loud))):
        quiet = 0 if is_loud[frame] else quiet + 1
        if quiet * FRAME >= 0.1:
            return (frame + 1 - quiet) * FRAME
    return min(latest - quiet * FRAME, earliest + 0.5)


def _frame(time: float) -> int:
    return max(0, round(time / FRAME))


def word_chunks(outputs: Sequence[Mapping]) -> list[dict]:
    """The words of a recording, as Whisper's pipeline gives them.

    Args:
        outputs: of its windows in order: `text`; `span`, start and end in seconds; `words`, see [`word_times`]; maybe
            `confidence`, see `confidence_part`.

    Returns:
        `{"text": " word", "timestamp": (start, end)}` in seconds of the recording, starts and ends in order: words of
        scripts with spaces, characters of those without, punctuation with its neighbour. Joined, they are the text.
        (None, None) where a window's words have no times. With confidence, also that of the word.
    """
    merged = merge_units([output["text"] for output in outputs], overlap_share([output["span"] for output in outputs]))
    words: list[list] = []
    is_open = False
    for unit, window, place in merged:
        output = outputs[window]
        start, end = (output["span"][0] + time for time in output["words"][place])
        known = [unit, start, end, output["confidence"][place] if "confidence" in output else None]
        if words and (is_open or (not _has_letters(unit) and not _opens(unit))):  # to its neighbour
            words[-1] = [words[-1][0] + unit, *(known if is_open else words[-1])[1:]]
        else:
            words.append(known)
        is_open = _opens(unit) or (is_open and not _has_letters(unit))
    chunks = []
    for (text, *_, confidence), times in zip(words, _in_order([word[1:3] for word in words]), strict=True):
        times = tuple(None if math.isnan(time) else round(time, 3) for time in times)
        chunks.append({"text": text, "timestamp": times})
        if confidence is not None:
            chunks[-1]["confidence"] = overall([confidence])
    return chunks


def _in_order(times: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """No word begins before the one before it, or ends after the next one begins: windows may disagree at their seam."""
    starts, ends = np.array(times, dtype=float).reshape(-1, 2).T
    known = ~np.isnan(starts)
    starts[known] = np.maximum.accumulate(starts[known])
    following = np.append(starts[known][1:], np.inf)
    ends[known] = np.clip(ends[known], starts[known], following)
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def _has_letters(unit: str) -> bool:
    return any(unicodedata.category(character)[0] in "LMNS" for character in unit)


def _opens(unit: str) -> bool:
    """Whether it is an opening bracket or quotation mark, which belongs to what follows."""
    return all(unicodedata.category(character) in ("Ps", "Pi") for character in unit.strip())


__all__ = ["TokenClock", "fit_to_sound", "sound_levels", "token_times", "word_chunks", "word_times"]
