"""Answers that end in a loop are cut and reported; others are left as they are."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import pipeline

from modeling_part.repetition_part import LEAST_TOKENS, cut_loops, loop_start


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
    word, other = (pipe.processor.text_tokens(text)[0] for text in ("one", "two"))
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
    assert "repetitions" not in looping_pipe(sound[:16_000])


def test_after_relaxed_acceptance_it_is_tried_without_the_draft(tiny_checkpoint, monkeypatch):
    pipe = pipeline("speech-to-text", model=str(tiny_checkpoint), max_new_tokens=40, device="cpu")
    word, end, asked = pipe.processor.text_tokens("one")[0], pipe.processor.tokenizer.eos_token_id, []

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
