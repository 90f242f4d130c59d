"""Stages: plans from recipes, the task gate."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_part.recipes.stages import BUILT_IN_STAGES, Stage, build_plan


def test_the_built_in_plan_is_the_papers():
    plan = build_plan(None)
    assert [stage.name for stage in plan] == ["adapter", "encoder_top", "encoder", "joint"]
    assert [sorted(stage.learning_rates) for stage in plan] == [
        ["adapter"],
        ["adapter", "encoder"],
        ["adapter", "encoder"],
        ["adapter", "encoder", "language_model"],
    ]
    assert [stage.encoder_layers for stage in plan] == [None, 8, None, None]
    assert [stage.active_tasks for stage in plan] == [("asr",)] * 3 + [("asr", "s2tt", "mt")]
    assert [stage.trains_language_model for stage in plan] == [False, False, False, True]


def test_a_recipe_states_only_what_it_changes():
    (stage,) = build_plan([{"name": "encoder_top", "encoder_layers": 3, "max_steps": 60}])
    assert (stage.encoder_layers, stage.max_steps) == (3, 60)
    assert stage.learning_rates == BUILT_IN_STAGES["encoder_top"].learning_rates
    assert build_plan(["joint"]) == [BUILT_IN_STAGES["joint"]]


def test_numbers_that_yaml_reads_as_text_are_numbers():
    entry = {
        "name": "adapter",
        "learning_rates": {"adapter": "1e-3"},
        "tasks": {"asr": "5e-1"},
        "warmup_ratio": "1e-1",
    }
    (stage,) = build_plan([entry])
    assert (stage.learning_rates, stage.tasks, stage.warmup_ratio) == ({"adapter": 1e-3}, {"asr": 0.5}, 0.1)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"name": "adapter", "max_step": 3}], "Did you mean 'max_steps'"),
        ([{"name": "adaptor"}], "'adaptor' is not built in"),
        ([{"max_steps": 3}], "no `name`"),
        ([3], "A stage of the recipe is 3"),
        (["adapter", "adapter"], "twice"),
        ([{"name": "adapter", "learning_rates": {"adaptor": 1e-3}}], "Did you mean 'adapter'"),
        ([{"name": "adapter", "learning_rates": {"decoder": 1e-3}}], "Known: adapter, encoder, language_model"),
        ([{"name": "adapter", "learning_rates": {"adapter": "fast"}}], r"'fast'.*it must be a number.*\(in adapter\)"),
        ([{"name": "adapter", "learning_rates": {"adapter": 0.0}}], "leave the part out"),
        ([{"name": "adapter", "learning_rates": {"adapter": float("nan")}}], "finite number"),
        ([{"name": "adapter", "tasks": {"st": 1.0}}], "Known: asr, s2tt, mt"),
        ([{"name": "adapter", "tasks": {"asr": 0.0}}], "trains nothing"),
        ([{"name": "adapter", "learning_rates": {}}], "trains nothing"),
        ([{"name": "joint", "gate": "gated"}], "Did you mean 'task_gated'"),
        ([{"name": "joint", "tuning": "qlora"}], "Did you mean 'lora'"),
        ([{"name": 300 * "a", "tasks": {"asr": 1.0}, "learning_rates": {"adapter": 1e-3}}], r"at most 100 \(a folder"),
        ([{"name": "adapter", "epochs": None}], "no length"),
        ([{"name": "adapter", "warmup_ratio": 1.0}], "warmup_ratio"),
        ([{"name": "adapter", "encoder_layers": 2}], "needs a learning rate"),
        ([{"name": "encoder_top", "encoder_layers": 0}], "at least 1"),
        ([{"name": "joint", "gate": "frozen"}], "leave `mt` out"),
        ([{"name": "Stage 1", "tasks": {"asr": 1}, "learning_rates": {"adapter": 1e-3}}], "lower-case"),
        (
            [{"name": "data", "tasks": {"asr": 1}, "learning_rates": {"adapter": 1e-3}}],
            "'data': a run has a folder of",
        ),
    ],
)
def test_a_wrong_plan_is_one_clear_error(stages, message):
    with pytest.raises(ValueError, match=message):
        build_plan(stages)


@given(
    gate=st.sampled_from(["task_gated", "always", "frozen"]),
    task=st.sampled_from(["asr", "s2tt", "mt"]),
    has_rate=st.booleans(),
)
def test_the_gate_opens_as_the_method_says(gate, task, has_rate):
    rates = {"adapter": 1e-3} | ({"language_model": 1e-3} if has_rate else {})
    stage = Stage("x", tasks={"asr": 1.0, "s2tt": 1.0}, learning_rates=rates, gate=gate)
    expected = {"task_gated": task != "asr", "always": True, "frozen": False}[gate] and has_rate
    assert stage.opens_language_model(task) == expected


@pytest.mark.parametrize("setting", [{"warmup_ratio": 1.0}, {"encoder_layers": 0}])
def test_a_stage_built_in_python_has_the_bounds_of_a_recipe(setting):
    settings = {"name": "encoder", "tasks": {"asr": 1.0}, "learning_rates": {"encoder": 1e-4}, "max_steps": 1}
    with pytest.raises(ValueError, match=next(iter(setting))):
        Stage(**settings, **setting)
