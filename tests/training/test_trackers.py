"""Trackers show one run: its steps go on through the stages."""

import tiny_training
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from modeling_part.training.trackers import continue_trackers


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
        steps = [entry["step"] for entry in trainer.state.log_history if "loss" in entry]
        assert steps == [1, 2, 3]  # the stage's own log counts its own
    written = EventAccumulator(str(tmp_path / "tensorboard"))
    written.Reload()
    assert [point.step for point in written.Scalars("train/grad_norm/adapter")] == [1, 2, 3, 4, 5, 6]
    assert not list((tmp_path / "joint").rglob("events.out.tfevents.*"))
