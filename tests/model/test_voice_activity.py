"""Windows of speech alone: where they lie in recorded speech with silence around it, and what silence gives."""

from itertools import pairwise

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import pipeline

from modeling_part.audio_part import load_audio
from modeling_part.voice_activity_part import join_stretches, speech_windows


RATE = 16_000


@given(st.lists(st.integers(1, 30), max_size=20).map(np.cumsum), st.integers(30, 90))
def test_windows_hold_all_speech_in_order_and_are_no_longer_than_they_may_be(edges, window):
    edges = edges[: len(edges) // 2 * 2].tolist()
    stretches = list(zip(edges[::2], edges[1::2], strict=True))
    windows = join_stretches(stretches, window)
    assert all(0 < end - start <= window for start, end in windows)
    assert all(left[1] < right[0] for left, right in pairwise(windows))
    assert all(any(start <= one and other <= end for start, end in windows) for one, other in stretches)


def test_speech_that_is_longer_than_a_window_is_cut_and_none_of_it_lost():
    assert join_stretches([(0, 10), (20, 120)], 40) == [(0, 10), (20, 54), (54, 88), (86, 120)]


@pytest.fixture(scope="module")
def speech(shared_data):
    """Recorded words."""
    return load_audio(str(next(shared_data.glob("ljspeech-mini/**/*.flac"))), RATE)


def test_speech_is_found_between_silence_at_any_rate(speech):
    quiet = np.zeros(5 * RATE, np.float32)
    sound = np.concatenate([quiet, speech, quiet, speech, quiet])
    threads = torch.get_num_threads()
    windows = speech_windows(sound, RATE, 30 * RATE)
    assert torch.get_num_threads() == threads
    assert abs(windows[0][0] - 5 * RATE) < 0.5 * RATE and abs(windows[-1][1] - len(sound) + 5 * RATE) < RATE
    assert sum(end - start for start, end in speech_windows(sound, RATE, 2 * RATE)) < 2.4 * len(speech)
    assert all(end - start <= 2 * RATE for start, end in speech_windows(sound, RATE, 2 * RATE))
    halved = speech_windows(sound[::2], RATE // 2, 15 * RATE)
    assert np.allclose(np.array(halved) * 2, np.array(windows), atol=0.3 * RATE)


def test_the_pipeline_hears_speech_alone(tiny_checkpoint, speech):
    pipe = pipeline("speech-to-text", model=str(tiny_checkpoint), max_new_tokens=6, device="cpu")
    # Louder than what is silence in any case.
    silence = 0.005 * np.random.default_rng(0).standard_normal(9 * RATE).astype(np.float32)
    answers = pipe([silence, speech], voice_activity=True, batch_size=2)
    assert answers[0]["text"] == "" and pipe(silence)["text"] != ""
    assert pipe(silence, voice_activity=True, return_confidence=True)["text"] == ""
    both = pipe(np.concatenate([silence, speech[: 2 * RATE]]), voice_activity=True)
    assert len(both["chunks"]) == 1 and both["chunks"][0]["timestamp"][0] > 8.0
    with pytest.raises(ValueError, match="`voice_activity` is 'yes'"):
        pipe(silence, voice_activity="yes")


def test_the_command_takes_it(tiny_checkpoint, tmp_path, capsys):
    from modeling_part.__main__ import main

    soundfile.write(tmp_path / "silence.wav", np.zeros(3 * RATE), RATE)
    main(["transcribe", str(tiny_checkpoint), str(tmp_path / "silence.wav"), "--voice_activity", "--device", "cpu"])
    assert capsys.readouterr().out.strip() == ""
