# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""What a file is by its first bytes, what its header says of its length, and formats that libsndfile does not read."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import chain
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np


try:  # only for the annotations here
    import soundfile
except ImportError:
    soundfile = None

_OTHER = {  # first bytes in lower case
    b"version https://git-lfs": "a Git LFS pointer, not the file itself (fetch it with `git lfs pull`)",
    b"<!doctype": "a web page, not audio (download it again)",
    b"<html": "a web page, not audio (download it again)",
    b"<?xml": "an XML file, not audio",
    b"\x1f\x8b": "a gzip archive, not audio (unpack it)",
    b"pk\x03\x04": "a zip archive, not audio (unpack it)",
    b"\x89png": "a picture, not audio",
    b"\xff\xd8\xff": "a picture, not audio",
    b"%pdf": "a PDF file, not audio",
}
_MEDIA = {
    b"\x1a\x45\xdf\xa3": "WebM or Matroska",
    b"#!AMR": "AMR",
    b"\xff\xf1": "AAC (ADTS)",
    b"\xff\xf9": "AAC (ADTS)",
    b"\x30\x26\xb2\x75": "WMA (ASF)",
    b"FLV": "FLV",
}
_LENGTHS = {"AIFF": "ssnd", "AU": "data size", "W64": "riff", "RF64": "riff size", "SVX": "body"}
# Where libsndfile's log, or of the last the file's own header, states a number of samples.
_FRAMES = {format: re.compile(rb"^\s*Frames\s*: (\d+)", re.MULTILINE) for format in ("AVR", "MPC2K")}
_FRAMES |= {format: re.compile(rb"Cols\s*: (\d+)") for format in ("MAT4", "MAT5")}
_FRAMES["NIST"] = re.compile(rb"^sample_count -i (\d+)", re.MULTILINE)
_LENGTH_IN_HEADER = ("FLAC", "SDS")
_LAST_SAMPLES = 64  # more than a block of SDS, into whose last one libsndfile does not seek
_NO_LENGTH = ("IRCAM", "PAF", "PVF", "WVE", "XI")
# First bytes of a file of chunks -> bytes before the first, bytes of a chunk's size, and their order.
_CHUNKS = {
    b"RIFF": (12, 4, "little"),
    b"RF64": (12, 4, "little"),
    b"RIFX": (12, 4, "big"),
    b"FORM": (12, 4, "big"),
    b"caff": (8, 8, "big"),
}
_SAMPLES = (b"data", b"SSND")
_TAGS = (b"TAG", b"ID3", b"APETAGEX")
_FRAMES_ALONE = ("MPEG_LAYER_I", "MPEG_LAYER_II")  # MP3's elders, of which `mp3_part` knows nothing
_FLAC_RATES = dict(
    enumerate((88_200, 176_400, 192_000, 8000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000), 1)
)
_FLAC_BEGIN = b"fLaC\0\0\0\x22"  # with the header of the block that must be the first
_ALIKE = 0.9  # of the loudest channel's power: channels of one loudness, of which the first is taken
_CANCELLED = 0.01  # of the loudest channel's power: two voices, or a voice on one side alone, keep a quarter and more
_TAIL = 1 << 18  # bytes that hold at least two Ogg pages
_LONGEST_PAGE = 10.0  # seconds
UNKNOWN = 1 << 40  # more frames than this are those of a FLAC stream without a length


def to_mono(samples: np.ndarray) -> np.ndarray:
    """The mean of channels `(samples, channels)`; where they cancel (a microphone wired out of phase) the loudest alone."""
    if samples.shape[1] == 1 or not len(samples):
        return samples[:, 0]
    mono = samples.mean(axis=1)
    loudness = np.square(samples).mean(axis=0)
    loudest = (loudness >= _ALIKE * loudness.max()).argmax()
    return samples[:, loudest] if np.square(mono).mean() < _CANCELLED * loudness.max() else mono


def what_else(head: bytes) -> str | None:
    """What a file is that is no audio, by its first bytes; None if they do not tell."""
    head = head.lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    return next((described for magic, described in _OTHER.items() if head.startswith(magic)), None)


def media_kind(head: bytes) -> str | None:
    """The format of audio that libsndfile does not read, by its first bytes; None if they do not tell."""
    if head[4:8] == b"ftyp":
        return "M4A or MP4"
    return next((kind for magic, kind in _MEDIA.items() if head.startswith(magic)), None)


def stated_seconds(file: soundfile.SoundFile, content: str | bytes) -> float | None:
    """What a header says: mostly from libsndfile's log, "data : 35840 (should be 17956)".

    None: it says nothing. Infinite: more than there is, it does not say how much.
    """
    if file.format in _FRAMES:
        text = _ends(content)[0] if file.format == "NIST" else file.extra_info.encode()
        return max(map(int, _FRAMES[file.format].findall(text)), default=0) / file.samplerate
    field = _LENGTHS.get(file.format, "data")
    for line in file.extra_info.splitlines():
        name, _, numbers = line.partition(":")
        stated, _, there = numbers.partition("(should be ")
        if name.strip().lower() == field and there:
            stated, there = int(stated), int(there.split(")")[0])
            # A recorder that could not go back leaves the highest number, or nearly.
            if there < stated < 0x7FFF0000:
                return file.frames / file.samplerate * stated / max(there, 1)
    if "truncated" in file.extra_info:
        return math.inf
    return file.frames / file.samplerate if file.frames < UNKNOWN else None


def contradiction(file: soundfile.SoundFile, content: str | bytes) -> str | None:
    """How a header contradicts itself, so that rate, channels or width of the samples are not known; else None.

    WAV and its like state bytes per second and per frame besides, AIFF the number of frames, FLAC the rate in each frame.
    """
    if file.format == "FLAC":
        rate = _rate_of_frames(content)
        return (
            None if rate in (None, file.samplerate) else f"a rate of {file.samplerate} Hz, and of {rate} Hz in frames"
        )
    said = {}
    for line in file.extra_info.splitlines():
        name, _, value = line.partition(":")
        if (word := value.split(" (")[0].strip()).isdecimal():
            said.setdefault(name.strip().lower(), int(word))
    frames = said.get("frames", file.frames)
    tolerance = 0.1 * max(frames, file.samplerate)
    packets = file.subtype == "IMA_ADPCM"  # which AIFF counts as frames
    if (
        file.format == "AIFF"
        and not packets
        and "(should be" not in file.extra_info
        and abs(frames - file.frames) > tolerance
    ):
        return f"{frames} frames of samples, in bytes for {file.frames}"
    names = ("channels", "bit width", "block align", "bytes/sec", "sample rate")
    if file.subtype.startswith(("PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW")) and all(name in said for name in names):
        channels, bits, align, speed, rate = (said[name] for name in names)
        widths = {(bits + 7) // 8, 4} if bits == 24 else {(bits + 7) // 8}  # some write 24 bits in 4 bytes
        widths = {1} if file.subtype in ("ULAW", "ALAW") else widths
        if align not in {channels * width for width in widths} or speed not in (rate * align, 0):
            return f"{rate} Hz, {channels} channels, {bits} bits, in {align} bytes a frame and {speed} a second"
    return None


def _rate_of_frames(content: str | bytes) -> int | None:
    """The rate that the first frame of a FLAC file states, Hz; None where it leaves that to the file's header."""
    with _opened(content) as file:
        is_last = file.read(4) != b"fLaC"
        while not is_last:
            block = file.read(4)
            is_last = len(block) < 4 or block[0] >= 0x80
            file.seek(int.from_bytes(block[1:], "big"), os.SEEK_CUR)
        frame = file.read(3)
    is_frame = len(frame) == 3 and frame[0] == 0xFF and frame[1] & 0xFC == 0xF8
    return _FLAC_RATES.get(frame[2] & 15) if is_frame else None


def ogg_seconds(content: str | bytes, clock: int) -> float | None:
    """The length of an Ogg file by the positions that its pages state, in samples of `clock` Hz."""
    last = _position(tail := _ends(content)[1], tail.rfind(b"OggS"))
    first, place = None, 0
    head = _ends(content)[0]
    while first is None and (place := head.find(b"OggS", place)) >= 0:
        position = _position(head, place)
        first = position if position > 0 else None
        place += 4
    if first is None or last < first:
        return None
    # A recorded stream begins anywhere, a file at 0.
    return (last if first < _LONGEST_PAGE * clock else last - first) / clock


def unnamed_seconds(file: soundfile.SoundFile, content: str | bytes) -> float:
    """How long the bytes after a file's samples would last, which its header does not name; tags and zeros do not count.

    The header of a recorder that stopped is from before, and of files put one after the other that of the first.
    """
    with _opened(content) as data:
        begin, end, rest = _rest_after_samples(data)
        data.seek(rest)
        unnamed = data.read() if begin < end else b""
    if unnamed.startswith(_TAGS) or not unnamed.strip(b"\0"):
        return 0.0
    return file.frames / file.samplerate * len(unnamed) / (end - begin)


def _rest_after_samples(data: BinaryIO) -> tuple[int, int, int]:
    """Where the samples of a file begin and end, and what comes after all that its header names; 0, 0, 0: not known."""
    size, magic = data.seek(0, os.SEEK_END), _at(data, 0, 4)
    if magic in (b".snd", b"dns."):
        head, order = _at(data, 4, 8), "big" if magic == b".snd" else "little"
        begin, length = int.from_bytes(head[:4], order), int.from_bytes(head[4:], order)
        end = min(begin + (length or size), size)
        return begin, end, end
    place, width, order = _CHUNKS.get(magic, (size, 0, ""))
    begin = end = length_of_samples = 0
    while place + 4 + width <= size:
        head = _at(data, place, 4 + width)
        kind, length, inside = head[:4], int.from_bytes(head[4:], order), place + 4 + width
        if not (kind.isascii() and kind.decode().isprintable()) or kind in _CHUNKS:
            break
        if kind == b"ds64":  # of samples beyond 4 GB
            length_of_samples = int.from_bytes(_at(data, inside + 8, 8), order)
        if kind in _SAMPLES:
            length = length_of_samples if length_of_samples and length == 0xFFFFFFFF else length
            begin, end = inside, min(inside + (length or size), size)
        place = min(inside + length, size) if kind not in _SAMPLES else end
        place += length & 1 and _at(data, place, 1) == b"\0"
    return begin, end, min(place, size)


def _opened(content: str | bytes) -> BinaryIO:
    return BytesIO(content) if isinstance(content, bytes) else open(content, "rb")


def _at(data: BinaryIO, place: int, count: int) -> bytes:
    data.seek(place)
    return data.read(count)


def flac_again(content: str | bytes) -> bool:
    """Whether another FLAC file follows the first, of which alone anything is read."""
    with _opened(content) as data:
        return data.read().find(_FLAC_BEGIN, 1) > 0


def is_chained(content: str | bytes) -> bool:
    """Whether an Ogg file holds streams one after the other: libsndfile reads the first alone."""
    head, tail = _ends(content)
    first = set()
    for page in _pages(head):
        if not head[page + 5] & 2:  # the first page of a stream; those of streams side by side stand at the beginning
            break
        first.add(head[page + 14 : page + 18])
    pages = list(_pages(tail))
    begins = sum(tail[page + 5] & 2 > 0 for page in pages)
    is_whole = len(head) == len(tail) < _TAIL
    return begins > (len(first) if is_whole else 0) or (
        bool(pages) and tail[pages[-1] + 14 : pages[-1] + 18] not in first
    )


def _pages(data: bytes) -> Iterator[int]:
    """Where the pages of an Ogg file begin."""
    place = data.find(b"OggS")
    while 0 <= place <= len(data) - 27:
        if data[place + 4] == 0 and data[place + 5] < 8:
            yield place
        place = data.find(b"OggS", place + 4)


def last_page_begin(content: str | bytes) -> int:
    """The sample at which the last page of an Ogg Vorbis file begins: the position that the page before it states."""
    tail = _ends(content)[1]
    return max(0, _position(tail, tail.rfind(b"OggS", 0, max(0, tail.rfind(b"OggS")))))


def early_end(file: soundfile.SoundFile, content: str | bytes, seek: bool) -> str | None:
    """How a file stops before its end; None where it does not.

    Ogg stops within a page (27 bytes, the sizes of its segments, these). Where the header alone tells how many samples there
    are, whatever the file's size, `seek` asks for one of the last: about 0.1 ms, where decoding ten seconds takes 3. The
    file is left there.
    """
    if file.format == "OGG":
        tail = _ends(content)[1]
        page = tail[tail.rfind(b"OggS") :]
        whole = len(page) >= 27 and len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])
        return None if whole else "ends within an Ogg page"
    if seek and file.format in _LENGTH_IN_HEADER and 0 < file.frames < UNKNOWN:
        try:
            file.seek(max(0, file.frames - _LAST_SAMPLES))
            whole = len(file.read(1)) == 1
        except soundfile.SoundFileError:
            whole = False
        return None if whole else "lacks the last samples that its header promises"
    return None


def doubt(file: soundfile.SoundFile, content: str | bytes) -> str | None:
    """Why nobody can tell that a file which reads to its end is whole; None where its header or last page tells."""
    if file.format == "OGG":
        tail = _ends(content)[1]
        is_last = tail[max(0, tail.rfind(b"OggS")) :][5:6]  # of the stream, as RFC 3533 wants it marked
        return None if is_last and is_last[0] & 4 else "does not mark its end as Ogg files do"
    has_no_length = file.format in _NO_LENGTH or file.subtype in _FRAMES_ALONE
    return "is of a format that does not say its length" if has_no_length else None


def _position(data: bytes, page: int) -> int:
    """The position that a page states; -1 if no packet ends on it, or there is no page."""
    return int.from_bytes(data[page + 6 : page + 14], "little", signed=True) if page >= 0 else -1


def _ends(content: str | bytes) -> tuple[bytes, bytes]:
    """The beginning and the end of a file."""
    if isinstance(content, bytes):
        return content[:_TAIL], content[-_TAIL:]
    with open(content, "rb") as file:
        head = file.read(_TAIL)
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
        return head, file.read()


@contextmanager
def _complaints(av: ModuleType) -> Iterator[list]:
    """What FFmpeg says of errors in this thread meanwhile, which PyAV does not raise."""
    level = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture(local=True) as said:
            yield said
    finally:
        av.logging.set_level(level)


class MediaTooLongError(Exception):
    """Media with more than the `seconds` that were asked for: those of the header, or decoded so far."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"{seconds:.1f} s and maybe more")
        self.seconds = seconds


@contextmanager
def _nameless(content: str | bytes) -> Iterator[BinaryIO]:
    """A file without its name: from its ending FFmpeg would guess formats, and rates, that nothing in the file says."""
    if isinstance(content, bytes):
        yield BytesIO(content)
        return
    with open(content, "rb") as file, open(file.fileno(), "rb", closefd=False) as nameless:
        yield nameless


def _recordings_in_mp4(content: str | bytes) -> int:
    """How many recordings stand one after the other in an M4A or MP4 file: each has a `moov` of its own."""
    with _opened(content) as data:
        size, place, count = data.seek(0, os.SEEK_END), 0, 0
        while place + 8 <= size:
            head = _at(data, place, 16)
            length = int.from_bytes(head[:4], "big")
            length = int.from_bytes(head[8:], "big") if length == 1 else length or size
            count += head[4:8] == b"moov"
            place += max(length, 8)
    return count


def _stated_by_media(container: Any) -> float | None:
    """Seconds of sound that the headers of media, opened with PyAV, state; pictures may go on beyond its end.

    None: they say nothing. Of bare AAC frames FFmpeg guesses by the bit rate of the first, which may be silent.
    """
    stream = container.streams.audio[0]
    whole = None if container.duration is None else container.duration / 1_000_000
    own = None if stream.duration is None else float(stream.duration * stream.time_base)
    if container.format.name == "aac" or (own is None and container.streams.video):
        return None
    return min((one for one in (own, whole) if one is not None), default=None)


def decode_media(content: str | bytes, longest: float | None = None) -> tuple[np.ndarray, int, float | None]:
    """Mono samples, rate, and the length that the header states, of anything that FFmpeg decodes.

    Args:
        content: path or bytes.
        longest: seconds beyond which decoding stops. Default: none.

    Raises:
        ImportError: PyAV is not installed.
        ValueError: FFmpeg does not decode it.
        MediaTooLongError: it is longer than `longest`.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError("Decoding M4A, WebM and their like needs PyAV: `pip install av`.") from error
    try:
        with (
            _nameless(content) as file,
            av.open(file, options={"protocol_whitelist": "none"}) as container,  # or playlists would read other files
            _complaints(av) as said,
        ):
            stream = container.streams.audio[0]
            resampler = av.AudioResampler(format="fltp")
            stated = _stated_by_media(container)
            if longest is not None and stated is not None and stated > longest:
                raise MediaTooLongError(stated)
            blocks, samples = [], 0
            for frame in chain(container.decode(stream), [None]):
                blocks += [one.to_ndarray() for one in resampler.resample(frame)]
                samples += 0 if frame is None else frame.samples
                if longest is not None and samples > longest * stream.rate:
                    raise MediaTooLongError(samples / stream.rate)
            if any("ended prematurely" in line for _, _, line in said):  # a recording that never stated its length
                stated = math.inf
            if not blocks:
                raise ValueError("it holds no sound")
            if container.format.name.startswith("mov") and _recordings_in_mp4(content) > 1:
                raise ValueError("it holds recordings one after the other, of which only the first can be read")
            return to_mono(np.concatenate(blocks, axis=1).T), stream.rate, stated
    except (av.FFmpegError, LookupError) as error:
        raise ValueError(f"FFmpeg says {error}") from error
