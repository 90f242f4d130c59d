"""Where the two heads disagree, and how far confidence keeps its word: figures, report.md and report.html."""

import numpy as np
import pytest
import tiny_training
import torch

from modeling_part.alignment_part import collapse, ctc_text
from modeling_part.evaluation.pictures import plot_calibration
from modeling_part.evaluation.prediction import predict_and_report
from modeling_part.evaluation.reports import write_report
from modeling_part.evaluation.scoring import annotate, read_predictions, score
from modeling_part.evaluation.two_heads import calibration
from modeling_part.evaluation.utterances import choose_utterances


def prediction(
    number: int, hypothesis: str, heard: str | None, reference: str = "one two three four", sure: float = 0.8
):
    row = {"id": f"{number}", "corpus": "made", "task": "asr", "source_lang": "en", "target_lang": "en"}
    row |= {"reference": reference, "hypothesis": hypothesis}
    row["confidence"] = {"language_model": sure, "ctc": None if heard is None else sure / 2, "product": sure}
    return row if heard is None else row | {"ctc_hypothesis": heard}


ROWS = [
    prediction(0, "one two three four", "One, two three four."),  # differ in what is normalised alone
    prediction(1, "one two three four", "one two tree four"),
    prediction(2, "one two", "nine ten"),
    prediction(3, "one two three", None),
]


def test_transcripts_on_which_the_heads_differ_come_first():
    rows = annotate(ROWS)
    assert [row.get("disagreement") for row in rows] == [0.0, 0.25, 1.0, None]
    report = score(ROWS, bootstrap_samples=10)
    assert [row["id"] for row in report["disagreements"]] == ["2", "1"]
    chosen = choose_utterances(rows)
    assert [(row["id"], kind) for row, kind in chosen[:3]] == [
        ("2", "heads differ"),
        ("1", "heads differ"),
        ("3", "worst"),
    ]
    assert sorted(row["id"] for row, _ in chosen) == ["0", "1", "2", "3"]
    failed = annotate([{**prediction(0, "", "one"), "error": "no memory"}])
    assert "disagreement" not in failed[0]


def test_the_report_and_the_page_order_them_alike():
    """Of several that differ as much, those that are further from their reference come first, then by id."""
    rows = [
        prediction(0, "one two three four", "one two three", reference="one two three four"),
        prediction(1, "one two three four", "one two three", reference="nine"),
        prediction(2, "one two three four", "one two three", reference="one two three five"),
        prediction(3, "one two three four", "one two three", reference="one two three six"),
    ]
    expected = ["1", "2", "3", "0"]
    assert [row["id"] for row in score(rows, bootstrap_samples=10)["disagreements"]] == expected
    for given in (rows, rows[::-1]):
        assert [row["id"] for row, kind in choose_utterances(annotate(given)) if kind == "heads differ"] == expected


def test_wrong_labels_are_where_both_heads_contradict_the_reference():
    """By characters: a poor model's words are all wrong. That the heads disagree says nothing of the label."""
    label = "black cats sleep"  # 14 letters
    rows = [
        prediction(0, "plack kats", "back gat sleep", label),  # hard to hear, rightly labelled
        prediction(1, "ring it", "ringg id", label),  # another clip's label
        prediction(2, "ring it", "", label),  # where CTC hears nothing there is no second opinion
        prediction(3, "Black cats sleep.", "blak cat sleep", label),
    ]
    annotated = annotate(rows)
    assert [row.get("label_distance") for row in annotated] == [3 / 14, 13 / 14, None, 0.0]
    report = score(rows, bootstrap_samples=10)
    assert [row["id"] for row in report["doubtful_labels"]] == ["1", "0"]
    assert report["disagreements"][0]["id"] == "0"


def test_the_report_names_them_before_everything_but_its_figures(tmp_path):
    write_report(score(ROWS, bootstrap_samples=10), tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert text.index("## Where the two heads disagree") < text.index("nine ten") < text.index("## Confidence")
    assert text.index("## References that both heads contradict") < text.index("## Confidence")
    assert text.count("## ") == 3
    write_report(score(ROWS[:1], bootstrap_samples=10), tmp_path)
    assert "Nowhere." in (tmp_path / "report.md").read_text()
    plain = [{key: row[key] for key in row if key not in ("confidence", "ctc_hypothesis")} for row in ROWS]
    report = score(plain, bootstrap_samples=10)
    assert not {"disagreements", "doubtful_labels", "calibration"} & set(report)


def test_calibration_is_the_distance_of_confidence_and_right_words():
    generator = np.random.default_rng(0)
    sure = generator.random(200)
    words = ["a", "b", "c", "d", "e"]
    rows = []
    for number, confidence in enumerate(sure):
        right = [word if generator.random() < confidence else "x" for word in words]
        rows.append(prediction(number, " ".join(right), None, " ".join(words), float(confidence)))
    found = calibration(annotate(rows))
    assert set(found) == {"language_model", "product"}  # no row has CTC's
    accuracy = np.array([1 - row["error_rate"] for row in annotate(rows)])
    expected = sum(
        abs(sure[inside].sum() - accuracy[inside].sum())
        for number in range(10)
        if (inside := (sure * 10).astype(int) == number).any()
    )
    assert found["language_model"]["error"] == pytest.approx(expected / 200)
    assert found["language_model"]["error"] < 0.1 and found["language_model"]["utterances"] == 200
    assert sum(one["utterances"] for one in found["language_model"]["bins"]) == 200
    lines = plot_calibration(found).axes[0].get_lines()
    assert len(lines) == 3 and len(lines[1].get_xdata()) == 10


def test_confidence_of_one_shares_the_last_bin_and_no_accuracy_is_below_none():
    """Confidence is rounded, so that 1.0 is common; a text of insertions has more errors than words."""
    rows = [prediction(0, "one two three four", None, sure=1.0), prediction(1, "one two three", None, sure=0.9)]
    rows.append(prediction(2, "a b c d e", None, "one", sure=0.05))
    found = calibration(annotate(rows))["product"]
    assert [(one["utterances"], one["accuracy"]) for one in found["bins"]] == [(1, 0.0), (2, 0.875)]
    assert [one["confidence"] for one in found["bins"]] == pytest.approx([0.05, 0.95])
    assert found["error"] == pytest.approx((0.05 + 2 * 0.075) / 3)


def test_half_a_letter_that_ctc_writes_does_not_cut_its_word():
    tokenizer = tiny_training.tiny_model()[1].tokenizer  # byte-level
    whole = tokenizer("малаток").input_ids
    half = tokenizer("о").input_ids[0]
    assert tokenizer.decode([half]) == "\ufffd"
    assert ctc_text(tokenizer, [-1, *whole[:-4], half, -1, *whole[-4:], half]) == "малаток"


def test_predictions_hold_what_both_heads_say(tmp_path):
    model, processor = tiny_training.tiny_model(adapter_conv_stride=1)
    model.eval()
    dataset = tiny_training.tiny_dataset(count=2, words=(1, 1))
    options = {"max_new_tokens": 6, "batch_size": 3}
    report = predict_and_report(model, processor, dataset, tmp_path / "without", **options)
    rows = read_predictions(tmp_path / "without" / "predictions.jsonl")
    assert "disagreements" not in report and not any("ctc_hypothesis" in row for row in rows)
    assert {row["id"] for row in rows if "confidence" in row} == {row["id"] for row in rows if row["task"] == "asr"}
    assert all(
        row["confidence"]["ctc"] is None and row["confidence"]["language_model"] > 0
        for row in rows
        if row["hypothesis"] and row["task"] == "asr"
    )
    model.add_alignment_head(torch.ones(model.config.text_config.vocab_size))
    report = predict_and_report(model, processor, dataset, tmp_path / "with", **options)
    rows = read_predictions(tmp_path / "with" / "predictions.jsonl")
    spoken = [row for row in rows if row["task"] == "asr"]
    assert {row["id"] for row in rows if "ctc_hypothesis" in row} == {row["id"] for row in spoken}
    assert report["calibration"]["ctc"]["utterances"] == sum(row["confidence"]["ctc"] is not None for row in spoken)
    for row in spoken:
        clip = next(one for one in dataset if one["id"] == row["id"])["audio"]
        inputs = processor(clip["bytes"])
        embeds = model.get_audio_features(inputs["input_features"], inputs["input_features_mask"]).pooler_output
        best = model.alignment_head.best_tokens(embeds, model.get_input_embeddings().weight)
        heard = processor.tokenizer.decode(collapse(best.tolist()), skip_special_tokens=True)
        heard = heard.replace("\ufffd", "").strip()
        assert row["ctc_hypothesis"] == heard
