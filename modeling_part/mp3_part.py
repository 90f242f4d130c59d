# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""MP3 streams: how long they are, counted from their frames, and a header that says so.

What decodes MP3 believes the number of frames in the Xing (or Info, or VBRI) frame at the beginning, and guesses it from
the first bit rate where there is none. Recorded streams have none, files that were put together have that of their
first part, and a cut file still has that of the whole.
"""

from dataclasses import dataclass


_LONGEST_JUNK = 1 << 16  # bytes before the first frame
_BIT_RATES = {  # kbit/s of layer 3, by index
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),  # MPEG 1
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),  # MPEG 2 and 2.5
}
_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}  # Hz, by version
# Of the four bytes of a frame's header: what stays the same within a stream (sync, version, layer, rate), and the sync
# and layer 3 that tell one from other data.
_SAME, _MARK, _LAYER_3 = 0xFFFE0C00, 0xFFE60000, 0xFFE20000


@dataclass(frozen=True)
class Mp3Stream:
    """What the frames of an MP3 stream say.

    Attributes:
        start: the first byte of sound, after tags and the header frame.
        frames: how many there are.
        stated_frames: how many the header frame says; None without one.
        samples_per_frame: of each channel.
        sampling_rate: Hz.
        other_frames: of another kind or rate, between or after them: decoders pass over these, or stop.
        ends_within_frame: the last frame is not all there.
    """

    start: int
    frames: int
    stated_frames: int | None
    samples_per_frame: int
    sampling_rate: int
    other_frames: int = 0
    ends_within_frame: bool = False

    @property
    def seconds(self) -> float:
        """How long the stream is."""
        return self.frames * self.samples_per_frame / self.sampling_rate

    @property
    def longest_seconds(self) -> float:
        """How long the stream is, or its header frame says that it is, whichever is more."""
        return max(self.frames, self.stated_frames or 0) * self.samples_per_frame / self.sampling_rate


def read_mp3(data: bytes) -> Mp3Stream | None:
    """Walk over the frames of an MP3 file; None where it is something else (other layers, other formats)."""
    start = _after_tag(data)
    first, stated = start, _stated_frames(data, start)
    if stated is None:
        first = _next_frame(data, start, start + _LONGEST_JUNK)
        if first is None:
            return None
        stated = _stated_frames(data, first)
    header = int.from_bytes(data[first : first + 4], "big")
    version = header >> 19 & 3
    if stated is not None:
        first += _frame_length(header)
    position, frames, others = first, 0, 0
    while position is not None and position + 4 <= len(data):
        length = _length_alike(data, position, header)
        if length:
            first = position if not frames else first
            position += length
            frames += position <= len(data)
        elif data.startswith((b"TAG", b"APETAGEX"), position):
            break
        else:
            gap, position = position, _next_frame(data, position + 1, len(data), header)
            others += _frames_of_another_kind(data, gap, len(data) if position is None else position)
    samples, rate = 1152 if version == 3 else 576, _RATES[version][header >> 10 & 3]
    return Mp3Stream(first, frames, stated, samples, rate, others, position is not None and position > len(data))


def _frames_of_another_kind(data: bytes, start: int, end: int) -> int:
    """How many frames follow each other in what lies between those of a stream."""
    position = _next_frame(data, start, end)
    header, count = None if position is None else int.from_bytes(data[position : position + 4], "big"), 0
    while position is not None and position + 4 <= end:
        length = _length_alike(data, position, header)
        position, count = (position + length, count + 1) if length else (None, count)
    return count


def with_header(data: bytes, stream: Mp3Stream) -> bytes:
    """The same sound after a header frame that states the right number of frames."""
    header = int.from_bytes(data[stream.start : stream.start + 4], "big")
    # The highest bit rate leaves room for the header frame's fields; no padding, no checksum.
    header = (header & ~0xF200 | 0xE000) | 0x10000
    side_information = _side_information(header >> 19 & 3 == 3, header >> 6 & 3 == 3)
    fields = b"Info" + (1).to_bytes(4, "big") + stream.frames.to_bytes(4, "big")
    frame = (header.to_bytes(4, "big") + bytes(side_information) + fields).ljust(_frame_length(header), b"\0")
    return frame + data[stream.start :]


def _after_tag(data: bytes) -> int:
    """Where an ID3v2 tag at the beginning ends."""
    if data[:3] != b"ID3" or len(data) < 10:
        return 0
    size = 0
    for byte in data[6:10]:
        size = size << 7 | byte & 0x7F
    return size + 10


def _frame_length(header: int) -> int:
    """Bytes of the frame with this header; 0 if it is none of layer 3."""
    version, bit_rate, rate = header >> 19 & 3, header >> 12 & 15, header >> 10 & 3
    if header & _MARK != _LAYER_3 or version == 1 or bit_rate in (0, 15) or rate == 3:
        return 0
    samples = 144 if version == 3 else 72
    return samples * _BIT_RATES[version == 3][bit_rate] * 1000 // _RATES[version][rate] + (header >> 9 & 1)


def _length_alike(data: bytes, position: int, header: int) -> int:
    """Bytes of the frame that begins there; 0 if it is none of the stream with this header."""
    found = int.from_bytes(data[position : position + 4], "big")
    return _frame_length(found) if found & _SAME == header & _SAME else 0


def _next_frame(data: bytes, start: int, end: int, like: int | None = None) -> int | None:
    """The first place from `start` where a frame stands that another (or the end) follows."""
    position = data.find(b"\xff", start, end)
    while position >= 0:
        header = int.from_bytes(data[position : position + 4], "big")
        length = _frame_length(header) if len(data) - position >= 4 else 0
        if length and (like is None or header & _SAME == like & _SAME):
            following = int.from_bytes(data[position + length : position + length + 4], "big")
            if position + length >= len(data) or following & _SAME == header & _SAME:
                return position
        position = data.find(b"\xff", position + 1, end)
    return None


def _side_information(mpeg_1: bool, mono: bool) -> int:
    """Bytes of side information after the header, before what a header frame states."""
    return (17 if mono else 32) if mpeg_1 else (9 if mono else 17)


def _stated_frames(data: bytes, place: int) -> int | None:
    """The number of frames that a Xing, Info or VBRI frame states; None if there is none, 0 if it says nothing."""
    frame = data[place : place + 200]
    header = int.from_bytes(frame[:4], "big")
    if len(frame) < 54 or not _frame_length(header):
        return None
    tag = 4 + _side_information(header >> 19 & 3 == 3, header >> 6 & 3 == 3)
    if frame[tag : tag + 4] in (b"Xing", b"Info"):
        has_count = frame[tag + 7] & 1
        return int.from_bytes(frame[tag + 8 : tag + 12], "big") if has_count else 0
    if frame[36:40] == b"VBRI":
        return int.from_bytes(frame[50:54], "big")
    return None
