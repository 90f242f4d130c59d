"""Prediction with a tiny real model (batching, resuming, broken clips, two processes) and the command line."""

import json
import os
import subprocess
import sys

import pytest
import torch
from datasets import Dataset
from tiny import REPOSITORY
from tiny_training import free_port

from modeling_part import PARTForSpeechSeq2Seq
from modeling_part.__main__ import main
from modeling_part.evaluation.prediction import (
    count_unanswered,
    plan_prediction_batches,
    predict,
    predict_and_report,
    weights_fingerprint,
)
from modeling_part.evaluation.scoring import annotate, read_predictions, score, write_predictions


FAST = {"max_new_tokens": 6, "batch_size": 4}


@pytest.fixture(scope="module")
def model_and_processor(tiny_parts):
    torch.manual_seed(0)
    model, processor = PARTForSpeechSeq2Seq.from_pretrained_parts(
        str(tiny_parts.audio_model), str(tiny_parts.language_model)
    )
    return model.eval(), processor


@pytest.fixture(scope="module")
def rows(tiny_corpus) -> list[dict]:
    manifest = tiny_corpus["test"]
    loaded = [json.loads(line) for line in manifest.read_text().splitlines()]
    for row in loaded:
        row["audio"] = row["audio"] and {"path": str(manifest.parent / row["audio"]), "bytes": None}
    return loaded


class CountingModel:
    """Passes everything on and remembers how many rows were generated for."""

    def __init__(self, model):
        self.counted, self.batch_sizes, self.prompts, self.limit = model, [], [], None

    def __getattr__(self, name):
        return getattr(self.counted, name)

    def __call__(self, **inputs):
        return self.counted(**inputs)

    def generate(self, **inputs):
        if self.limit is not None and len(self.batch_sizes) >= self.limit:
            raise KeyboardInterrupt
        self.batch_sizes.append(len(inputs["input_ids"]))
        self.prompts += inputs["input_ids"]
        return self.counted.generate(**inputs)


def one_by_one(model, processor, row) -> str:
    """The hypothesis of one row, written out by hand."""
    audio = row["audio"] and row["audio"]["path"]
    source_text = None if audio else row["source_text"]
    inputs = processor(
        audio=audio,
        task=row["task"],
        source_lang=row["source_lang"],
        target_lang=row["target_lang"],
        source_text=source_text,
    )
    ids = model.generate(**inputs, max_new_tokens=FAST["max_new_tokens"], do_sample=False)
    return processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0].strip()


@pytest.mark.parametrize("as_dataset", [True, False])
def test_batched_predictions_equal_one_by_one(model_and_processor, rows, tmp_path, as_dataset):
    model, processor = model_and_processor
    dataset = Dataset.from_list(rows) if as_dataset else rows
    predictions = predict(model, processor, dataset, output_path=tmp_path / "predictions.jsonl", **FAST)
    assert [row["id"] for row in predictions] == [row["id"] for row in rows]
    assert {row["task"] for row in predictions} == {"asr", "s2tt", "mt"}
    assert [row["reference"] for row in predictions] == [row["text"] for row in rows]
    assert [row["hypothesis"] for row in predictions] == [one_by_one(model, processor, row) for row in rows]
    assert read_predictions(tmp_path / "predictions.jsonl") == predictions
    assert list(tmp_path.iterdir()) == [tmp_path / "predictions.jsonl"]
    assert all(row["error_rate"] > 0 and row["unit"] == "word" for row in predictions)
    assert len({row["hypothesis"] for row in predictions}) > 4  # or the comparison above would say little


def test_rows_are_asked_with_their_own_words(model_and_processor, rows, tmp_path):
    model, processor = model_and_processor
    speech = [row for row in rows if row["task"] == "asr"][:3]
    own = [{**speech[0], "context": "Anna\nBerta"}, {**speech[1], "prompt": "Write it down."}, speech[2]]
    asked = CountingModel(model)
    predict(asked, processor, own, output_path=tmp_path / "predictions.jsonl", **FAST)
    prompts = processor.batch_decode(asked.prompts)
    assert [["Context: Anna, Berta" in prompt, "Write it down." in prompt] for prompt in prompts].count(
        [False, False]
    ) == 1
    assert sum("Context: Anna, Berta" in prompt for prompt in prompts) == 1
    assert sum("Write it down." in prompt for prompt in prompts) == 1


def test_transcripts_are_asked_for_with_and_without_the_language(model_and_processor, rows, tmp_path):
    model, processor = model_and_processor
    for dataset, name in ((Dataset.from_list(rows), "dataset"), (rows, "list")):
        folder, asked = tmp_path / name, CountingModel(model)
        report = predict_and_report(asked, processor, dataset, folder, ask_unnamed=True, **FAST)
        predictions = read_predictions(folder / "predictions.jsonl")
        unnamed = read_predictions(folder / "predictions_unnamed.jsonl")
        speech = [row for row in rows if row["task"] == "asr"]
        assert [row["id"] for row in unnamed] == [row["id"] for row in speech]
        expected = [one_by_one(model, processor, {**row, "source_lang": None}) for row in speech]
        assert [row["hypothesis"] for row in unnamed] == expected
        prompts = processor.batch_decode(asked.prompts)
        for words in ("Transcribe the speech.", "Transcribe the English speech.", "Transcribe the French speech."):
            spoken = {"English": "en", "French": "fr"}.get(words.split()[2])
            count = sum(spoken in (None, row["source_lang"]) for row in speech)
            assert sum(words in prompt for prompt in prompts) == count
        assert {row["source_lang"] for row in unnamed} == {"en", "fr"}
        assert report == score(predictions, unnamed=unnamed)
        text = (folder / "report.md").read_text()
        assert "## Transcription, the language not named" in text
        before = text, (folder / "report.json").read_bytes()
        main(["score", str(folder / "predictions.jsonl")])
        assert ((folder / "report.md").read_text(), (folder / "report.json").read_bytes()) == before
    counting = CountingModel(model)
    predict_and_report(counting, processor, rows, tmp_path / "list", ask_unnamed=True, **FAST)
    assert counting.batch_sizes == []
    without = predict_and_report(model, processor, rows, tmp_path / "once", **FAST)
    assert "unnamed" not in without and not (tmp_path / "once" / "predictions_unnamed.jsonl").exists()


def test_interrupted_prediction_is_resumed_not_repeated(model_and_processor, rows, tmp_path):
    model, processor = model_and_processor
    path = tmp_path / "predictions.jsonl"
    counting = CountingModel(model)
    counting.limit = 3
    with pytest.raises(KeyboardInterrupt):
        predict(counting, processor, rows, output_path=path, **FAST)
    part = tmp_path / "predictions.jsonl.part-0"
    finished = len(read_predictions(part))
    assert finished == sum(counting.batch_sizes) > 0
    part.write_text(part.read_text() + '{"id": "cut off in the mid', encoding="utf-8")

    again = CountingModel(model)
    resumed = predict(again, processor, rows, output_path=path, **FAST)
    assert sum(again.batch_sizes) == len(rows) - finished
    assert resumed == predict(model, processor, rows, output_path=tmp_path / "whole.jsonl", **FAST)

    third = CountingModel(model)
    assert predict(third, processor, rows, output_path=path, **FAST) == resumed
    assert third.batch_sizes == []


def test_other_weights_and_other_rows_are_not_taken_for_done(model_and_processor, rows, tmp_path, caplog):
    model, processor = model_and_processor
    path = tmp_path / "predictions.jsonl"
    predict(model, processor, rows, output_path=path, **FAST)
    before = weights_fingerprint(model, "6")
    assert before != weights_fingerprint(model, "7")
    weight = model.lm_head.weight
    with torch.no_grad():
        saved = weight[0, 0].clone()
        weight[0, 0] += 1e-3
    try:
        assert weights_fingerprint(model, "6") != before
        counting = CountingModel(model)
        predict(counting, processor, rows[:5], output_path=path, **FAST)
        assert sum(counting.batch_sizes) == 5
        assert f"dropped {len(rows)} predictions" in caplog.text
        assert len(read_predictions(path)) == 5
        assert len(read_predictions(tmp_path / "predictions.jsonl.replaced-1")) == len(rows)
        # An interrupted prediction has its answers in another file: they stay, too, beside those of before.
        path.rename(tmp_path / "predictions.jsonl.part-3")
        with torch.no_grad():
            weight[0, 0] += 1e-3
        predict(model, processor, rows[:5], output_path=path, **FAST)
        assert len(read_predictions(tmp_path / "predictions.jsonl.replaced-2")) == 5
    finally:
        with torch.no_grad():
            weight[0, 0] = saved
    assert weights_fingerprint(model, "6") == before


@pytest.mark.parametrize(
    "change",
    [{"text": "another"}, {"duration": 0.05}, {"prompt": "What is said?"}, {"context": "Ada"}, {"source_text": "x"}],
)
def test_a_row_that_was_corrected_is_predicted_again(model_and_processor, rows, tmp_path, change):
    """Under the same id: otherwise it would be scored against the text that it had before."""
    model, processor = model_and_processor
    path = tmp_path / "predictions.jsonl"
    speech = [row for row in rows if row["task"] == "asr"][:3]
    predict(model, processor, speech, output_path=path, **FAST)
    change = {name: speech[1][name] + value if name == "duration" else value for name, value in change.items()}
    corrected = [speech[0], {**speech[1], **change}, speech[2]]
    counting = CountingModel(model)
    predicted = predict(counting, processor, corrected, output_path=path, **FAST)
    assert counting.batch_sizes == [1]
    assert predicted == predict(model, processor, corrected, output_path=tmp_path / "anew.jsonl", **FAST)
    assert [row["reference"] for row in predicted] == [row["text"] for row in corrected]


def test_rows_of_a_file_that_was_changed_are_predicted_again(model_and_processor, rows, tmp_path, caplog):
    model, processor = model_and_processor
    path = tmp_path / "predictions.jsonl"
    expected = predict(model, processor, rows[:4], output_path=path, **FAST)
    first, second, *others = path.read_text(encoding="utf-8").splitlines()
    changed = {**json.loads(second), "hypothesis": 7}
    path.write_text("\n".join(["{}", json.dumps(changed), *others, first]) + "\n", encoding="utf-8")
    assert count_unanswered(rows[:4], tmp_path) == 1
    counting = CountingModel(model)
    assert predict(counting, processor, rows[:4], output_path=path, **FAST) == expected
    assert sum(counting.batch_sizes) == 1
    assert "has no id" in caplog.text and "'hypothesis' is 7" in caplog.text


def test_a_broken_clip_costs_its_own_row_only_and_is_tried_again(model_and_processor, rows, tmp_path):
    model, processor = model_and_processor
    path = tmp_path / "predictions.jsonl"
    speech = [dict(row) for row in rows if row["task"] == "asr"]
    mended = speech[1]["audio"]
    speech[1]["audio"] = {"path": "nowhere.wav", "bytes": None}
    predictions = predict(model, processor, speech, output_path=path, **FAST)
    assert [row["id"] for row in predictions if row.get("error")] == [speech[1]["id"]]
    assert "nowhere.wav" in predictions[1]["error"] and predictions[1]["hypothesis"] == ""
    assert predictions[1]["deletions"] == len(speech[1]["text"].split())
    report = score(predictions, bootstrap_samples=10)
    assert sum(group["failed"] for group in report["groups"].values()) == 1
    assert sum(group["utterances"] for group in report["groups"].values()) == len(speech)

    speech[1]["audio"] = mended
    counting = CountingModel(model)
    repaired = predict(counting, processor, speech, output_path=path, **FAST)
    assert counting.batch_sizes == [1]
    assert not any(row.get("error") for row in repaired)


def test_refuses_what_cannot_be_scored(model_and_processor, rows, tmp_path):
    model, processor = model_and_processor
    path = tmp_path / "predictions.jsonl"
    with pytest.raises(ValueError, match="2 rows share"):
        predict(model, processor, [rows[0], rows[0]], output_path=path)
    with pytest.raises(ValueError, match="without text"):
        predict(model, processor, [{**rows[0], "text": None}], output_path=path)
    broken = [{**rows[0], "audio": {"path": "nowhere.wav", "bytes": None}}]
    with pytest.raises(RuntimeError, match=r"All 1 rows failed.*nowhere\.wav"):
        predict(model, processor, broken, output_path=path)


def test_batches_hold_one_task_and_a_bounded_length():
    tasks = ["asr"] * 10 + ["mt"] * 5
    table = [
        {"task": task, "duration": 0.0 if task == "mt" else 1.0 + number, "source_text": "x" * number}
        for number, task in enumerate(tasks)
    ]
    batches = plan_prediction_batches(table, range(len(table)), batch_size=4, max_audio_seconds=12)
    assert sorted(index for batch in batches for index in batch) == list(range(len(table)))
    for batch in batches:
        assert len({table[index]["task"] for index in batch}) == 1
        assert len(batch) <= 4
        assert len(batch) == 1 or len(batch) * max(table[index]["duration"] for index in batch) <= 12
    assert any(len(batch) > 1 for batch in batches)


TWO_PROCESSES = """
import json, sys
from accelerate import Accelerator
from modeling_part import PARTForSpeechSeq2Seq
from modeling_part.evaluation.prediction import predict

accelerator = Accelerator()
assert accelerator.num_processes == 2, accelerator.state
audio_model, language_model, rows, output = sys.argv[1:]
import torch
torch.manual_seed(0)
model, processor = PARTForSpeechSeq2Seq.from_pretrained_parts(audio_model, language_model)
rows = json.load(open(rows))
predictions = predict(model, processor, rows, output_path=output, max_new_tokens=6, batch_size=4, accelerator=accelerator)
assert [row["id"] for row in predictions] == [row["id"] for row in rows]
"""


def test_two_processes_share_the_rows(model_and_processor, tiny_parts, rows, tmp_path):
    model, processor = model_and_processor
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    command = [sys.executable, "-c", TWO_PROCESSES, str(tiny_parts.audio_model), str(tiny_parts.language_model)]
    command += ["rows.json", "shared/predictions.jsonl"]
    # What torchrun would set; starting the two here saves a third import of torch.
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(REPOSITORY), "WORLD_SIZE": "2"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "LOCAL_WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(command, cwd=tmp_path, env={**environment, "RANK": rank, "LOCAL_RANK": rank}) for rank in "01"
    ]
    assert [process.wait(timeout=240) for process in processes] == [0, 0]
    shared = read_predictions(tmp_path / "shared" / "predictions.jsonl")
    alone = predict(model, processor, rows, output_path=tmp_path / "predictions.jsonl", **FAST)
    assert [row["hypothesis"] for row in shared] == [row["hypothesis"] for row in alone]
    assert [path.name for path in (tmp_path / "shared").iterdir()] == ["predictions.jsonl"]


def synthetic_predictions(wrong: int) -> list[dict]:
    """Forty English transcripts and forty translations into French, `wrong` of each with a word replaced."""
    rows = []
    for task, target, sentence in (
        ("asr", "en", "the cat sat on the mat {}"),
        ("s2tt", "fr", "le chat est assis ici {}"),
    ):
        for number in range(40):
            reference = sentence.format(number)
            hypothesis = reference.replace("a", "o") if number < wrong else reference
            row = {"id": str(number), "corpus": "made", "task": task, "source_lang": "en", "target_lang": target}
            rows.append({**row, "reference": reference, "hypothesis": hypothesis})
    return annotate(rows)


def test_compare_and_score_from_the_command_line(tmp_path):
    for name, wrong in (("weak", 30), ("strong", 4)):
        (tmp_path / name).mkdir()
        write_predictions(synthetic_predictions(wrong), tmp_path / name / "predictions.jsonl")
        main(["score", str(tmp_path / name / "predictions.jsonl")])
        assert (tmp_path / name / "report.md").read_text().startswith("# Evaluation")
    command = [
        sys.executable,
        "-m",
        "modeling_part",
        "compare",
        "weak/report.json",
        "strong/report.json",
    ]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "160"}
    finished = subprocess.run(
        command, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert finished.returncode == 0, finished.stderr
    weak = json.loads((tmp_path / "weak" / "report.json").read_text())["groups"]["asr/en"]["error_rate"]
    strong = json.loads((tmp_path / "strong" / "report.json").read_text())["groups"]["asr/en"]["error_rate"]
    line = next(line for line in finished.stdout.splitlines() if "asr/en" in line)
    assert f"{100 * weak:.1f}" in line and f"{100 * strong:.1f}" in line
    assert f"−{100 * (weak - strong):.1f}, p 0.001*" in line
    assert "BLEU" in finished.stdout


def test_errors_of_the_command_line_are_one_line(tmp_path, capsys):
    (tmp_path / "weak").mkdir()
    with pytest.raises(SystemExit) as stopped:
        main(["compare", str(tmp_path / "weak" / "report.json"), str(tmp_path / "missing" / "report.json")])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("part compare: ") and "weak/report.json does not exist; comparing needs" in line
    with pytest.raises(SystemExit) as stopped:
        main(["report", str(tmp_path)])
    assert stopped.value.code == 2
    assert "has no stage folder" in capsys.readouterr().err
