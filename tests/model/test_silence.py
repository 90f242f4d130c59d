"""Where nothing is said nothing is written, without asking the language model; what is said is never left out."""

import math

import numpy as np
import pytest
import tiny_training
import torch

from modeling_part import PARTPipeline
from modeling_part.silence_part import FAINT, LOUDEST, hears_nothing, is_silence, is_steady


RATE = 16_000


@pytest.fixture
def pipe() -> PARTPipeline:
    model, processor = tiny_training.aligned_model()
    return PARTPipeline(model=model, processor=processor, max_new_tokens=4, device="cpu")


def noise(seconds: float, level: float = 0.1) -> np.ndarray:
    return (level * np.random.default_rng(0).standard_normal(round(seconds * RATE))).astype(np.float32)


def with_pauses(seconds: float, level: float) -> np.ndarray:
    """Noise that comes and goes, as speech does."""
    return noise(seconds, level) * (np.arange(round(seconds * RATE)) // (RATE // 5) % 2).astype(np.float32)


def embeds_of(pipe, clip) -> torch.Tensor:
    inputs = pipe.processor(clip)
    with torch.no_grad():
        return pipe.model.get_audio_features(inputs["input_features"], inputs["input_features_mask"]).pooler_output


def empty_log_prob(head, embeds, embeddings) -> float:
    """By torch's CTC, of a target without tokens."""
    log_probs = head.scores(embeds, embeddings, head.token_bias).log_softmax(-1)[:, None]
    lengths = torch.tensor([len(embeds)]), torch.tensor([0])
    return -float(
        torch.nn.functional.ctc_loss(log_probs, torch.zeros(1, 0, dtype=torch.long), *lengths, reduction="sum")
    )


@torch.no_grad()
def test_nothing_is_heard_where_ctc_is_sure_of_the_empty_text(pipe):
    head, embeddings, embeds = (
        pipe.model.alignment_head,
        pipe.model.get_input_embeddings().weight,
        embeds_of(pipe, noise(1)),
    )
    seen = set()
    for bias in np.linspace(-150, 0, 301):
        head.token_bias.fill_(float(bias))
        known = empty_log_prob(head, embeds, embeddings) > math.log(0.5)
        blanks = bool((head.best_tokens(embeds, embeddings) < 0).all())
        assert hears_nothing(head, embeds, embeddings) == known
        seen.add((known, blanks))
    assert seen >= {(True, True), (False, True), (False, False)}  # blanks alone are not enough


def test_the_language_model_is_not_asked_about_silence(pipe, monkeypatch):
    spoken, asked, generate = pipe(noise(2))["text"], [], pipe.model.generate
    assert spoken

    def listen(**inputs):
        asked.append(len(inputs["input_ids"]))
        return generate(**inputs)

    monkeypatch.setattr(pipe.model, "generate", listen)
    silence = np.zeros(2 * RATE, np.float32)
    assert pipe(silence) == {"text": "", "chunks": [{"text": "", "timestamp": (0.0, 2.0)}]}
    assert pipe(silence, task="s2tt", target_lang="fr")["text"] == "" and asked == []
    assert pipe(silence, return_timestamps="word", return_confidence=True)["chunks"] == []
    assert "language" not in pipe(silence, languages=["en", "fr"])
    assert set(pipe.stream(silence)) == {""} and asked == []
    texts = [one["text"] for one in pipe([silence, noise(2)], batch_size=2)]
    assert texts == ["", spoken] and asked == [2]
    faint = with_pauses(2, 0.001)
    assert pipe(faint)["text"] and asked == [2, 1]
    pipe.model.alignment_head.token_bias.fill_(-1e4)  # it hears nothing but blanks
    assert pipe(faint)["text"] == "" and pipe(faint, task="s2tt", target_lang="fr")["text"] == ""
    assert asked == [2, 1]
    assert pipe(noise(2))["text"] == spoken  # loud enough to be speech of a voice that it does not know


def test_a_model_without_a_head_and_faint_sound_are_heard(pipe):
    assert not is_silence(noise(1, 2 * LOUDEST)) and is_silence(noise(1, LOUDEST / 10)) and is_silence(noise(0))
    pipe.model.alignment_head = None
    assert pipe(with_pauses(2, 2 * LOUDEST))["text"] != "" and pipe(np.zeros(RATE, np.float32))["text"] == ""


def test_faint_noise_and_hum_are_silence(pipe):
    """A room in which nobody speaks: every head hears something in it, or none is there to be asked."""
    hum = 0.003 * np.sin(2 * np.pi * 50 * np.arange(2 * RATE) / RATE).astype(np.float32)
    room = noise(2, 0.0003)
    word = np.concatenate([room, room[:RATE] + with_pauses(1, 0.01).clip(-0.008, 0.008)])
    assert max(np.abs(clip).max() for clip in (room, hum, word)) < FAINT
    for head in (pipe.model.alignment_head, None):
        pipe.model.alignment_head = head
        assert [pipe(clip)["text"] for clip in (room, hum)] == ["", ""]
        assert pipe(word)["text"] and pipe(noise(2))["text"]  # a word in it, or louder
    assert not is_steady(room[: RATE // 10], RATE)  # too short to be told
