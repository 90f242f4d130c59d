"""Confidence of words and utterances: against the probabilities by their definition, and through the pipeline."""

import math

import numpy as np
import pytest
import tiny_training
import torch

from modeling_part import PARTForSpeechSeq2Seq, PARTPipeline
from modeling_part.confidence_part import overall, path_log_probs, text_log_probs, unit_confidence


RATE = 16_000


@pytest.fixture(scope="module")
def model_and_processor():
    return tiny_training.aligned_model()


@pytest.fixture(scope="module")
def pipe(model_and_processor) -> PARTPipeline:
    model, processor = model_and_processor
    return PARTPipeline(model=model, processor=processor, max_new_tokens=8, device="cpu")


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    return [
        0.1 * np.random.default_rng(seed).standard_normal(RATE * (1 + seed)).astype(np.float32) for seed in range(3)
    ]


@torch.no_grad()
def test_log_probabilities_are_those_of_each_row_alone(model_and_processor, clips):
    model, processor = model_and_processor
    texts = ["one", "", "two red suns"]
    given = text_log_probs(model, processor, processor(clips), texts)
    for clip, text, log_probs in zip(clips, texts, given, strict=True):
        answer = [*processor.tokenizer(text, add_special_tokens=False)["input_ids"], processor.tokenizer.eos_token_id]
        inputs = processor(clip)
        ids = torch.cat([inputs["input_ids"], torch.tensor([answer])], -1)
        features = {name: inputs[name] for name in ("input_features", "input_features_mask")}
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **features).logits[0, -len(answer) - 1 : -1]
        expected = logits.log_softmax(-1)[torch.arange(len(answer)), answer]
        np.testing.assert_allclose(log_probs, expected, atol=1e-4)


def test_a_token_counts_where_it_is_emitted_most_clearly():
    log_probs = np.log(np.array([[0.9, 0.1, 0.0], [0.2, 0.5, 0.3], [0.1, 0.7, 0.2], [0.6, 0.1, 0.4]]) + 1e-9)
    np.testing.assert_allclose(path_log_probs(log_probs, [-1, 0, 0, 1], 2), np.log([0.7, 0.4]), atol=1e-6)
    assert np.isnan(path_log_probs(None, None, 2)).all()


def test_a_word_has_the_mean_of_its_tokens_and_an_utterance_that_of_all():
    offsets = [(0, 2), (2, 3), (3, 8), (0, 0)]  # "on" "e" " two!" and a token of nothing
    language_model, ctc = np.log([0.8, 0.2, 0.5, 0.1]), np.log([0.5, 0.5, 0.9, 0.1])
    units = unit_confidence("one two!", offsets, language_model, ctc)
    assert [count for _, _, count in units] == [2, 1]
    assert overall(units[:1]) == {"language_model": 0.4, "ctc": 0.5, "product": 0.2}
    expected = math.prod([0.8, 0.2, 0.5]) ** (1 / 3)
    assert overall(units)["language_model"] == pytest.approx(expected, abs=1e-4)
    assert overall([]) == {"language_model": None, "ctc": None, "product": None}
    assert overall([(math.log(0.5), math.nan, 3)]) == {"language_model": 0.5, "ctc": None, "product": 0.5}


def test_confidence_is_given_on_demand_and_changes_nothing_else(pipe, clips):
    plain = pipe(clips)
    scored = pipe(clips, return_confidence=True)
    assert scored == pipe(clips, return_confidence=True, batch_size=3)
    for one, other in zip(scored, plain, strict=True):
        confidence = one.pop("confidence")
        assert all(0 <= confidence[name] <= 1 for name in ("language_model", "ctc", "product"))
        assert confidence["product"] == pytest.approx(confidence["language_model"] * confidence["ctc"], abs=1e-3)
        (chunk,) = one["chunks"]
        assert chunk.pop("confidence") == confidence
        assert one == other


def test_words_have_their_own(pipe, clips):
    with_words = pipe(clips[1], return_confidence=True, return_timestamps="word")
    assert all(set(chunk) == {"text", "timestamp", "confidence"} for chunk in with_words["chunks"])
    assert with_words["confidence"] == pipe(clips[1], return_confidence=True)["confidence"]
    drafted = pipe(clips[1], return_confidence=True, return_timestamps="word", ctc_draft=True)
    assert drafted == with_words
    long = np.concatenate([clips[2], clips[1], clips[0]])
    answer = pipe(long, return_confidence=True, stride_length_s=0.5)
    assert len(answer["chunks"]) == 2 and all("confidence" in chunk for chunk in answer["chunks"])


def test_a_head_and_embeddings_that_are_fetched_from_disk(model_and_processor, pipe, clips, tmp_path):
    """As `device_map="auto"` leaves them where memory is short; also drafts and what silence is told by."""
    model, processor = model_and_processor
    model.save_pretrained(tmp_path / "model")
    names = ("model.audio_tower", "model.adapter", "model.language_model.layers", "model.language_model.norm")
    device_map = dict.fromkeys((*names, "model.language_model.rotary_emb"), "cpu")
    device_map |= dict.fromkeys(("alignment_head", "model.language_model.embed_tokens", "lm_head"), "disk")
    placed = PARTForSpeechSeq2Seq.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offloaded"
    )
    assert {placed.alignment_head.blank.device.type, placed.get_input_embeddings().weight.device.type} == {"meta"}
    offloaded = PARTPipeline(model=placed, processor=processor, max_new_tokens=8)
    for options in ({"return_timestamps": "word"}, {"return_confidence": True}, {"ctc_draft": True}):
        assert offloaded(clips[1], **options) == pipe(clips[1], **options)
        assert offloaded(clips[1] * 1e-4, **options) == pipe(clips[1] * 1e-4, **options)
    assert placed.alignment_head.blank.device.type == "meta"


def test_translations_and_models_without_a_head_have_the_language_model_s(pipe, clips):
    for options in ({"task": "s2tt", "target_lang": "fr"}, {"task": "mt", "source_lang": "fr", "target_lang": "en"}):
        inputs = "Bonjour" if options["task"] == "mt" else clips[0]
        confidence = pipe(inputs, return_confidence=True, **options)["confidence"]
        assert confidence["ctc"] is None and confidence["product"] == confidence["language_model"] > 0
    model, processor = tiny_training.tiny_model()
    bare = PARTPipeline(model=model.eval(), processor=processor, max_new_tokens=8, device="cpu")
    assert bare(clips[0], return_confidence=True)["confidence"]["ctc"] is None


def test_an_answer_up_to_the_last_learned_position_has_its_confidence(pipe, clips, monkeypatch):
    limit = pipe.processor(clips[0])["input_ids"].shape[1] + 4
    expected = pipe(clips[0], return_confidence=True, max_new_tokens=4, generate_kwargs={"eos_token_id": None})
    monkeypatch.setattr(pipe.model.model, "position_limit", limit)
    ids, offsets = [50, 60, 70, 80], [(0, 1), (1, 2), (2, 3), (3, 4)]
    text_ids = pipe.processor.text_ids
    monkeypatch.setattr(pipe.processor, "text_ids", lambda text: ids if text == "abcd" else text_ids(text))
    monkeypatch.setattr(pipe.processor, "text_ids_and_offsets", lambda text: (ids, offsets))
    monkeypatch.setattr(pipe.processor, "batch_decode", lambda *_, **__: ["abcd"])
    given = pipe(clips[0], return_confidence=True, generate_kwargs={"eos_token_id": None, "max_new_tokens": 9})
    assert given["cut_off"] == expected["cut_off"] and 0 < given["confidence"]["language_model"] < 1
    shorter = pipe.model.model.position_limit - 1
    monkeypatch.setattr(pipe.model.model, "position_limit", shorter)
    assert pipe(clips[0], return_confidence=True, generate_kwargs={"max_new_tokens": 9})["confidence"] == {
        "language_model": None,
        "ctc": given["confidence"]["ctc"],
        "product": given["confidence"]["ctc"],
    }
