"""`--resume` compares what was trained with what would be trained now, and the strategies that go by epochs."""

import json
import shutil
from types import SimpleNamespace

import pytest
import tiny
import tiny_training
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import TrainerControl

import train_part
from modeling_part.evaluation.run_files import read_stage
from modeling_part.evaluation.tables import duration
from modeling_part.recipes.files import CheckpointError
from modeling_part.recipes.stage_files import NotFiniteError
from modeling_part.recipes.stage_record import read_stage_json
from modeling_part.recipes.stages import BUILT_IN_STAGES
from modeling_part.training.checkpoints import (
    checkpoint_step,
    complete_checkpoint,
    last_checkpoint,
    read_history,
    remove_oldest,
)
from modeling_part.training.dry_run import _time_of_stage as time_of_stage
from modeling_part.training.epochs import EpochEnds
from modeling_part.training.resuming import (
    LEARNING_RATES,
    NOT_RECORDED,
    SCHEDULE,
    STEPS,
    NewSettings,
    differences,
    place_in_schedule,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_parts):
    """A finished run of six steps with its checkpoints."""
    folder = tmp_path_factory.mktemp("made")
    corpus = tiny.tiny_corpus(folder / "corpus", sentences={"train": 6, "dev": 1, "test": 1}, words=(1, 2))
    recipe = tiny_training.write_recipe(
        folder,
        tiny_parts,
        corpus,
        stages=[{"name": "adapter", "max_steps": 6}],
        eval_data=None,
        test_data=None,
        max_rows=2,
        save_strategy="steps",
        save_steps=3,
        lr_scheduler_type="linear",
    )
    train_part.main([str(recipe)])
    return SimpleNamespace(recipe=recipe, run=folder / "run", corpus=corpus)


@pytest.fixture
def interrupted(made, tmp_path):
    """The run as it was after three steps; called, it goes on."""
    folder = tmp_path / "run" / "adapter"
    shutil.copytree(made.run / "adapter" / "checkpoint-3", folder / "checkpoint-3")

    def resume(*options, **changes):
        recipe = yaml.safe_load(made.recipe.read_text()) | {"output_dir": str(tmp_path / "run")} | changes
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        train_part.main([str(tmp_path / "recipe.yaml"), "--resume", *options])
        rates = [line for line in json.loads((folder / "log_history.json").read_text()) if "learning_rate" in line]
        return read_stage_json(folder), [line["learning_rate"] for line in rates]

    resume.folder, resume.checkpoint = folder, folder / "checkpoint-3"
    return resume


def weights(folder):
    return load_file(folder / "model.safetensors")


class TestChanges:
    def test_without_any_the_bits_are_those_of_the_whole_run(self, made, interrupted):
        (interrupted.folder / "checkpoint-abc").mkdir()
        (interrupted.folder / "checkpoint-9.bak").mkdir()
        record, _ = interrupted()
        whole = read_stage_json(made.run / "adapter")
        assert "stretches" not in record and record["files"] == whole["files"]
        assert (interrupted.folder / "checkpoint-abc").is_dir()

    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"weight_decay": 0.9}, "weight_decay was 0.0, now 0.9"),
            ({"seed": 7}, "seed was 42, now 7"),
            ({"max_rows": 1}, "max_rows was 2, now 1"),
            ({"system_prompt": "Listen."}, "system_prompt was '', now 'Listen.'"),
            ({"lr_scheduler_type": "constant"}, "lr_scheduler_type was 'linear', now 'constant'"),
            ({"temperature": 2.0}, "temperature was 1.0, now 2.0"),
            (
                {"stages": [{"name": "adapter", "max_steps": 6, "learning_rates": {"adapter": 0.1}}]},
                "learning_rates.adapter was 0.001, now 0.1",
            ),
            ({"stages": [{"name": "adapter", "max_steps": 8}]}, "num_steps was 6, now 8"),
            ({"train_data": "dev"}, "data.fingerprint was"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_a_change_is_refused_by_name(self, made, interrupted, changes, named):
        if "train_data" in changes:
            changes = {"train_data": [{"reader": "manifest", "path": str(made.corpus["dev"])}]}
        before = sorted(interrupted.folder.rglob("*"))
        with pytest.raises(ValueError, match="--resume_with_changes") as caught:
            interrupted(**changes)
        assert named in str(caught.value)
        assert sorted(interrupted.folder.rglob("*")) == before

    def test_with_the_flag_the_change_has_its_effect_and_is_recorded(self, interrupted):
        stages = [{"name": "adapter", "max_steps": 6, "learning_rates": {"adapter": 0.002}}]
        record, rates = interrupted("--resume_with_changes", stages=stages, weight_decay=0.5)
        assert record["hyperparameters"]["learning_rates"] == {"adapter": 0.002}
        names = ("hyperparameters.learning_rates.adapter", "hyperparameters.weight_decay")
        assert record["stretches"] == [
            {"first_step": 1, "values": dict(zip(names, (0.001, 0.0), strict=True))},
            {"first_step": 4, "values": dict(zip(names, (0.002, 0.5), strict=True))},
        ]
        # One step of warm-up, then down to 0 at step 6: the schedule goes on where it stood, at twice the rate.
        assert rates == pytest.approx([0.0, 0.001, 0.0008, 0.0012, 0.0008, 0.0004], abs=2e-5)
        state = torch.load(interrupted.folder / "checkpoint-6" / "optimizer.pt", weights_only=True)
        assert {group["weight_decay"] for group in state["param_groups"]} == {0.0, 0.5}

    def test_a_second_change_adds_a_stretch(self, interrupted):
        interrupted("--resume_with_changes", weight_decay=0.5)
        for name in ("stage.json", "model.safetensors"):
            (interrupted.folder / name).unlink()
        stages = [{"name": "adapter", "max_steps": 8}]
        record, _ = interrupted("--resume_with_changes", weight_decay=0.5, seed=5, stages=stages)
        assert [one["first_step"] for one in record["stretches"]] == [1, 4, 7]
        assert [one["values"]["seed"] for one in record["stretches"]] == [42, 42, 5]
        assert [one["values"]["hyperparameters.weight_decay"] for one in record["stretches"]] == [0.0, 0.5, 0.5]

    def test_another_number_of_ranks_or_accumulation_is_no_change(self, interrupted):
        record, _ = interrupted("--gradient_accumulation_steps", "2")
        name = "hyperparameters.gradient_accumulation_steps"
        assert [(one["first_step"], one["values"][name]) for one in record["stretches"]] == [(1, 1), (4, 2)]

    @pytest.mark.parametrize("begin", [1, 2])
    def test_the_learning_rate_goes_on_where_it_stood(self, made, tmp_path, begin):
        """With half as many batches per step the same epochs have twice as many steps."""
        stages = [{"name": "adapter", "epochs": 8.0, "warmup_ratio": 0.0}]

        def rates(*options, name="run"):
            recipe = yaml.safe_load(made.recipe.read_text()) | {
                "output_dir": str(tmp_path / name), "stages": stages, "save_steps": 4, "save_total_limit": 100}  # fmt: skip
            (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
            train_part.main([str(tmp_path / "recipe.yaml"), "--resume", "true", *options])
            log = json.loads((tmp_path / name / "adapter" / "log_history.json").read_text())
            return [line["learning_rate"] / 0.001 for line in log if "learning_rate" in line]

        others = {1: "2", 2: "1"}[begin]
        whole = rates("--gradient_accumulation_steps", str(begin))
        steps = len(whole)
        assert whole == pytest.approx([1 - step / steps for step in range(steps)], abs=1e-5)
        shutil.rmtree(tmp_path / "run" / "adapter")
        cut = tmp_path / "cut" / "adapter"
        cut.parent.mkdir()
        whole = rates("--gradient_accumulation_steps", str(begin))
        shutil.copytree(tmp_path / "run" / "adapter" / "checkpoint-4", cut / "checkpoint-4")
        changed = rates("--gradient_accumulation_steps", others, name="cut")
        assert changed[:4] == pytest.approx(whole[:4])
        left = len(changed) - 4
        assert left != steps - 4
        expected = [(1 - 4 / steps) * (1 - step / left) for step in range(left)]
        assert changed[4:] == pytest.approx(expected, abs=1e-5)

    def test_other_weights_of_the_corpora_are_a_change(self, made, interrupted):
        data = [{"reader": "manifest", "path": str(made.corpus["train"]), "weight": 3}]
        with pytest.raises(ValueError, match=r"data\.corpus_weights was \[.*\], now \["):
            interrupted(train_data=data)

    def test_another_model_is_refused_with_the_flag_too(self, interrupted):
        for changes in ({"optim": "sgd"}, {"adapter": {"adapter_hidden_size": 16, "adapter_num_attention_heads": 2}}):
            with pytest.raises(ValueError, match="is of another model"):
                interrupted("--resume_with_changes", **changes)

    def test_what_an_earlier_version_did_not_record_needs_the_flag(self, made, interrupted):
        record = read_stage_json(interrupted.checkpoint)
        del record["versions"]["modeling-part"], record["hyperparameters"]["optim_args"], record["files"]
        (interrupted.checkpoint / "stage.json").write_text(json.dumps(record))
        with pytest.raises(ValueError, match=r"versions\.modeling-part was 'not recorded'"):
            interrupted()
        record, _ = interrupted("--resume_with_changes")
        assert record["files"] == read_stage_json(made.run / "adapter")["files"]
        assert record["stretches"][0]["values"]["versions.modeling-part"] == NOT_RECORDED

    def test_fewer_steps_than_are_done(self, interrupted):
        with pytest.raises(ValueError, match="has done 3 steps, but the stage now has 2"):
            interrupted("--resume_with_changes", stages=[{"name": "adapter", "max_steps": 2}])

    def test_another_version_of_the_package(self, interrupted, monkeypatch):
        monkeypatch.setattr("modeling_part.training.stage_run.__version__", "99.0")
        with pytest.raises(ValueError, match=r"versions\.modeling-part was '.*', now '99\.0'"):
            interrupted()

    @given(st.data())
    def test_places_in_a_schedule(self, data):
        """What is done of it stays as it was, and it ends where the stage ends, whatever the devices were."""
        stretches, done, share = [], 0, 0.0
        for ranks in range(data.draw(st.integers(1, 4))):
            steps, stop = done + data.draw(st.integers(2, 50)), done + data.draw(st.integers(1, 50))
            stretches.append({"first_step": done + 1, "values": {STEPS: steps, "hyperparameters.world_size": ranks}})
            if place_in_schedule(done, stretches, steps) != done:
                assert place_in_schedule(done, stretches, steps) / steps == pytest.approx(share)
            assert place_in_schedule(steps, stretches, steps) == pytest.approx(steps)
            places = [place_in_schedule(step, stretches, steps) for step in range(done, steps + 1)]
            assert places == sorted(places)
            done = min(stop, steps)
            share = place_in_schedule(done, stretches, steps) / steps

    def test_a_length_that_was_changed_by_will_has_its_own_schedule(self):
        stretches = [{"first_step": 1, "values": {STEPS: 6}}, {"first_step": 4, "values": {STEPS: 8}}]
        assert [place_in_schedule(step, stretches, 8) for step in range(3, 9)] == list(range(3, 9))

    @pytest.mark.parametrize(
        ("before", "now", "rate"),
        [
            ({"seed": 1}, {"seed": 2}, 1e-4),
            ({f"{LEARNING_RATES}adapter": 2e-3}, {f"{LEARNING_RATES}adapter": 1e-3}, 5e-5),
            ({SCHEDULE: "linear"}, {SCHEDULE: "reduce_lr_on_plateau"}, 1e-3),
        ],
    )
    def test_a_rate_that_plateaus_have_lowered_stays_so(self, before, now, rate):
        record = {"stretches": [{"first_step": 1, "values": before}, {"first_step": 4, "values": now}]}
        model = torch.nn.Linear(1, 1)
        optimizer = torch.optim.AdamW([{"params": [*model.parameters()], "lr": 1e-4, "part": "adapter"}])
        settings = NewSettings(BUILT_IN_STAGES["adapter"], record, set())
        args = SimpleNamespace(weight_decay=0.0, adam_beta1=0.9, adam_beta2=0.99, adam_epsilon=1e-8)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        settings.on_train_begin(args, None, None, model=model, optimizer=optimizer, lr_scheduler=schedule)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate)

    values = st.recursive(
        st.none() | st.integers(-3, 3) | st.text("ab", max_size=2),
        lambda one: st.dictionaries(st.text("ab", min_size=1, max_size=2), one, max_size=3),
    )

    @given(st.dictionaries(st.text("cd", min_size=1, max_size=2), values, max_size=3), st.data())
    def test_differences_of_any_records(self, record, data):
        assert differences(record, record) == {}
        other = data.draw(st.dictionaries(st.text("cd", min_size=1, max_size=2), self.values, max_size=3))
        found = differences(record, other)
        assert bool(found) == (record != other)
        assert differences(other, record) == {name: (new, old) for name, (old, new) in found.items()}
        assert differences({}, {"a": {"b": 1}}) == {"a.b": (NOT_RECORDED, 1)}


class TestDamage:
    @pytest.mark.parametrize(
        "name", ["optimizer.pt", "scheduler.pt", "model.safetensors", "trainer_state.json", "batches.json", "stage.json",
                 "rng_state.pth", "config.json"]
    )  # fmt: skip
    @pytest.mark.parametrize("damage", ["gone", "flipped", "empty"])
    def test_what_a_checkpoint_lacks_is_named(self, interrupted, name, damage):
        path = interrupted.checkpoint / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.unlink()
        if damage != "gone":
            path.write_bytes(data if damage == "flipped" else b"")
        with pytest.raises(ValueError) as caught:
            interrupted()
        assert str(interrupted.checkpoint) in str(caught.value)
        assert not (interrupted.folder / "stage.json").exists()

    @pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt"])
    def test_an_older_checkpoint_without_them_too(self, interrupted, name):
        record = read_stage_json(interrupted.checkpoint)
        del record["files"]
        (interrupted.checkpoint / "stage.json").write_text(json.dumps(record))
        (interrupted.checkpoint / name).unlink()
        with pytest.raises(CheckpointError, match=f"has no {name}: training would not go on where it stood"):
            interrupted()

    @pytest.mark.parametrize("state", ["null", "[]", "{}", '{"global_step": 2}'])
    def test_a_state_of_another_step_is_named(self, interrupted, state):
        record = read_stage_json(interrupted.checkpoint)
        del record["files"]
        (interrupted.checkpoint / "stage.json").write_text(json.dumps(record))
        (interrupted.checkpoint / "trainer_state.json").write_text(state)
        with pytest.raises(
            CheckpointError, match=r"checkpoint-3/trainer_state\.json is of step (None|2), and its folder"
        ):
            interrupted()

    def test_stretches_that_nobody_wrote_are_named(self, interrupted):
        record = read_stage_json(interrupted.checkpoint) | {"stretches": [1]}
        (interrupted.checkpoint / "stage.json").write_text(json.dumps(record))
        with pytest.raises(CheckpointError, match="one of 'stretches' is a int"):
            interrupted("--resume_with_changes", seed=5)

    @pytest.mark.parametrize("history", ["null", "[]", "{}", '[{"train_steps_per_second": "x"}]', "[1]"])
    def test_the_pace_of_a_log_that_was_changed_is_unknown(self, tmp_path, history):
        (tmp_path / "log_history.json").write_text(history)
        run = SimpleNamespace(parent=tmp_path)
        if history == "[1]":
            with pytest.raises(CheckpointError, match=r"log_history\.json is no list of objects"):
                time_of_stage(9, run)
        else:
            assert time_of_stage(9, run) == ""

    def test_the_time_of_a_stage_that_was_resumed_is_that_of_all_its_starts(self, tmp_path):
        lines = [{"step": step, "loss": 1.0, "seconds": 60.0} for step in (10, 20, 30)]
        lines.append({"step": 30, "train_runtime": 20.0, "train_steps_per_second": 1.5})
        stage = tmp_path / "encoder"
        stage.mkdir()
        (stage / "log_history.json").write_text(json.dumps(lines))
        assert read_stage(stage)["seconds"] == 180
        assert time_of_stage(60, SimpleNamespace(parent=stage)) == f"; about {duration(360)} at the pace of encoder"

    @pytest.mark.parametrize("text", ["", "[]", "{}", "3", "[[1]]", '[["a", "b"]]', "nonsense"])
    def test_a_broken_history_is_named(self, tmp_path, text):
        (tmp_path / "batches.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"batches\.json"):
            read_history(tmp_path, 1)

    def test_a_diverged_checkpoint_does_not_become_visible(self, tmp_path):
        from safetensors.torch import save_file

        staged = tmp_path / "incomplete" / "checkpoint-2"
        staged.mkdir(parents=True)
        save_file({"weight": torch.tensor([1.0, float("nan")])}, staged / "model.safetensors")
        with pytest.raises(NotFiniteError, match="such as weight"):
            complete_checkpoint(staged, tmp_path / "checkpoint-2", [(1, 2)], None)
        assert not (tmp_path / "checkpoint-2").exists()

    def test_only_whole_checkpoints_are_removed(self, tmp_path):
        for name in ("2", "3.bak", "3-mine", "4", "10", "best"):
            (tmp_path / f"checkpoint-{name}").mkdir()
            (tmp_path / f"checkpoint-{name}" / "trainer_state.json").touch()
        (tmp_path / "checkpoint-1").mkdir()  # not one of ours
        for limit, kept in ((None, {"2", "4", "10"}), (2, {"4", "10"}), (2, {"4", "10"}), (1, {"10"})):
            remove_oldest(tmp_path, limit)
            left = {path.name.removeprefix("checkpoint-") for path in tmp_path.iterdir()}
            assert left == kept | {"1", "3.bak", "3-mine", "best"}

    @settings(deadline=None)
    @given(st.lists(st.text("0123456789abc.-", max_size=5), max_size=6))
    def test_the_last_checkpoint_among_anything(self, tmp_path_factory, names):
        folder = tmp_path_factory.mktemp("names")
        for name in names:
            (folder / f"checkpoint-{name}").mkdir(exist_ok=True)
            (folder / f"checkpoint-{name}" / "trainer_state.json").touch()
        numbers = [int(name) for name in names if name.isdecimal()]
        last = last_checkpoint(folder)
        assert (last and checkpoint_step(last)) == (max(numbers) if numbers else None)


class TestEpochs:
    def recipe(self, made, tmp_path, **changes):
        dev = [{"reader": "manifest", "path": str(made.corpus["dev"]), "tasks": ["asr"]}]
        recipe = yaml.safe_load(made.recipe.read_text()) | {"output_dir": str(tmp_path / "run"), "eval_data": dev}
        recipe |= {"stages": [{"name": "adapter", "epochs": 3}], "save_total_limit": 10, **changes}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        return [str(tmp_path / "recipe.yaml")]

    def test_each_epoch_is_evaluated_saved_and_logged(self, made, tmp_path):
        strategies = dict.fromkeys(("eval_strategy", "save_strategy", "logging_strategy"), "epoch")
        train_part.main(self.recipe(made, tmp_path, **strategies))
        history = json.loads((tmp_path / "run" / "adapter" / "log_history.json").read_text())
        steps = read_stage_json(tmp_path / "run" / "adapter")["hyperparameters"]["num_steps"]
        ends = [steps // 3, 2 * steps // 3, steps]
        assert [line["step"] for line in history if "eval_loss" in line] == ends  # the last one is the stage's
        assert [line["step"] for line in history if "loss" in line] == ends
        saved = sorted(map(checkpoint_step, (tmp_path / "run" / "adapter").glob("checkpoint-*")))
        assert saved == ends

    def test_the_first_epochs_can_be_left_out(self, made, tmp_path):
        train_part.main(self.recipe(made, tmp_path, eval_strategy="epoch", eval_delay=2, save_strategy="no"))
        history = json.loads((tmp_path / "run" / "adapter" / "log_history.json").read_text())
        assert len([line for line in history if "eval_loss" in line]) == 2

    def test_a_stage_shorter_than_an_epoch(self, made, tmp_path):
        stages = [{"name": "adapter", "max_steps": 2}]
        train_part.main(self.recipe(made, tmp_path, eval_strategy="epoch", save_strategy="epoch", stages=stages))
        assert [path.name for path in (tmp_path / "run" / "adapter").glob("checkpoint-*")] == ["checkpoint-2"]

    @pytest.mark.parametrize("epochs", [0.5, 1.0, 2.25, "1.5e+0"])
    def test_epochs_may_be_a_fraction(self, made, tmp_path, epochs):
        whole = 6  # steps of an epoch
        stages = [{"name": "adapter", "epochs": epochs}]
        train_part.main(self.recipe(made, tmp_path, save_strategy="no", stages=stages, eval_data=[]))
        record = read_stage_json(tmp_path / "run" / "adapter")["hyperparameters"]
        assert (record["epochs"], record["num_steps"]) == (float(epochs), round(float(epochs) * whole))

    def test_a_resumed_stage_goes_on_epoch_by_epoch(self, made, tmp_path):
        argv = self.recipe(made, tmp_path, save_strategy="epoch")
        train_part.main(argv)
        folder = tmp_path / "run" / "adapter"
        whole = read_stage_json(folder)
        steps = sorted(map(checkpoint_step, folder.glob("checkpoint-*")))
        for path in folder.iterdir():
            if path.name != f"checkpoint-{steps[0]}":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        train_part.main([*argv, "--resume"])
        assert sorted(map(checkpoint_step, folder.glob("checkpoint-*"))) == steps
        assert read_stage_json(folder)["files"] == whole["files"]


def test_epochs_are_counted_from_the_stages_first_after_a_resume_on_other_devices():
    args = SimpleNamespace(logging_strategy="no", save_strategy="no", eval_strategy="epoch", eval_delay=3)
    asked = []
    for step in (5, 10, 15):
        control = TrainerControl()
        callback = EpochEnds([5, 10, 15], epochs_before=1)
        callback.on_step_end(args, SimpleNamespace(global_step=step), control)
        asked.append(control.should_evaluate)
    assert asked == [False, True, False], "the second epoch, the third, and the last step, after which its epoch ends"
    assert callback.on_epoch_end(args, SimpleNamespace(global_step=15), control).should_evaluate
