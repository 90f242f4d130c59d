# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Windows in which nothing is said: a language model that is asked what it hears there makes something up."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from .alignment_part import PARTAlignmentHead, clip_embeds


# Of full scale. -80 dB is three steps of 16 bits, the dither of a recording of nothing. Below -40 dB it is asked whether the sound is
# steady, and what the head hears; what is louder is never left out: a head that knows few voices is sure to hear nothing in others.
LOUDEST, FAINT = 1e-4, 1e-2
LEAST_PROBABILITY = 0.5
# A room's noise and hum stay within 10 dB; speech has at least the pauses between its sounds.
FRAME_SECONDS, STEADY, LEAST_FRAMES = 0.01, 10**0.5, 20


def is_silence(waveform: np.ndarray) -> bool:
    """Whether no sample of `(samples,)` is louder than the dither of an empty recording."""
    return _loudest(waveform) < LOUDEST


def _loudest(waveform: np.ndarray) -> float:
    return float(np.abs(waveform).max(initial=0.0))


def is_steady(waveform: np.ndarray, sampling_rate: int) -> bool:
    """Whether the loudest hundredth of a second of `(samples,)` is hardly louder than the quietest tenth of them: noise or hum."""
    length = round(FRAME_SECONDS * sampling_rate)
    frames = waveform[: len(waveform) // length * length].reshape(-1, length).astype(np.float64)
    if len(frames) < LEAST_FRAMES:
        return False
    levels = np.sqrt((frames**2).mean(1))
    return float(levels.max()) <= STEADY * float(np.quantile(levels, 0.1))


@torch.no_grad()
def hears_nothing(head: PARTAlignmentHead, audio_embeds: torch.Tensor, embeddings: torch.Tensor) -> bool:
    """Whether CTC gives more than half of all probability to the empty text, for which every audio token is blank.

    A head that is hardly trained writes blanks, too, but is not sure of each of them. A token that is more probable than the
    blank at one place settles it, without the sum over the vocabulary.

    Args:
        head: of the model.
        audio_embeds: `(A, H)` of a window.
        embeddings: `(V, H)` token embeddings.
    """
    if bool((head.best_tokens(audio_embeds, embeddings, head.known_tokens()) >= 0).any()):
        return False
    blank = head.log_probs(audio_embeds, audio_embeds.new_zeros(0, dtype=torch.long), embeddings)[:, 0]
    return float(blank.sum()) > math.log(LEAST_PROBABILITY)


def silent_windows(
    model, inputs: Mapping, known: Sequence[bool], waveforms: Sequence[np.ndarray | None], sampling_rate: int
) -> list[bool]:
    """In which windows of a batch nothing is said: those of which it is known, and faint ones.

    Of these the ones that are steady, and those in which the head hears nothing.

    Args:
        model: a `PARTForSpeechSeq2Seq`; without an alignment head nothing is asked of it.
        inputs: prompts with `mm_encoder_outputs`, as for `generate`.
        known: of each window.
        waveforms: `(samples,)` of each window; None of rows without.
        sampling_rate: of these, Hz.
    """
    faint = [clip is not None and _loudest(clip) < FAINT for clip in waveforms]
    silent = [
        nothing or (is_faint and is_steady(clip, sampling_rate))
        for nothing, is_faint, clip in zip(known, faint, waveforms, strict=True)
    ]
    if model.alignment_head is None or all(silent):
        return silent
    with model.loaded_alignment_head() as (head, embeddings):
        return [
            nothing or (is_faint and hears_nothing(head, embeds, embeddings))
            for nothing, is_faint, embeds in zip(silent, faint, clip_embeds(model, inputs), strict=True)
        ]


__all__ = ["hears_nothing", "is_silence", "is_steady", "silent_windows"]
