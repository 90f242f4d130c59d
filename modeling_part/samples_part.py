# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Arrays, tensors and decoders -> mono samples and their rate."""

import math
from collections.abc import Mapping

import numpy as np

from .formats_part import to_mono


LOWEST_RATE, HIGHEST_RATE = 1000, 1_000_000  # Hz; outside it is no speech, and resampling would take for ever
QUIETEST = 2.0**-15  # of full scale: 32-bit integers below it hold 16-bit samples


class AudioError(ValueError):
    """Audio that cannot be used. The message names the file and the fix; `reason` is the same for all such files."""

    def __init__(self, message: str, reason: str = "audio cannot be read") -> None:
        super().__init__(message)
        self.reason = reason


def check_rate(rate: float, name: str) -> int:
    """A sampling rate as an integer; `AudioError` if it is none that speech could have."""
    rate = rate.item() if hasattr(rate, "item") and np.ndim(rate) == 0 else rate  # data loaders make arrays of numbers
    whole = isinstance(rate, (int, float)) and math.isfinite(rate) and rate == int(rate)
    if not whole or not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise AudioError(
            f"{name} has a sampling rate of {rate!r} Hz; it must be a whole number from {LOWEST_RATE} on.",
            "sampling rate is impossible",
        )
    return int(rate)


def samples_of(audio: object, array_rate: float | None = None) -> tuple[np.ndarray | None, float | None]:
    """Mono samples and their rate (None: not known), or two Nones for what is not yet decoded.

    Args:
        audio: as [`load_audio`] takes it.
        array_rate: of arrays that do not come with their own, Hz.

    Raises:
        AudioError: it is an array that holds no sound, or a mapping with one and without its rate.
    """
    own_rate = None
    if hasattr(audio, "get_all_samples"):  # torchcodec's AudioDecoder, which datasets gives
        try:
            decoded = audio.get_all_samples()
        except (RuntimeError, ValueError, OSError) as error:
            raise AudioError(
                f"The {type(audio).__name__} cannot decode its clip: {error}. Remove or fix it."
            ) from error
        audio, own_rate = decoded.data, decoded.sample_rate
    elif isinstance(audio, Mapping) and audio.get("array") is not None:
        audio, own_rate = audio["array"], audio.get("sampling_rate")
        if own_rate is None and array_rate is None:
            raise AudioError(
                "An audio dict with an array needs its `sampling_rate` in Hz.", "array without a sampling rate"
            )
        audio = _array_of(audio) if isinstance(audio, (list, tuple)) else audio
    if hasattr(audio, "detach") or isinstance(audio, np.ndarray):
        audio = _array_of(audio)
    else:
        return None, None
    if audio.ndim not in (1, 2):
        raise AudioError(f"Audio array of shape {audio.shape}; give (samples,) or (channels, samples).")
    if audio.size == 0:
        raise AudioError("The audio is empty (0 samples). Remove the clip.", "audio without samples")
    samples = _full_scale(audio)
    if samples.ndim == 2:
        samples = to_mono(samples if samples.shape[0] > samples.shape[1] else samples.T)  # channels: the shorter axis
    return samples, array_rate if own_rate is None else own_rate


def _array_of(values: object) -> np.ndarray:
    """A list, a tensor or an array (a matrix of numpy, which is one) as a plain array."""
    try:
        if hasattr(values, "detach"):  # numpy has no bfloat16
            values = values.detach().cpu()
            values = (values.float() if values.is_floating_point() else values).numpy()
        values = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # sparse, without storage, lists of unequal lengths
        raise AudioError(
            f"The audio makes no array of samples: {error}. Give (samples,) or (channels, samples)."
        ) from error
    return values


def _full_scale(samples: np.ndarray) -> np.ndarray:
    """Floats as they are, and integers of 8, 16 or 32 bits (unsigned: centred on half their range) in [-1, 1]."""
    kind, bits = samples.dtype.kind, 8 * samples.dtype.itemsize
    if kind == "f":
        return samples
    if kind not in "iu" or bits > 32:
        raise AudioError(
            f"Audio array of {samples.dtype}, whose full scale is not known. Give int16, int32, or floats in [-1, 1].",
            "array of a type that is no audio",
        )
    limits = np.iinfo(samples.dtype)
    half = (limits.max - limits.min + 1) / 2
    scaled = (samples - (limits.min + half)) / half
    if bits == 32 and 0 < (peak := np.abs(scaled).max()) < QUIETEST:
        raise AudioError(
            f"The array of {samples.dtype} peaks at {peak:.1e} of its range: 16-bit samples? Convert it to int16.",
            "array of a type that is no audio",
        )
    return scaled


__all__ = ["AudioError", "check_rate", "samples_of"]
