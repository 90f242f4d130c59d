"""Live audio: words are final once two transcripts agree, nothing is said twice or lost."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_training
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_part import PARTPipeline
from modeling_part.audio_part import AudioError
from modeling_part.live_part import transcribe_live


RATE = 1000
LENGTH = 0.4  # seconds of a word
NAMES = ["zero", "one,", "two", "three.", "four", "five", "six", "seven"]


class Listener:
    """Stands for a pipeline: hears a word in samples of its number, and what is cut as something else each time."""

    def __init__(self, has_times: bool) -> None:
        self.processor = SimpleNamespace(sampling_rate=RATE, encoder_window=6 * RATE)
        self.model = SimpleNamespace(alignment_head=object() if has_times else None)
        self.calls, self.heard = 0, 0.0

    def __call__(self, inputs, return_timestamps=None):
        self.calls += 1
        audio, chunks = inputs["raw"], []
        self.heard += len(audio) / RATE
        edges = np.flatnonzero(np.diff(np.r_[0, audio, 0]))
        for first, last in pairwise(edges):
            number = round(float(audio[first]))
            if not number:
                continue
            is_whole = last - first == round(LENGTH * RATE)
            word = NAMES[number - 1] if is_whole else f"cut{self.calls}"
            chunks.append({"text": f" {word}" if chunks else word, "timestamp": (first / RATE, last / RATE)})
        text = "".join(chunk["text"] for chunk in chunks)
        window = [{"text": text, "timestamp": (0.0, len(audio) / RATE)}]
        return {"text": text, "chunks": chunks if return_timestamps == "word" else window}


def speech(numbers: list[int]) -> np.ndarray:
    pieces = [np.zeros(100)]
    for number in numbers:
        pieces += [np.full(round(LENGTH * RATE), number + 1.0), np.zeros(100)]
    return np.concatenate(pieces).astype(np.float32)


def cut(audio: np.ndarray, lengths: list[int]) -> list[np.ndarray]:
    pieces, start = [], 0
    while start < len(audio):
        length = lengths[len(pieces) % len(lengths)]
        pieces.append(audio[start : start + length])
        start += length
    return pieces


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, len(NAMES) - 1), max_size=40),
    st.lists(st.integers(20, 900), min_size=1, max_size=4),
    st.floats(0.2, 2.0),
    st.booleans(),
    st.sampled_from([None, True, "word"]),
)
def test_what_is_final_is_what_was_said(numbers, lengths, interval, has_times, return_timestamps):
    pipe = Listener(has_times)
    options = {"interval": interval, "return_timestamps": return_timestamps}
    texts = list(transcribe_live(pipe, cut(speech(numbers), lengths), **options))
    assert texts[-1].text == " ".join(NAMES[number] for number in numbers) and texts[-1].tentative == ""
    for one, other in pairwise(texts):
        assert other.text.startswith(one.text) and other.seconds >= one.seconds
    if has_times and len(numbers) > 25:  # what is final is not heard again for ever
        assert pipe.heard / pipe.calls < 6 + interval


def test_a_model_that_never_writes_the_same_twice_does_not_hear_ever_more():
    class Unsure(Listener):
        longest = 0.0

        def __call__(self, inputs, **options):
            self.longest = max(self.longest, len(inputs["raw"]) / RATE)
            answer = super().__call__(inputs, **options)
            for chunk in answer["chunks"]:
                chunk["text"] += "ab"[self.calls % 2]
            return answer

    pipe, numbers = Unsure(True), [number % len(NAMES) for number in range(80)]
    texts = list(transcribe_live(pipe, cut(speech(numbers), [250]), interval=0.5, longest=3.0))
    assert [word[:-1] for word in texts[-1].text.split()] == [NAMES[number] for number in numbers]
    for one, other in pairwise(texts):
        assert other.text.startswith(one.text)
    assert pipe.longest <= 2 * 3.0 + 1.0


@pytest.mark.parametrize(
    "given",
    [
        lambda piece: (4096 * piece).astype(np.int16),  # as microphones give them
        lambda piece: torch.from_numpy(piece / 8),
        lambda piece: np.stack([piece / 8, piece / 8]),
        lambda piece: (piece / 8).tolist(),
    ],
)
def test_pieces_are_heard_as_any_other_array(given):
    class Loud(Listener):
        def __call__(self, inputs, **options):
            return super().__call__({"raw": np.round(8 * inputs["raw"])}, **options)

    pieces = [given(piece) for piece in cut(speech([1, 2]), [300])]
    empty = np.zeros(0, dtype=np.float32)
    assert list(transcribe_live(Loud(True), [empty, *pieces, empty]))[-1].text == "one, two"
    with pytest.raises(AudioError, match="NaN or infinite samples"):
        list(transcribe_live(Loud(True), [np.array([0.0, np.nan])]))
    for whole in (speech([1]), "clip.wav", [{"raw": speech([1]), "sampling_rate": RATE}]):
        with pytest.raises(AudioError, match=r"arrays, one after the other, .*a whole recording is `\[waveform\]`"):
            list(transcribe_live(Loud(True), whole))


def test_words_are_final_soon_and_shown_at_once():
    texts = list(transcribe_live(Listener(True), cut(speech([1, 2, 3, 4]), [500]), interval=0.5))
    assert [text.seconds for text in texts] == [0.5, 1.0, 1.5, 2.0, 2.1]
    assert [text.text for text in texts] == ["", "one,", "one, two", "one, two three.", "one, two three. four"]
    assert texts[0].tentative == "one,"


def test_scripts_without_spaces_get_none(monkeypatch):
    monkeypatch.setattr("test_live.NAMES", ["你", "好", "吗", "。", "我", "很", "好", "Python"])
    texts = list(transcribe_live(Listener(True), cut(speech([0, 1, 2, 4, 5, 6] * 4), [300])))
    assert texts[-1].text.replace(" ", "") == "你好吗我很好" * 4


def test_a_long_pause_is_not_heard_again_and_again():
    pause, pipe = np.zeros(60 * RATE, dtype=np.float32), Listener(True)
    texts = list(transcribe_live(pipe, cut(np.concatenate([pause, speech([1, 2]), pause, speech([3])]), [500])))
    assert texts[-1].text == "one, two three." and texts[-1].tentative == ""
    assert pipe.heard / pipe.calls < 6


@pytest.mark.parametrize("has_head", [True, False])
def test_a_real_pipeline_ends_with_a_text(has_head):
    model, processor = tiny_training.tiny_model(adapter_conv_stride=1)
    if has_head:
        model.add_alignment_head(torch.ones(model.config.text_config.vocab_size))
    pipe = PARTPipeline(model=model.eval(), processor=processor, max_new_tokens=4, device="cpu")
    audio = 0.1 * np.random.default_rng(0).standard_normal(6 * 16_000).astype(np.float32)
    texts = list(pipe.live(cut(audio, [4000]), interval=1.5, source_lang="en"))
    assert len(texts) >= 4 and texts[-1].seconds == 6.0 and texts[-1].tentative == ""
    assert list(pipe.live([])) == [("", "", 0.0, ())]


def test_what_a_pipeline_is_given_once_holds_for_live_audio():
    model, processor = tiny_training.aligned_model()
    once = {"task": "s2tt", "target_lang": "fr", "chunk_length_s": 2.0, "max_new_tokens": 4}
    pipe = PARTPipeline(model=model, processor=processor, device="cpu", **once)
    audio = 0.1 * np.random.default_rng(0).standard_normal(3 * 16_000).astype(np.float32)
    (*_, last) = pipe.live(cut(audio, [8000]))
    assert last.text.split() == pipe(audio)["text"].split()
    transcriber = PARTPipeline(model=model, processor=processor, device="cpu", **{**once, "task": "asr"})
    heard, call = [], PARTPipeline.__call__
    transcriber.__class__ = type(
        "Listening",
        (PARTPipeline,),
        {"__call__": lambda self, inputs, **kw: heard.append(len(inputs["raw"])) or call(self, inputs, **kw)},
    )
    list(transcriber.live(cut(np.zeros(12 * 16_000, dtype=np.float32), [8000])))
    assert max(heard) <= 3.5 * 16_000, "cut after `chunk_length_s`"


def test_a_pipeline_made_with_the_times_of_words_translates_live_too():
    model, processor = tiny_training.aligned_model()
    once = {"return_timestamps": "word", "max_new_tokens": 4}
    pipe = PARTPipeline(model=model, processor=processor, device="cpu", **once)
    audio = 0.1 * np.random.default_rng(0).standard_normal(2 * 16_000).astype(np.float32)
    asked = {"task": "s2tt", "target_lang": "en"}
    *_, last = pipe.live(cut(audio, [8000]), **asked)
    assert last.text.split() == pipe(audio, return_timestamps=False, **asked)["text"].split() != []


def test_a_last_piece_too_short_to_be_heard_loses_nothing():
    pipe = Listener(True)
    texts = list(transcribe_live(pipe, [speech([1]), np.zeros(20, dtype=np.float32)], interval=0.5, longest=0.1))
    assert texts[0].text + texts[0].tentative == "one,"
    assert texts[-1].text == "one,"
