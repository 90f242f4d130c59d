"""Answers that end in a loop are cut and reported; others are left as they are."""

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig, pipeline

from modeling_part import demo, demo_live, repetition_part
from modeling_part.repetition_part import LEAST_TOKENS, cut_loops, loop_start, remarks


TOKENS = st.lists(st.integers(0, 5), max_size=12)


@given(before=TOKENS, phrase=st.lists(st.integers(6, 9), min_size=1, max_size=6, unique=True), rest=st.integers(0, 5))
def test_a_phrase_that_comes_again_and_again_is_kept_once(before, phrase, rest):
    times = max(4, -(-LEAST_TOKENS // len(phrase)))
    ids = [*before, *phrase * times, *phrase[: rest % len(phrase)]]
    assert loop_start(ids) == len(before) + len(phrase)


@pytest.mark.parametrize(
    "ids", [[], [1] * 15, [1, 2, 3, 4, 5, 6] * 3, [1] * 20 + [2], list(range(100)), [1, 2, 3, 4] * 3 + [1, 2, 3]]
)
def test_what_people_may_say_is_no_loop(ids):
    assert loop_start(ids) is None


def test_an_answer_with_an_end_stays_as_it_is():
    ended, endless = [1, 2] * 20 + [9, 0], [1, 2] * 20
    assert cut_loops([ended, endless], {9, 0}) == ([ended, [1, 2]], [False, True])


@pytest.fixture
def looping_pipe(tiny_checkpoint, monkeypatch):
    """A model whose second window never ends."""
    pipe = pipeline("speech-to-text", model=str(tiny_checkpoint), max_new_tokens=40, device="cpu")
    word, other = (pipe.processor.text_ids(text) for text in ("one", "two"))
    end, calls = pipe.processor.tokenizer.eos_token_id, []

    def generate(**inputs):
        calls.append(1)
        answer = (word * 40)[:40] if len(calls) == 2 else [*other, end]
        return torch.cat([inputs["input_ids"], torch.tensor([answer])], -1)

    monkeypatch.setattr(pipe.model, "generate", generate)
    return pipe


def test_the_pipeline_cuts_it_and_says_where(looping_pipe):
    sound = 0.1 * np.random.default_rng(0).standard_normal(6 * 16_000).astype(np.float32)
    answer = looping_pipe(sound, chunk_length_s=3, stride_length_s=0)
    assert answer["text"].split() == ["two", "one"]
    assert answer["repetitions"] == [(3.0, 6.0)]
    assert "repetitions" not in looping_pipe(sound[:16_000]) and "cut_off" not in answer
    assert remarks(answer, 10.0) == ["A repetition without end between 13.0 and 16.0 s was cut."]


@pytest.fixture
def talking_pipe(tiny_checkpoint, monkeypatch):
    """A model that would never end, and counts up to where it must."""
    pipe = pipeline("speech-to-text", model=str(tiny_checkpoint), device="cpu")
    numbers = [pipe.processor.text_ids(text)[0] for text in ("one", "two", "three", "four", "five")]

    def generate(streamer=None, **inputs):
        most = inputs.get("max_new_tokens", pipe.model.generation_config.max_new_tokens)
        most = min(most, inputs.get("stopped_at", most))
        answer = torch.tensor(numbers * 100)[:most].expand(len(inputs["input_ids"]), -1)
        if streamer is not None:
            streamer.put(inputs["input_ids"]), streamer.put(answer), streamer.end()
        return torch.cat([inputs["input_ids"], answer], -1)

    monkeypatch.setattr(pipe.model, "generate", generate)
    monkeypatch.setattr(repetition_part, "LONGEST_PHRASE", 4)  # so that five in a row are no loop
    return pipe


def test_what_the_limit_of_tokens_cuts_off_is_told(talking_pipe, looping_pipe):
    sound = 0.1 * np.random.default_rng(0).standard_normal(6 * 16_000).astype(np.float32)
    answer = talking_pipe(sound, chunk_length_s=3, stride_length_s=0, max_new_tokens=4)
    assert answer["cut_off"] == [(0.0, 3.0), (3.0, 6.0)] and "repetitions" not in answer
    sentence = "The text{} was cut off at its limit of tokens (`max_new_tokens`)."
    assert remarks(answer, 1.0) == [sentence.format(f" between {span} s") for span in ("1.0 and 4.0", "4.0 and 7.0")]
    assert "cut_off" not in looping_pipe(sound[:16_000], max_new_tokens=4)  # which ends


def test_what_else_ends_an_answer_is_no_limit(talking_pipe):
    sound = 0.1 * np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    silence = np.zeros(16_000, dtype=np.float32)
    stopped = {"stopped_at": 3}  # as by a `StoppingCriteria`
    assert "cut_off" not in talking_pipe(sound, generate_kwargs=stopped, max_new_tokens=4)
    end = talking_pipe.processor.text_ids("two")[0]
    assert "cut_off" not in talking_pipe(sound, generate_kwargs={"eos_token_id": [end]}, max_new_tokens=4)
    both = talking_pipe([sound, silence], batch_size=2, max_new_tokens=4)
    assert ["cut_off" in answer for answer in both] == [True, False]
    text = talking_pipe("Bonjour", task="mt", target_lang="en", max_new_tokens=4)
    assert text["cut_off"] == [None] and remarks(text)[0].startswith("The text was cut off")


def test_a_config_of_the_caller_is_read_as_generate_reads_it(tiny_checkpoint, monkeypatch):
    """It need not hold the tokens that end an answer, or how long one may be: those are the model's."""
    pipe = pipeline("speech-to-text", model=str(tiny_checkpoint), device="cpu")
    numbers = [pipe.processor.text_ids(text)[0] for text in ("one", "two", "three")]
    settings = pipe.model.generation_config

    def generate(generation_config, **inputs):
        most = generation_config.max_new_tokens or settings.max_new_tokens
        ended = [numbers[0], settings.eos_token_id[0], *[settings.pad_token_id] * most]
        answers = [row[:most] for row in (ended, numbers * 100)]
        return torch.cat([inputs["input_ids"], torch.tensor(answers)], -1)

    monkeypatch.setattr(pipe.model, "generate", generate)
    sound = 0.1 * np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    for config in (GenerationConfig(num_beams=2), GenerationConfig(max_new_tokens=30)):
        ended, looped = pipe([sound, sound], batch_size=2, generate_kwargs={"generation_config": config})
        assert not {"repetitions", "cut_off"} & set(ended) and "repetitions" in looped


def test_where_positions_are_learned_their_end_cuts_an_answer_off(tiny_checkpoint, monkeypatch):
    pipe = pipeline("speech-to-text", model=str(tiny_checkpoint), device="cpu")
    sound = 0.1 * np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    prompt = pipe.processor(sound)["input_ids"].shape[1]
    monkeypatch.setattr(pipe.model.model, "position_limit", prompt + 3)
    pipe.model.generation_config.eos_token_id = [pipe.processor.text_ids("~")[0]]
    assert pipe(sound)["cut_off"] == [(0.0, 1.0)]
    monkeypatch.setattr(pipe.model.model, "position_limit", prompt)
    with pytest.raises(ValueError, match=rf"prompt has {prompt} positions.* learned {prompt}, .*: give shorter audio"):
        pipe(sound)


def test_a_stream_and_live_audio_tell_it_too(talking_pipe):
    sound, windows = 0.1 * np.random.default_rng(0).standard_normal(3 * 16_000).astype(np.float32), []
    list(talking_pipe.stream(sound, on_window=windows.append, max_new_tokens=4))
    assert windows[-1]["cut_off"]
    *_, last = talking_pipe.live([sound[:16_000], sound[16_000:]], max_new_tokens=4)
    assert last.remarks == tuple(remarks(windows[-1]))


def test_after_relaxed_acceptance_it_is_tried_without_the_draft(tiny_checkpoint, monkeypatch):
    pipe = pipeline("speech-to-text", model=str(tiny_checkpoint), max_new_tokens=40, device="cpu")
    word, end, asked = pipe.processor.text_ids("one"), pipe.processor.tokenizer.eos_token_id, []

    def generate(**inputs):
        asked.append("ctc_draft" in inputs)
        answer = (word * 40)[:40] if asked[-1] else [*word, end]
        return torch.cat([inputs["input_ids"], torch.tensor([answer])], -1)

    monkeypatch.setattr(pipe.model, "generate", generate)
    sound = 0.1 * np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    answer = pipe(sound, ctc_draft=True, generate_kwargs={"assistant_ensemble_weight": 0.6})
    assert answer["text"] == "one" and "repetitions" not in answer and asked == [True, False]
    asked.clear()
    assert "repetitions" in pipe(sound, ctc_draft=True) and asked == [True]  # an exact draft could not have led there


def test_the_page_tells_it_of_recordings_and_live_audio(talking_pipe, tmp_path):
    sound = 0.1 * np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    soundfile.write(tmp_path / "clip.wav", sound, 16_000)
    remark = "The text between 0.0 and 1.0 s was cut off at its limit of tokens (`max_new_tokens`)."
    *_, last = demo.answer(talking_pipe, str(tmp_path / "clip.wav"), "Both", "en", "fr")
    assert last.status.endswith(f" s. {remark}"), "of both tasks once"
    recording = demo_live.Recording(16_000)
    recording.add(16_000, sound)
    recording.end()
    *_, (_, status) = demo_live.follow(talking_pipe, recording, ["asr", "s2tt"], "en", "fr", 1)
    assert status == f"1.0 s of sound answered. {remark}"
