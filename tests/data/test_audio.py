"""What a clip really holds: every way in gives the samples of a whole decode, or one error that names the file."""

import io
import os
import pathlib
import struct
import sys
from functools import cache
from types import SimpleNamespace

import made_data
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made_data import RATE

from modeling_part.audio_part import AudioError, audio_seconds, load_audio, load_clip
from modeling_part.formats_part import MediaTooLongError
from modeling_part.mp3_part import read_mp3, with_header


KINDS = {
    "wav": {"format": "WAV"},
    "float wav": {"format": "WAV", "subtype": "FLOAT"},
    "adpcm": {"format": "WAV", "subtype": "MS_ADPCM"},
    "gsm": {"format": "WAV", "subtype": "GSM610"},
    "aiff": {"format": "AIFF"},
    "au": {"format": "AU"},
    "w64": {"format": "W64"},
    "rf64": {"format": "RF64"},
    "flac": {"format": "FLAC"},
    "vorbis": {"format": "OGG", "subtype": "VORBIS"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "mp3": {"format": "MP3"},
    "variable mp3": {"format": "MP3", "bitrate_mode": "VARIABLE", "compression_level": 0.5},
}


def voice(seconds: float, rate: int = RATE) -> np.ndarray:
    """A rising tone, loud and nearly silent by turns: variable bit rates vary, and every moment sounds different."""
    time = np.arange(round(seconds * rate)) / rate
    return (0.4 * np.sin(2 * np.pi * (200 + 40 * time) * time) * np.clip(np.sin(2 * time), 0.001, 1)).astype("float32")


def encoded(kind: str, samples: np.ndarray, rate: int = RATE) -> bytes:
    return made_data.encoded(samples, rate, **KINDS[kind])


@cache
def eight_seconds(kind: str) -> bytes:
    return encoded(kind, voice(8.0))


@pytest.fixture
def files() -> dict[str, bytes]:
    return {kind: eight_seconds(kind) for kind in KINDS}


def without_xing(mp3: bytes) -> bytes:
    """As a stream that is recorded: only the frames of sound."""
    return mp3[read_mp3(mp3).start :]


# ------------------------------------------------------------------------------------------------------------ pieces


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None)
@given(start=st.floats(0, 7.5), length=st.floats(0.1, 8.0), target=st.sampled_from([8_000, 16_000, 22_050]))
@example(start=3.2, length=0.5, target=16_000)
def test_a_piece_is_that_piece_of_the_whole(kind, start, length, target):
    file = eight_seconds(kind)
    whole = load_audio(file, target)
    end = min(start + length, 8.0)
    piece = load_audio(file, target, start, end)
    expected = whole[round(start * target) : round(end * target)]
    assert len(piece) == len(expected)
    np.testing.assert_allclose(piece, expected, atol=1e-5)
    np.testing.assert_allclose(load_audio(file, target, start), whole[round(start * target) :], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_lengths_are_known_without_decoding(files, kind, tmp_path):
    (tmp_path / "x").write_bytes(files[kind])
    whole = load_audio(files[kind])
    assert audio_seconds(files[kind]) == pytest.approx(len(whole) / RATE, abs=0.05)
    assert audio_seconds(tmp_path / "x") == audio_seconds(files[kind])
    np.testing.assert_array_equal(load_audio(tmp_path / "x"), whole)


# --------------------------------------------------------------------------------------------------------------- MP3


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_mp3_without_a_header_frame_is_read_to_its_end(rate, channels):
    samples = np.stack([voice(6.0, rate)] * channels, axis=1)
    mp3 = encoded("variable mp3", samples, rate)
    bare = without_xing(mp3)
    assert read_mp3(bare).stated_frames is None
    assert read_mp3(bare).frames == read_mp3(mp3).frames == read_mp3(mp3).stated_frames
    assert audio_seconds(bare) == pytest.approx(6.0, abs=0.3)
    sound = load_audio(bare)
    assert len(sound) / RATE == pytest.approx(6.0, abs=0.3)
    # The same sound, perhaps with the silence that the encoder put before it.
    whole = load_audio(mp3)
    lag = int(np.argmax(np.correlate(sound[: 2 * RATE], whole[RATE // 2 : RATE], "valid"))) - RATE // 2
    assert 0 <= lag < RATE // 4
    np.testing.assert_allclose(sound[RATE // 2 + lag : RATE + lag], whole[RATE // 2 : RATE], atol=0.02)


@pytest.mark.parametrize("kind", ["mp3", "variable mp3"])
def test_mp3_without_a_header_frame_that_stops_within_a_frame_is_told(files, kind, caplog):
    """Nothing says how long it was: its text may say more than its sound."""
    bare = without_xing(files[kind])
    assert not read_mp3(bare).ends_within_frame
    cut = next(
        part for part in (bare[: len(bare) // 2 + more] for more in range(8)) if read_mp3(part).ends_within_frame
    )
    with pytest.raises(AudioError, match=r"ends within an MP3 frame: it may be cut off\. If") as error:
        audio_seconds(cut)
    assert "give its row a duration" in error.value.reason
    assert 3.0 < len(load_audio(cut)) / RATE < 5.0 and "ends within an MP3 frame" in caplog.text


def test_mp3_files_one_after_the_other_are_read_whole():
    both = encoded("mp3", voice(2.0)) + encoded("mp3", voice(3.0))
    assert audio_seconds(both) == pytest.approx(5.0, abs=0.3)
    assert len(load_audio(both)) / RATE == pytest.approx(5.0, abs=0.3)


def test_tags_around_mp3_are_passed_over():
    mp3 = encoded("mp3", voice(2.0))
    size = 300
    tag = b"ID3\x04\0\0" + bytes([0, 0, size >> 7, size & 127]) + (b"\xff\xfb\x90\x64" * 75)
    tagged = tag + mp3 + b"TAG" + b"x" * 125
    assert read_mp3(tagged).frames == read_mp3(mp3).frames
    np.testing.assert_array_equal(load_audio(tagged), load_audio(mp3))


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=400), prefix=st.sampled_from([b"", b"\xff\xfb\x90\x64", b"ID3\x04\0\0\0\0\1\1"]))
def test_bytes_that_are_no_mp3_are_walked_over(data, prefix):
    stream = read_mp3(prefix + data)
    assert stream is None or 0 <= stream.start <= len(prefix + data)
    if stream is not None:
        assert read_mp3(with_header(prefix + data, stream)).stated_frames == stream.frames


# --------------------------------------------------------------------------------------------------- cut, cut, lying


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_file_that_is_cut_is_refused(files, kind, share):
    """FLAC states its length in its header alone: what is measured asks for the last sample, what is decoded for all."""
    cut = files[kind][: int(len(files[kind]) * share)]
    told = r"Cut off: audio bytes .* Fetch it again|file is malformed" + ("|Cannot decode" if kind == "flac" else "")
    for read in (load_audio, audio_seconds):
        with pytest.raises(AudioError, match=told) as error:
            read(cut)
        assert error.value.reason in ("audio is cut off", "audio cannot be read")


@pytest.mark.parametrize("format", ["FLAC", "SDS"])
def test_a_header_without_the_samples_that_it_promises_is_measured_as_cut(format):
    whole = made_data.encoded(voice(4.0), format=format, subtype="PCM_16")
    assert audio_seconds(whole) == pytest.approx(4.0, abs=0.01)
    for lost in (1000, len(whole) // 3):
        with pytest.raises(AudioError, match=r"Cut off: audio bytes lacks the last samples .* promises, of 4.00 s"):
            audio_seconds(whole[:-lost])
        with pytest.raises(AudioError, match=r"Cannot decode audio bytes|Cut off"):
            load_audio(whole[:-lost])


@pytest.mark.parametrize("format", ["NIST", "VOC", "SVX", "AVR", "MPC2K", "MAT4", "MAT5", "CAF"])
def test_a_rare_format_that_is_cut_is_refused(format):
    """NIST's is that of many speech corpora; the others are what libsndfile also reads."""
    whole = made_data.encoded(voice(4.0), format=format, subtype="PCM_16")
    assert audio_seconds(whole) == pytest.approx(4.0, abs=0.05) == len(load_audio(whole)) / RATE
    for read in (load_audio, audio_seconds):
        with pytest.raises(AudioError, match=r"Cut off: audio bytes|file is malformed"):
            read(whole[: len(whole) // 2])


@pytest.mark.parametrize(
    ("format", "subtype"), [("PAF", "PCM_16"), ("IRCAM", "FLOAT"), ("PVF", "PCM_S8"), ("XI", "DPCM_16")]
)
def test_a_format_that_does_not_say_its_length_needs_a_duration(format, subtype, caplog):
    whole = made_data.encoded(voice(4.0, 44_100), 44_100, format=format, subtype=subtype)
    with pytest.raises(AudioError, match=r"a format that does not say its length: .* give its row a `duration`"):
        audio_seconds(whole)
    assert len(load_clip({"audio": whole, "duration": 4.0})) == 4 * RATE and "it may be cut off" in caplog.text
    with pytest.raises(AudioError, match=r"lasts (2.0|1.9)\d s, its `duration` is 4.00 s"):
        load_clip({"audio": whole[: len(whole) // 2], "duration": 4.0})


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_mp2_does_not_say_its_length(share, caplog):
    av = pytest.importorskip("av")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp2") as container:
        stream = container.add_stream("mp2", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray((voice(3.0)[None] * 32767).astype("int16"), format="s16", layout="mono")
        frame.sample_rate = RATE
        for one in (frame, None):
            container.mux(stream.encode(one))
    file = buffer.getvalue()[: round(share * buffer.tell())]
    with pytest.raises(AudioError, match="is of a format that does not say its length: it may be cut off"):
        audio_seconds(file)
    assert len(load_audio(file)) == pytest.approx(share * 3.0 * RATE, rel=0.05)
    assert "may be cut off" in caplog.text
    row = {"audio": {"path": None, "bytes": file}, "start": None, "end": None, "duration": 3.0}
    if share == 1.0:
        load_clip(row)
    else:
        with pytest.raises(AudioError, match=r"its `duration` is 3\.00 s"):
            load_clip(row)


@pytest.mark.parametrize("subtype", ["IMA_ADPCM", "DWVW_16", "DWVW_24", "ULAW"])
def test_compressed_aiff_is_read(subtype):
    """Its frames are packets in IMA's, and in DWVW's one cannot go back."""
    whole = made_data.encoded(voice(4.0), format="AIFF", subtype=subtype)
    samples = load_audio(whole)
    assert abs(audio_seconds(whole) - 4.0) < 0.01 and np.abs(samples[: 4 * RATE] - voice(4.0)).max() < 0.1
    np.testing.assert_array_equal(load_audio(whole, start=1.0, end=2.0), samples[RATE : 2 * RATE])


@pytest.mark.parametrize("kind", ["vorbis", "opus"])
def test_an_ogg_file_that_is_cut_where_a_page_ends_is_no_clip_of_a_corpus(kind, caplog):
    """Nothing states its length, but its last page is not marked as the last; what a phone leaves so can be heard."""
    whole = encoded(kind, voice(20.0) + made_data.tone(20.0) / 4)
    cut = whole[: whole.index(b"OggS", len(whole) // 2)]
    assert audio_seconds(whole) == pytest.approx(20.0, abs=0.05) and not caplog.messages
    with pytest.raises(AudioError, match=r"does not mark its end as Ogg files do: it may be cut off. If it is whole"):
        audio_seconds(cut)
    assert 5.0 < len(load_audio(cut)) / RATE < 19.0 and "it may be cut off" in caplog.text
    with pytest.raises(AudioError, match=r"its `duration` is 20.00 s"):
        load_clip({"audio": cut, "duration": 20.0})


def ogg_of_another_stream(ogg: bytes) -> bytes:
    """The same pages under another serial number; libsndfile does not look at their checksums first."""
    pages = ogg.split(b"OggS")
    return b"OggS".join([pages[0], *(page[:10] + b"abcd" + page[14:] for page in pages[1:])])


@pytest.mark.parametrize("kind", ["vorbis", "opus"])
def test_recordings_one_after_the_other_in_one_ogg_file_are_refused(files, kind):
    """Of streams that were stored as they came; libsndfile gives the first recording and not a word of the second."""
    short, long = encoded(kind, voice(2.0)), encoded(kind, made_data.tone(60.0) + 0.1 * voice(60.0))
    for both in (
        short + short,
        short + ogg_of_another_stream(short),
        short + ogg_of_another_stream(long),
        long + short,
    ):
        for read in (load_audio, audio_seconds):
            with pytest.raises(AudioError, match="recordings one after the other") as error:
                read(both)
            assert error.value.reason == "audio of several recordings in one Ogg file"
    assert audio_seconds(long) == pytest.approx(60.0, abs=0.1)


def test_recordings_one_after_the_other_in_one_flac_file_are_refused(files):
    """Those of a corpus are measured by their headers, and refused when they are read."""
    for both in (files["flac"] * 2, files["flac"] + encoded("flac", voice(9.0))):
        with pytest.raises(AudioError, match="recordings one after the other"):
            load_audio(both)


@pytest.mark.parametrize("format", ["WAV", "WAVEX", "RF64", "AU", "CAF"])
def test_samples_that_the_header_does_not_name_are_not_lost_in_silence(format, tmp_path):
    """Of a recorder that stopped, whose header is from before, and of files that were put one after the other."""
    noise = 0.1 * np.random.default_rng(0).standard_normal(RATE)
    first, noise = (made_data.encoded(samples, RATE, format=format) for samples in (voice(2.0), noise))
    (tmp_path / "joined").write_bytes(first + noise)
    for content in (first + noise[-RATE:], *([] if format.startswith("WAV") else [first * 2, tmp_path / "joined"])):
        for read in (load_audio, audio_seconds):
            with pytest.raises(
                AudioError, match=r"has 2\.00 s by its header, and bytes of \d\.\d\d s after them"
            ) as error:
                read(content)
            assert error.value.reason == "audio goes on after what its header says"
    for rest in (b"\0" * 40_000, b"TAG" + b"x" * 40_000, b"ID3\4" + b"x" * 40_000, noise[-100:]):
        assert audio_seconds(first + rest) == 2.0 == len(load_audio(first + rest)) / RATE
    if format != "AU":
        size = struct.pack(">q", 40_000) if format == "CAF" else struct.pack("<I", 40_000)
        for there in (40_000, 30_000):  # cut within what is no sound
            assert audio_seconds(first + b"JUNK" + size + b"x" * there) == 2.0


@pytest.mark.parametrize("padded", [True, False])
def test_what_a_header_names_after_an_odd_number_of_bytes_is_named(padded):
    wav = bytearray(made_data.encoded(voice(1.0), RATE, format="WAV", subtype="PCM_U8"))
    place = wav.index(b"data") + 4
    wav[place : place + 4] = struct.pack("<I", RATE - 1)
    rest = b"\0" * padded + b"LIST" + struct.pack("<I", 40_000) + b"x" * 40_000
    assert audio_seconds(bytes(wav[: place + 4 + RATE - 1]) + rest) == pytest.approx(1.0, abs=0.001)


def test_mp3_that_changes_its_rate_is_refused():
    parts = [encoded("mp3", voice(3.0, rate), rate) for rate in (44_100, 22_050, 44_100)]
    for both in (parts[0] + parts[1], b"".join(parts), without_xing(parts[0]) + without_xing(parts[1])):
        for read in (load_audio, audio_seconds):
            with pytest.raises(AudioError, match="MP3 of another kind or sampling rate"):
                read(both)


@pytest.mark.parametrize("kind", ["wav", "mp3", "variable mp3", "aiff", "au"])
def test_what_lacks_a_little_is_used(files, kind):
    cut = files[kind][: int(len(files[kind]) * 0.96)]
    assert audio_seconds(cut) == pytest.approx(len(load_audio(cut)) / RATE, abs=0.1)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF024])
def test_a_wav_of_unknown_length_is_read_to_its_end(files, size):
    wav = files["wav"]
    place = wav.index(b"data") + 4
    streamed = wav[:4] + struct.pack("<I", size) + wav[8:place] + struct.pack("<I", size) + wav[place + 4 :]
    np.testing.assert_array_equal(load_audio(streamed), load_audio(wav))
    assert audio_seconds(streamed) == 8.0


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "vorbis", "array", "streamed flac"])
def test_channels_that_cancel_are_heard(kind):
    """A microphone wired out of phase: the mean of its channels is silence."""
    speech = voice(2.0)
    for other, expected in ((-speech, speech), (-0.97 * speech, speech), (0 * speech, speech / 2), (speech, speech)):
        stereo = np.stack([speech, other], axis=1)
        if kind == "array":
            given = load_audio(stereo.T)
        else:
            audio = bytearray(encoded(kind.split()[-1], stereo))
            if kind == "streamed flac":
                audio[21:26] = bytes([audio[21] & 0xF0, 0, 0, 0, 0])
            given = load_audio(bytes(audio))
        assert abs(np.sqrt(np.mean(given**2)) / np.sqrt(np.mean(expected**2)) - 1) < 0.05


def test_a_piece_of_channels_that_cancel_has_the_sound_of_the_whole():
    stereo = encoded("wav", np.stack([voice(4.0), -voice(4.0)], axis=1))
    np.testing.assert_array_equal(load_audio(stereo, start=1.0, end=3.0), load_audio(stereo)[RATE : 3 * RATE])


def test_an_open_file_that_was_read_is_named(files):
    buffer = io.BytesIO(files["wav"])
    load_audio(buffer)
    with pytest.raises(AudioError, match=r"at its end, or empty. Go back with `seek\(0\)`"):
        load_audio(buffer)


def test_an_open_file_that_gives_no_bytes_is_named(files, tmp_path):
    (tmp_path / "clip.wav").write_bytes(files["wav"])
    with (tmp_path / "clip.wav").open(encoding="utf-8") as text, soundfile.SoundFile(tmp_path / "clip.wav") as decoded:
        for file in (text, io.StringIO("clip.wav"), decoded):
            with pytest.raises(
                AudioError, match=r"gives no bytes. Give its path, or open it with `open\(path, 'rb'\)`"
            ):
                load_audio(file)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
@pytest.mark.parametrize("kind", ["wav", "mp3", "vorbis"])
def test_a_name_that_is_no_utf_8_is_a_name(files, tmp_path, kind):
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9")
    with open(path, "wb") as file:
        file.write(files[kind])
    name = os.fsdecode(path)
    assert np.array_equal(load_audio(name, RATE), load_audio(files[kind], RATE))
    assert audio_seconds(name) == audio_seconds(files[kind])


def test_a_file_that_may_not_be_read_is_named(files, tmp_path, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.wav").write_bytes(files["wav"])
    monkeypatch.setattr(pathlib.Path, "open", refused)
    for read in (load_audio, audio_seconds):
        with pytest.raises(AudioError, match=r"Cannot read '.*a\.wav': Permission denied") as told:
            read(tmp_path / "a.wav")
        assert "a.wav" not in told.value.reason


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b", "UklGR" * 2000, "[0.0, 0.1]" * 500])
def test_what_cannot_be_a_name_is_no_file(name):
    with pytest.raises(AudioError, match="There is no audio file"):
        load_audio(name)


def test_a_mapping_without_sound_says_what_is_due():
    for audio in ({}, {"raw": [0.0]}, {"path": None, "bytes": None}):
        with pytest.raises(AudioError, match="holds 'array' and 'sampling_rate', or 'path' or 'bytes'"):
            load_audio(audio)


def test_open_files_and_buffers_are_read(files, tmp_path):
    (tmp_path / "clip.wav").write_bytes(files["wav"])
    expected = load_audio(files["wav"])
    for audio in (io.BytesIO(files["wav"]), memoryview(files["wav"]), bytearray(files["wav"])):
        np.testing.assert_array_equal(load_audio(audio), expected)
    with (tmp_path / "clip.wav").open("rb") as file:
        np.testing.assert_array_equal(load_audio(file, RATE, 1.0, 2.0), expected[RATE : 2 * RATE])


def test_an_address_is_named_as_one():
    with pytest.raises(AudioError, match=r"'https://example\.org/a\.wav' is an address, and nothing is fetched"):
        load_audio("https://example.org/a.wav")


HEADERS = {"channels": (22, "H"), "rate": (24, "I"), "frame": (32, "H"), "width": (34, "H")}


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_U8", "FLOAT", "ULAW"])
@pytest.mark.parametrize("field", HEADERS)
def test_a_header_that_contradicts_itself_is_refused(subtype, field):
    """Otherwise the samples would be read at another rate or width: noise, with the whole text."""
    wav = bytearray(made_data.encoded(voice(1.0), RATE, format="WAV", subtype=subtype))
    place, code = HEADERS[field]
    (value,) = struct.unpack_from(code, wav, place)
    samples = load_audio(bytes(wav))
    for other in (2 * value, value // 2, value + 8):
        changed = bytearray(wav)
        struct.pack_into(code, changed, place, other)
        for read in (load_audio, audio_seconds):
            try:
                given = read(bytes(changed))
            except AudioError:
                continue
            # where the field decides nothing
            assert np.array_equal(given, samples) if read is load_audio else given == 1.0


def test_other_headers_that_contradict_themselves(files):
    aiff, flac = bytearray(files["aiff"]), bytearray(files["flac"])
    aiff[aiff.index(b"COMM") + 9] = 2  # channels
    flac[18:20] = b"\x05\x62"  # 22,050 Hz
    for audio, told in (
        (aiff, "frames of samples, in bytes for"),
        (flac, "a rate of 220.. Hz, and of 16000 Hz in frames"),
    ):
        for read in (load_audio, audio_seconds):
            with pytest.raises(AudioError, match=f"contradicts itself: .*{told}") as error:
                read(bytes(audio))
            assert error.value.reason == "audio header contradicts itself"


def test_a_flac_stream_without_a_length_is_read_to_its_end(files, monkeypatch):
    flac = bytearray(files["flac"])
    flac[21] &= 0xF0  # the 36 bits of the number of samples
    flac[22:26] = bytes(4)
    np.testing.assert_array_equal(load_audio(bytes(flac)), load_audio(files["flac"]))
    np.testing.assert_array_equal(load_audio(bytes(flac), RATE, 2.0, 3.0), load_audio(files["flac"], RATE, 2.0, 3.0))
    assert audio_seconds(bytes(flac)) == 8.0
    flac[21] |= 0x0F  # and one that says 50 days
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(AudioError):
        load_audio(bytes(flac))


def test_a_clip_must_be_as_long_as_its_row_says(files):
    row = {"audio": {"path": None, "bytes": files["wav"]}, "start": None, "end": None, "duration": 8.05}
    assert len(load_clip(row)) == 8 * RATE
    assert len(load_clip({**row, "start": 1.0, "end": 3.0, "duration": 2.0}, 8000)) == 16_000
    assert len(load_clip({"audio": row["audio"]})) == 8 * RATE
    for changes in ({"duration": 25.0}, {"duration": 4.0}, {"start": 1.0, "end": 3.0, "duration": 1.0}):
        with pytest.raises(AudioError, match=r"Its audio lasts .* s, its `duration` is") as error:
            load_clip({**row, **changes})
        assert error.value.reason == "audio is not as long as its row says"
    with pytest.raises(AudioError, match=r"ends 17\.00 s before 25\.0 s, where the piece should end"):
        load_clip({**row, "start": 0.0, "end": 25.0, "duration": 25.0})


# ------------------------------------------------------------------------------------------------------------ arrays


@pytest.mark.parametrize("kind", ["int16", "int32", "uint8", "float32", "float64", "float16"])
def test_samples_of_any_type_sound_alike(kind):
    samples = voice(1.0)
    scale = {"int16": 2**15, "int32": 2**31, "uint8": 2**7}.get(kind)
    array = samples.astype(kind) if scale is None else (samples.astype("float64") * scale).astype(kind)
    if kind == "uint8":
        array = np.clip(np.round(samples * 128 + 128), 0, 255).astype("uint8")
    ways = {
        "array": array,
        "stereo": np.stack([array, array]),
        "tensor": torch.from_numpy(array),
        "mapping": {"array": array, "sampling_rate": RATE},
        "decoder": SimpleNamespace(
            get_all_samples=lambda: SimpleNamespace(data=torch.from_numpy(array)[None], sample_rate=RATE)
        ),
    }
    for name, audio in ways.items():
        np.testing.assert_allclose(load_audio(audio), samples, atol=0.01, err_msg=name)
        np.testing.assert_allclose(load_audio(audio, RATE, 0.25, 0.5), samples[4000:8000], atol=0.01, err_msg=name)
    assert load_audio({"array": samples.tolist(), "sampling_rate": 8_000}).shape == (2 * RATE,)
    assert load_audio(torch.from_numpy(samples).bfloat16()).dtype == np.float32


@pytest.mark.parametrize(
    ("array", "message"),
    [
        ((voice(1) * 32767).astype("int64"), "int64, whose full scale is not known"),
        ((voice(1) * 32767).astype("int32"), "16-bit samples? Convert it to int16"),
        (voice(1) * 32767, r"samples up to 1.\d+e\+04; floats must be in \[-1, 1\]"),
        (voice(1).astype("complex64"), "complex64, whose full scale"),
        (voice(1) > 0, "bool, whose full scale"),
        (np.zeros(9, "datetime64[s]"), "datetime64.* whose full scale"),
        (np.array([0.0, np.nan, 0.0]), "NaN or infinite samples"),
        (np.array([0.0, 1e20, 0.0]), r"samples up to 1e\+20"),
        (np.zeros((2, 3, 4)), r"shape \(2, 3, 4\)"),
        (np.zeros(0), "empty"),
    ],
)
def test_arrays_that_are_no_sound_are_refused(array, message):
    with pytest.raises(AudioError, match=message.replace("?", r"\?") if "?" in message else message):
        load_audio(array)


def test_a_decoder_that_fails_is_an_audio_error():
    def fails() -> None:
        raise RuntimeError("No audio frames were decoded")

    with pytest.raises(AudioError, match="cannot decode its clip: No audio frames were decoded"):
        load_audio(SimpleNamespace(get_all_samples=fails))


@pytest.mark.parametrize("rate", [0, -1, 1, 999, 1e9, float("nan"), float("inf"), 22_050.5, "16000", True])
def test_impossible_sampling_rates_are_refused_at_once(rate):
    with pytest.raises(AudioError, match="it must be a whole number from 1000 on"):
        load_audio(voice(1.0), array_rate=rate)
    with pytest.raises(AudioError, match="it must be a whole number from 1000 on"):
        load_audio({"array": voice(1.0), "sampling_rate": rate})


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"start": "0.5"}, "`start` is '0.5'; give seconds"),
        ({"end": True}, "`end` is True; give seconds"),
        ({"sampling_rate": 0}, "has a sampling rate of 0 Hz"),
        ({"sampling_rate": "16000"}, "has a sampling rate of '16000' Hz"),
        ({"audio": torch.ones(RATE).to_sparse()}, "makes no array of samples"),
        ({"audio": torch.empty(RATE, device="meta")}, "makes no array of samples"),
        ({"audio": {"array": [[0.5], [0.5, 0.5]], "sampling_rate": RATE}}, "makes no array of samples"),
    ],
)
def test_arguments_of_another_kind_are_named(files, arguments, told):
    with pytest.raises(AudioError, match=told):
        load_audio(**{"audio": files["wav"], **arguments})


def test_an_array_in_a_mapping_says_its_rate():
    samples = voice(0.5)
    for mapping in ({"array": samples}, {"array": samples.tolist(), "sampling_rate": None}):
        with pytest.raises(AudioError, match="needs its `sampling_rate` in Hz"):
            load_audio(mapping, RATE)
        assert np.array_equal(load_audio(mapping, RATE, array_rate=RATE), samples)


def test_a_matrix_is_an_array():
    np.testing.assert_array_equal(load_audio(np.matrix(voice(1.0))), voice(1.0))


@pytest.mark.parametrize("rate", [1, 999, 2**30])
def test_a_header_with_an_impossible_rate_is_refused_at_once(files, rate):
    wav = files["wav"][:24] + struct.pack("<I", rate) + files["wav"][28:]
    for read in (load_audio, audio_seconds):
        with pytest.raises(AudioError, match="sampling rate of"):
            read(wav)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.5])
@pytest.mark.parametrize("name", ["start", "end"])
def test_times_that_are_none_are_refused(files, name, value):
    with pytest.raises(AudioError, match=rf"`{name}` is {value}; give seconds"):
        load_audio(files["wav"], **{name: value})


# -------------------------------------------------------------------------------------------------------- other files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS pointer.*git lfs pull"),
        (b"\n<!DOCTYPE html><html><body>Not found</body></html>", "a web page"),
        (b"\xef\xbb\xbf<HTML>", "a web page"),
        (b"\x1f\x8b\x08" + bytes(50), "gzip archive"),
        (b"PK\x03\x04" + bytes(50), "zip archive"),
        (b"\0\0\0\x18ftypM4A " + bytes(500), "M4A or MP4.*pip install av"),
        (b"\x1a\x45\xdf\xa3" + bytes(500), "WebM or Matroska.*pip install av"),
        (b"#!AMR\n" + bytes(500), "AMR.*pip install av"),
        (b"", "there are none|the file is empty"),
        (b"not audio", "Check that the file is complete audio"),
    ],
)
def test_what_is_no_audio_is_named(tmp_path, monkeypatch, content, message):
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "clip.m4a").write_bytes(content)
    for audio in (content, tmp_path / "clip.m4a"):
        for read in (load_audio, audio_seconds):
            with pytest.raises(AudioError, match=message):
                read(audio)


def test_files_that_cannot_be_opened_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "clip.raw").write_bytes(bytes(32_000))
    for name, message in {
        "pipe.wav": "no audio file .*pipe.wav",
        "": "no audio file",
        "none.wav": "no audio file .*none.wav",
        "clip.raw": "does not say its sampling rate. Convert it to WAV or FLAC",
    }.items():
        for read in (load_audio, audio_seconds):
            with pytest.raises(AudioError, match=message):
                read(tmp_path / name)
    with pytest.raises(AudioError, match="NoneType cannot be decoded"):
        load_audio(None)


@pytest.mark.parametrize(
    "content", [b"version https://git-lfs.github.com/spec/v1\n", b"<html>Not found" * 900, bytes(9000)]
)
@pytest.mark.parametrize("ending", ["au", "snd", "vox", "gsm", "ul", "al", "g722"])
def test_no_format_is_guessed_from_the_ending_of_a_name(tmp_path, ending, content):
    path = tmp_path / f"clip.{ending}"
    path.write_bytes(content)
    for read in (load_audio, audio_seconds):
        with pytest.raises(AudioError, match=r"Git LFS pointer|web page|Format not recognised"):
            read(path)


@pytest.mark.parametrize("ending", ["m3u8", "wav"])
def test_a_playlist_is_no_way_to_other_files(tmp_path, ending):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "private.ts"), "w") as container:
        stream = container.add_stream("aac", rate=44_100, layout="mono")
        frame = av.AudioFrame.from_ndarray(voice(1.0, 44_100)[None], format="fltp", layout="mono")
        frame.sample_rate = 44_100
        for one in (frame, None):
            container.mux(stream.encode(one))
    assert len(load_audio(tmp_path / "private.ts")) == pytest.approx(RATE, rel=0.1)
    begin = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1.0,\n"
    for playlist in (
        f"{begin}{tmp_path}/private.ts\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile private.ts\n",
        "v=0\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",  # would wait for what a network sends
    ):
        path = tmp_path / f"list.{ending}"
        path.write_text(playlist)
        for audio in (path, path.read_bytes()):
            with pytest.raises(AudioError, match="Format not recognised"):
                load_audio(audio)


@pytest.mark.parametrize("content", [b"\0\0\0\x18ftypM4A " + bytes(500), b"\x1a\x45\xdf\xa3" + bytes(500)])
def test_damaged_recordings_of_phones_and_browsers_are_named(content):
    pytest.importorskip("av")
    for read in (load_audio, audio_seconds):
        with pytest.raises(
            AudioError, match=r"it is (M4A or MP4|WebM or Matroska), and FFmpeg says .* Fetch it again"
        ):
            read(content)


def media(samples: np.ndarray, format: str, codec: str, pictures: int = 0) -> bytes:
    """Samples of 16 kHz as FFmpeg writes them, maybe with pictures, ten a second."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format=format) as container:
        stream = container.add_stream(codec, rate=RATE, layout="mono")
        if pictures:
            video = container.add_stream("mpeg4", rate=10, width=64, height=64, pix_fmt="yuv420p")
            for number in range(pictures):
                picture = av.VideoFrame(64, 64, "yuv420p")
                picture.pts = number
                container.mux(video.encode(picture))
            container.mux(video.encode(None))
        sound = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        sound.sample_rate = RATE
        form = stream.codec_context.codec.audio_formats[0].name
        resampler = av.AudioResampler(format=form, rate=RATE, frame_size=stream.codec_context.frame_size or None)
        for one in (*resampler.resample(sound), *resampler.resample(None), None):
            container.mux(stream.encode(one))
    return file.getvalue()


@pytest.mark.parametrize(
    ("silence", "format", "pictures"), [(4.0, "adts", 0), (0.0, "mp4", 60), (0.0, "matroska", 60), (0.0, "mp4", 10)]
)
def test_media_are_as_long_as_their_sound(silence, format, pictures):
    pytest.importorskip("av")
    samples = np.concatenate([np.zeros(round(silence * RATE), "float32"), voice(3.0)])
    clip = media(samples, format, "aac", pictures)
    assert len(load_audio(clip)) / RATE == pytest.approx(silence + 3.0, abs=0.15)
    assert audio_seconds(clip, longest=10.0) == pytest.approx(silence + 3.0, abs=0.15)
    if format != "matroska":
        with pytest.raises(AudioError):
            audio_seconds(clip[: len(clip) // 2])


def test_recordings_one_after_the_other_in_one_m4a_file_are_refused():
    """Of files that are put together FFmpeg reads all but of these."""
    pytest.importorskip("av")
    clips = {format: media(voice(2.0), format, "aac") for format in ("mp4", "adts", "matroska")}
    for format, clip in clips.items():
        for read in (audio_seconds, lambda both: len(load_audio(both)) / RATE):
            if format != "mp4":
                assert read(clip * 2) == pytest.approx(4.0, abs=0.4)
                continue
            with pytest.raises(AudioError, match="it is M4A or MP4, and it holds recordings one after the other"):
                read(clip * 2)


def test_a_piece_of_mp3_in_a_wav_file_is_that_piece_of_the_whole():
    pytest.importorskip("av")
    noise = 0.3 * np.random.default_rng(0).standard_normal(4 * RATE)  # frames of which take bits from others
    clip = media(noise.astype("float32"), "wav", "libmp3lame")
    for start in (1.0, 2.0, 2.5):
        piece = load_audio(clip, RATE, start, start + 0.5)
        whole = load_audio(clip)[round(start * RATE) : round((start + 0.5) * RATE)]
        np.testing.assert_allclose(piece, whole, atol=1e-4)


@pytest.mark.parametrize("kind", ["m4a", "webm"])
def test_what_phones_and_browsers_record_is_decoded_with_av(tmp_path, kind):
    av = pytest.importorskip("av")
    codec = {"m4a": "aac", "webm": "libopus"}[kind]
    samples = voice(3.0, 48_000)
    with av.open(str(tmp_path / f"clip.{kind}"), "w", format={"m4a": "mp4"}.get(kind)) as container:
        stream = container.add_stream(codec, rate=48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = 48_000
        for one in (frame, None):
            container.mux(stream.encode(one))
    path = tmp_path / f"clip.{kind}"
    for audio in (path, path.read_bytes()):
        sound = load_audio(audio)
        assert len(sound) / RATE == pytest.approx(3.0, abs=0.1)
        assert audio_seconds(audio) == pytest.approx(3.0, abs=0.1)
        assert np.abs(sound).max() == pytest.approx(0.4, abs=0.15)
    np.testing.assert_allclose(load_audio(path, RATE, 1.0, 1.5), load_audio(path)[RATE : 3 * RATE // 2], atol=1e-5)
    assert audio_seconds(path, longest=4.0) == pytest.approx(3.0, abs=0.1)
    with pytest.raises(MediaTooLongError) as too_long:
        audio_seconds(path, longest=2.0)
    assert too_long.value.seconds > 2.0
