"""Trackers show one run: its steps go on through the stages, and each finished stage adds its scores and answers."""

import json

import pytest
import soundfile
import tiny_training
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from modeling_part.data.corpora import kept_rows
from modeling_part.evaluation.scoring import read_predictions
from modeling_part.evaluation.utterances import choose_utterances
from modeling_part.training.trackers import RANDOM, WORST, continue_trackers, end_trackers, show_test


def test_the_steps_go_on_through_the_stages(tmp_path, monkeypatch):
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    for number, name in enumerate(("adapter", "joint")):
        trainer = tiny_training.make_trainer(
            tmp_path / name,
            tiny_training.joint_stage(),
            steps=3,
            report_to=["tensorboard"],
        )
        continue_trackers(trainer, 3 * number, tmp_path)
        trainer.train()
        end_trackers(trainer)
        steps = [entry["step"] for entry in trainer.state.log_history if "loss" in entry]
        assert steps == [1, 2, 3]  # the stage's own log counts its own
    written = EventAccumulator(str(tmp_path / "tensorboard"))
    written.Reload()
    assert [point.step for point in written.Scalars("train/grad_norm/adapter")] == [1, 2, 3, 4, 5, 6]
    assert not list((tmp_path / "joint").rglob("events.out.tfevents.*"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_parts, tiny_corpus):
    """The folder of a run of two stages that was followed by TensorBoard."""
    folder = tmp_path_factory.mktemp("trackers")
    stages = [
        {"name": "adapter", "max_steps": 2, "tasks": {"asr": 1.0}},
        {"name": "joint", "max_steps": 3, "tasks": {"asr": 1.0, "s2tt": 1.0}},
    ]
    options = {"stages": stages, "predict_last_stage_only": True, "report_to": "tensorboard"}
    recipe = tiny_training.write_recipe(folder, tiny_parts, tiny_corpus, **options)
    result = tiny_training.execute(tiny_training.launch_command(recipe))
    assert result.returncode == 0, result.stdout[-5000:]
    return folder / "run"


def test_a_run_ends_with_its_scores_and_answers(finished):
    written = EventAccumulator(str(finished / "tensorboard"), size_guidance={"tensors": 0, "audio": 0})
    written.Reload()
    report = json.loads((finished / "joint" / "report.json").read_text(encoding="utf-8"))
    assert {name for name in report["groups"] if name.startswith("asr/")}
    for name, group in report["groups"].items():
        (point,) = written.Scalars(f"test/{name}_{group['error_metric'].lower()}")
        assert (point.step, point.value) == (5, pytest.approx(group["error_rate"]))
    (table,) = written.Tensors("answers/joint/text_summary")
    text = table.tensor_proto.string_val[0].decode()
    answers = [line.split(" | ") for line in text.splitlines()[2:]]
    assert {cells[1] for cells in answers} == {"asr", "s2tt"}
    heard = {name.removeprefix("answers/joint/") for name in written.Tags()["audio"]}
    assert heard == {" ".join(cells[1:4]) for cells in answers}
    (clip,) = written.Audio(f"answers/joint/{sorted(heard)[0]}")
    assert clip.sample_rate == 16_000 and clip.length_frames > 1000


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_answers_are_heard_in_other_trackers(package, finished, tmp_path, monkeypatch):
    """The package itself, which keeps what it gets on this machine."""
    for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "TRACKIO_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "kept"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "kept").mkdir()
    pytest.importorskip(package)
    stage = tiny_training.joint_stage()
    trainer = tiny_training.make_trainer(tmp_path / "joint", stage, steps=1, report_to=[package], run_name="run")
    continue_trackers(trainer, 5, tmp_path)
    trainer.train()
    folder = finished / "joint"
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    show_test(trainer, report, folder, kept_rows(finished / "data" / "test"))
    end_trackers(trainer)
    kept = [path for path in (tmp_path / "kept").rglob("*") if path.is_file()]
    clips = [path for path in kept if path.read_bytes()[:4] == b"RIFF"]
    shown = choose_utterances(read_predictions(folder / "predictions.jsonl"), WORST, RANDOM)
    assert len(clips) == len(shown) > 12
    assert all(soundfile.info(path).samplerate == 16_000 for path in clips)
