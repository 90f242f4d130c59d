# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Augmentation of training audio: speed, noise, loudness and codec on the waveform, masks on the features.

Everything is drawn from a `numpy.random.Generator` that the caller makes for each row with `row_generator`, so what
happens to a row depends neither on the number of workers nor on what was augmented before it.
"""

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import soxr
import torch

from ..recipes.values import checked_fields


if TYPE_CHECKING:
    import audiomentations


FRAME_RATE = 100  # of Whisper's features, Hz


def row_generator(seed: int, *keys: int | str) -> np.random.Generator:
    """The random numbers of one row, the same on every machine: `row_generator(seed, epoch, row["id"])`."""
    digest = hashlib.blake2b(repr(keys).encode(), digest_size=16).digest()
    return np.random.default_rng([seed, int.from_bytes(digest, "little")])


@dataclass(frozen=True)
class SpecAugment:
    """Masks of SpecAugment (Park et al. 2019, arXiv:1904.08779; policy LD without time warping).

    Attributes:
        mel_masks: masks over mel bins.
        max_mel_share: widest mel mask, share of the bins (27 of 80 in the paper).
        time_masks: masks over time.
        max_time_share: widest time mask, share of the clip, so that short clips are not erased.
        max_time_frames: widest time mask, hundredths of a second: frames of Whisper, of which other features stack several.
    """

    mel_masks: int = 2
    max_mel_share: float = 0.34
    time_masks: int = 2
    max_time_share: float = 0.2
    max_time_frames: int = 100

    def __post_init__(self) -> None:
        checked_fields(vars(self), SpecAugment, "`augmentation.spec_augment`: ")


@dataclass(frozen=True)
class WaveformAugment:
    """Noise, loudness and mp3 coding through `audiomentations`, each with its own probability.

    Attributes:
        noise_probability: of white noise.
        min_snr_db: loudest noise, dB of signal to noise; drawn uniformly up to `max_snr_db`.
        max_snr_db: quietest noise.
        gain_probability: of another loudness.
        max_gain_db: the gain is uniform in plus and minus this many dB.
        codec_probability: of coding to mp3 and back.
        min_bitrate: kbit/s of the mp3; drawn from its bit rates up to `max_bitrate`.
        max_bitrate: see `min_bitrate`.
    """

    noise_probability: float = 0.3
    min_snr_db: float = 5.0
    max_snr_db: float = 40.0
    gain_probability: float = 0.3
    max_gain_db: float = 12.0
    codec_probability: float = 0.1
    min_bitrate: int = 16
    max_bitrate: int = 64

    def __post_init__(self) -> None:
        checked_fields(vars(self), WaveformAugment, "`augmentation.waveform`: ")
        for least, most in (("min_snr_db", "max_snr_db"), ("min_bitrate", "max_bitrate")):
            if getattr(self, least) > getattr(self, most):
                raise ValueError(f"`augmentation.waveform`: `{least}` is above `{most}`.")


@dataclass(frozen=True)
class Augmentation:
    """What training does to audio and features; everything is off by default.

    Attributes:
        spec_augment: masks on the features.
        speeds: factors of speed and pitch from 0.5 to 2, one of which is drawn per row, such as `(0.9, 1.0, 1.1)`.
        max_seconds: a speed that would make the audio longer than this is not drawn (Whisper's window).
        waveform: noise, loudness and codec; needs the `augment` extra.
    """

    spec_augment: SpecAugment | None = None
    speeds: tuple[float, ...] = ()
    max_seconds: float = 30.0
    waveform: WaveformAugment | None = None

    def __post_init__(self) -> None:
        checked_fields(vars(self), Augmentation, "`augmentation`: ")
        if self.waveform is not None:
            _waveform_transforms(self.waveform)  # fails now rather than in a worker if the extra is missing

    def augment_waveform(self, audio: np.ndarray, sampling_rate: int, generator: np.random.Generator) -> np.ndarray:
        """Speed, then noise, loudness and codec.

        Args:
            audio: `(samples,)`, float32.
            sampling_rate: of `audio` and of the result.
            generator: of this row, see `row_generator`.

        Returns:
            `(samples / speed,)`, float32; `audio` itself is left as it is.
        """
        if self.speeds:
            seconds = len(audio) / sampling_rate
            speeds = [speed for speed in self.speeds if speed >= 1.0 or seconds / speed <= self.max_seconds]
            # drawn even where there is no choice, so that what follows does not depend on the length
            draw = generator.random()
            if speeds:
                audio = change_speed(audio, sampling_rate, speeds[int(draw * len(speeds))])
        if self.waveform is not None:
            audio = _apply_waveform(self.waveform, audio, sampling_rate, generator)
        return audio

    def augment_features(
        self,
        features: np.ndarray | torch.Tensor,
        generator: np.random.Generator,
        time_axis: int = -1,
        stacked: int = 1,
        feature_rate: float = FRAME_RATE,
        length: int | None = None,
    ) -> np.ndarray | torch.Tensor:
        """SpecAugment on the features of one row.

        Args:
            features: `(mel bins, frames)`, or `(frames, mel bins)` with `time_axis=0`; numpy or torch.
            generator: of this row, see `row_generator`.
            time_axis: which axis is time.
            stacked: how many frames stand side by side in each, the bins of one after those of the other.
            feature_rate: frames, stacked as they are, of a second.
            length: frames of the clip, where padding to a window follows them. Default: all.

        Returns:
            a masked copy of the same kind and shape; masked entries are the mean of the clip.
        """
        if self.spec_augment is None:
            return features
        return mask_features(features, self.spec_augment, generator, time_axis, stacked, feature_rate, length)


def change_speed(audio: np.ndarray, sampling_rate: int, speed: float) -> np.ndarray:
    """Plays `(samples,)` `speed` times as fast, tempo and pitch together: `(samples / speed,)`, float32.

    As in Ko et al. 2015, "Audio augmentation for speech recognition".
    """
    if speed == 1.0:
        return audio
    return soxr.resample(audio, sampling_rate * speed, sampling_rate).astype(np.float32)


def mask_features(
    features: np.ndarray | torch.Tensor,
    settings: SpecAugment,
    generator: np.random.Generator,
    time_axis: int = -1,
    stacked: int = 1,
    feature_rate: float = FRAME_RATE,
    length: int | None = None,
) -> np.ndarray | torch.Tensor:
    """A copy of two-dimensional `features` with random stretches of bins and of the first `length` frames set to their mean."""
    if features.ndim != 2:
        raise ValueError(f"Features of one row have two axes, got the shape {tuple(features.shape)}")
    masked = features.clone() if isinstance(features, torch.Tensor) else features.copy()
    by_time = masked.T if time_axis % 2 == 0 else masked  # a view: (bins, frames)
    by_time = by_time[:, : max(1, length)] if length is not None else by_time
    mean = by_time.mean()
    bins, frames = by_time.shape[0] // stacked, by_time.shape[1]
    for _ in range(settings.mel_masks):
        start, end = _stretch(bins, int(settings.max_mel_share * bins), generator)
        for first in range(0, stacked * bins, bins):  # the same frequencies in every frame of a stack
            by_time[first + start : first + end] = mean
    for _ in range(settings.time_masks):
        longest = round(settings.max_time_frames * feature_rate / FRAME_RATE)
        widest = min(int(settings.max_time_share * frames), longest)
        start, end = _stretch(frames, widest, generator)
        by_time[:, start:end] = mean
    return masked


def _stretch(length: int, widest: int, generator: np.random.Generator) -> tuple[int, int]:
    width = int(generator.integers(0, widest + 1))
    start = int(generator.integers(0, length - width + 1))
    return start, start + width


@lru_cache
def _waveform_transforms(settings: WaveformAugment) -> "audiomentations.Compose":
    try:
        import audiomentations
        import fast_mp3_augment  # noqa: F401 (what Mp3Compression codes with)
    except ImportError as error:
        raise ImportError(
            f"Augmentation with noise, gain and codec needs the package {error.name}: pip install .[augment]"
        ) from error
    return audiomentations.Compose(
        [
            audiomentations.AddGaussianSNR(settings.min_snr_db, settings.max_snr_db, p=settings.noise_probability),
            audiomentations.Gain(-settings.max_gain_db, settings.max_gain_db, p=settings.gain_probability),
            audiomentations.Mp3Compression(settings.min_bitrate, settings.max_bitrate, p=settings.codec_probability),
        ]
    )


def _apply_waveform(
    settings: WaveformAugment, audio: np.ndarray, sampling_rate: int, generator: np.random.Generator
) -> np.ndarray:
    """Audiomentations draws from the global generators of Python and numpy: seeded for the call, then put back."""
    transforms = _waveform_transforms(settings)
    python_state, numpy_state = random.getstate(), np.random.get_state()
    seed = int(generator.integers(2**32))
    random.seed(seed)
    np.random.seed(seed)
    try:
        return np.asarray(transforms(samples=audio, sample_rate=sampling_rate), dtype=np.float32)
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def build_augmentation(settings: Mapping | None) -> Augmentation | None:
    """A recipe's `augmentation` mapping, such as `{speeds: [0.9, 1.0, 1.1], spec_augment: {time_masks: 2}}`.

    Raises:
        ValueError: a key is unknown, or a value is not as it must be; the message names it.
    """
    if not settings:
        return None
    built = _settings_of(settings, "augmentation", Augmentation, without=("spec_augment", "waveform"))
    for name, kind in (("spec_augment", SpecAugment), ("waveform", WaveformAugment)):
        if settings.get(name) is not None:
            built[name] = kind(**_settings_of(settings[name], f"augmentation.{name}", kind))
    return Augmentation(**built | {"speeds": tuple(built.get("speeds", ()))})


def _settings_of(settings: object, name: str, kind: type, without: tuple[str, ...] = ()) -> dict:
    """What a recipe says of a class, but for some fields; ValueError for what it has not or what cannot be."""
    if not isinstance(settings, Mapping):
        raise ValueError(f"`{name}` is {settings!r}; it must be a mapping, such as {{}} for its defaults.")
    return checked_fields({key: settings[key] for key in settings if key not in without}, kind, f"`{name}`: ")
