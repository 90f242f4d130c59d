# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Recipes: the shipped ones parse, the ablations state what they differ in, and bases and overlays replace whole keys."""

import inspect
import re
import shutil
import subprocess
import sys
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path

import pytest
import yaml
from tiny import REPOSITORY
from transformers import TrainingArguments

import modeling_part
from modeling_part.configuration_part import PARTConfig
from modeling_part.data.augmentation import build_augmentation
from modeling_part.data.expansion import corpus_specs
from modeling_part.data.readers.registry import READERS
from modeling_part.data.where_to_get import WHERE_TO_GET
from modeling_part.recipes.arguments import ARGUMENTS, parse_recipe
from modeling_part.recipes.help import options_in
from modeling_part.recipes.recipe_files import read_recipe
from modeling_part.recipes.stages import BUILT_IN_STAGES, Stage, build_plan


FOLDER = Path(modeling_part.__file__).parent / "recipes"
KEYS = {one.name for group in ARGUMENTS for one in fields(group)}
RECIPES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
ABLATIONS = [
    "baseline_2stage",
    "llm_always",
    "llm_frozen",
    "no_llm_lora",
    "no_progressive_unfreezing",
    "no_task_gate",
    "no_task_staging",
    "no_text_tasks",
]
WITHOUT_TEXT = {"asr": 0.5, "s2tt": 0.125}
WITH_TEXT = {**WITHOUT_TEXT, "mt": 0.0625}


def stated(name: str) -> dict:
    """What the file of a shipped recipe says itself."""
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))


def content(name: str) -> dict:
    """What a shipped recipe says with its bases."""
    return read_recipe(FOLDER / f"{name}.yaml", KEYS)


def plan(name: str) -> dict[str, Stage]:
    return {stage.name: stage for stage in build_plan(content(name).get("stages"))}


@pytest.fixture
def on_any_machine(monkeypatch):
    """bfloat16 recipes are refused where the hardware lacks it; that is not what is tested here."""
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)


def test_the_recipes_of_the_issue_are_there():
    aligned = {"part_aligned", "part_2b_aligned", "part_8b_aligned", "sentences_aligned"}
    sizes, san_m = {"part_2b", "part_8b"}, {"part_sensevoice", "san_m_from_sound"}
    others = {"part", "new_language", "prompts", "quickstart"}
    hub = {"part_2b_hub", "part_8b_hub", "part_single_gpu"}
    experiments = {"experiment_zh_en", "experiment_low_resource", "experiment_low_resource_no_text"}
    experiments |= {f"experiment_zh_en_{name}" for name in ("baseline", "llm_frozen", "llm_always")}
    assert set(RECIPES) == {*others, *sizes, *aligned, *hub, *experiments, *san_m, *ABLATIONS}


def test_the_commands_for_a_new_language_follow_each_other(on_any_machine):
    """The page's first one leaves the checkpoint that the second one starts from."""
    page = (REPOSITORY / "modeling_part/recipes/README.md").read_text(encoding="utf-8")
    first, second = re.search(r"`part train ([^`]+)`, then `part train (new_language)`", page).groups()
    of_four = parse_recipe(first.split())
    names = [stage.name for stage in build_plan(of_four.training.stages)]
    assert parse_recipe([second]).model.checkpoint == f"{of_four.training.output_dir}/{names[-1]}"


@pytest.mark.parametrize("name", RECIPES)
class TestEveryRecipe:
    def test_parses_and_plans(self, name, on_any_machine, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        recipe = parse_recipe([name])
        assert recipe.training.output_dir == f"runs/{name}"
        assert recipe.model.checkpoint or (recipe.model.audio_model and recipe.model.language_model)
        assert [stage.name for stage in build_plan(recipe.training.stages)]
        for entry in [*recipe.data.train_data, *recipe.data.eval_data, *recipe.data.test_data]:
            assert all(spec.reader in READERS for spec in corpus_specs([entry]))
        build_augmentation(recipe.data.augmentation)
        PARTConfig(**(recipe.model.adapter or {}))

    def test_states_choices_only(self, name):
        """No key that repeats the base's or the default, no field of a stage that the stage has anyway."""
        ours = stated(name)
        before = {one.name: one.default for group in ARGUMENTS for one in fields(group) if one.default is not MISSING}
        stages = BUILT_IN_STAGES
        if "base" in ours:
            before |= content(ours["base"])
            stages = plan(ours["base"])
        assert not [key for key, value in ours.items() if key in before and before[key] == value]
        entries = ours.get("stages", {})
        if isinstance(entries, list):
            entries = {
                entry["name"]: {key: value for key, value in entry.items() if key != "name"} for entry in entries
            }
        else:
            assert "base" in ours
        for stage in entries.keys() & stages.keys():  # the others have nothing to repeat
            for key, value in (entries[stage] or {}).items():
                assert key == "epochs" or getattr(stages[stage], key) != value

    def test_parts_of_a_corpus_with_weights_of_their_own_have_names(self, name, on_any_machine, tmp_path, monkeypatch):
        """Rows are weighed by the name of their corpus, which is the file's for both parts of a file."""
        monkeypatch.chdir(tmp_path)
        weights: dict[tuple, set[float]] = {}
        for spec in corpus_specs(parse_recipe([name]).data.train_data):
            weights.setdefault((spec.reader, str(spec.path), spec.name), set()).add(spec.weight)
        assert all(len(found) == 1 for found in weights.values())

    def test_no_local_path_leaves_the_project(self, name):
        text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
        assert "/home/" not in text and ": /" not in text and ".." not in text

    def test_every_batch_trains_something(self, name):
        """A text batch reaches neither encoder nor adapter: it needs a language model that it opens."""
        for stage in plan(name).values():
            assert "mt" not in stage.active_tasks or stage.opens_language_model("mt")


class TestAblations:
    @pytest.mark.parametrize("name", ABLATIONS)
    def test_states_its_base_its_folder_and_its_stages(self, name):
        assert set(stated(name)) == {"base", "output_dir", "stages"}
        chain = [name]
        while "base" in stated(chain[-1]):
            chain.append(stated(chain[-1])["base"])
        assert chain[-1] == "part"

    @pytest.mark.parametrize("name", ABLATIONS)
    def test_the_step_budget_is_parts(self, name):
        assert sum(stage.max_steps for stage in plan(name).values()) == 700
        assert sum(stage.max_steps for stage in plan("part").values()) == 700

    def test_part_is_the_built_in_plan_with_a_budget(self):
        for (name, stage), built_in in zip(plan("part").items(), BUILT_IN_STAGES.values(), strict=True):
            assert name == built_in.name
            assert set(stage.tasks) == set(built_in.tasks)
            assert set(stage.learning_rates) == set(built_in.learning_rates)
            assert (stage.gate, stage.tuning) == (built_in.gate, built_in.tuning) == ("task_gated", "lora")
        assert [stage.name for stage in plan("part").values() if stage.trains_language_model] == ["joint"]

    def test_no_task_staging(self):
        expected = {
            name: stage if name == "joint" else replace(stage, tasks=WITHOUT_TEXT)
            for name, stage in plan("part").items()
        }
        assert plan("no_task_staging") == expected

    def test_no_llm_lora(self):
        """Cumulative: no task staging, and the language model frozen throughout, which leaves no text tasks."""
        expected = plan("no_task_staging")
        rates = {part: rate for part, rate in expected["joint"].learning_rates.items() if part != "language_model"}
        expected["joint"] = replace(expected["joint"], tasks=WITHOUT_TEXT, learning_rates=rates)
        assert plan("no_llm_lora") == expected

    def test_baseline_2stage(self):
        """Cumulative: `no_llm_lora`, and the whole encoder at once after the adapter."""
        stages, before = plan("baseline_2stage"), plan("no_llm_lora")
        assert list(stages) == ["adapter", "encoder"]
        assert stages["adapter"] == before["adapter"]
        assert stages["encoder"] == replace(before["encoder"], max_steps=500)
        assert not any(stage.trains_language_model for stage in stages.values())

    def test_no_progressive_unfreezing(self):
        expected = plan("part")
        steps = expected.pop("encoder_top").max_steps + expected["encoder"].max_steps
        expected["encoder"] = replace(expected["encoder"], max_steps=steps)
        assert plan("no_progressive_unfreezing") == expected

    def test_no_task_gate(self):
        expected = plan("part")
        expected["joint"] = replace(expected["joint"], gate="always")
        assert plan("no_task_gate") == expected
        assert plan("no_task_gate")["joint"].opens_language_model("asr")
        assert not plan("part")["joint"].opens_language_model("asr")

    def test_llm_always(self):
        rate = plan("part")["joint"].learning_rates["language_model"]
        expected = {
            name: replace(stage, gate="always", learning_rates={**stage.learning_rates, "language_model": rate})
            for name, stage in plan("part").items()
        }
        assert plan("llm_always") == expected
        assert all(stage.opens_language_model("asr") for stage in plan("llm_always").values())

    def test_llm_frozen(self):
        stages, expected = plan("llm_frozen"), plan("part")
        joint = expected.pop("joint")
        rates = {part: rate for part, rate in joint.learning_rates.items() if part != "language_model"}
        assert stages.pop("joint") == replace(joint, tasks=WITHOUT_TEXT, learning_rates=rates)
        assert stages == expected

    def test_no_text_tasks(self):
        expected = plan("part")
        expected["joint"] = replace(expected["joint"], tasks=WITHOUT_TEXT)
        assert plan("no_text_tasks") == expected
        assert plan("part")["joint"].tasks == WITH_TEXT


@pytest.mark.parametrize(("name", "size"), [("part_2b", "1.5B"), ("part_8b", "7B")])
def test_the_papers_sizes_run_the_built_in_plan(name, size):
    assert content(name)["language_model"] == f"Qwen/Qwen2.5-{size}"
    assert list(plan(name).values()) == [replace(stage, epochs=3) for stage in BUILT_IN_STAGES.values()]
    tested = {entry["reader"] for entry in content(name)["test_data"]}
    assert tested == {"common_voice", "fleurs", "wenetspeech", "covost2"}


def test_a_larger_model_states_its_difference():
    different = {"language_model", "frozen_dtype", "max_audio_seconds", "max_tokens", "gradient_accumulation_steps"}
    assert set(stated("part_8b")) == {"base", "output_dir", "per_device_eval_batch_size", *different}


@pytest.mark.parametrize("name", ["part_2b_hub", "part_8b_hub", "part_single_gpu"])
def test_recipes_of_the_hub_take_only_what_the_table_names(name):
    entries = [entry for split in ("train", "eval", "test") for entry in content(name)[f"{split}_data"]]
    assert {entry["path"] for entry in entries} <= {one.hub_id for one in WHERE_TO_GET}
    size = {"part_8b_hub": "part_8b"}.get(name, "part_2b")
    assert content(name).get("bf16") == content(size).get("bf16") is True
    if name == "part_8b_hub":
        assert set(stated(name)) == set(stated("part_8b"))


@pytest.mark.parametrize("name", ["baseline", "llm_frozen", "llm_always"])
def test_the_experiments_on_the_hub_differ_from_their_plan_as_those_on_digits_do(name):
    here, there = plan(f"experiment_zh_en_{name}"), plan({"baseline": "baseline_2stage"}.get(name, name))
    assert list(here) == list(there)
    for stage, one in there.items():
        assert (here[stage].gate, set(here[stage].tasks)) == (one.gate, set(one.tasks))
        assert set(here[stage].learning_rates) == set(one.learning_rates)
    assert sum(stage.epochs for stage in here.values()) == 12


def test_the_experiment_on_text_tasks_differs_in_them_alone():
    with_text, without = plan("experiment_low_resource"), plan("experiment_low_resource_no_text")
    assert set(with_text["joint"].tasks) - set(without["joint"].tasks) == {"mt"}
    assert without == with_text | {"joint": replace(with_text["joint"], tasks=without["joint"].tasks)}
    assert {entry["name"] for entry in content("experiment_low_resource")["train_data"]} == {"covost2", "opus_100"}


class TestBase:
    """`base`: a recipe with the keys of another, except those that it states."""

    @pytest.fixture
    def recipe(self, tmp_path, on_any_machine):
        """Write recipes into a folder and parse one."""

        def parse(*arguments, **files):
            for name, text in files.items():
                (tmp_path / f"{name}.yaml").write_text(text)
            return parse_recipe([str(tmp_path / "mine.yaml"), *map(str, arguments)])

        return parse

    def test_keys_are_replaced_whole(self, recipe):
        found = recipe(mine="base: part\nadapter: {adapter_conv_stride: 4}\nmax_rows: null\n")
        assert (found.model.adapter, found.data.max_rows) == ({"adapter_conv_stride": 4}, None)
        assert found.training.stages == content("part")["stages"]

    def test_a_file_beside_it_goes_before_a_shipped_one(self, recipe):
        found = recipe(mine="base: part.yaml\n", part="base: quickstart\nseed: 3\n")
        assert (found.training.seed, found.training.output_dir) == (3, "runs/quickstart")

    def test_stages_are_a_whole_plan_or_a_change(self, recipe):
        found = recipe(mine="base: part\nstages: [adapter]\n")
        assert build_plan(found.training.stages) == [BUILT_IN_STAGES["adapter"]]
        found = recipe(mine="base: part\nstages: {encoder: null, joint: {tasks: {mt: 1.0}, max_steps: 7}}\n")
        stages, expected = build_plan(found.training.stages), plan("part")
        del expected["encoder"]
        expected["joint"] = replace(expected["joint"], tasks={"mt": 1.0}, max_steps=7)
        assert stages == list(expected.values())

    def test_a_change_without_a_plan_changes_the_papers(self, recipe):
        parts = "audio_model: a\nlanguage_model: b\noutput_dir: c\n"
        found = recipe(mine=parts + "stages: {adapter: {epochs: 3}}\n")
        expected = {**BUILT_IN_STAGES, "adapter": replace(BUILT_IN_STAGES["adapter"], epochs=3)}
        assert build_plan(found.training.stages) == list(expected.values())

    def test_overlays_and_the_command_line_change_the_plan_too(self, recipe, tmp_path):
        found = recipe(tmp_path / "short.yaml", mine="base: part\n", short="stages: {joint: {max_steps: 7}}\n")
        assert [stage.max_steps for stage in build_plan(found.training.stages)] == [200, 90, 90, 7]
        found = recipe("--stages", '{"adapter": null, "joint": {"max_steps": 5}}')
        assert [stage.max_steps for stage in build_plan(found.training.stages)] == [90, 90, 5]

    @pytest.mark.parametrize(
        ("mine", "message"),
        [
            ("base: prat", r"mine\.yaml: There is no recipe 'prat'.*baseline_2stage"),
            ("base: other.yaml", r"mine\.yaml -> \S*other\.yaml -> \S*mine\.yaml: A recipe is its own base"),
            ("base: mine.yaml", r"mine\.yaml -> \S*mine\.yaml: A recipe is its own base"),
            ("base: missing.yaml", r"mine\.yaml -> \S*missing\.yaml: There is no recipe 'nothing'"),
            ("base: part\nstages: {joined: {max_steps: 7}}", "Unknown stage to change 'joined'. Did you mean 'joint'"),
            ("base: part\nstages: {joint: 7}", "Stage 'joint': The change is 7"),
            (
                "base: llm_frozen\nstages: {adapter: {max_step: 7}}",
                "Unknown field 'max_step'. Did you mean 'max_steps'",
            ),
            ("base: baseline_2stage\nstages: {adapter: null, encoder: null}", "leaves all stages out"),
        ],
    )
    def test_a_wrong_base_is_one_clear_error(self, recipe, mine, message):
        with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
            build_plan(recipe(mine=mine, other="base: mine.yaml", missing="base: nothing").training.stages)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("mine", "message"),
        [
            ("seed: 1\nmax_rows: 2\nseed: 3\n", r"mine\.yaml, line 3: Key 'seed' is there already in line 1"),
            ("adapter: {a: 1, b: 2,\n a: 3}\n", r"mine\.yaml, line 2: Key 'a' is there already in line 1"),
            ("max_row: 3\n", r"mine\.yaml, line 1: Unknown key 'max_row'\. Did you mean 'max_rows'\?"),
            ("bose: part\n", r"Did you mean 'base'\?"),
            ("[part]\n", r"mine\.yaml holds a list; a recipe is a mapping"),
            ("test_data: &x [*x]\n", r"mine\.yaml is not YAML"),
            ("seed: [1\n", r"mine\.yaml is not YAML: .*line 2"),
        ],
    )
    def test_a_wrong_file_is_one_clear_error(self, recipe, mine, message):
        with pytest.raises(ValueError, match=message) as caught:
            recipe(mine=mine)
        assert "\n" not in str(caught.value)


def test_a_recipe_is_found_by_name_and_by_path(on_any_machine, tmp_path):
    path = Path(shutil.copy(FOLDER / "part.yaml", tmp_path / "mine.yaml"))
    assert parse_recipe([str(path)]).training.stages == parse_recipe(["part"]).training.stages
    with pytest.raises(FileNotFoundError, match=r"no recipe 'prat'.*baseline_2stage"):
        parse_recipe(["prat"])


@pytest.mark.parametrize("overlay", sorted(path.stem for path in (FOLDER / "data").glob("*.yaml")))
def test_an_overlay_replaces_the_data_and_leaves_the_plan(overlay, on_any_machine):
    """What `data/` holds goes over any recipe of the family: corpora and how much of them is used, no more."""
    keys = content(f"data/{overlay}")
    lengths = {"max_duration", "max_eval_rows", "max_new_tokens", "predict_last_stage_only"}
    assert set(keys) <= {"train_data", "eval_data", "test_data", *lengths}
    for name in ("part", *ABLATIONS):
        recipe = parse_recipe([name, f"data/{overlay}", "--seed", "7"])
        assert (recipe.training.output_dir, recipe.training.seed) == (f"runs/{name}", 7)
        assert build_plan(recipe.training.stages) == list(plan(name).values())
        assert recipe.data.train_data == keys["train_data"] != content(name)["train_data"]
        assert recipe.model.audio_model == content(name)["audio_model"]
    for split in ("train", "eval", "test"):
        specs = corpus_specs(keys[f"{split}_data"])
        named = {spec.split for spec in specs if spec.reader != "manifest"}  # of a manifest, a file is a split
        assert named <= {{"eval": "dev"}.get(split, split)}


def test_the_later_recipe_and_then_the_command_line_win(on_any_machine, tmp_path):
    (tmp_path / "mine.yaml").write_text("max_rows: 3\nmax_new_tokens: 5\n")
    recipe = parse_recipe(["part", str(tmp_path / "mine.yaml"), "--max_new_tokens", "9"])
    assert recipe.data.max_rows == 3
    assert (recipe.training.max_new_tokens, recipe.training.output_dir) == (9, "runs/part")
    (tmp_path / "mine.yaml").write_text("max_row: 3\n")
    with pytest.raises(ValueError, match=r"mine\.yaml, line \d+: Unknown key 'max_row'.*'max_rows'"):
        parse_recipe(["part", str(tmp_path / "mine.yaml")])


def test_one_setting_of_one_stage_on_the_command_line(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: part\noutput_dir: runs/mine\n", encoding="utf-8")
    plain = {stage.name: stage for stage in build_plan(parse_recipe([str(path)]).training.stages)}
    options = ["--stages.joint.max_steps", "100", "--stages.joint.learning_rates.adapter=1e-4", "--seed", "7"]
    recipe = parse_recipe([str(path), *options])
    changed = {stage.name: stage for stage in build_plan(recipe.training.stages)}
    assert recipe.training.seed == 7 and changed["joint"].max_steps == 100
    assert changed["joint"].learning_rates == {**plain["joint"].learning_rates, "adapter": 1e-4}
    assert {name: stage for name, stage in changed.items() if name != "joint"} == {
        name: stage for name, stage in plain.items() if name != "joint"
    }


def test_help_shows_parts_own_options_first_and_those_without_effect_not(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_recipe(["--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0
    order = [
        text.index(f"  --{name} ") for name in ("resume", "audio_model", "train_data", "padding_free", "weight_decay")
    ]
    assert order == sorted(order) and "--stages.STAGE.FIELD" in text
    assert "--learning_rate " not in text


@pytest.mark.parametrize(
    ("words", "start"),
    [
        (["train_part.py", "--help"], "run_path('train_part.py'"),
        (["part", "train", "mine.yaml", "--help"], "run_module('modeling_part'"),
    ],
)
def test_help_does_not_wait_for_what_training_imports(words, start):
    heavy = ["torch", "transformers", "accelerate", "datasets", "numpy"]
    code = f"import atexit, runpy, sys; atexit.register(lambda: print({{*{heavy}}} & {{*sys.modules}}, file=sys.stderr)); "
    code += f"sys.argv = {words}; runpy.{start}, run_name='__main__')"
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "set()\n")
    assert "--stages.STAGE.FIELD" in result.stdout


def test_help_is_of_the_fields_that_there_are():
    """Help reads the text of the classes; importing them gives the same."""
    places = {TrainingArguments: inspect.getfile(TrainingArguments)}
    for owner in (*ARGUMENTS, TrainingArguments):
        read = options_in(Path(places.get(owner, FOLDER / "arguments.py")), owner.__name__)
        inherited = {one.name for base in owner.__mro__[1:] if is_dataclass(base) for one in fields(base)}
        by_name = {one.name: one for one in fields(owner) if one.init}
        assert set(by_name) - inherited <= set(read) <= set(by_name)
        for name, one in read.items():
            assert one.help == " ".join(by_name[name].metadata["help"].replace("%%", "%").split())
            assert one.default in (None, getattr(by_name[name].default, "value", by_name[name].default))
