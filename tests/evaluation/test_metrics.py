"""Edit counts, BLEU and the bootstrap against hand-written loops, jiwer, sacrebleu and a known distribution."""

import socket
from functools import partial

import jiwer
import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st
from made_data import edit_distance
from sacrebleu.significance import PairedTest

from modeling_part.evaluation.bootstrap import (
    bootstrap_sums,
    exchanged_differences,
    interval,
    paired_p_value,
    ratio_statistics,
    score_statistics,
    sufficient_statistics,
)
from modeling_part.evaluation.evaluate_modules import Bleu, CharacterErrorRate, ChrF, WordErrorRate
from modeling_part.evaluation.metrics import bleu_metric, count_edits


REFERENCES = ["the cat is on the mat today", "there is a dog in the garden", "we went home very late", "it rains"]
HYPOTHESES = ["the cat is on a mat today", "there is dog in the old garden", "we went home very late", "it rained"]


units = st.lists(st.sampled_from(["a", "b", "c", "ç", "你"]), max_size=8)


@given(units, units)
def test_edit_counts_are_a_minimal_alignment(reference, hypothesis):
    counts = count_edits(reference, hypothesis)
    assert counts.errors == edit_distance(reference, hypothesis)
    assert counts.reference_units == counts.hits + counts.substitutions + counts.deletions == len(reference)
    assert counts.hits + counts.substitutions + counts.insertions == len(hypothesis)


@given(units)
def test_edit_counts_of_one_empty_side(reference):
    assert count_edits(reference, []).deletions == len(reference)
    assert count_edits([], reference).insertions == len(reference)


def test_error_rate_modules_equal_jiwer():
    result = WordErrorRate().compute(predictions=HYPOTHESES, references=REFERENCES)
    assert result["wer"] == pytest.approx(jiwer.wer(REFERENCES, HYPOTHESES))
    direct = jiwer.process_words(REFERENCES, HYPOTHESES)
    assert (result["substitutions"], result["deletions"], result["insertions"]) == (
        direct.substitutions,
        direct.deletions,
        direct.insertions,
    )
    result = CharacterErrorRate().compute(predictions=["今日は雨"], references=["今日は 晴れ"])
    assert result["cer"] == pytest.approx(jiwer.cer("今日は晴れ", "今日は雨")) == pytest.approx(2 / 5)
    result = WordErrorRate().compute(
        predictions=["The COLOUR, is gray!"], references=["the color is grey"], language="en"
    )
    assert result["wer"] == 0
    with pytest.raises(ValueError, match="No reference has a word"):
        WordErrorRate().compute(predictions=["a"], references=["..."], language="fr")
    for metric in (Bleu(), ChrF()):
        with pytest.raises(ValueError, match="no predictions and references, so there is no score"):
            metric.compute(predictions=[], references=[])


def test_bleu_and_chrf_modules_equal_sacrebleu():
    result = Bleu().compute(predictions=HYPOTHESES, references=REFERENCES)
    assert result["bleu"] == sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score
    assert "tok:13a" in result["signature"] and "version:" in result["signature"]
    result = ChrF().compute(predictions=HYPOTHESES, references=REFERENCES)
    assert result["chrf"] == sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES]).score
    chinese = {"predictions": ["我们今天去公园散步吧"], "references": ["我们今天去公园玩吧"]}
    result = Bleu().compute(**chinese, target_lang="zh-CN")
    expected = sacrebleu.corpus_bleu(chinese["predictions"], [chinese["references"]], tokenize="zh").score
    assert result["bleu"] == expected > 10
    assert "tok:zh" in result["signature"]


@pytest.mark.parametrize(
    ("language", "tokenizer"),
    [
        ("en", "13a"),
        ("de-AT", "13a"),
        ("zh-TW", "zh"),
        ("yue", "zh"),
        ("th", "char"),
        ("ja", "ja-mecab"),
        ("ko", "ko-mecab"),
    ],
)
def test_bleu_tokenizer_by_target_language(language, tokenizer):
    if tokenizer.endswith("mecab"):
        pytest.importorskip(
            "MeCab" if language == "ja" else "mecab_ko", reason="the tokenizer's extra is not installed"
        )
    signature = sacrebleu.BLEU(tokenize=tokenizer)
    signature.corpus_score(["a"], [["a"]])
    metric = bleu_metric(language)
    metric.corpus_score(["a"], [["a"]])
    assert str(metric.get_signature()) == str(signature.get_signature())


@pytest.mark.parametrize(("language", "module"), [("ja", "tokenizer_ja_mecab"), ("ko", "tokenizer_ko_mecab")])
def test_missing_bleu_tokenizer_names_the_extra(monkeypatch, language, module):
    tokenizer = pytest.importorskip(f"sacrebleu.tokenizers.{module}")
    monkeypatch.setattr(tokenizer, "MeCab", None)
    with pytest.raises(ImportError, match=rf"modeling-part\[{language}\]"):
        bleu_metric(language)


def test_unknown_bleu_tokenizer_is_an_error():
    with pytest.raises(ValueError, match="no BLEU tokenizer 'moses'; sacrebleu has"):
        bleu_metric("en", "moses")


@pytest.mark.parametrize("metric", [bleu_metric("en"), sacrebleu.CHRF()], ids=["bleu", "chrf"])
def test_sums_of_sufficient_statistics_give_the_corpus_score(metric):
    statistics = sufficient_statistics(metric, HYPOTHESES, REFERENCES)
    expected = metric.corpus_score(HYPOTHESES, [REFERENCES]).score
    assert score_statistics(metric, statistics.sum(axis=0, keepdims=True))[0] == pytest.approx(expected)
    subset = [0, 0, 2]
    expected = metric.corpus_score([HYPOTHESES[i] for i in subset], [[REFERENCES[i] for i in subset]]).score
    assert score_statistics(metric, statistics[subset].sum(axis=0, keepdims=True))[0] == pytest.approx(expected)


def test_bootstrap_sums_draw_whole_utterances_and_are_seeded():
    statistics = np.array([[1, 10], [0, 7], [3, 5]])
    sums = bootstrap_sums(statistics, samples=200, seed=3)
    possible = {
        tuple(statistics[list(draw)].sum(axis=0)) for draw in np.ndindex(3, 3, 3)
    }  # every way to draw three of three
    assert sums.shape == (200, 2)
    assert {tuple(row) for row in sums} <= possible
    assert np.array_equal(sums, bootstrap_sums(statistics, samples=200, seed=3))
    assert not np.array_equal(sums, bootstrap_sums(statistics, samples=200, seed=4))


def test_bootstrap_interval_of_a_known_distribution():
    """Errors per 10-word utterance are binomial: the interval must be near the normal one and hold the truth often."""
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(60):
        statistics = np.stack([generator.binomial(10, 0.2, size=400), np.full(400, 10)], axis=1)
        low, high = interval(ratio_statistics(bootstrap_sums(statistics, samples=500, seed=seed)))
        covered += low <= 0.2 <= high
        width = 2 * 1.96 * np.sqrt(0.2 * 0.8 / 4000)
        assert high - low == pytest.approx(width, rel=0.2)
    assert covered >= 52  # 57 expected of 60


def test_error_rate_without_reference_units_has_no_value():
    assert np.isnan(ratio_statistics(np.array([[2, 0]]))[0])
    assert interval(np.array([np.nan, np.nan])) is None
    assert interval(np.array([np.nan, 1.0, 1.0])) == [1.0, 1.0]


def test_paired_p_value_agrees_with_sacrebleus_randomisation_test():
    generator = np.random.default_rng(1)
    words = ["a", "b", "c", "d", "e"]
    references = [" ".join(generator.choice(words, 8)) for _ in range(60)]

    def corrupt(share: float) -> list[str]:
        return [" ".join(w if generator.random() > share else "x" for w in line.split()) for line in references]

    first, second = corrupt(0.25), corrupt(0.31)
    metric = bleu_metric("en")
    _, scores = PairedTest(
        [("first", first), ("second", second)],
        {"BLEU": bleu_metric("en")},
        [references],
        test_type="ar",
        n_samples=4000,
    )()
    theirs = scores["BLEU"][1]
    statistics = [sufficient_statistics(metric, system, references) for system in (first, second)]
    differences = exchanged_differences(partial(score_statistics, metric), *statistics, samples=4000, seed=5)
    scores = [score_statistics(metric, one.sum(axis=0, keepdims=True))[0] for one in statistics]
    assert scores[1] == pytest.approx(theirs.score) and differences[0] == scores[1] - scores[0]
    assert paired_p_value(differences) == pytest.approx(theirs.p_value, abs=0.03)


@pytest.mark.parametrize("utterances", [1, 2, 5, 12, 300])
def test_paired_p_value_is_rarely_small_between_equal_systems(utterances):
    """However few utterances there are: a bootstrap finds a difference on one utterance in most cases."""
    generator = np.random.default_rng(2)
    significant = 0
    for seed in range(200):
        errors = generator.binomial(10, 0.2, size=(2, utterances))
        statistics = [np.stack([of_one, np.full(utterances, 10)], axis=1) for of_one in errors]
        differences = exchanged_differences(ratio_statistics, *statistics, samples=300, seed=seed)
        significant += paired_p_value(differences) < 0.05
    assert significant <= 20  # 10 expected of 200
    assert significant >= 2 or utterances < 12  # of fewer, no exchange is so rare


def test_exchanged_answers_are_all_that_few_utterances_can_give():
    first, other = np.array([[1, 10], [4, 10]]), np.array([[3, 10], [0, 10]])
    differences = exchanged_differences(ratio_statistics, first, other, samples=200, seed=0)
    assert differences[0] == pytest.approx(-0.1) and len(differences) == 201
    assert {round(one, 6) for one in differences} == {-0.1, -0.3, 0.3, 0.1}


def test_paired_p_value_of_equal_and_of_far_systems():
    assert paired_p_value(np.zeros(1000)) == 1.0
    assert paired_p_value(np.r_[5.0, np.random.default_rng(0).normal(0, 1, 999)]) == 0.001
    assert paired_p_value(np.r_[0.1, np.random.default_rng(0).normal(0, 1, 999)]) > 0.8


def test_modules_need_no_network(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("a metric opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for module in (WordErrorRate, CharacterErrorRate, Bleu, ChrF):
        assert module().compute(predictions=["a b"], references=["a b"])
