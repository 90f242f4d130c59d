"""Nothing that exists is lost: forced stages, damaged and diverged weights, copies, and two runs in one folder."""

import errno
import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import tiny_training
import torch
import yaml
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import train_part
from modeling_part.data.loading import Rows
from modeling_part.data.rows import canonical_features
from modeling_part.publishing.hub import PublishingError
from modeling_part.recipes.files import CheckpointError, write_json
from modeling_part.recipes.stage_files import NotFiniteError, check_files, check_finite, checksums, weight_files
from modeling_part.recipes.stage_record import ancestry, find_alike, read_stage_json
from modeling_part.training.checkpoints import last_checkpoint
from modeling_part.training.checks import check_test_rows, warn_of_clips_trained_on
from modeling_part.training.lock import LOCK_FILE, FolderInUseError, only_run_in
from modeling_part.training.set_aside import ASIDE, set_aside, written_by_training
from modeling_part.training.stage_run import StageRun
from modeling_part.training.trainer import PARTTrainer


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_parts):
    """A finished run of two stages, and where it came from."""
    folder = tmp_path_factory.mktemp("made")
    corpus = tiny.tiny_corpus(folder / "corpus", sentences={"train": 4, "dev": 1, "test": 1}, words=(1, 2))
    stages = [{"name": "adapter", "max_steps": 2}, {"name": "encoder", "max_steps": 2}]
    recipe = tiny_training.write_recipe(folder, tiny_parts, corpus, stages=stages, eval_data=None, max_rows=2)
    train_part.main([str(recipe)])
    return SimpleNamespace(folder=folder, recipe=recipe, run=folder / "run", corpus=corpus)


@pytest.fixture
def run(made, tmp_path):
    """A copy of the finished run; called, it trains in it."""
    shutil.copytree(made.run, tmp_path / "run")

    def train(*options, **changes):
        recipe = yaml.safe_load(made.recipe.read_text()) | {"output_dir": str(tmp_path / "run")} | changes
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in recipe.items() if value is not None}))
        train_part.main([str(path), *options])

    train.folder = tmp_path / "run"
    return train


def content(folder):
    """Every file below a folder but the lock, the data and the reports of the run, which each start writes anew."""
    return {
        path.relative_to(folder): path.read_bytes()
        for stage in ("adapter", "encoder")
        for path in sorted((folder / stage).rglob("*"))
        if path.is_file()
    }


class TestForce:
    @pytest.mark.parametrize(
        "mistake",
        [
            {"frozen_dtype": "float99"},
            {"attn_implementation": "sdpaa"},
            {"lora_rank": -1},
            {"lr_scheduler_kwargs": {"num_cycle": 3}},
            {"predict_with_generate": True, "eval_strategy": "steps"},
            {"checkpoint": "/nowhere/at/all"},
            {"max_new_tokens": 0},
            {"augmentation": {"spec_augment": {"mel_masks": -1}}},
            {"ddp_find_unused_parameters": False, "stages": ["joint"]},
            {"language_names": {"en": ""}},
            {"optim": "adamw_bnb_8bit", "optim_args": "x"},
        ],
        ids=lambda mistake: next(iter(mistake)),
    )
    def test_a_mistake_costs_nothing(self, run, mistake):
        before = content(run.folder)
        with pytest.raises((ValueError, OSError, ImportError, FileNotFoundError)):
            run("--force", **mistake)
        assert content(run.folder) == before

    def test_what_was_there_is_kept_until_the_stage_is_finished(self, run, monkeypatch):
        mine = run.folder / "encoder" / "checkpoint-best" / "model.safetensors"
        mine.parent.mkdir()
        mine.write_text("mine")
        before = content(run.folder)

        def fail(self, *args, **kwargs):
            raise RuntimeError("the power is gone")

        with monkeypatch.context() as patch:
            patch.setattr(PARTTrainer, "train", fail)
            with pytest.raises(RuntimeError, match="power"):
                run("--force", "--stage", "encoder")
        aside = run.folder / "encoder" / ASIDE / "1"
        for path, old in before.items():
            kept = path.parts[0] == "adapter" or (path.name == mine.name and "checkpoint-best" in path.parts)
            kept |= path.name == "README.md"  # may be the user's; written anew when the stage is finished
            assert (run.folder / path if kept else aside / path.name).read_bytes() == old
        assert not (run.folder / "encoder" / "stage.json").exists()
        run()  # a stage that is not finished is trained, the same bits
        assert mine.read_text() == "mine" and not (run.folder / "encoder" / ASIDE).exists()
        name = "model.safetensors"
        assert (run.folder / "encoder" / name).read_bytes() == next(
            old for path, old in before.items() if path.parts == ("encoder", name)
        )

    def test_a_later_stage_is_touched_when_its_turn_has_come(self, run, monkeypatch):
        begun = []
        begin = StageRun.begin
        monkeypatch.setattr(
            StageRun,
            "begin",
            lambda self, trainer: (
                begun.append((self.plan.name, (run.folder / "encoder/stage.json").exists())),
                begin(self, trainer),
            ),
        )
        run("--force")
        assert begun == [("adapter", True), ("encoder", True)]

    def test_it_still_holds_for_later_stages_after_an_interruption(self, run, monkeypatch):
        """They would else count as finished, as their parents come out with the same bits."""

        def fail(self, *args, **kwargs):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(PARTTrainer, "train", fail)
            run("--force")
        run("--stage", "adapter", "--resume", "true")
        before = content(run.folder)
        with pytest.raises(
            ValueError, match=r"'encoder' was to be trained again by --force, .*: --resume does that now"
        ):
            run()
        trained = []
        begin = StageRun.begin
        monkeypatch.setattr(
            StageRun, "begin", lambda self, trainer: (trained.append(self.plan.name), begin(self, trainer))
        )
        run("--resume", "true")
        assert trained == ["encoder"] and not (run.folder / "encoder" / ASIDE).exists()
        name = Path("encoder", "model.safetensors")
        assert content(run.folder)[name] == before[name]

    def test_two_failures_in_a_row_keep_both(self, tmp_path):
        for text in ("first", "second"):
            (tmp_path / "stage.json").write_text(text)
            set_aside(tmp_path)
        assert [(tmp_path / ASIDE / str(n) / "stage.json").read_text() for n in (1, 2)] == ["first", "second"]
        assert set_aside(tmp_path) is None

    def test_what_dev_data_was_answered_moves_with_the_weights_that_did(self, tmp_path):
        """A shorter training would otherwise be compared with the last evaluation of the longer one."""
        (tmp_path / "dev" / "step-1000").mkdir(parents=True)
        assert set_aside(tmp_path) is None  # a folder of that name alone is the user's
        (tmp_path / "dev" / "step-1000" / "predictions.jsonl").write_text("{}")
        assert (set_aside(tmp_path) / "dev" / "step-1000" / "predictions.jsonl").is_file()
        assert not (tmp_path / "dev").exists()

    @given(
        st.lists(
            st.text("checkpoint-0123456789.best_ok", min_size=1, max_size=16).filter(lambda s: s not in (".", "..")),
            max_size=8,
        )
    )
    def test_only_what_training_writes_moves(self, tmp_path_factory, names):
        folder = tmp_path_factory.mktemp("names")
        for name in names:
            (folder / name).mkdir(exist_ok=True)
            (folder / name / "trainer_state.json").write_text("{}")
        for path in written_by_training(folder):
            assert path.name.removeprefix("checkpoint-").isdecimal()
        last = last_checkpoint(folder)
        numbers = [int(n[11:]) for n in names if n.startswith("checkpoint-") and n[11:].isdecimal()]
        assert (last is None and not numbers) or int(last.name[11:]) == max(numbers)


class TestFinished:
    def test_the_line_that_removes_checkpoints_removes_nothing_else(self, tmp_path, caplog):
        folder = tmp_path / "my run" / "joint"
        for name in ("checkpoint-10", "checkpoint-9", "checkpoint-best"):
            (folder / name).mkdir(parents=True)
            (folder / name / "trainer_state.json").write_text("{}")
        with caplog.at_level(logging.INFO):
            StageRun(tiny_training.joint_stage(), folder, None, predicts=False)._say_what_stays()
        words = shlex.split(caplog.messages[-1].partition("with: ")[2])
        assert words == ["rm", "-r", str(folder / "checkpoint-9"), str(folder / "checkpoint-10")]

    def test_the_record_holds_size_and_checksum(self, run):
        for name, parent in (("adapter", {}), ("encoder", read_stage_json(run.folder / "adapter")["files"])):
            record = read_stage_json(run.folder / name)
            assert record["files"] == checksums(weight_files(run.folder / name), run.folder / name)
            assert record["files"]["model.safetensors"]["size"] > 1000
            assert record.get("parent_files", {}) == parent

    @pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
    @pytest.mark.parametrize("with_files", [True, False], ids=["checksums", "older"])
    def test_damaged_weights_are_not_finished(self, run, damage, with_files):
        path = run.folder / "adapter" / "model.safetensors"
        if not with_files:
            if damage == "flipped":
                pytest.skip("an earlier version's record has no checksum")
            record = read_stage_json(path.parent)
            del record["files"]
            (path.parent / "stage.json").write_text(json.dumps(record))
        data = bytearray(path.read_bytes())
        data[-7] ^= 4
        path.unlink() if damage == "gone" else path.write_bytes(data if damage == "flipped" else data[:-40])
        for options in ((), ("--stage", "encoder", "--force")):
            with pytest.raises(CheckpointError, match="--stage adapter --force") as caught:
                run(*options)
            assert str(path.parent) in str(caught.value)

    def test_damaged_weights_are_not_scored(self, run, monkeypatch):
        path = run.folder / "encoder" / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
        monkeypatch.setattr("modeling_part.training.run.load_test_rows", lambda recipe: pytest.fail("it reads"))
        with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
            run("--do_predict", "true", "--stage", "encoder")

    def test_the_report_of_another_stage_is_not_replaced(self, run):
        before = content(run.folder)
        parts = {"audio_model": None, "language_model": None, "adapter": None}
        options = ("--do_predict", "true", "--output_dir", str(run.folder / "adapter"))
        with pytest.raises(
            ValueError, match=r"adapter is the folder of a stage, whose report would be replaced by that of"
        ):
            run(*options, checkpoint=str(run.folder / "encoder"), **parts)
        assert content(run.folder).items() >= before.items()

    def test_a_record_without_checksums_is_taken_with_a_warning(self, run, caplog):
        for name in ("adapter", "encoder"):
            record = read_stage_json(run.folder / name)
            (run.folder / name / "stage.json").write_text(
                json.dumps({key: value for key, value in record.items() if not key.endswith("files")})
            )
        with caplog.at_level(logging.WARNING):
            run()
        assert sum("has no checksums" in message for message in caplog.messages) == 2

    def test_a_parent_that_is_not_finished_is_refused(self, run):
        (run.folder / "adapter" / "stage.json").unlink()
        with pytest.raises(FileNotFoundError, match="Stage 'adapter' is not finished"):
            run("--stage", "encoder", "--force")
        assert (run.folder / "encoder" / "stage.json").is_file()

    def test_a_stage_of_other_parents_weights_is_told(self, run):
        run("--stage", "adapter", "--force", "--seed", "3")
        with pytest.raises(ValueError, match="'encoder' was trained from other weights of 'adapter'"):
            run("--seed", "3")
        before = load_file(run.folder / "encoder" / "model.safetensors")
        run("--seed", "3", "--resume")
        record = read_stage_json(run.folder / "encoder")
        assert record["parent_files"] == read_stage_json(run.folder / "adapter")["files"]
        assert tiny_training.changed(before, load_file(run.folder / "encoder" / "model.safetensors"))

    def test_other_settings_than_a_finished_stages_are_told(self, run, caplog):
        with caplog.at_level(logging.WARNING):
            run("--weight_decay", "0.5")
        assert "Stage adapter was trained with other data or settings than the recipe has now" in caplog.text
        assert "weight_decay was 0.0, now 0.5" in caplog.text

    def test_another_stage_before_a_finished_one_is_told(self, run, caplog):
        with caplog.at_level(logging.WARNING):
            run(stages=[{"name": "encoder", "max_steps": 2}])
        assert "Stage encoder was trained with other data or settings" in caplog.text
        assert "parent was 'adapter', now None" in caplog.text

    @pytest.mark.parametrize("is_there", [True, False])
    def test_no_stage_is_trained_from_one_that_was_trained_from_it(self, run, is_there):
        if not is_there:
            shutil.rmtree(run.folder / "adapter")
        turned = [{"name": name, "max_steps": 2} for name in ("encoder", "adapter")]
        before = content(run.folder)
        with pytest.raises(ValueError, match="'adapter' would start from 'encoder', which was itself trained from"):
            run("--stage", "adapter", "--force", stages=turned)
        assert content(run.folder) == before

    def test_stages_that_are_each_others_parents_have_an_end(self, run):
        record = read_stage_json(run.folder / "adapter")
        (run.folder / "adapter" / "stage.json").write_text(json.dumps({**record, "parent": "encoder"}))
        assert list(ancestry(run.folder / "encoder")) == ["encoder", "adapter"]

    def test_other_rows_or_parts_than_a_finished_stages_are_told(self, made, run, tmp_path, caplog):
        lines = made.corpus["train"].read_text(encoding="utf-8").splitlines()
        fewer = made.corpus["train"].with_name("fewer.jsonl")
        fewer.write_text("\n".join(lines[:-1]), encoding="utf-8")
        other = shutil.copytree(yaml.safe_load(made.recipe.read_text())["language_model"], tmp_path / "other")
        with caplog.at_level(logging.WARNING):
            run(train_data=[{"reader": "manifest", "path": str(fewer)}], language_model=str(other))
        for stage in ("adapter", "encoder"):
            told = next(
                line for line in caplog.messages if line.startswith(f"Stage {stage} was trained with other data")
            )
            assert "data.fingerprint was" in told and "base_models.language_model was" in told

    def test_other_test_rows_than_a_finished_stage_answered_are_told(self, made, run, caplog):
        run()
        assert "has not answered" not in caplog.text
        rows = [json.loads(line) for line in made.corpus["test"].read_text(encoding="utf-8").splitlines()]
        corrected = made.corpus["test"].with_name("corrected.jsonl")
        lines = [json.dumps({**row, "text": f"{row['text']} indeed"} if row is rows[0] else row) for row in rows]
        corrected.write_text("\n".join(lines), encoding="utf-8")
        test_data = [{"reader": "manifest", "path": str(corrected), "tasks": ["asr", "s2tt"]}]
        run(test_data=test_data)
        told = [message for message in caplog.messages if "has not answered" in message]
        assert "Stage encoder has not answered 1 of the 4 rows of `test_data`" in told[-1]
        assert told[-1].endswith("--do_predict --stage encoder")
        run("--do_predict", "--stage", "encoder", test_data=test_data)
        caplog.clear()
        run(test_data=test_data)
        assert "Stage adapter has not answered" in caplog.text and "Stage encoder has not" not in caplog.text

    def test_weights_that_are_not_finite_are_not_finished(self, run, monkeypatch):
        train = PARTTrainer.train

        def diverge(self, **kwargs):
            train(self, **kwargs)
            with torch.no_grad():
                next(self.model.model.adapter.parameters()).view(-1)[0] = float("nan")

        monkeypatch.setattr(PARTTrainer, "train", diverge)
        with pytest.raises(NotFiniteError, match=r"1 tensors of .*adapter are not finite, such as model\.adapter"):
            run("--stage", "adapter", "--force", test_data=None)
        assert not (run.folder / "adapter" / "stage.json").exists()
        assert (run.folder / "adapter" / ASIDE / "1" / "stage.json").is_file()

    @given(st.sampled_from([float("nan"), float("inf"), -float("inf"), 0.0, 1e30]), st.integers(0, 5))
    def test_any_tensor_is_looked_at(self, tmp_path_factory, value, position):
        folder = tmp_path_factory.mktemp("tensors")
        tensors = {str(number): torch.zeros(2) for number in range(6)}
        tensors[str(position)][1] = value
        save_file(tensors, folder / "model.safetensors")
        if value in (0.0, 1e30):
            check_finite(folder)
        else:
            with pytest.raises(NotFiniteError, match=f"such as {position}"):
                check_finite(folder)

    @given(st.binary(min_size=1, max_size=200), st.data())
    def test_any_byte_counts(self, tmp_path_factory, content, data):
        folder = tmp_path_factory.mktemp("bytes")
        path = folder / "model.safetensors"
        path.write_bytes(content)
        record = {"files": checksums([path], folder)}
        check_files(folder, record, "")
        damaged = bytearray(content)
        damaged[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        path.unlink()
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="is damaged"):
            check_files(folder, record, "")


class TestAfterTheLastStep:
    """With `save_strategy: "no"` a stage's steps are kept until its answers are there."""

    def test_a_failure_while_it_answers_costs_no_step(self, run, made, monkeypatch):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("modeling_part.training.stage_run.predict_and_score", lambda *args: interrupt())
            run("--force", "--stage", "encoder")
        assert [path.name for path in (run.folder / "encoder").glob("checkpoint-*")] == ["checkpoint-2"]
        monkeypatch.setattr(PARTTrainer, "training_step", lambda *args, **kwargs: pytest.fail("it trains"))
        run("--resume", "true")
        names = [path.relative_to(made.run) for path in (made.run / "encoder").glob("*.safetensors")]
        assert names and all((run.folder / name).read_bytes() == (made.run / name).read_bytes() for name in names)
        assert (
            not list((run.folder / "encoder").glob("checkpoint-*")) and not (run.folder / "encoder" / ASIDE).exists()
        )

    def test_a_signal_while_it_is_evaluated_ends_the_run(self, run, made, monkeypatch):
        evaluate = PARTTrainer.evaluate

        def interrupted(self, *args, **kwargs):
            os.kill(os.getpid(), signal.SIGTERM)
            return evaluate(self, *args, **kwargs)

        data = {"eval_data": [{"reader": "manifest", "path": str(made.corpus["dev"])}], "eval_strategy": "steps"}
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
            patch.setattr(PARTTrainer, "evaluate", interrupted)
            run("--force", **data, eval_steps=2)
        assert stopped.value.code == 128 + signal.SIGTERM
        assert (run.folder / "adapter" / "checkpoint-2" / "trainer_state.json").is_file()
        assert not (run.folder / "adapter" / "stage.json").exists()
        assert (run.folder / "encoder" / "stage.json").is_file(), "its turn had not come"

    def test_what_only_looks_like_a_checkpoint_is_the_users(self, run, made):
        mine = run.folder / "adapter" / "checkpoint-best"
        shutil.copytree(made.run / "adapter", mine)
        run("--force", "--stage", "adapter")
        (run.folder / "adapter" / "stage.json").unlink()
        run("--resume", "true", "--stage", "adapter")
        assert (mine / "stage.json").is_file()


def interrupt():
    raise KeyboardInterrupt


class TestPublishing:
    @pytest.fixture
    def hub(self, monkeypatch):
        sent, tags = [], {}
        here = "modeling_part.training.stage_run"
        monkeypatch.setattr(f"{here}.publish", lambda folder, *args, **kwargs: sent.append(folder.name))
        monkeypatch.setattr(f"{here}.read_tags", lambda *args: tags)
        return SimpleNamespace(sent=sent, tags=tags, settings={"push_to_hub": True, "hub_model_id": "ada/part"})

    def test_stages_that_an_earlier_launch_has_finished_are_sent_too(self, run, hub):
        run(**hub.settings)
        assert hub.sent == ["adapter", "encoder"]
        hub.tags |= {"stage-adapter": "abc"}
        run(**hub.settings)
        assert hub.sent == ["adapter", "encoder", "encoder"]

    def test_but_not_over_a_later_one(self, run, hub, caplog):
        hub.tags |= {"stage-encoder": "abc"}
        run(**hub.settings)
        assert hub.sent == [] and "Stage adapter is not in ada/part, where encoder is" in caplog.text


class TestCopies:
    def test_a_copy_has_the_dev_answers_that_the_next_stage_is_compared_with(self, made, run, tmp_path):
        answers = run.folder / "adapter" / "dev" / "step-2" / "predictions.jsonl"
        answers.parent.mkdir(parents=True)
        answers.write_text("{}")
        run("--output_dir", str(tmp_path / "new"), "--reuse_runs", str(run.folder), "--stage", "adapter")
        assert (tmp_path / "new" / answers.relative_to(run.folder)).is_file()

    def test_records_that_name_each_other_as_parents_end(self, made, tmp_path):
        for name in ("mine", "other"):
            for stage, parent in (("adapter", "encoder"), ("encoder", "adapter")):
                (tmp_path / name / stage).mkdir(parents=True)
                record = read_stage_json(made.run / stage) | {"parent": parent}
                write_json(tmp_path / name / stage / "stage.json", record)
        found = find_alike(record, tmp_path / "mine", [tmp_path / "other"])
        assert found == tmp_path / "other" / "encoder"
        shutil.rmtree(tmp_path / "other" / "adapter")
        assert find_alike(record, tmp_path / "mine", [tmp_path / "other"]) is None

    @pytest.mark.parametrize("damage", ["cut", "text", "gone"])
    def test_a_damaged_stage_of_another_run_is_not_copied(self, made, run, tmp_path, damage, caplog):
        path = run.folder / "adapter" / "model.safetensors"
        if damage == "gone":
            path.unlink()
        else:
            path.write_bytes(b"x" * 100 if damage == "text" else path.read_bytes()[:-9])
        with caplog.at_level(logging.INFO):
            run("--output_dir", str(tmp_path / "new"), "--reuse_runs", str(run.folder), "--stage", "adapter")
        assert "Stage adapter was trained alike" in caplog.text and "copied\n" not in caplog.text
        path = tmp_path / "new" / "adapter" / "model.safetensors"
        assert path.read_bytes() == (made.run / "adapter" / "model.safetensors").read_bytes()

    def test_a_copy_leaves_what_is_the_users(self, made, run, tmp_path):
        mine = tmp_path / "new" / "adapter" / "notes.txt"
        mine.parent.mkdir(parents=True)
        mine.write_text("mine")
        run("--output_dir", str(tmp_path / "new"), "--reuse_runs", str(made.run))
        assert mine.read_text() == "mine"
        for name in ("adapter", "encoder"):
            record = (made.run / name / "stage.json").read_bytes()
            assert (tmp_path / "new" / name / "stage.json").read_bytes() == record
        run("--output_dir", str(tmp_path / "new"))


ROW = {"id": "1", "corpus": "a", "task": "asr", "source_lang": "fr", "target_lang": "fr", "text": "oui"}


class TestBeforeTraining:
    """What can be known before training is said before training."""

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({}, r"2 rows of `test_data` share corpus, id, task and languages \('a', '1', "),
            ({"id": "2", "text": " "}, r"1 rows of `test_data` have no text to score against, such as \['2'\]"),
            ({"id": "2", "text": None}, "have no text to score against"),
            ({"id": "2", "target_lang": "en"}, "asr from 'fr' to 'en', but asr, and only asr, keeps the language"),
        ],
    )
    def test_test_data_that_cannot_be_scored(self, change, message):
        with pytest.raises(ValueError, match=message):
            check_test_rows(Dataset.from_list([ROW, ROW | change]))

    def test_test_data_that_can(self):
        check_test_rows(Dataset.from_list([ROW, ROW | {"corpus": "b"}, ROW | {"id": "2"}]))

    def test_clips_of_the_test_data_that_are_trained_on_are_told(self, caplog):
        def rows(*clips):
            found = []
            for path, start in clips:
                audio = path and {"path": path, "bytes": None}
                row = {**ROW, "id": f"{path} {start}", "audio": audio, "start": start}
                found.append({**dict.fromkeys(canonical_features()), **row})
            return Dataset.from_list(found, features=canonical_features())

        numbers = [("sounds.arrow#0", None), (None, None)]  # of another file in each split, and of no clip
        train = rows(("a.wav", None), ("long.wav", 0.0), ("long.wav", 2.5), *numbers)
        warn_of_clips_trained_on(Rows(train, test=rows(("b.wav", None), ("long.wav", 7.5), *numbers)))
        assert not caplog.text
        warn_of_clips_trained_on(
            Rows(train, eval=rows(("b.wav", None)), test=rows(("b.wav", None), ("long.wav", 2.5)))
        )
        assert "1 of 2 rows of `test_data`, such as 'long.wav 2.5', have a clip of `train_data`" in caplog.text
        assert "`eval_data`" not in caplog.text

    def test_it_is_looked_at_before_training(self, run, monkeypatch):
        monkeypatch.setattr(PARTTrainer, "train", lambda *args, **kwargs: pytest.fail("it trains"))
        monkeypatch.setattr("modeling_part.training.run.check_test_rows", lambda rows: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run("--force")

    @pytest.mark.parametrize(
        ("mistake", "message"),
        [
            ({"augmentation": {"spec_augment": {"mel_masks": -1}}}, "mel_masks"),
            ({"stage": "joynt"}, "Unknown stage 'joynt'"),
            ({"language_model": "/nowhere/at/all"}, "no such folder"),
            ({"lr_scheduler_kwargs": {"num_cycle": 3}}, "no schedule can be made"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_settings_are_looked_at_before_the_data_are_read(self, run, monkeypatch, mistake, message):
        monkeypatch.setattr(train_part, "load_rows", lambda recipe: pytest.fail("it reads the data"))
        with pytest.raises((ValueError, OSError), match=message):
            run("--force", **mistake)

    @pytest.mark.parametrize("start", ["encoder", "encoder/checkpoint-2"])
    def test_a_start_that_the_run_would_replace(self, run, start, monkeypatch):
        (run.folder / start).mkdir(exist_ok=True)
        before = content(run.folder)
        monkeypatch.setattr("train_part.load_rows", lambda *args, **kwargs: pytest.fail("it reads data"))
        parts = {"audio_model": None, "language_model": None, "adapter": None}
        with pytest.raises(ValueError, match="of the stage 'encoder' that this run trains itself"):
            run("--force", checkpoint=str(run.folder / start), stages=[{"name": "encoder", "max_steps": 2}], **parts)
        assert content(run.folder) == before

    @pytest.mark.parametrize("name", ["adapter_conv_stride", "revision_audio"])
    def test_an_adapter_that_a_checkpoint_does_not_have(self, run, made, name):
        held = json.loads((made.run / "adapter" / "config.json").read_text())
        same = {key: held[key] for key in ("adapter_hidden_size", "adapter_num_attention_heads")}
        parts = {"checkpoint": str(made.run / "adapter"), "audio_model": None, "language_model": None}
        run("--force", "--dry_run", "true", **parts, adapter=same)
        message = "is 2, but .* has 4" if name == "adapter_conv_stride" else "`revision_audio` has no effect"
        with pytest.raises(ValueError, match=message):
            run("--force", **parts, adapter=same | {name: 2 if name == "adapter_conv_stride" else "main"})

    def test_so_are_dev_data_that_are_answered(self, run, made, monkeypatch):
        looked_at = []
        check = "modeling_part.training.run.check_test_rows"
        monkeypatch.setattr(check, lambda rows, name="test_data": looked_at.append(name))
        data = {"eval_data": [{"reader": "manifest", "path": str(made.corpus["dev"])}], "eval_strategy": "steps"}
        run("--dry_run", "true", **data)
        assert looked_at == ["test_data"]
        run("--dry_run", "true", predict_with_generate=True, **data)
        assert looked_at == ["test_data", "test_data", "eval_data"]

    @pytest.mark.parametrize("change", [{"hub_model_id": "a/b/c", "push_to_hub": True}, {"stages": "Adapter-1"}])
    def test_so_are_the_record_and_the_card(self, run, change, monkeypatch):
        monkeypatch.setattr(PARTTrainer, "train", lambda *args, **kwargs: pytest.fail("it trains"))
        if "stages" in change:
            change = {"stages": [{"name": "Adapter-1", "max_steps": 2, "tasks": {"asr": 1.0}}]}
        with pytest.raises((ValueError, PublishingError), match=r"a/b/c|Adapter-1"):
            run("--force", **change)

    @pytest.mark.parametrize(
        ("prompt", "message"),
        [
            ("Use /home/anna/calls/words.txt.", "the local path /home/anna"),
            (f"Sign in with hf_{'a1' * 15}.", "a Hugging Face token"),
        ],
    )
    def test_so_is_what_must_not_be_published(self, run, prompt, message, monkeypatch):
        monkeypatch.setattr(PARTTrainer, "train", lambda *args, **kwargs: pytest.fail("it trains"))
        with pytest.raises(CheckpointError, match=message):
            run("--force", system_prompt=prompt, push_to_hub=True, hub_model_id="user/name")


HOLD = "import fcntl, sys; file = open(sys.argv[1], 'a'); fcntl.lockf(file, fcntl.LOCK_EX); print(); sys.stdin.read()"


class TestLock:
    @pytest.fixture
    def holder(self, tmp_path):
        """A process that is in the folder."""
        (tmp_path / "run").mkdir()
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "run" / LOCK_FILE], **pipes)
        process.stdout.readline()
        yield process
        process.kill()
        process.communicate()

    def test_a_second_run_is_refused_and_a_killed_one_leaves_no_lock(self, holder, tmp_path):
        with pytest.raises(FolderInUseError, match=r"Another run is in .*run"), only_run_in(tmp_path / "run"):
            pytest.fail("two runs in one folder")
        holder.kill()
        holder.wait()
        with only_run_in(tmp_path / "run"):
            assert (tmp_path / "run" / LOCK_FILE).is_file()

    def test_train_part_takes_it(self, holder, made, tmp_path):
        with pytest.raises(FolderInUseError):
            train_part.main([str(made.recipe), "--output_dir", str(tmp_path / "run")])
        assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK_FILE]

    def test_so_does_predicting_before_it_reads_anything(self, run, monkeypatch):
        monkeypatch.setattr("modeling_part.training.run.load_test_rows", lambda recipe: pytest.fail("it reads"))

        @contextmanager
        def in_use(folder):
            assert folder == run.folder
            raise FolderInUseError("in use")
            yield

        monkeypatch.setattr("modeling_part.training.run.only_run_in", in_use)
        with pytest.raises(FolderInUseError):
            run("--do_predict", "true", "--stage", "adapter")

    @pytest.mark.parametrize(
        "error", [CheckpointError("no network."), PermissionError("Authentication error: expired")]
    )
    @pytest.mark.parametrize("private", [True, False])
    def test_what_could_not_be_published_is_published_later_as_it_would_have_been(
        self, monkeypatch, caplog, private, error
    ):
        def fail(*arguments, **options):
            raise error

        monkeypatch.setattr("modeling_part.training.stage_run.publish", fail)
        name = "modeling_part.training.stage_run.part_command"
        monkeypatch.setattr(name, lambda *words: shlex.join(["part", *words]))
        settings = {"hub_model_id": "ada/part", "hub_private_repo": private, "hub_token": None}
        stage = StageRun(SimpleNamespace(name="joint"), Path("my runs/joint"), None, predicts=False)
        assert not stage.publish(SimpleNamespace(**settings))
        expected = "part publish 'my runs/joint' --repo_id ada/part" + " --private" * private
        assert caplog.messages[0].endswith(f"Publish it later with: {expected}")

    def test_a_folder_that_cannot_be_locked_is_told(self, tmp_path, monkeypatch, caplog):
        def refuse(*args):
            raise OSError(errno.ENOLCK, "no locks available")

        monkeypatch.setattr("fcntl.lockf", refuse)
        with only_run_in(tmp_path):
            assert "cannot be locked" in caplog.text
