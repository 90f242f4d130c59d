# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Windows in which nothing is said: a language model that is asked what it hears there makes something up."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from .alignment_part import PARTAlignmentHead, clip_embeds


# Of full scale. -80 dB is three steps of 16 bits, the dither of a recording of nothing. Below -40 dB the head is asked; what is
# louder is never left out: a head that knows few voices is sure to hear nothing in others.
LOUDEST, FAINT = 1e-4, 1e-2
LEAST_PROBABILITY = 0.5


def is_silence(waveform: np.ndarray) -> bool:
    """Whether no sample of `(samples,)` is louder than the dither of an empty recording."""
    return _loudest(waveform) < LOUDEST


def _loudest(waveform: np.ndarray) -> float:
    return float(np.abs(waveform).max(initial=0.0))


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
    model, inputs: Mapping, known: Sequence[bool], waveforms: Sequence[np.ndarray | None]
) -> list[bool]:
    """In which windows of a batch nothing is said: those of which it is known, and faint ones in which the head hears nothing.

    Args:
        model: a `PARTForSpeechSeq2Seq`; without an alignment head only what is known is.
        inputs: prompts with `mm_encoder_outputs`, as for `generate`.
        known: of each window.
        waveforms: `(samples,)` of each window; None of rows without.
    """
    if model.alignment_head is None or all(known):
        return list(known)
    with model.loaded_alignment_head() as (head, embeddings):
        return [
            nothing or (clip is not None and _loudest(clip) < FAINT and hears_nothing(head, embeds, embeddings))
            for nothing, clip, embeds in zip(known, waveforms, clip_embeds(model, inputs), strict=True)
        ]


__all__ = ["hears_nothing", "is_silence", "silent_windows"]
