"""Times of words: forced alignment against sound whose words stand at known times, in one window and across many."""

import json
from itertools import pairwise

import numpy as np
import pytest
import tiny_training
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_part import PARTPipeline
from modeling_part.configuration_part import convolved_length
from modeling_part.outputs_part import PARTAudioOutput
from modeling_part.windows_part import merge_texts, overlap_share, split_units
from modeling_part.word_times_part import TokenClock, fit_to_sound, token_times, word_chunks


RATE = 16_000
STEP = 0.02  # seconds of an audio token: Whisper's frames, an adapter of stride 1
CHARACTER = 3 * STEP  # each byte of a text is heard for two audio tokens, then one of silence


class Speech:
    """A recording as the model hears it: words, the times at which they begin, and what any part of it sounds like."""

    def __init__(self, words: list[str], pause: float = 0.2) -> None:
        self.words, self.starts, self.sounds = words, [], []
        now = pause
        for word in words:
            self.starts.append(now)
            for byte in word.encode():
                self.sounds += [(now, now + 2 * STEP, byte)]
                now += CHARACTER
            now += pause
        self.seconds = now

    def heard(self, start: float, end: float) -> list[str]:
        """The words that are whole in a part of the recording."""
        ends = [begin + CHARACTER * len(word.encode()) for word, begin in zip(self.words, self.starts, strict=True)]
        return [
            word
            for word, first, last in zip(self.words, self.starts, ends, strict=True)
            if start <= first < last <= end
        ]

    def byte_at(self, time: float) -> int | None:
        return next((byte for first, last, byte in self.sounds if first - 1e-6 <= time < last - 1e-6), None)


@pytest.fixture(scope="module")
def model_and_processor():
    return tiny_training.aligned_model()


@pytest.fixture
def pipe(model_and_processor) -> PARTPipeline:
    model, processor = model_and_processor
    return PARTPipeline(model=model, processor=processor, max_new_tokens=6, device="cpu")


@pytest.fixture
def listen(pipe, monkeypatch):
    """Lets the pipeline hear a speech: its windows' audio tokens are the embeddings of the bytes said at that moment."""

    def to(speech: Speech, separator: str = " ", said=None) -> PARTPipeline:
        embeddings, blank = pipe.model.get_input_embeddings().weight, pipe.model.alignment_head.blank
        vocabulary = pipe.tokenizer.get_vocab()
        tokens = {byte: vocabulary[name] for name, byte in _byte_alphabet().items()}
        inner = pipe._forward
        windows = []

        def forward(model_inputs, **options):
            spans = model_inputs["span"] if isinstance(model_inputs["row"], list) else [model_inputs["span"]]
            windows[:] = spans
            return inner(model_inputs, **options)

        def get_audio_features(features, mask=None, **kwargs):
            counts = convolved_length(mask.sum(-1), pipe.model.config.audio_token_convolutions).tolist()
            rows = []
            for (start, _), count in zip(windows, counts, strict=True):
                for place in range(count):
                    byte = speech.byte_at(start + place * STEP)
                    rows.append(blank if byte is None else embeddings[tokens[byte]])
            return PARTAudioOutput(pooler_output=torch.stack(rows).detach())

        def generate(input_ids, **kwargs):
            texts = [separator.join(speech.heard(*span)) if said is None else said for span in windows]
            ids = [pipe.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
            width = max(map(len, ids)) + 1
            padded = [row + [pipe.tokenizer.eos_token_id] * (width - len(row)) for row in ids]
            return torch.cat([input_ids, torch.tensor(padded)], -1)

        monkeypatch.setattr(pipe, "_forward", forward)
        monkeypatch.setattr(pipe.model, "get_audio_features", get_audio_features)
        monkeypatch.setattr(pipe.model, "generate", generate)
        return pipe

    return to


def _byte_alphabet() -> dict[str, int]:
    """Characters by which byte-level tokenizers write bytes: GPT-2's table."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + index): byte for index, byte in enumerate(others)}


def sound(speech: Speech, loudness: float = 0.1, elsewhere: float = 0.001) -> np.ndarray:
    """Noise where words are said, less of it elsewhere: what is said the model knows from the speech itself."""
    levels = np.full(round(speech.seconds * RATE), elsewhere)
    for start, word in zip(speech.starts, speech.words, strict=True):
        levels[round(start * RATE) : round((start + CHARACTER * len(word.encode())) * RATE)] = loudness
    return (levels * np.random.default_rng(0).standard_normal(len(levels))).astype(np.float32)


def starts_and_ends(chunks: list[dict]) -> tuple[list[float], list[float]]:
    return [chunk["timestamp"][0] for chunk in chunks], [chunk["timestamp"][1] for chunk in chunks]


# ---- the clock ----


@given(
    st.lists(st.tuples(st.integers(1, 7), st.integers(1, 4), st.integers(0, 3)), min_size=1, max_size=3),
    st.integers(0, 5),
)
def test_a_token_is_heard_in_the_middle_of_what_its_convolutions_see(convolutions, token):
    class Processor:
        audio_token_convolutions, feature_rate = convolutions, 100.0

    first = last = token
    for kernel, stride, padding in reversed(convolutions):
        first, last = first * stride - padding, last * stride - padding + kernel - 1
    clock = TokenClock.of(Processor)
    assert clock.first + token * clock.step == pytest.approx((first + last) / 2 / 100)


def test_a_token_lasts_from_its_first_emission_to_its_last():
    times = token_times([-1, 0, 0, -1, 1, -1], TokenClock(step=0.1, first=0.0), seconds=0.5)
    np.testing.assert_allclose(times, [[0.05, 0.25], [0.35, 0.45]])


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=300),
    st.lists(st.tuples(st.floats(0, 0.5), st.floats(0.01, 0.5)), min_size=1, max_size=5),
)
def test_whatever_is_heard_bounds_are_in_order_and_inside(levels, words):
    emitted, now = [], 0.0
    for pause, length in words:
        emitted.append((now + pause, now + pause + length))
        now += pause + length
    seconds = 0.01 * len(levels)
    emitted = [(start / now * seconds, end / now * seconds) for start, end in emitted]  # all inside
    times = fit_to_sound(emitted, 0.08, np.array(levels))
    assert all(-1e-9 <= start <= end <= seconds + 0.01 for start, end in times)
    for (start, end), (_, last) in zip(times, emitted, strict=True):
        assert start <= last + 1e-9 and last - 0.04 - 1e-9 <= end <= last + 0.6


# ---- one window ----


def test_words_stand_where_they_were_said(listen):
    speech = Speech(["one", "two,", "Red", "sun"])
    result = listen(speech)(sound(speech), return_timestamps="word")
    assert [chunk["text"] for chunk in result["chunks"]] == ["one", " two,", " Red", " sun"]
    assert result["text"] == "one two, Red sun"
    starts, ends = starts_and_ends(result["chunks"])
    np.testing.assert_allclose(starts, speech.starts, atol=0.011)  # where the sound begins, in frames of 10 ms
    lengths = [CHARACTER * len(word) for word in speech.words]
    np.testing.assert_allclose(np.subtract(ends, starts), lengths, atol=0.021)
    assert json.loads(json.dumps(result["chunks"]))[0]["timestamp"] == list(result["chunks"][0]["timestamp"])


def test_without_silence_words_stand_where_they_are_emitted(listen):
    """Steady noise says nothing of words: a start is an audio token before the first that emits it, an end the next start."""
    speech = Speech(["one", "two,", "Red", "sun"])
    result = listen(speech)(sound(speech, elsewhere=0.1), return_timestamps="word")
    starts, ends = starts_and_ends(result["chunks"])
    np.testing.assert_allclose(starts, np.array(speech.starts) - STEP, atol=1.1 * STEP)
    assert ends[:-1] == starts[1:] and ends[-1] <= speech.seconds


def test_scripts_without_spaces_by_character_and_punctuation_with_its_neighbour(listen):
    speech = Speech(["你", "好", "。", "「", "再", "见", "」"], pause=0.1)
    result = listen(speech, separator="")(sound(speech), return_timestamps="word")
    assert [chunk["text"] for chunk in result["chunks"]] == ["你", "好。", "「再", "见」"]
    starts, _ = starts_and_ends(result["chunks"])
    np.testing.assert_allclose(starts, np.array(speech.starts)[[0, 1, 4, 5]], atol=STEP)


def test_a_text_that_cannot_have_been_said_has_no_times(listen, caplog):
    speech = Speech(["one"], pause=0.1)
    result = listen(speech, said="no " * 40)(sound(speech), return_timestamps="word")
    assert {chunk["timestamp"] for chunk in result["chunks"]} == {(None, None)}
    assert result["text"] == ("no " * 40).strip()
    assert "get no times: it has more tokens" in caplog.text


def test_silence_has_no_words(listen):
    speech = Speech([], pause=1.0)
    assert listen(speech)(sound(speech), return_timestamps="word") == {"text": "", "chunks": []}


# ---- many windows ----


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("batch_size", [1, 3])
def test_words_of_long_audio_stand_where_they_were_said(listen, seed, batch_size):
    """Each word is said once, and windows hear those that are whole in them: the whole text comes back, with its times."""
    generator = np.random.default_rng(seed)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    words = [f"{index}{''.join(generator.choice(letters, generator.integers(1, 7)))}" for index in range(30)]
    speech = Speech(words, pause=0.12)
    pipe = listen(speech)
    result = pipe(sound(speech), return_timestamps="word", stride_length_s=0.8, batch_size=batch_size)
    assert speech.seconds > 3 * 4  # windows of 4 s
    assert result["text"].split() == words
    starts, ends = starts_and_ends(result["chunks"])
    np.testing.assert_allclose(starts, speech.starts, atol=1.5 * STEP)  # windows begin between two audio tokens
    assert all(end <= start for end, start in zip(ends[:-1], starts[1:], strict=True))
    streamed = []
    texts = list(pipe.stream(sound(speech), return_timestamps="word", stride_length_s=0.8, on_window=streamed.append))
    assert texts[-1] == result["text"] and streamed[-1] == result


SPAN = st.floats(0, 3).map(lambda start: (start, start + 0.2))


@settings(deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(["no", "yes", "你", "-", "«", "a1"]), max_size=6), min_size=1, max_size=4),
    st.data(),
)
def test_whatever_windows_say_times_are_in_order_and_the_text_is_whole(said, data):
    outputs = []
    for number, words in enumerate(said):
        text = " ".join(words)
        units = split_units(text)
        outputs.append(
            {
                "text": text,
                "span": (3.0 * number, 3.0 * number + 4.0),
                "words": [data.draw(SPAN) for _ in units]
                if data.draw(st.booleans())
                else [(np.nan, np.nan)] * len(units),
            }
        )
    chunks = word_chunks(outputs)
    whole = "".join(merge_texts([output["text"] for output in outputs], overlap_share([o["span"] for o in outputs])))
    assert "".join(chunk["text"] for chunk in chunks) == whole
    known = [chunk["timestamp"] for chunk in chunks if chunk["timestamp"] != (None, None)]
    assert all(start <= end for start, end in known)
    assert all(end <= start for (_, end), (start, _) in pairwise(known))


# ---- what a caller may ask ----


def test_texts_are_the_same_with_and_without_times(pipe):
    clips = [
        0.1 * np.random.default_rng(seed).standard_normal(RATE * (1 + seed)).astype(np.float32) for seed in range(3)
    ]
    plain, timed = pipe(clips), pipe(clips, return_timestamps="word", batch_size=2)
    assert [one["text"] for one in timed] == [one["text"] for one in plain]
    assert pipe(clips, return_timestamps=True) == plain
    assert timed == pipe(clips, return_timestamps="word")
    beams = {"generate_kwargs": {"num_beams": 2}}
    assert pipe(clips[0], return_timestamps="word", **beams)["text"] == pipe(clips[0], **beams)["text"]


def test_an_option_of_the_pipeline_can_be_taken_back_in_a_call(model_and_processor):
    model, processor = model_and_processor
    clip = 0.1 * np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    pipe = PARTPipeline(model=model, processor=processor, max_new_tokens=6, device="cpu", return_timestamps="word")
    assert pipe(clip, return_timestamps=False) == PARTPipeline(
        model=model, processor=processor, max_new_tokens=6, device="cpu"
    )(clip)


def test_words_of_translations_and_of_models_without_a_head_are_refused(pipe):
    clip = np.zeros(RATE, np.float32)
    with pytest.raises(ValueError, match=r"is for transcription; the words of \['s2tt'\] are not spoken"):
        pipe(clip, task="s2tt", target_lang="fr", return_timestamps="word")
    with pytest.raises(ValueError, match=r"the words of \['mt'\]"):
        pipe("Bonjour", task="mt", target_lang="en", return_timestamps="word")
    model, processor = tiny_training.tiny_model()
    with pytest.raises(ValueError, match="needs a checkpoint with an alignment head"):
        PARTPipeline(model=model, processor=processor, device="cpu")(clip, return_timestamps="word")
