# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Windows of long audio that hold speech, by Silero VAD (https://github.com/snakers4/silero-vad, MIT)."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch

from .audio_part import resample
from .windows_part import cut_windows


DETECTOR_RATE = 16_000
PADDING_MS = 200  # of sound kept on both sides of speech: what begins softly is heard late


@lru_cache
def _detector() -> Callable[..., list[dict[str, int]]]:
    """Finds speech in samples at 16 kHz. The ONNX form of the model: nothing is unpickled.

    Raises:
        ImportError: the extra is not installed.
    """
    threads = torch.get_num_threads()
    try:
        import onnxruntime  # noqa: F401 (what the model runs with)
        from silero_vad import get_speech_timestamps, load_silero_vad
    except ImportError as error:
        raise ImportError(f"Voice activity detection needs the package {error.name}: pip install .[vad]") from error
    torch.set_num_threads(threads)  # importing it sets them to one, for everything
    model = load_silero_vad(onnx=True)

    def find(samples: torch.Tensor, **options) -> list[dict[str, int]]:
        return get_speech_timestamps(samples, model, sampling_rate=DETECTOR_RATE, **options)

    return find


def speech_windows(waveform: np.ndarray, sampling_rate: int, window: int) -> list[tuple[int, int]]:
    """Where to cut a recording: windows of speech that do not overlap, between which nothing is said.

    Args:
        waveform: `(samples,)`.
        sampling_rate: Hz.
        window: longest window, samples.

    Returns:
        (first sample, last sample + 1) of each, in order; none where nothing is said. Speech without a pause that is
        longer than a window is cut where the model finds it easiest.

    Raises:
        ImportError: the extra `vad` is not installed.
    """
    samples = resample(waveform, sampling_rate, DETECTOR_RATE)
    factor = sampling_rate / DETECTOR_RATE
    found = _detector()(
        torch.from_numpy(samples),
        max_speech_duration_s=max(1.0, window / sampling_rate - 2 * PADDING_MS / 1000),
        speech_pad_ms=PADDING_MS,
    )
    stretches = [(int(one["start"] * factor), min(int(one["end"] * factor), len(waveform))) for one in found]
    return join_stretches(stretches, window)


def join_stretches(stretches: Sequence[tuple[int, int]], window: int) -> list[tuple[int, int]]:
    """Neighbours together in one window as long as they fit, so that few windows have all the context there is.

    One that does not fit alone is cut into equal parts.

    >>> join_stretches([(0, 10), (15, 30), (60, 80)], 40)
    [(0, 30), (60, 80)]
    """
    windows: list[tuple[int, int]] = []
    for start, end in stretches:
        if windows and end - windows[-1][0] <= window:
            windows[-1] = (windows[-1][0], end)
        else:
            windows += [(start + first, start + last) for first, last in cut_windows(end - start, window, 0)]
    return windows


__all__ = ["join_stretches", "speech_windows"]
