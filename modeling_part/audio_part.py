# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Audio files, bytes and arrays -> mono float32 samples.

What a header says of a file's length is a claim: the samples are those that a whole decode gives, and a file that holds
much less than its header, its row or the asked piece says is refused.
"""

import logging
import math
import numbers
import os
from collections.abc import Mapping
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .file_names_part import other_form
from .formats_part import (
    UNKNOWN,
    contradiction,
    decode_media,
    doubt,
    early_end,
    flac_again,
    is_chained,
    last_page_begin,
    media_kind,
    ogg_seconds,
    stated_seconds,
    to_mono,
    unnamed_seconds,
    what_else,
)
from .mp3_part import Mp3Stream, read_mp3, with_header
from .samples_part import AudioError, check_rate, samples_of


# Only decoding files and resampling need these two; arrays at the model's rate work without them.
try:
    import soundfile
except ImportError:
    soundfile = None
try:
    import soxr
except ImportError:
    soxr = None

logger = logging.getLogger(__name__)

LOUDEST = 32.0  # full scale is 1; more is samples of integers that lost their type
TOLERANCE = 0.1  # seconds, and share of the length, by which a clip may differ from what is said of it
MARGIN = 0.1  # seconds around a piece that resampling looks at
LEAD = 2.0  # seconds before a piece from which a decoder comes to the samples of the whole
BLOCK = 1 << 20
PADDING = 5  # frames of an MP3 file that may hold what the encoder added, which decoders leave out
UNKNOWN_FORMAT = (1, 4)  # libsndfile's errors for a format or an encoding that it does not know


def load_audio(
    audio: object,
    sampling_rate: int = 16_000,
    start: float | None = None,
    end: float | None = None,
    array_rate: float | None = None,
) -> np.ndarray:
    """Decode audio to mono float32 at `sampling_rate`; only the asked seconds of a long file are read.

    Args:
        audio: path, encoded bytes, or `{"path": ..., "bytes": ...}` of anything that soundfile reads (wav, flac, mp3,
            ogg/opus) and, with the extra `media`, that FFmpeg reads (m4a, webm); when path and bytes are given the
            bytes are used. An open file is read. Or samples: `{"array": ..., "sampling_rate": ...}`, an `AudioDecoder` of datasets, or a
            `(samples,)` or `(channels, samples)` array or tensor, floats in [-1, 1] or integers of 8, 16 or 32 bits.
        sampling_rate: of the result, Hz.
        start, end: seconds into the file; None means its beginning and its end.
        array_rate: of an array, Hz; None: it is at `sampling_rate`, but for one in a mapping, which must say it. All else
            carries its own.

    Returns:
        `(samples,)` float32, full scale 1.

    Raises:
        ImportError: soundfile (or soxr, for another rate) is not installed.
        AudioError: the audio cannot be decoded, is cut off, or the asked piece is empty; the message names the file.
    """
    for name, value in (("start", start), ("end", end)):
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if value is not None and not (is_number and math.isfinite(value) and value >= 0):
            raise AudioError(
                f"`{name}` is {value!r}; give seconds into the file, 0 or more.", "start or end is no time"
            )
    check_rate(sampling_rate, "The result")
    if hasattr(audio, "read"):
        audio = _read_open_file(audio)
    samples, rate = samples_of(audio, array_rate)
    if samples is None:
        return _load_file(audio, sampling_rate, start, end)
    rate = sampling_rate if rate is None else check_rate(rate, "The array")
    span = _span(start, end, rate, sampling_rate)
    waveform = resample(samples[span.begin : span.stop], rate, sampling_rate)
    return _checked(span.cut(waveform), "The array", start, end, sampling_rate)


def _read_open_file(file: object) -> bytes:
    """What an open file holds from where it stands on."""
    try:
        content = file.read()
    except UnicodeDecodeError:  # opened as text
        content = ""
    if not isinstance(content, (bytes, bytearray)):
        raise AudioError(
            f"The open file, a {type(file).__name__}, gives no bytes. Give its path, or open it with `open(path, 'rb')`.",
            "open file does not give bytes",
        )
    if not content:
        raise AudioError("The open file is at its end, or empty. Go back with `seek(0)`.", "audio file is empty")
    return content


def load_clip(row: Mapping, sampling_rate: int = 16_000) -> np.ndarray:
    """[`load_audio`] of a canonical row, from its `start` to its `end`.

    Raises:
        AudioError: see [`load_audio`]; also a clip whose length is not the row's `duration`.
    """
    waveform = load_audio(row["audio"], sampling_rate, row.get("start"), row.get("end"))
    seconds, stated = len(waveform) / sampling_rate, row.get("duration")
    if stated and not alike(seconds, stated):
        raise AudioError(
            f"Its audio lasts {seconds:.2f} s, its `duration` is {stated:.2f} s. Replace the file, or fix the row.",
            "audio is not as long as its row says",
        )
    return waveform


def alike(seconds: float, stated: float) -> bool:
    """Whether a length is what was said of it, within 0.1 s or a tenth."""
    return abs(seconds - stated) <= max(TOLERANCE, TOLERANCE * stated)


def audio_seconds(audio: str | Path | bytes, longest: float | None = None, must_end: bool = True) -> float:
    """Length of an audio file or its bytes without decoding it: from its header, or for MP3 from its frames.

    What FFmpeg must decode, such as M4A, is decoded, up to `longest` seconds, beyond which it is a `MediaTooLongError`.

    Raises:
        AudioError: there is no such file, it is no audio, has no samples, is shorter than its header says, or, with
            `must_end`, nothing tells whether it is whole: an Ogg file that does not mark its end, MP3 that states no length and
            ends within a frame, or a format without a length.
    """
    source = _open_source(audio)
    try:
        with source.open() as file:
            rate = file.samplerate
            frames = file.frames if file.frames <= UNKNOWN else len(_read_from_beginning(file))
            seconds = frames / rate if source.mp3 is None else min(frames / rate, source.mp3.seconds)
            source.check_whole(file, seconds, must_end)
    except _decoding_errors() as error:
        waveform, rate = source.decode_otherwise(error, longest)
        seconds = len(waveform) / rate
    if seconds <= 0:
        raise AudioError(f"{source.name} holds no samples. Remove the row.", "audio without samples")
    return seconds


def resample(waveform: np.ndarray, source_rate: int, target_rate: int) -> np.ndarray:
    """Resample `(samples,)` from one rate in Hz to another with soxr (high quality), float32."""
    if source_rate == target_rate:
        return np.ascontiguousarray(waveform, dtype=np.float32)
    check_rate(source_rate, "The audio")
    if soxr is None:
        raise ImportError(f"Audio at {source_rate} Hz needs soxr to become {target_rate} Hz: `pip install soxr`.")
    return soxr.resample(waveform.astype(np.float32), source_rate, target_rate).astype(np.float32)


class _Span(NamedTuple):
    """Which samples of a file to read (`stop` None: to its end), and which of the resampled ones to keep."""

    begin: int
    stop: int | None
    skip: int
    count: int | None

    def cut(self, waveform: np.ndarray) -> np.ndarray:
        return waveform[self.skip : None if self.count is None else self.skip + self.count]


def _span(start: float | None, end: float | None, rate: int, target: int) -> _Span:
    """What to read so that a piece has the samples that it has in the whole file, resampled."""
    first, last = round((start or 0.0) * target), None if end is None else round(end * target)
    step = rate // math.gcd(rate, target)  # the samples of both rates meet at multiples of it
    margin = 0 if rate == target else round(MARGIN * rate)
    begin = max(0, first * rate // target - margin) // step * step
    stop = None if last is None else max(begin, -(-last * rate // target) + margin)
    return _Span(begin, stop, first - begin * target // rate, None if last is None else max(0, last - first))


def _checked(
    waveform: np.ndarray, name: str, start: float | None, end: float | None, sampling_rate: int
) -> np.ndarray:
    """The waveform itself; `AudioError` if it is empty, ends before `end`, or holds values that are no sound."""
    if len(waveform) == 0:
        piece = "" if start is None and end is None else f" from {start} s to {end} s"
        raise AudioError(
            f"{name} holds no samples{piece}. Remove the row or fix its `start` and `end`.", "audio without samples"
        )
    if end is not None and not alike(seconds := len(waveform) / sampling_rate, end - (start or 0.0)):
        raise AudioError(
            f"{name} ends {end - (start or 0.0) - seconds:.2f} s before {end} s, where the piece should end. Fix the row.",
            "audio ends before its piece",
        )
    peak = np.abs(waveform).max()
    if not np.isfinite(peak):
        raise AudioError(
            f"{name} holds NaN or infinite samples. Remove or fix the clip.", "samples that are no numbers"
        )
    if peak > LOUDEST:
        raise AudioError(
            f"{name} has samples up to {peak:.3g}; floats must be in [-1, 1]. Divide integers by their range.",
            "samples far outside [-1, 1]",
        )
    return waveform


def _load_file(audio: object, sampling_rate: int, start: float | None, end: float | None) -> np.ndarray:
    """Samples of a file or its bytes."""
    source = _open_source(audio)
    try:
        with source.open() as file:
            rate = file.samplerate
            span = _span(start, end, rate, sampling_rate)
            samples = _read(file, span, source.seekable_before(file, span.begin))
            if end is None:
                source.check_whole(file, span.begin / rate + len(samples) / rate)
    except _decoding_errors() as error:
        samples, rate = source.decode_otherwise(error)
        span = _span(start, end, rate, sampling_rate)
        samples = samples[span.begin : span.stop]
    waveform = span.cut(resample(samples, rate, sampling_rate)) if len(samples) else samples
    return _checked(waveform, source.name, start, end, sampling_rate)


def _read(file: "soundfile.SoundFile", span: _Span, begin: int) -> np.ndarray:
    """Mono samples of an open file, decoded from `begin` on, where the decoder comes into step."""
    if not file.seekable() or file.subtype.startswith("DWVW") or file.frames > UNKNOWN:  # DWVW says it were
        return _read_from_beginning(file)[span.begin : span.stop]
    file.seek(min(begin, file.frames))
    stop = file.frames if span.stop is None else min(span.stop, file.frames)
    # In one call: soundfile seeks after each, and where an MP3 decoder was sought it has to come into step again.
    samples = file.read(max(0, stop - begin), dtype="float32", always_2d=True)
    return to_mono(samples[span.begin - begin :])


def _read_from_beginning(file: "soundfile.SoundFile") -> np.ndarray:
    """All that there is, block by block, where nobody knows how much."""
    file.seekable = lambda: False  # otherwise soundfile seeks after each block, which fails after the last
    blocks = []
    while len(block := file.read(BLOCK, dtype="float32", always_2d=True)):
        blocks.append(block)
    return to_mono(np.concatenate(blocks)) if blocks else np.zeros(0, dtype=np.float32)


class _Source(NamedTuple):
    """A file or its bytes, and what has been seen of it."""

    name: str
    content: str | bytes
    head: bytes
    mp3: Mp3Stream | None

    def open(self) -> "soundfile.SoundFile":
        """The file for soundfile; a header that states the length is put before MP3 that has none or a wrong one."""
        file = soundfile.SoundFile(
            _file_name(self.content) if isinstance(self.content, str) else BytesIO(self.content)
        )
        expected = 0 if self.mp3 is None else (self.mp3.frames - PADDING) * self.mp3.samples_per_frame
        if file.frames < expected:
            file.close()
            file = soundfile.SoundFile(BytesIO(with_header(_whole(self.content), self.mp3)))
        if file.format == "RAW":  # guessed from the ending of a name, which web pages have as well
            file.close()
            raise soundfile.LibsndfileError(UNKNOWN_FORMAT[0])
        try:
            check_rate(file.samplerate, self.name)
            if told := contradiction(file, self.content):
                raise AudioError(
                    f"The header of {self.name} contradicts itself: {told}. Fetch it again, or convert it to FLAC.",
                    "audio header contradicts itself",
                )
        except AudioError:
            file.close()
            raise
        return file

    def seekable_before(self, file: "soundfile.SoundFile", begin: int) -> int:
        """A sample before `begin` from which decoding gives the samples of the whole file there."""
        if self.mp3 is not None or file.subtype == "MPEG_LAYER_III":  # frames take bits from those before them
            return max(0, begin - round(LEAD * file.samplerate))
        if file.subtype == "VORBIS" and begin:  # libsndfile comes to a wrong place in the last page
            return max(0, min(begin, last_page_begin(self.content) - 1) - round(LEAD * file.samplerate))
        return begin

    def check_whole(self, file: "soundfile.SoundFile", seconds: float, must_end: bool = False) -> None:
        """Raise `AudioError` if a file of so many seconds should have had more.

        With `must_end`, of a clip whose text would say more than its sound, also where nobody can tell; what a phone
        records without a mark at its end can be heard all the same.
        """
        if self.mp3 is not None:
            if self.mp3.other_frames > TOLERANCE * self.mp3.frames:
                raise AudioError(
                    f"Parts of {self.name} are MP3 of another kind or sampling rate than its beginning. Convert it to FLAC.",
                    "audio changes its sampling rate",
                )
            self._compare(seconds, self.mp3.longest_seconds)
        else:
            self._compare(seconds, stated_seconds(file, self.content))
        # A FLAC file would have to be read whole, which measuring millions of them does not.
        if (file.format == "OGG" and is_chained(self.content)) or (
            file.format == "FLAC" and not must_end and flac_again(self.content)
        ):
            kind = "Ogg" if file.format == "OGG" else "FLAC"
            raise AudioError(
                f"{self.name} holds recordings one after the other, of which only the first can be read. Split it, or convert "
                "it to WAV with a program that reads all.",
                f"audio of several recordings in one {kind} file",
            )
        if not alike(seconds, seconds + (more := unnamed_seconds(file, self.content))):
            raise AudioError(
                f"{self.name} has {seconds:.2f} s by its header, and bytes of {more:.2f} s after them: a recorder stopped, or "
                "files were put one after the other. Write it anew, for example with `ffmpeg -ignore_length 1 -i`.",
                "audio goes on after what its header says",
            )
        if file.format == "OGG":
            self._compare(seconds, ogg_seconds(self.content, 48_000 if file.subtype == "OPUS" else file.samplerate))
        if told := early_end(file, self.content, must_end):
            raise AudioError(f"Cut off: {self.name} {told}, of {seconds:.2f} s. Fetch it again.", "audio is cut off")
        unsure = self.mp3 is not None and not self.mp3.stated_frames and self.mp3.ends_within_frame
        if told := "ends within an MP3 frame" if unsure else doubt(file, self.content):
            told = f"{self.name} has {seconds:.2f} s, and {told}: it may be cut off."
            if must_end:
                raise AudioError(
                    f"{told} If it is whole, convert it to FLAC, or give its row a `duration`.",
                    "nothing says where the audio ends: convert it to FLAC, or give its row a duration",
                )
            logger.warning("%s", told)

    def _compare(self, seconds: float, stated: float | None) -> None:
        breaks_off = stated == math.inf
        if stated and seconds < stated and (breaks_off or not alike(seconds, stated)):
            more = ", and breaks off" if breaks_off else f" where its header says {stated:.2f} s"
            raise AudioError(
                f"Cut off: {self.name} has {seconds:.2f} s{more}. Fetch it again.",
                "audio is cut off",
            )

    def decode_otherwise(self, error: Exception, longest: float | None = None) -> tuple[np.ndarray, int]:
        """Samples and rate with PyAV of a format that libsndfile does not know; else `AudioError` with what it is."""
        if described := what_else(self.head):
            raise AudioError(f"Cannot decode {self.name}: it is {described}.", f"file is {described}") from error
        media = media_kind(self.head)
        reason = str(getattr(error, "error_string", error)).strip().rstrip(".") or type(error).__name__
        reason += ". Check that the file is complete audio"
        if media or getattr(error, "code", None) in UNKNOWN_FORMAT:
            try:
                samples, rate, stated = decode_media(self.content, longest)
            except ImportError:
                if media:
                    raise AudioError(
                        f"Cannot decode {self.name}: it is {media}. `pip install av`, or convert it to WAV or FLAC.",
                        f"audio is {media}",
                    ) from error
            except ValueError as other:
                reason = f"it is {media}, and {other}. Fetch it again" if media else reason
            else:
                self._compare(len(samples) / check_rate(rate, self.name), stated)
                return samples, rate
        raise AudioError(f"Cannot decode {self.name}: {reason}.") from error


def _open_source(audio: object) -> _Source:
    """Look at a path, bytes, or a mapping of both; `AudioError` if there is nothing to decode."""
    if soundfile is None:
        raise ImportError("Decoding audio files needs soundfile: `pip install soundfile`, or pass arrays.")
    name = "audio bytes"
    if isinstance(audio, Mapping):
        path, encoded = audio.get("path"), audio.get("bytes")
        if path is None and encoded is None:
            raise AudioError(
                f"A mapping of audio holds 'array' and 'sampling_rate', or 'path' or 'bytes'; this one {sorted(audio)}. "
                "Give one column of a dataset, to a pipeline by `KeyDataset(dataset, 'audio')`.",
                "no audio",
            )
        name = f"audio bytes of {path!r}"
        audio = path if encoded is None else encoded
    if isinstance(audio, (bytes, bytearray, memoryview)):
        audio = bytes(audio)
        if not audio:
            raise AudioError(f"Cannot decode {name}: there are none. Fetch the file again.", "audio file is empty")
        return _Source(name, audio, audio[:64], read_mp3(audio) if _may_be_mp3(audio[:64]) else None)
    if not isinstance(audio, (str, Path)):
        raise AudioError(
            f"Audio of type {type(audio).__name__} cannot be decoded; give a path, bytes or an array, or to a pipeline a "
            "list, a generator or `KeyDataset(dataset, 'audio')` of such."
        )
    return _open_path(audio)


def _open_path(audio: str | Path) -> _Source:
    """Look at a file; `AudioError` if there is none to be decoded."""
    path = Path(audio)
    if "://" in str(audio):
        raise AudioError(
            f"{str(audio)!r} is an address, and nothing is fetched: download it and give the file or its bytes.",
            "audio is an address",
        )
    if not os.path.exists(path):  # unlike `path.exists`, of a name that is too long as well
        path = Path(other_form(str(path)) or path)
    if not os.path.isfile(path):
        kind = "a folder or a pipe, no" if os.path.exists(path) else "no"
        raise AudioError(
            f"There is {kind} audio file {str(audio)[:300]!r}. Check the path; relative ones start at {Path.cwd()}.",
            "audio file not found",
        )
    if path.suffix.lower() == ".raw":
        raise AudioError(
            f"Cannot decode {str(audio)!r}: a .raw file does not say its sampling rate. Convert it to WAV or FLAC.",
            "audio without a header",
        )
    try:
        with path.open("rb") as file:
            head, status = file.read(64), os.fstat(file.fileno())
        mp3 = _mp3_of_file(str(path), status.st_size, status.st_mtime_ns) if _may_be_mp3(head) else None
    except OSError as error:
        told = error.strerror or type(error).__name__
        raise AudioError(
            f"Cannot read {str(audio)!r}: {told}. Check who may read it, and its disk.",
            f"audio file cannot be read ({told})",
        ) from error
    if not head:
        raise AudioError(f"Cannot decode {str(audio)!r}: the file is empty. Fetch it again.", "audio file is empty")
    return _Source(repr(str(audio)), str(path), head, mp3)


@lru_cache(maxsize=4096)  # a long recording is asked for once for each of its pieces
def _mp3_of_file(path: str, size: int, modified: int) -> Mp3Stream | None:
    return read_mp3(Path(path).read_bytes())


def _may_be_mp3(head: bytes) -> bool:
    """Whether a file begins with a tag, a frame, or nothing that other formats begin with."""
    return head.startswith((b"ID3", b"\xff", b"\0"))


def _file_name(path: str) -> str | bytes:
    """A path as soundfile takes it, which refuses names in another encoding than the system's, as old disks have them."""
    return os.fsencode(path) if os.name == "posix" else path


def _whole(content: str | bytes) -> bytes:
    return Path(content).read_bytes() if isinstance(content, str) else content


def _decoding_errors() -> tuple[type[Exception], ...]:
    """What soundfile raises for a file that it does not read."""
    return soundfile.SoundFileError, OSError, TypeError, MemoryError, OverflowError
