"""Scores of predictions against loops written out by hand, and the signs of a broken model."""

import json

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from made_data import edit_distance

from modeling_part.data.rows import group_name
from modeling_part.evaluation.normalization import normalize_text, scored_units
from modeling_part.evaluation.scoring import (
    annotate,
    check_scorable,
    is_looping,
    read_predictions,
    score,
    write_predictions,
)


def prediction(reference: str, hypothesis: str, language: str = "fr", source: str | None = None, **more) -> dict:
    """A transcript in `language`, or with `source` a translation from it."""
    row = {"corpus": "made", "task": "s2tt" if source else "asr", "source_lang": source or language}
    row |= {"target_lang": language, "reference": reference, "hypothesis": hypothesis}
    return {"id": f"{reference}|{hypothesis}", **row, **more}


ROWS = [
    prediction("Le chat dort.", "le chat dort"),
    prediction("Il pleut à Paris", "bon il pleut Paris"),
    prediction("Bonjour", ""),
    prediction("我 喜欢 猫。", "我喜欢狗", "zh"),
    prediction("今天下雨", "今天下雨了", "zh"),
    prediction("the cat is sleeping on the mat", "the cat is sleeping on a mat", "en", "fr"),
    prediction("it rains in paris every day", "it rains in paris", "en", "fr"),
    prediction("le chat dort sur le tapis", "le chat dort sur le tapis", "fr", "en"),
]


def test_groups_count_like_a_loop_by_hand():
    report, annotated = score(ROWS, bootstrap_samples=50), {row["id"]: row for row in annotate(ROWS)}
    assert list(report["groups"]) == ["asr/fr", "asr/zh", "s2tt/en-fr", "s2tt/fr-en"]
    for name, group in report["groups"].items():
        members = [row for row in ROWS if group_name(row) == name]
        errors = units = 0
        for row in members:
            reference, hypothesis = (
                normalize_text(row[side], row["target_lang"]) for side in ("reference", "hypothesis")
            )
            split = list if row["target_lang"] == "zh" else str.split
            wrong, length = edit_distance(split(reference), split(hypothesis)), len(split(reference))
            assert annotated[row["id"]]["error_rate"] == pytest.approx(wrong / length)
            errors, units = errors + wrong, units + length
        assert group["error_rate"] == pytest.approx(errors / units)
        assert group["substitutions"] + group["deletions"] + group["insertions"] == errors
        assert group["hits"] + group["substitutions"] + group["deletions"] == units
        assert group["utterances"] == len(members)
        low, high = group["error_rate_interval"]
        assert low <= group["error_rate"] <= high
    french, chinese = report["groups"]["asr/fr"], report["groups"]["asr/zh"]
    assert (french["error_metric"], chinese["error_metric"]) == ("WER", "CER")
    assert (french["deletions"], french["insertions"]) == (2, 1)
    assert (french["reference_words"], chinese["reference_words"]) == (8, None)
    assert (french["reference_characters"], chinese["reference_characters"]) == (30, 8)
    assert french["empty"] == pytest.approx(1 / 3)


def test_translations_have_sacrebleus_scores_and_signatures():
    report = score(ROWS, bootstrap_samples=50)
    group = report["groups"]["s2tt/fr-en"]
    members = [row for row in ROWS if group_name(row) == "s2tt/fr-en"]
    hypotheses, references = [row["hypothesis"] for row in members], [row["reference"] for row in members]
    assert group["bleu"] == pytest.approx(sacrebleu.corpus_bleu(hypotheses, [references]).score)
    assert group["chrf"] == pytest.approx(sacrebleu.corpus_chrf(hypotheses, [references]).score)
    assert "tok:13a" in group["bleu_signature"] and "nc:6" in group["chrf_signature"]
    assert group["bleu_interval"][0] <= group["bleu"] <= group["bleu_interval"][1]
    assert (
        "tok:char" in score(ROWS, bootstrap_samples=5, bleu_tokenizer="char")["groups"]["s2tt/fr-en"]["bleu_signature"]
    )


def test_macro_averages_weigh_languages_equally():
    report = score(ROWS, bootstrap_samples=50)
    groups, macro = report["groups"], report["macro"]
    assert macro["asr"]["error_rate"] == pytest.approx(
        (groups["asr/fr"]["error_rate"] + groups["asr/zh"]["error_rate"]) / 2
    )
    assert macro["s2tt"]["bleu"] == pytest.approx((groups["s2tt/en-fr"]["bleu"] + groups["s2tt/fr-en"]["bleu"]) / 2)
    assert macro["asr"]["groups"] == macro["s2tt"]["groups"] == 2
    assert (
        macro["asr"]["error_rate_interval"][0] <= macro["asr"]["error_rate"] <= macro["asr"]["error_rate_interval"][1]
    )


def test_an_average_over_languages_is_surer_than_each():
    """Utterances are drawn for each language on its own: errors of two that are as sure have the root of half the spread."""
    rows = [
        prediction(f"un deux {number}", f"un deux {number if number % 3 else 'x'}", language)
        for language in ("fr", "es")
        for number in range(60)
    ]
    report = score(rows, bootstrap_samples=1000)
    spreads = [np.ptp(group["error_rate_interval"]) for group in report["groups"].values()]
    assert np.ptp(report["macro"]["asr"]["error_rate_interval"]) == pytest.approx(np.mean(spreads) / 2**0.5, rel=0.15)


def test_failed_rows_count_as_deleted_and_do_not_vanish():
    rows = [
        prediction("un deux trois", "un deux trois"),
        prediction("quatre cinq", "", error="ValueError: broken clip"),
    ]
    group = score(rows, bootstrap_samples=10)["groups"]["asr/fr"]
    assert (group["utterances"], group["failed"], group["deletions"]) == (2, 1, 2)
    assert group["error_rate"] == pytest.approx(2 / 5)
    assert group["empty"] == 0  # failed, not silent


def test_corpora_are_reported_apart_when_there_are_several():
    rows = [prediction("un deux", "un deux"), {**prediction("un deux", "un"), "corpus": "other"}]
    report = score(rows, bootstrap_samples=10)
    assert report["groups"]["asr/fr"]["error_rate"] == 0.25
    assert {name: part["groups"]["asr/fr"]["error_rate"] for name, part in report["corpora"].items()} == {
        "made": 0.0,
        "other": 0.5,
    }
    assert "corpora" not in score(rows[:1], bootstrap_samples=10)


def test_a_report_is_json_and_the_same_for_the_same_seed():
    first = json.dumps(score(ROWS, bootstrap_samples=50, seed=1))
    assert first == json.dumps(score(ROWS, bootstrap_samples=50, seed=1))
    assert first != json.dumps(score(ROWS, bootstrap_samples=50, seed=2))
    assert json.loads(first)["settings"]["versions"]["sacrebleu"] == sacrebleu.__version__


def test_references_without_any_unit_have_no_rate_but_count_insertions():
    group = score([prediction("...", "bonjour")], bootstrap_samples=10)["groups"]["asr/fr"]
    assert group["error_rate"] is None and group["error_rate_interval"] is None
    assert group["insertions"] == 1
    assert annotate([prediction("...", "bonjour à tous")])[0]["error_rate"] == 3


def test_rows_that_cannot_be_scored_are_named():
    with pytest.raises(ValueError, match="no predictions to score"):
        score([])
    with pytest.raises(ValueError, match=r"'Bonjour\|' has no hypothesis"):
        score([{**ROWS[2], "hypothesis": None}])
    with pytest.raises(ValueError, match="no text normaliser for language 'xx'"):
        score([prediction("a", "a", "xx")])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "st"}, r"task 'st' is none of asr, s2tt, mt"),
        ({"target_lang": "de"}, r"asr from 'fr' to 'de', but asr, and only asr"),
        ({"task": "s2tt"}, r"s2tt from 'fr' to 'fr'"),
        ({"hypothesis": 12}, r"'hypothesis' is 12, a int; write it as text"),
        ({"reference": 3.5}, r"'reference' is 3\.5"),
        ({"source_text": ["a"]}, r"'source_text' is \['a'\]"),
        ({"id": 7}, r"Prediction 7: 'id' is 7"),
        ({"target_lang": True}, r"'target_lang' is True"),
        ({"corpus": None}, r"has no corpus"),
        ({"error": 1}, r"'error' is 1"),
        ({"ctc_hypothesis": 5}, r"'ctc_hypothesis' is 5"),
        ({"confidence": 0.5}, r"'confidence' is 0\.5; it holds numbers from 0 to 1"),
        ({"confidence": {"ctc": "0.5"}}, r"'confidence' is \{'ctc': '0\.5'\}"),
        ({"confidence": {"ctc": float("nan")}}, r"'confidence' is \{'ctc': nan\}"),
        ({"confidence": {"product": 7}}, r"'confidence' is \{'product': 7\}"),
        ({"hypothesis": "a\ud800"}, r"'hypothesis' holds half of a surrogate pair"),
    ],
)
def test_fields_that_cannot_be_scored_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        annotate([{**ROWS[0], **change}])


def test_a_row_that_is_no_object_is_refused():
    with pytest.raises(ValueError, match=r"Prediction 5 is a int; give an object"):
        annotate([5])


def test_a_prediction_counts_once():
    with pytest.raises(ValueError, match=r"2 predictions share corpus, id, task and languages .*'made'.*would count"):
        score([ROWS[0], ROWS[1], {**ROWS[0], "hypothesis": "autre"}], bootstrap_samples=2)


@pytest.mark.parametrize(
    "settings", [{"bootstrap_samples": 0}, {"bootstrap_samples": 1.5}, {"seed": -1}, {"seed": None}]
)
def test_settings_of_the_bootstrap_have_a_range(settings):
    with pytest.raises(ValueError, match=rf"Setting '{next(iter(settings))}' is .* whole number"):
        score(ROWS, **settings)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner))


@settings(deadline=None)
@given(st.sampled_from([*ROWS[0], "source_text", "error"]), values)
def test_an_odd_value_is_counted_or_named(field, value):
    try:
        report = score([{**ROWS[0], field: value}], bootstrap_samples=2)
    except ValueError as error:
        assert f"{field!r}" in str(error) or f"has no {field}" in str(error) or repr(value) in str(error)
    else:
        json.dumps(report).encode()


def test_what_cannot_be_scored_is_known_before_training(monkeypatch):
    check_scorable(["en", "fr", "th"], ["en", "zh"])
    with pytest.raises(ValueError, match="'qqq'"):
        check_scorable(["en", "qqq"])
    monkeypatch.setattr("sacrebleu.tokenizers.tokenizer_ja_mecab.MeCab", None)
    check_scorable(["ja"])
    with pytest.raises(ImportError, match=r"modeling-part\[ja\]"):
        check_scorable(["en"], ["ja"])


@pytest.mark.parametrize(
    ("hypothesis", "reference", "looping"),
    [
        ("seven seven seven seven", "seven seven seven seven", False),
        ("seven seven seven seven", "seven", True),
        ("and then and then and then and then", "and then he left", True),
        ("so and then and then and then", "so", False),
        ("the cat sat on the mat and looked at the dog", "the cat", False),
        ("one one seven seven seven seven", "one seven seven seven seven", False),
        ("seven seven seven seven seven seven seven seven seven", "seven seven seven seven", True),
        (" ".join(f"{word} of the same old song we sang" for word in "abcdefghijklmnop"), "a", True),
    ],
)
def test_looping(hypothesis, reference, looping):
    assert is_looping(hypothesis.split(), reference.split()) is looping


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience."),
        ("hi", "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है। उन्हें बुद्धि और अन्तरात्मा की देन प्राप्त है और परस्पर उन्हें भाईचारे के भाव से बर्ताव करना चाहिए।"),
        ("th", "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ ต่างมีเหตุผลและมโนธรรม และควรปฏิบัติต่อกันด้วยเจตนารมณ์แห่งภราดรภาพ"),
        ("ka", "ყველა ადამიანი იბადება თავისუფალი და თანასწორი თავისი ღირსებითა და უფლებებით. მათ მინიჭებული აქვთ გონება და სინდისი."),
    ],
)  # fmt: skip
def test_a_loop_is_no_matter_of_script(language, text):
    """The declaration of human rights: UTF-8 writes every letter of three of these as two like bytes and another."""
    reference = scored_units(normalize_text(text, language), language)
    assert not is_looping([*reference, reference[0]], reference)
    assert is_looping(reference * 5, reference)


@given(
    st.lists(st.sampled_from("ab"), min_size=1, max_size=4),
    st.integers(4, 6),
    st.lists(st.sampled_from("ab"), max_size=3),
)
def test_whatever_repeats_at_the_tail_is_a_loop(unit, times, start):
    assert is_looping(start + unit * times, ["a"] * 2) == (len(start + unit * times) > 2)


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        (prediction("Bonjour tout le monde", "Привет всем"), True),
        (prediction("Привет всем", "Привет всем в Windows", "ru"), False),
        (prediction("你好", "hello", "zh"), True),
        (prediction("今日は雨", "今日は雨", "ja"), False),
        (prediction("Bonjour", "42 !"), False),
        (prediction("Bonjour", ""), False),
        (prediction("call forwarding", "renvoi d'appel", "en", "fr", source_text="Renvoi d'appel."), True),
        (prediction("call forwarding", "call forward", "en", "fr", source_text="Renvoi d'appel."), False),
        (prediction("taxi", "taxi", "en", "fr", source_text="taxi"), False),
        (prediction("Le serveur ne répond pas ce matin", "the server does not answer this morning at all"), True),
        (prediction("the server does not answer", "the server does not answer this morning at all", "en"), False),
    ],
)
def test_wrong_language(row, wrong):
    others = [prediction("oui", "oui"), prediction("yes", "yes", "en"), prediction("да", "да", "ru")]
    assert annotate([row, *others])[0]["wrong_language"] is wrong


@pytest.mark.parametrize(
    ("reference", "hypothesis", "language", "wrong"),
    [
        ("uno dos tres", "one two three", "es", True),  # short, and in letters that both languages have
        ("Uno, dos, tres.", "One two, three!", "es", True),
        ("one two three", "uno tres dos", "en", True),
        ("uno dos tres", "uno dos two", "es", False),
        ("uno dos tres", "one two", "es", False),  # two words may be names
        ("uno dos tres", "one two tree", "es", False),  # one that no text has
        ("uno dos tres", "1 2 3", "es", False),
        ("one two three", "one two three", "es", False),  # what the reference says is right
        ("un deux six", "six six six", "fr", False),  # a word of both languages
    ],
)
def test_short_answers_in_words_of_another_language(reference, hypothesis, language, wrong):
    others = [prediction("uno dos tres", "", "es"), prediction("one two three six", "", "en")]
    assert annotate([prediction(reference, hypothesis, language), *others])[0]["wrong_language"] is wrong


def test_what_is_asked_without_the_language_is_counted_apart():
    named = [prediction("uno dos tres", "uno dos tres", "es"), prediction("one two three", "one two three", "en")]
    unnamed = [{**named[0], "hypothesis": "one two three"}, {**named[1], "hypothesis": "one two"}]
    settings = {"bootstrap_samples": 20, "seed": 3}
    report = score(named, unnamed=unnamed, **settings)
    alone = score(unnamed, **settings)
    assert report["unnamed"] == {"groups": alone["groups"], "macro": alone["macro"]}
    assert {name: part for name, part in report.items() if name != "unnamed"} == score(named, **settings)
    shares = {name: figures["wrong_language"] for name, figures in report["unnamed"]["groups"].items()}
    assert shares == {"asr/es": 1.0, "asr/en": 0.0}
    assert report["unnamed"]["macro"]["asr"]["error_rate"] == pytest.approx((1 + 1 / 3) / 2)


def test_predictions_file_round_trip_and_unfinished_last_line(tmp_path, caplog):
    path = tmp_path / "predictions.jsonl"
    rows = annotate(ROWS)
    write_predictions(rows, path)
    assert read_predictions(path) == rows
    assert "猫" in path.read_text(encoding="utf-8")
    path.write_text(path.read_text(encoding="utf-8") + '{"id": "cut o', encoding="utf-8")
    assert read_predictions(path) == rows
    assert "unfinished line" in caplog.text
    path.write_text('{"id": 1}\nnot json\n{"id": 2}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        read_predictions(path)
    for line, message in (
        (b"[1]", r"line 1 is \[1\], not an object"),
        (b'{"id": "\xe9"}', "line 1 is not JSON.*utf-8"),
        (b'{"id": "1", "id": "2"}', "line 1 is not JSON.*stands twice"),
        (b"[" * 100_000, "line 1 is not JSON.*recursion"),
    ):
        path.write_bytes(line + b"\n")
        with pytest.raises(ValueError, match=message):
            read_predictions(path)
    path.write_bytes(b"\xef\xbb\xbf" + b'{"id": "1"}\r\n\r\n')
    assert read_predictions(path) == [{"id": "1"}]
    path.write_bytes(b"\0" * 4096)
    assert read_predictions(path) == []
    for text in ('{"id": "1"}', '{"id": "1"}\r\n'):  # as PowerShell writes what goes through a pipe
        path.write_text(text, encoding="utf-16")
        with pytest.raises(ValueError, match=r"predictions\.jsonl is UTF-16; convert it with `iconv"):
            read_predictions(path)


def test_real_references_are_hardly_ever_called_wrong(shared_data):
    rows = []
    for manifest in sorted(shared_data.glob("asterisk-core-sounds/*/metadata_multitarget.jsonl")):
        for line in manifest.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            rows.append({**row, "reference": row["text"], "hypothesis": row["text"]})
    annotated = annotate(rows)
    assert len(annotated) > 1000
    assert sum(row["wrong_language"] for row in annotated) / len(annotated) < 0.002
    assert sum(row["looping"] for row in annotated) == 0
    copied = annotate([{**row, "hypothesis": row["source_text"]} for row in rows if row["source_text"] != row["text"]])
    assert sum(row["wrong_language"] for row in copied) / len(copied) > 0.95
