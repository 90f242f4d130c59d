"""Which language is spoken: by the prompts that name languages."""

import math

import numpy as np
import pytest
import tiny_training
import torch

from modeling_part import PARTPipeline
from modeling_part.alignment_part import heard_text
from modeling_part.language_part import language_to_name, spoken_language


RATE = 16_000


@pytest.fixture(scope="module")
def pipe() -> PARTPipeline:
    model, processor = tiny_training.tiny_model()
    return PARTPipeline(model=model.eval(), processor=processor, max_new_tokens=6, device="cpu")


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    return [
        0.1 * np.random.default_rng(seed).standard_normal(RATE * (1 + seed)).astype(np.float32) for seed in range(2)
    ]


@torch.no_grad()
def by_definition(pipe, clip, text: str, language: str) -> float:
    """Log-probability of the text after the prompt that names the language."""
    inputs = pipe.processor(clip, source_lang=language, text=text, padding_side="left")
    labels = inputs.pop("labels")[0]
    log_probs = pipe.model(**inputs).logits[0].log_softmax(-1)
    places = (labels != -100).nonzero().flatten()
    return float(log_probs[places - 1, labels[places]].sum())


def test_the_language_is_the_one_whose_prompt_explains_the_text_best(pipe, clips):
    codes = ["en", "fr", "de"]
    answers = pipe(clips, languages=["English", "fr", "German"])
    assert answers == pipe(clips, languages=codes, batch_size=2)
    for clip, answer in zip(clips, answers, strict=True):
        expected = {code: by_definition(pipe, clip, answer["text"], code) for code in codes}
        assert answer["language"] == max(expected, key=expected.get)
        total = sum(math.exp(score) for score in expected.values())
        for code, score in expected.items():
            assert answer["language_scores"][code] == pytest.approx(math.exp(score) / total, abs=2e-3)
        assert answer["text"] == pipe(clip)["text"]


def test_a_language_that_is_not_sure_is_not_named(clips):
    """Told a wrong language, a model writes worse than told none."""
    log_probs = {"en": -1.0, "fr": -1.0 - math.log(9.5), "de": -90.0}
    assert language_to_name(log_probs) == "en"
    assert language_to_name({**log_probs, "de": -5.0}) is None
    model, processor = tiny_training.aligned_model()
    pipe = PARTPipeline(model=model, processor=processor, max_new_tokens=6, device="cpu")
    answer = pipe(clips[0], languages=["en", "fr"])
    assert 0.5 <= max(answer["language_scores"].values()) < 0.9
    assert (
        answer["text"]
        == pipe(clips[0])["text"]
        not in [pipe(clips[0], source_lang=one)["text"] for one in ("en", "fr")]
    )


def test_with_an_alignment_head_what_it_hears_is_explained(clips, monkeypatch):
    monkeypatch.setattr("modeling_part.language_part.SURE", 0.0)
    model, processor = tiny_training.aligned_model()
    pipe = PARTPipeline(model=model, processor=processor, max_new_tokens=6, device="cpu")
    answer = pipe(clips[0], languages=["en", "fr"])
    inputs = processor(clips[0])
    embeds = model.get_audio_features(inputs["input_features"], inputs["input_features_mask"]).pooler_output
    heard = heard_text(model, processor, embeds)
    assert heard != answer["text"]
    scores = {code: by_definition(pipe, clips[0], heard, code) for code in ("en", "fr")}
    assert answer["language"] == max(scores, key=scores.get)
    ratio = math.exp(scores["fr"] - scores["en"])
    assert answer["language_scores"]["fr"] == pytest.approx(ratio / (1 + ratio), abs=2e-3)
    # And it is transcribed as if the language were given, whatever else is in the batch.
    by_name = {code: pipe(clips[0], source_lang=code)["text"] for code in ("en", "fr", "de")}
    assert answer["text"] == by_name[answer["language"]]
    both = pipe([clips[0], clips[0]], source_lang=[None, "de"], languages=["en", "fr"], batch_size=2)
    assert [one["text"] for one in both] == [answer["text"], by_name["de"]]
    assert "language" not in both[1] and both[0]["language_scores"] == answer["language_scores"]
    named = [["Ada", "Bob"], None]  # words that may be said, as lists, are in the prompt that names the language too
    given, other = pipe([clips[0], clips[0]], context=named, languages=["en", "fr"], batch_size=2)
    assert other == answer and given == pipe(clips[0], context="Ada\nBob", languages=["en", "fr"])


def test_a_clip_s_features_are_computed_once(clips, monkeypatch):
    model, processor = tiny_training.aligned_model()
    pipe = PARTPipeline(model=model, processor=processor, max_new_tokens=2, device="cpu")
    lengths, extract = [], processor.extract_features
    monkeypatch.setattr(
        processor, "extract_features", lambda clip, *args: lengths.append(len(clip)) or extract(clip, *args)
    )
    pipe(clips, languages=["en", "fr"], batch_size=2)
    assert lengths == [len(clip) for clip in clips]


def test_windows_are_summed_up():
    found = spoken_language([{"en": -3.0, "fr": -1.0}, {"en": -1.0, "fr": -2.0}])
    assert found == {"language": "fr", "language_scores": {"en": 0.2689, "fr": 0.7311}}
    assert spoken_language([{"en": -9000.0, "fr": -1.0}])["language_scores"] == {"en": 0.0, "fr": 1.0}


def test_where_the_language_is_named_or_nothing_is_transcribed_none_is_found(pipe, clips):
    languages = ["en", "fr"]
    assert "language" not in pipe(clips[0], source_lang="en", languages=languages)
    assert "language" not in pipe(clips[0], task="s2tt", target_lang="fr", languages=languages)
    assert "language" not in pipe("Bonjour", task="mt", target_lang="en", languages=languages)
    assert pipe(clips[0], languages=iter(languages)) == pipe(clips[0], languages=languages)
    long = np.concatenate([clips[1], clips[1], clips[1]])
    assert pipe(long, languages=languages)["language"] in languages
    for wrong in ("en", ["en"], ["en", "English"], ["en", "xx"]):
        with pytest.raises(ValueError, match=r"give the codes of two languages|Unknown language 'xx'"):
            pipe(clips[0], languages=wrong)


def test_context_reaches_the_prompt_of_each_of_a_list(pipe, clips, monkeypatch):
    asked = []
    generate = pipe.model.generate

    def listen(**inputs):
        asked.extend(pipe.tokenizer.batch_decode(inputs["input_ids"], skip_special_tokens=True))
        return generate(**inputs)

    monkeypatch.setattr(pipe.model, "generate", listen)
    pipe(clips, context=["Ada Lovelace", None])
    assert "Context: Ada Lovelace" in asked[0] and "Context" not in asked[1]
    pipe(clips, context="Turing")
    assert all("Context: Turing" in prompt for prompt in asked[2:]) and len(asked) == 4
