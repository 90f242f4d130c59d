"""Answers on the dev data during training: figures equal to those of predicting afterwards, warnings, nothing moved."""

import json
import logging
import shutil

import pytest
import tiny
import tiny_training
from safetensors.torch import load_file

import train_part
from modeling_part import PARTForSpeechSeq2Seq, PARTProcessor
from modeling_part.data.corpora import open_corpora
from modeling_part.evaluation.prediction import predict
from modeling_part.evaluation.scoring import score
from modeling_part.training.monitoring import GenerationMonitor, last_dev_report, report_metrics


STAGES = [
    {"name": "adapter", "max_steps": 4},
    {"name": "joint", "max_steps": 4, "learning_rates": tiny_training.JOINT},
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_parts):
    """The same two stages with and without answers during training."""
    folder = tmp_path_factory.mktemp("monitored")
    corpus = tiny.tiny_corpus(folder / "corpus", sentences={"train": 6, "dev": 2, "test": 1}, words=(1, 2))
    made = {}
    for name, options in {
        "monitored": {"predict_with_generate": True, "eval_strategy": "steps", "eval_steps": 2, "max_eval_rows": None},
        "plain": {},
    }.items():
        (folder / name).mkdir()
        recipe = tiny_training.write_recipe(folder / name, tiny_parts, corpus, stages=STAGES, **options)
        train_part.main([str(recipe)])
        made[name] = folder / name / "run"
    return made


def log(run, stage: str) -> list[dict]:
    return json.loads((run / stage / "log_history.json").read_text())


def test_each_evaluation_is_logged_and_kept(runs):
    for stage in ("adapter", "joint"):
        lines = [line for line in log(runs["monitored"], stage) if "eval_asr_error_rate" in line]
        assert {line["step"] for line in lines} == {2, 4}
        for line in lines:
            report = json.loads(
                (runs["monitored"] / stage / "dev" / f"step-{line['step']}" / "report.json").read_text()
            )
            assert line["eval_asr/fr_wer"] == report["groups"]["asr/fr"]["error_rate"]
            assert line["eval_s2tt/fr-en_bleu"] == report["groups"]["s2tt/fr-en"]["bleu"]
            assert line["eval_asr_error_rate"] == report["macro"]["asr"]["error_rate"]
            assert line["eval_asr/fr_unnamed_wer"] == report["unnamed"]["groups"]["asr/fr"]["error_rate"]
            assert line["eval_asr_unnamed_error_rate"] == report["unnamed"]["macro"]["asr"]["error_rate"]
            assert {f"eval_{name}" for name in report_metrics(report)} <= set(line)


def test_the_last_figures_are_those_of_the_saved_checkpoint(runs, tmp_path):
    folder = runs["monitored"] / "adapter"  # no LoRA: the weights in the file are those that answered
    dev, _ = open_corpora(runs["monitored"] / "data" / "eval")
    rows = predict(
        PARTForSpeechSeq2Seq.from_pretrained(folder),
        PARTProcessor.from_pretrained(folder),
        dev,
        output_path=tmp_path / "predictions.jsonl",
        max_new_tokens=4,
    )
    again, kept = score(rows, seed=42), last_dev_report(folder)
    assert kept["groups"] == again["groups"] and kept["macro"] == again["macro"]
    metrics = json.loads((folder / "stage.json").read_text())["metrics"]
    assert metrics["eval_asr_error_rate"] == again["macro"]["asr"]["error_rate"]


def test_looking_changes_nothing(runs):
    for stage in ("adapter", "joint"):
        monitored, plain = (load_file(run / stage / "model.safetensors") for run in runs.values())
        assert all((monitored[name] == plain[name]).all() for name in plain)
        losses = [
            [line["loss"] for line in log(run, stage) if "loss" in line and "train_loss" not in line]
            for run in runs.values()
        ]
        assert losses[0] == losses[1]


def dev_report(error_rates: dict[str, float]) -> dict:
    """Twenty words per language, so many of them wrong."""
    rows = [
        {
            "id": f"{language}{number}", "corpus": "c", "task": "asr", "source_lang": language, "target_lang": language,
            "reference": "mot", "hypothesis": "faux" if number < 20 * rate else "mot",
        }
        for language, rate in error_rates.items()
        for number in range(20)
    ]  # fmt: skip
    return score(rows)


def test_warns_where_transcripts_got_worse_than_the_parents(runs, tmp_path, caplog, monkeypatch):
    before = dev_report({"fr": 0.0, "es": 0.1})
    parent = tmp_path / "encoder"
    for step, report in ((9, dev_report({"fr": 1.0, "es": 1.0})), (10, before)):
        folder = parent / "dev" / f"step-{step}"
        folder.mkdir(parents=True)
        (folder / "report.json").write_text(json.dumps(report))
    shutil.copytree(parent / "dev" / "step-9", parent / "dev" / "step-11.bak")  # somebody's copy
    assert last_dev_report(parent) == before
    worse = dev_report({"fr": 0.9, "es": 0.1})
    monkeypatch.setattr("modeling_part.training.monitoring.predict_and_report", lambda *args, **kwargs: worse)
    monitor = GenerationMonitor([], None, tmp_path / "joint", parent)
    with caplog.at_level(logging.WARNING):
        figures = monitor(None, type("Main", (), {"is_main_process": True}), 50)
    assert figures["asr/fr_wer"] == 0.9
    assert "Step 50, dev data: asr/fr got worse" in caplog.text
    assert "asr/fr is far from the average" in caplog.text
    assert "asr/es" not in caplog.text


def test_figures_of_another_normaliser_are_not_compared_with(tmp_path, caplog, monkeypatch):
    folder = tmp_path / "encoder" / "dev" / "step-1"
    folder.mkdir(parents=True)
    before = dev_report({"fr": 0.0})
    del before["settings"]["normalization"]  # as an earlier version wrote it
    (folder / "report.json").write_text(json.dumps(before))
    worse = dev_report({"fr": 0.9})
    monkeypatch.setattr("modeling_part.training.monitoring.predict_and_report", lambda *args, **kwargs: worse)
    monitor = GenerationMonitor([], None, tmp_path / "joint", tmp_path / "encoder")
    main = type("Main", (), {"is_main_process": True})
    with caplog.at_level(logging.WARNING):
        monitor(None, main, 50), monitor(None, main, 60)
    assert caplog.text.count("other rules of normalisation") == 1
    assert "got worse" not in caplog.text


def test_without_dev_data_it_is_one_clear_error(runs, tmp_path, tiny_parts):
    corpus = tiny.tiny_corpus(tmp_path / "corpus", sentences={"train": 2, "dev": 1, "test": 1}, words=(1, 2))
    recipe = tiny_training.write_recipe(tmp_path, tiny_parts, corpus, stages=STAGES, predict_with_generate=True)
    with pytest.raises(ValueError, match="`predict_with_generate` needs `eval_data`"):
        train_part.main([str(recipe), "--eval_data", "null"])
