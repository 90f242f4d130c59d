"""Runs that survive: kill -9 at any moment, SIGTERM, another number of batches per step."""

import json
import os
import signal
import subprocess
import time
from types import SimpleNamespace

import interruption
import pytest
import tiny
import tiny_training
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Dataset
from transformers import TrainerControl

from modeling_part import PARTForSpeechSeq2Seq
from modeling_part.training.checkpoints import last_checkpoint
from modeling_part.training.stopping import StopCallback
from modeling_part.training.trainer import _in_a_group_of_its_own


STEPS = 5


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_parts):
    """An uninterrupted run: its recipe settings, weights, losses, and how many moments it has."""
    folder = tmp_path_factory.mktemp("whole")
    corpus = tiny.tiny_corpus(folder / "corpus", sentences={"train": 5, "dev": 1}, words=(1, 2))
    losses = {"nll": 1.0, "ctc": 0.5}
    stages = [{"name": "joint", "max_steps": STEPS, "learning_rates": tiny_training.JOINT, "losses": losses}]
    settings = {"test_data": None, "eval_data": None, "stages": stages, "save_strategy": "steps", "save_steps": 1}
    settings |= {"save_total_limit": 2, "lr_scheduler_type": "linear", "max_rows": 3}

    def recipe(run_folder, **changes):
        run_folder.mkdir(exist_ok=True)
        return tiny_training.write_recipe(
            run_folder, tiny_parts, corpus | {"test": corpus["dev"]}, **settings | changes
        )

    log = folder / "log.txt"
    assert interruption.train([str(recipe(folder))], log) == 0, log.read_text()[-3000:]
    return SimpleNamespace(recipe=recipe, corpus=corpus, moments=interruption.moments(log), **outcome(folder))


def outcome(folder) -> dict:
    """What two runs must have in common."""
    history = json.loads((folder / "run" / "joint" / "log_history.json").read_text())
    losses = [(entry["step"], entry["loss"], entry["grad_norm"]) for entry in history if "loss" in entry]
    return {"weights": load_file(folder / "run" / "joint" / "model.safetensors"), "losses": losses}


def killed_and_resumed(whole, folder, seed):
    """One trial."""
    recipe, log = whole.recipe(folder), folder / "log.txt"
    moment = interruption.draw(seed, whole.moments)
    assert interruption.train([str(recipe)], log, moment) == -signal.SIGKILL, log.read_text()[-3000:]
    stage = folder / "run" / "joint"
    if not (stage / "stage.json").exists():
        checkpoint = last_checkpoint(stage)
        if checkpoint is not None:
            PARTForSpeechSeq2Seq.from_pretrained(checkpoint)
            assert len(list(stage.glob("checkpoint-*"))) <= 3  # the third for as long as the oldest is being removed
        assert interruption.train([str(recipe), "--resume"], log) == 0, log.read_text()[-3000:]
    result = outcome(folder)
    assert not tiny_training.changed(whole.weights, result["weights"]), (seed, moment)
    assert result["losses"] == whole.losses, (seed, moment)
    assert len(list(stage.glob("checkpoint-*"))) == 2
    return moment


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_killed_at_a_random_moment_and_resumed_gives_the_same_bits(whole, tmp_path, seed):
    killed_and_resumed(whole, tmp_path / "trial", seed)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_random_moments(whole, tmp_path):
    moments = {killed_and_resumed(whole, tmp_path / f"trial{seed}", seed) for seed in range(100, 120)}
    assert len(moments) > 10


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_real_command_killed_from_outside(whole, tmp_path):
    """No instrumented process: `accelerate launch`, and kill -9 to its whole group after a random time."""
    recipe = whole.recipe(tmp_path)
    command = tiny_training.launch_command(recipe)
    process = subprocess.Popen(
        command,
        env=tiny_training.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    stage = tmp_path / "run" / "joint"
    deadline = time.time() + 200
    while not (stage / "checkpoint-1").exists() and time.time() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    result = tiny_training.execute([*command, "--resume"])
    assert result.returncode == 0, result.stdout[-3000:]
    assert not tiny_training.changed(whole.weights, outcome(tmp_path)["weights"])


def test_sigterm_saves_after_the_step_and_says_how_to_go_on(whole, tmp_path):
    recipe, log = whole.recipe(tmp_path, save_strategy="no"), tmp_path / "log.txt"
    # Moments without checkpoints are two per step: before and after the optimizer. The third is in step 2.
    assert interruption.train([str(recipe)], log, 3, signal.SIGTERM) == 143
    assert "Received SIGTERM: saving after this step, or the next with several ranks." in log.read_text()
    assert "Stopped in stage joint at step 2 of" in log.read_text()
    stage = tmp_path / "run" / "joint"
    assert [path.name for path in stage.glob("checkpoint-*")] == ["checkpoint-2"]
    assert not (stage / "stage.json").exists()
    assert interruption.train([str(recipe), "--resume"], log) == 0, log.read_text()[-3000:]
    assert not tiny_training.changed(whole.weights, outcome(tmp_path)["weights"])


def test_sigterm_in_the_last_step_is_heard(whole, tmp_path):
    recipe, log = whole.recipe(tmp_path, save_strategy="no"), tmp_path / "log.txt"
    assert interruption.train([str(recipe)], log, 2 * STEPS, signal.SIGTERM) == 143
    assert [path.name for path in (tmp_path / "run" / "joint").glob("checkpoint-*")] == [f"checkpoint-{STEPS}"]
    assert interruption.train([str(recipe), "--resume"], log) == 0, log.read_text()[-3000:]
    assert not tiny_training.changed(whole.weights, outcome(tmp_path)["weights"])


def test_signals_to_the_group_do_not_reach_the_workers_of_the_data():
    """Launchers and schedulers send them to all processes, and torch ends a step whose worker has ended."""
    loader = DataLoader(GroupOfProcess(), num_workers=1, batch_size=None, worker_init_fn=_in_a_group_of_its_own)
    assert list(loader) != [os.getpgid(0)]


class GroupOfProcess(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return os.getpgid(0)


def test_nohup_is_kept_and_an_epochs_end_asks_for_nothing_more():
    callback = StopCallback(SimpleNamespace(are_too_many=False))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with callback.handling_signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) == callback.request
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    control = TrainerControl(should_evaluate=True, should_save=True)
    callback.on_epoch_end(None, None, control)
    assert control.should_evaluate and control.should_save
    callback.was_stopped = True
    callback.on_epoch_end(None, None, control)
    assert not control.should_evaluate and not control.should_save


def test_an_interrupted_stage_is_not_started_over_by_mistake(whole, tmp_path):
    recipe, log = whole.recipe(tmp_path, save_strategy="no"), tmp_path / "log.txt"
    assert interruption.train([str(recipe)], log, 3, signal.SIGTERM) == 143
    assert interruption.train([str(recipe)], log) == 1
    assert "holds checkpoints of an interrupted run: continue it with --resume" in log.read_text()
    assert interruption.train([str(recipe), "--force"], log) == 0
    assert not list((tmp_path / "run" / "joint").glob("checkpoint-*"))
    assert not tiny_training.changed(whole.weights, outcome(tmp_path)["weights"])


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_resuming_with_another_accumulation_sees_every_row_once(whole, tmp_path, before, after):
    stages = [{"name": "adapter", "epochs": 1}]
    settings = {
        "stages": stages,
        "max_rows": 2,
        "train_data": [{"reader": "manifest", "path": str(whole.corpus["train"])}],
    }
    recipe, log = whole.recipe(tmp_path, save_strategy="no", **settings), tmp_path / "log.txt"
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    accumulation = ["--gradient_accumulation_steps", str(before)]
    assert interruption.train([str(recipe), *accumulation], log, 3, signal.SIGTERM, rows=first) == 143
    accumulation = ["--gradient_accumulation_steps", str(after), "--resume"]
    assert interruption.train([str(recipe), *accumulation], log, rows=second) == 0, log.read_text()[-3000:]
    assert f"was made with {before} batches per optimizer step" in log.read_text()
    # The loader reads one batch ahead of the two steps that were trained.
    seen = first.read_text().splitlines()[: 2 * before] + second.read_text().splitlines()
    seen = [row for line in seen for row in line.split()]
    rows = [json.loads(line) for line in whole.corpus["train"].read_text().splitlines()]
    expected = {row["id"] for row in rows if row["task"] == "asr"}
    assert set(seen) == expected
    assert len(seen) - len(expected) <= 1, "at most one row is repeated to fill the last step"
