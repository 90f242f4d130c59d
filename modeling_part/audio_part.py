# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Audio files, bytes and arrays -> mono float32 samples."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np


# Only decoding files and resampling need these two; arrays at the model's rate work without them.
try:
    import soundfile
except ImportError:
    soundfile = None
try:
    import soxr
except ImportError:
    soxr = None


def load_audio(audio, sampling_rate: int = 16_000, start: float | None = None, end: float | None = None) -> np.ndarray:
    """Decode audio to mono float32 at `sampling_rate`; only the asked seconds of a long file are read.

    Args:
        audio: path, encoded bytes, or `{"path": ..., "bytes": ...}` of anything that soundfile reads (wav, flac, mp3,
            ogg/opus). When both are given the bytes are used.
        sampling_rate: of the result, Hz.
        start, end: seconds into the file; None means its beginning and its end.

    Returns:
        `(samples,)` float32 in [-1, 1].

    Raises:
        ImportError: soundfile (or soxr, for another rate) is not installed.
        ValueError: the audio cannot be decoded, or the asked piece is empty; the message names the file.
    """
    if soundfile is None:
        raise ImportError("Decoding audio files needs soundfile: `pip install soundfile`, or pass arrays.")
    name, source = _audio_source(audio)
    try:
        with soundfile.SoundFile(source) as file:
            rate = file.samplerate
            first = round((start or 0.0) * rate)
            if first:
                file.seek(min(first, file.frames))
            frames = -1 if end is None else max(round(end * rate) - first, 0)
            waveform = file.read(frames, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        reason = str(getattr(error, "error_string", error)).rstrip(".")
        raise ValueError(f"Cannot decode {name}: {reason}. Check that the file is complete audio.") from error
    if len(waveform) == 0:
        piece = "" if start is None and end is None else f" from {start} s to {end} s"
        raise ValueError(f"{name} holds no samples{piece}. Remove the row or fix its `start` and `end`.")
    return resample(waveform.mean(axis=1), rate, sampling_rate)


def load_clip(row: Mapping, sampling_rate: int = 16_000) -> np.ndarray:
    """[`load_audio`] of a canonical row: its `audio`, from its `start` to its `end`."""
    return load_audio(row["audio"], sampling_rate, row.get("start"), row.get("end"))


def _audio_source(audio: str | Path | bytes | Mapping) -> tuple[str, str | BytesIO]:
    """A name for messages and what soundfile opens."""
    if isinstance(audio, dict):
        path, encoded = audio.get("path"), audio.get("bytes")
        if encoded is not None:
            return f"audio bytes of {path!r}", BytesIO(encoded)
        audio = path
    if isinstance(audio, (bytes, bytearray)):
        return "audio bytes", BytesIO(audio)
    if not isinstance(audio, (str, Path)):
        raise ValueError(f"Audio of type {type(audio).__name__} cannot be decoded; give a path, bytes or an array.")
    if not Path(audio).is_file():
        raise ValueError(
            f"There is no audio file {str(audio)!r}. Check the path; relative ones start at {Path.cwd()}."
        )
    return repr(str(audio)), str(audio)


def resample(waveform: np.ndarray, source_rate: int, target_rate: int) -> np.ndarray:
    """Resample `(samples,)` from one rate in Hz to another with soxr (high quality), float32."""
    if source_rate == target_rate:
        return np.ascontiguousarray(waveform, dtype=np.float32)
    if soxr is None:
        raise ImportError(f"Audio at {source_rate} Hz needs soxr to become {target_rate} Hz: `pip install soxr`.")
    return soxr.resample(waveform.astype(np.float32), source_rate, target_rate).astype(np.float32)
