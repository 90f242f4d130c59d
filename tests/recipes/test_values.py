"""Every field of a recipe: a value of the wrong type or out of range is refused by name, and so is one without effect."""

import warnings
from dataclasses import MISSING, fields
from typing import get_type_hints

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from transformers import TrainingArguments

from modeling_part.recipes.arguments import ARGUMENTS, parse_recipe
from modeling_part.recipes.stages import BUILT_IN_STAGES, Stage, build_plan
from modeling_part.recipes.trainer_settings import IN_FORCE, REFUSED, WORKING
from modeling_part.recipes.values import checked


FIELDS = {one.name: one for group in ARGUMENTS for one in fields(group) if one.init}
HINTS = {name: hint for group in ARGUMENTS for name, hint in get_type_hints(group).items()}
WHOLE = {"output_dir": "runs/x", "audio_model": "a", "language_model": "b", "use_cpu": True}

leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.sampled_from(
    ["no", "yes", "1e-3", "nan", "-1", "10", "{}", "[", "float99", "epoch", "a=1", "a\0b", "\ud800", "fr"]
)  # fmt: skip
odd = st.recursive(
    leaves,
    lambda one: st.lists(one, max_size=3) | st.dictionaries(st.text(max_size=4) | st.booleans(), one, max_size=3),
)


@pytest.fixture(scope="module")
def parsed(tmp_path_factory):
    """Parse a recipe of the four keys that are needed and of some more, with options."""
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"

    def parse(*options, text="", **changes):
        path.write_text(yaml.safe_dump({**WHOLE, **changes}) + text, encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return parse_recipe([str(path), *options])

    return parse


def get(recipe, name):
    return next(getattr(group, name) for group in vars(recipe).values() if hasattr(group, name))


class TestTypesAndBounds:
    def test_none_is_nothing_where_a_field_may_be_empty(self, parsed):
        names = ("--max_rows", "--system_prompt", "--max_eval_rows", "--frozen_dtype")
        recipe = parsed(*(word for name in names for word in (name, "none")), "--report_to", "none")
        assert [get(recipe, name.removeprefix("--")) for name in names] == [None] * 4
        assert get(recipe, "report_to") == []

    @settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(name=st.sampled_from(sorted(FIELDS)), value=odd)
    @example(name="language_names", value={False: "Norwegian"})
    @example(name="max_bad_fraction", value=50)
    @example(name="min_duration", value=float("nan"))
    @example(name="save_steps", value=0)
    @example(name="frozen_dtype", value="float99")
    @example(name="stages", value=[""])
    @example(name="stages", value=[{}])
    @example(name="stages", value=["", ""])
    @example(name="accelerator_config", value={"true": None, True: None})
    def test_an_odd_value_is_refused_by_name_or_valid(self, parsed, name, value):
        try:
            recipe = parsed(**{name: value})
        except ValueError as error:
            assert name in str(error) and "\n" not in str(error).strip()
            return
        held = get(recipe, name)
        if name not in ("report_to", "debug", "accelerator_config", "disable_tqdm") and held is not None:
            checked(name, held, HINTS[name])

    @settings(max_examples=150, deadline=None)
    @given(name=st.sampled_from([one.name for one in fields(Stage) if one.name != "name"]), value=odd)
    def test_an_odd_value_of_a_stage_too(self, name, value):
        try:
            (stage,) = build_plan([{"name": "joint", name: value}])
        except ValueError as error:
            assert "Stage 'joint'" in str(error)
        else:
            checked(name, getattr(stage, name), get_type_hints(Stage)[name])

    @settings(max_examples=100, deadline=None)
    @given(value=odd)
    def test_an_odd_plan_is_one_error(self, parsed, value):
        try:
            build_plan(parsed(stages=value).training.stages)
        except ValueError as error:
            assert str(error)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"max_rows": 0}, "`max_rows` is 0; it must be at least 1 or none"),
            ({"max_rows": 2.5}, "`max_rows` is 2.5"),
            ({"seed": True}, "`seed` is True; it must be a number"),
            ({"bf16": [1]}, r"`bf16` is \[1\]; it must be true or false"),
            ({"model_dtype": "float99"}, "`model_dtype` is 'float99'; it must be 'float32', 'bfloat16' or 'float16'"),
            ({"lr_scheduler_type": "cosin"}, "`lr_scheduler_type` is 'cosin'.*'cosine'"),
            ({"language_names": {"fr": " "}}, "`language_names` is .*in fr"),
            ({"language_names": ["fr"]}, "it must be a mapping"),
            ({"direction_weights": {"de": -1}}, "`direction_weights` .*at least 0"),
            ({"min_duration": 9, "max_duration": 3}, "`min_duration` is 9 and `max_duration` 3"),
            ({"output_dir": None}, "`output_dir` is None; it must be text"),
            ({"run_name": 7}, "text \\(in quotes\\)"),
            ({"adapter": {"adapter_conv_strid": 4}}, "`adapter`: Unknown field.*'adapter_conv_stride'"),
            ({"adapter": {"variable_length": "perhaps"}}, "`adapter`: `variable_length` is 'perhaps'"),
            ({"accelerator_config": {"split_batches": True}}, "'split_batches' is no setting, or not one to change"),
            ({"accelerator_config": {"split_batch": True}}, "'split_batch' is no setting"),
            (
                {"accelerator_config": {"gradient_accumulation_kwargs": {"num_steps": 3}}},
                "_kwargs' is no setting, or not",
            ),
            ({"torch_compile_mode": "fast"}, "`torch_compile_mode` is 'fast'; it must be 'default'"),
            (
                {"gradient_checkpointing_kwargs": {"reentrant": False}},
                "`gradient_checkpointing_kwargs` .*'use_reentrant'",
            ),
            ({"dataloader_persistent_workers": True}, "`dataloader_persistent_workers` keeps processes"),
            ({"do_predict": True, "dry_run": True}, "`do_predict` answers and writes, `dry_run` does neither"),
            ({"max_tokens": 10**30}, "`max_tokens` is 10+; it must be at most"),
            ({"optim_args": "fast"}, "`optim_args` is 'fast'"),
        ],
    )
    def test_the_message_says_what_is_due(self, parsed, changes, message):
        with pytest.raises(ValueError, match=message):
            parsed(**changes)

    def test_a_token_is_not_shown(self, parsed):
        with pytest.raises(ValueError, match="`hub_token` is not shown") as caught:
            parsed(hub_token=["hf_secret"])
        assert "hf_secret" not in str(caught.value)

    def test_the_folder_of_the_run_is_needed(self, tmp_path):
        (tmp_path / "mine.yaml").write_text("checkpoint: a\n")
        with pytest.raises(ValueError, match="Name the folder of the run"):
            parse_recipe([str(tmp_path / "mine.yaml")])

    def test_numbers_stay_as_they_are_written(self, parsed):
        data = parsed("--max_tokens", "9", max_audio_seconds=48, temperature="2e+0", max_rows="3").data
        assert repr((data.max_audio_seconds, data.max_tokens, data.temperature, data.max_rows)) == "(48, 9, 2.0, 3)"

    def test_a_whole_number_with_a_point_is_one(self, parsed):
        recipe = parsed(max_rows=4.0, seed=3.0, adapter={"adapter_conv_stride": 2.0}, save_steps=0.5)
        held = recipe.data.max_rows, recipe.training.seed, recipe.model.adapter["adapter_conv_stride"]
        assert repr((*held, recipe.training.save_steps)) == "(4, 3, 2, 0.5)"
        (stage,) = build_plan([{"name": "encoder_top", "max_steps": 2.0, "encoder_layers": 1.0}])
        assert repr((stage.max_steps, stage.encoder_layers)) == "(2, 1)"

    def test_a_model_may_lie_below_the_home_folder(self, parsed, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / "encoder").mkdir()
        model = parsed(audio_model="~/encoder", language_model="~/nowhere").model
        assert (model.audio_model, model.language_model) == (str(tmp_path / "encoder"), "~/nowhere")
        assert parsed(reuse_runs=["~/runs/part", "b"]).training.reuse_runs == [str(tmp_path / "runs" / "part"), "b"]

    def test_defaults_are_valid(self):
        for name, one in FIELDS.items():
            if name not in REFUSED and one.default not in (None, MISSING):
                assert checked(name, one.default, HINTS[name]) == one.default


class TestOptions:
    def test_an_option_is_checked_like_a_key(self, parsed):
        for options, message in (
            (["--max_rows", "few"], "`max_rows` is 'few'"),
            (["--max_row", "3"], r"Unknown option '--max_row'\. Did you mean 'max_rows'\?"),
            (["--lr_scheduler_type", "cosin"], "`lr_scheduler_type`"),
            (["--stages", "[{"], "--stages is not JSON"),
            (["--adapter", '{"a": 1, "a": 2}'], "Key 'a' is given 2 times"),
            (["--seed"], "Argument --seed: expected one argument"),
            (["--seed", "3", "loose"], "Unknown option 'loose'"),
        ):
            with pytest.raises(ValueError, match=message):
                parsed(*options)

    def test_truth_values(self, parsed):
        training = parsed("--resume", "--bf16", "no", "--force", "false", "--no_dataloader_pin_memory").training
        assert (training.resume, training.bf16, training.force) == (True, False, False)
        assert training.dataloader_pin_memory is False

    def test_lists_and_mappings(self, parsed):
        recipe = parsed("--reuse_runs", "a", "b", "--direction_weights", '{"fr": 2}', "--adapter", "{}")
        assert recipe.training.reuse_runs == ["a", "b"]
        assert (recipe.data.direction_weights, recipe.model.adapter) == ({"fr": 2}, {})
        named = {"language_names": {"fr": "French"}, "stages": ["adapter"]}
        recipe = parsed("--language_names", "none", "--stages", "none", "--stages.joint.max_steps", "9", **named)
        assert recipe.model.language_names is None
        assert [one["name"] for one in recipe.training.stages] == list(BUILT_IN_STAGES)
        assert parsed("--stages", "none", **named).training.stages is None


class TestNorwegian:
    """YAML 1.1 reads `no` as false."""

    def test_no_is_a_language_wherever_one_is_due(self, parsed):
        recipe = parsed(
            text="language_names: {no: Norwegian}\ndirection_weights: {no: 2, en-no: 3}\n"
            "train_data: [{reader: manifest, path: m, languages: [no, de], target_languages: [NO]}]\n"
        )
        assert recipe.model.language_names == {"no": "Norwegian"}
        assert recipe.data.direction_weights == {"no": 2, "en-no": 3}
        assert recipe.data.train_data[0]["languages"] == ["no", "de"]

    @pytest.mark.parametrize("word", ["no", "No", "NO", "off", "false", '"no"'])
    def test_it_is_false_where_a_truth_value_is_due(self, parsed, word):
        assert parsed(text=f"bf16: {word}\nadapter: {{variable_length: {word}}}\n").training.bf16 is False
        assert parsed(text=f"adapter: {{variable_length: {word}}}\n").model.adapter == {"variable_length": False}

    def test_strategies_need_no_quotes(self, parsed):
        training = parsed(text="save_strategy: no\neval_strategy: no\n").training
        assert (training.save_strategy, training.eval_strategy) == ("no", "no")


class TestTrainerSettings:
    """Each field of `TrainingArguments` works as transformers documents, or is refused."""

    def test_every_field_is_one_or_the_other(self):
        names = {one.name for one in fields(TrainingArguments) if one.init}
        newer = {"activation_checkpointing", "activation_checkpointing_kwargs"}  # than the oldest transformers
        assert not WORKING & set(REFUSED)
        assert names - WORKING - set(REFUSED) == set()
        assert (WORKING | set(REFUSED)) - names <= newer
        assert set(IN_FORCE) <= set(REFUSED)

    @pytest.mark.parametrize("name", sorted(REFUSED))
    def test_a_setting_without_effect_is_refused(self, parsed, name):
        default = {one.name: one.default for one in fields(TrainingArguments)}[name]
        for value in (True, False, 3, 0.5, "text", {"a": 1}, ["a"]):
            if value not in IN_FORCE.get(name, (default,)):
                with pytest.raises(ValueError, match=f"`{name}` is .*, which would have no effect: .*"):
                    parsed(**{name: value})
        with pytest.raises(ValueError, match="which would have no effect"):
            parsed(f"--{name}", '{"a": 17}')

    def test_what_to_write_instead(self, parsed):
        for key, value, instead in (
            ("learning_rate", 5e-5, r"stages: \[\{name: adapter, learning_rates"),
            ("num_train_epochs", 3, "epochs: 3"),
            ("max_steps", 99, "max_steps: 100"),
            ("warmup_steps", 7, "warmup_ratio"),
            ("per_device_train_batch_size", 1, "max_audio_seconds"),
            ("do_train", False, "do_predict"),
            ("resume_from_checkpoint", "runs/a", "resume: true"),
        ):
            with pytest.raises(ValueError, match=instead):
                parsed(**{key: value})

    @pytest.mark.parametrize(
        ("key", "value"),
        [("do_train", True), ("data_seed", None), ("dataloader_drop_last", False), ("do_eval", False)],
    )
    def test_a_value_that_is_in_force_anyway_is_no_error(self, parsed, key, value):
        parsed(**{key: value})
        if value is not None:
            parsed(f"--{key}", str(value).lower())

    def test_single_values(self, parsed):
        with pytest.raises(ValueError, match="`save_strategy: best` is not supported"):
            parsed(save_strategy="best", eval_strategy="steps")
        with pytest.raises(ValueError, match="`debug: underflow_overflow` is not supported: it fails on masks"):
            parsed(debug="underflow_overflow")
        with pytest.raises(ValueError, match="`optim: galore` is not supported"):
            parsed("--optim", "galore_adamw")
        with pytest.raises(ValueError, match="`optim: schedule_free` is not supported: its weights"):
            parsed("--optim", "schedule_free_adamw")

    def test_a_misspelt_key_is_not_answered_with_one_that_is_refused(self, parsed):
        for name in REFUSED:
            with pytest.raises(ValueError, match="Unknown key") as caught:
                parsed(**{f"{name}s" if not name.endswith("s") else name[:-1]: 1})
            assert f"mean {name!r}" not in str(caught.value)

    @pytest.mark.parametrize("name", ["warmup_ratio", "epochs", "gate", "learning_rates"])
    def test_a_field_of_the_stages_is_told_as_one(self, parsed, name):
        with pytest.raises(ValueError, match=rf"Unknown key '{name}'\. It is a field of the stages"):
            parsed(**{name: 1})
        with pytest.raises(ValueError, match="It is a field of the stages"):
            parsed(f"--{name}", "1")
