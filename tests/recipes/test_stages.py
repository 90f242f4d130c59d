"""stages: plans from recipes, which parameters train, the task gate, LoRA on the language model only."""

import copy

import architectures
import pytest
import tiny_training
import torch
from hypothesis import given
from hypothesis import strategies as st

from modeling_part import processing_part
from modeling_part.recipes import stages
from modeling_part.recipes.stages import BUILT_IN_STAGES, Stage, build_plan
from modeling_part.training.freezing import LanguageModelGate, cast_frozen, parameters_per_part, set_trainable
from modeling_part.training.lora import add_lora, split_lora, transposed_lora


@pytest.fixture(scope="module")
def shared_model():
    """A tiny model; tests that change it take a copy."""
    return tiny_training.tiny_model()[0]


@pytest.fixture
def model(shared_model):
    return copy.deepcopy(shared_model)


def test_the_tasks_are_those_of_the_prompts():
    assert stages.TASKS == processing_part.TASKS


# ---- plans ----


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
        (["adapter", "adapter"], "twice"),
        ([{"name": "adapter", "learning_rates": {"adaptor": 1e-3}}], "Did you mean 'adapter'"),
        ([{"name": "adapter", "learning_rates": {"decoder": 1e-3}}], "Known: adapter, encoder, language_model"),
        ([{"name": "adapter", "learning_rates": {"adapter": "fast"}}], "'fast'; it must be a number"),
        ([{"name": "adapter", "learning_rates": {"adapter": 0.0}}], "leave the part out"),
        ([{"name": "adapter", "learning_rates": {"adapter": float("nan")}}], "leave the part out"),
        ([{"name": "adapter", "tasks": {"st": 1.0}}], "Known: asr, s2tt, mt"),
        ([{"name": "adapter", "tasks": {"asr": 0.0}}], "trains nothing"),
        ([{"name": "adapter", "learning_rates": {}}], "trains nothing"),
        ([{"name": "joint", "gate": "gated"}], "Did you mean 'task_gated'"),
        ([{"name": "joint", "tuning": "qlora"}], "Did you mean 'lora'"),
        ([{"name": "adapter", "epochs": None}], "no length"),
        ([{"name": "adapter", "warmup_ratio": 1.0}], "warmup_ratio"),
        ([{"name": "adapter", "encoder_layers": 2}], "needs a learning rate"),
        ([{"name": "encoder_top", "encoder_layers": 0}], "at least 1"),
        ([{"name": "joint", "gate": "frozen"}], "Leave `mt` out"),
        ([{"name": "Stage 1", "tasks": {"asr": 1}, "learning_rates": {"adapter": 1e-3}}], "lower-case"),
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


# ---- what trains ----


@pytest.mark.parametrize(
    ("stage", "prefixes"),
    [
        ("adapter", ["model.adapter."]),
        ("encoder", ["model.adapter.", "model.audio_tower."]),
        (tiny_training.joint_stage(tuning="full"), [""]),
    ],
)
def test_trainable_parameters_are_exactly_the_parts(model, stage, prefixes):
    stage = BUILT_IN_STAGES.get(stage, stage) if isinstance(stage, str) else stage
    named = set_trainable(stage, model)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    fixed = {name for name, _ in model.named_parameters() if "embed_positions" in name}
    assert fixed, "the tiny Whisper has sinusoidal positions"
    assert trainable == {
        name for name, _ in model.named_parameters() if name.startswith(tuple(prefixes)) and name not in fixed
    }
    assert {name for names in named.values() for name in names} >= trainable


def test_encoder_top_takes_the_last_layers_and_what_follows(model):
    stage = build_plan([{"name": "encoder_top", "encoder_layers": 1}])[0]
    named = set_trainable(stage, model)
    prefixes = ("model.audio_tower.layers.1.", "model.audio_tower.layer_norm.")
    assert set(named["encoder"]) == {name for name, _ in model.named_parameters() if name.startswith(prefixes)}


@pytest.mark.parametrize("kind", ["qwen2_audio", "wav2vec2", "fun_asr_nano"])
def test_encoder_top_finds_the_layers_of_every_encoder(kind):
    """Built from configurations only: the feature extractors of some encoders need further packages."""
    import tiny

    from modeling_part import PARTConfig, PARTForSpeechSeq2Seq

    config = PARTConfig(
        audio_config=tiny.tiny_audio_config(kind),
        text_config=tiny.tiny_text_config(vocab_size=260),
        audio_token_id=259,
        adapter_hidden_size=32,
        adapter_num_attention_heads=2,
    )
    model = PARTForSpeechSeq2Seq(config)
    named = set_trainable(build_plan([{"name": "encoder_top", "encoder_layers": 1}])[0], model)["encoder"]
    layers = [name for name in named if ".layers." in name]
    indices = {name.split(".layers.")[1].split(".")[0] for name in layers}
    total = {
        name.split(".layers.")[1].split(".")[0]
        for name, _ in model.named_parameters()
        if name.startswith("model.audio_tower.") and ".layers." in name
    }
    assert indices == {str(max(map(int, total)))}
    assert len(named) < len(list(model.model.audio_tower.parameters()))


def test_more_layers_than_there_are_trains_all(model):
    named = set_trainable(BUILT_IN_STAGES["encoder_top"], model)["encoder"]
    assert {name.split(".layers.")[1][0] for name in named if ".layers." in name} == {"0", "1"}


def test_a_pattern_that_matches_nothing_is_an_error(model):
    with pytest.raises(ValueError, match=r"no parameter of the model matches .*lora.* \(language_model\)"):
        set_trainable(BUILT_IN_STAGES["joint"], model)  # without add_lora


def test_parameters_are_counted_per_part(model):
    counts = parameters_per_part(model)
    assert sum(counts.values()) == sum(parameter.numel() for parameter in model.parameters())
    assert counts["encoder"] == sum(parameter.numel() for parameter in model.model.audio_tower.parameters())
    assert counts["adapter"] == sum(parameter.numel() for parameter in model.model.adapter.parameters())


def test_the_gate_toggles_only_its_parameters(model):
    stage = tiny_training.joint_stage(tuning="full")
    names = set_trainable(stage, model)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    gate = LanguageModelGate(stage, [parameters[name] for name in names["language_model"]])
    for task, expected in (("asr", False), ("s2tt", True), ("asr", False), ("mt", True)):
        assert gate.set_task(task) is expected
        assert all(parameters[name].requires_grad is expected for name in names["language_model"])
        assert all(parameters[name].requires_grad for part in ("adapter", "encoder") for name in names[part])


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"name": "adapter"}, {"encoder 0": False, "encoder 1": False, "adapter": True}),
        ({"name": "encoder_top", "encoder_layers": 1}, {"encoder 0": False, "encoder 1": True, "adapter": True}),
        ({"name": "encoder"}, {"encoder 0": True, "encoder 1": True, "adapter": True}),
    ],
)
def test_what_lies_below_all_that_trains_builds_no_graph(model, entry, expected):
    """Nothing is kept for a backward through frozen layers, as under `no_grad`; a frozen language model passes one on."""
    (stage,) = build_plan([entry])
    set_trainable(stage, model)
    seen = {}

    def note(name):
        def hook(module, inputs, output):
            seen[name] = (output[0] if isinstance(output, tuple) else output).requires_grad

        return hook

    for index, layer in enumerate(model.model.audio_tower.layers):
        layer.register_forward_hook(note(f"encoder {index}"))
    model.model.adapter.register_forward_hook(note("adapter"))
    features = torch.randn(1, model.config.audio_config.num_mel_bins, 96)
    kept = []  # what autograd saves while the encoder and the adapter run
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        model.train().model.encode(features, torch.ones(1, 96, dtype=torch.long))
    frames_kept = len(kept)
    embeds = model.model.get_audio_features(features, torch.ones(1, 96, dtype=torch.long)).pooler_output
    assert seen == expected and embeds.requires_grad
    assert bool(frames_kept) is expected["encoder 1"]


# ---- LoRA ----


def with_lora(model, **changes) -> Stage:
    """Inject LoRA whose B is not zero, as after training."""
    stage = tiny_training.joint_stage(**changes)
    add_lora(stage, model)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return stage


def test_lora_is_on_every_linear_layer_of_the_language_model_and_nowhere_else(model):
    linear = {
        f"model.language_model.{name}"
        for name, module in model.model.language_model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    with_lora(model)
    adapted = {name.split(".lora_")[0] for name, _ in model.named_parameters() if ".lora_" in name}
    assert adapted == linear and len(linear) == 14
    assert any("q_proj" in name for name, _ in model.model.audio_tower.named_parameters())


@pytest.mark.parametrize(("rank", "alpha"), [(2, 4), (4, 2), (3, 3)])
def test_split_lora_equals_pefts_own_merge(model, rank, alpha):
    from peft import LoraConfig, PeftModel, get_peft_model

    stage = with_lora(model, lora_rank=rank, lora_alpha=alpha)
    merged, lora = split_lora(model.state_dict(), stage.lora_alpha / stage.lora_rank)
    reference = tiny_training.tiny_model()[0]
    targets = sorted({name.split(".lora_")[0] for name in lora})
    wrapped: PeftModel = get_peft_model(reference, LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets))
    missing = wrapped.base_model.model.load_state_dict(lora, strict=False)
    assert not missing.unexpected_keys
    expected = wrapped.merge_and_unload().state_dict()
    assert merged.keys() == expected.keys()
    moved = [
        name for name in expected if not torch.equal(expected[name], model.state_dict().get(name, torch.zeros(())))
    ]
    assert len(moved) >= 14, "the adapters are not trivial"
    for name in expected:
        torch.testing.assert_close(merged[name], expected[name], rtol=0, atol=1e-6)
    assert all(".lora_" in name for name in lora) and not any(".lora_" in name for name in merged)


@pytest.mark.parametrize("text", list(architectures.TEXT_CONFIGS))
def test_merged_weights_are_the_model_with_lora(text):
    """Layers of every shape: also GPT-2's, whose weights are transposed, where they are square."""
    model = architectures.build(text=text)
    stage = with_lora(model, lora_rank=4)
    merged, _ = split_lora(model.state_dict(), stage.lora_alpha / stage.lora_rank, transposed_lora(model))
    plain = architectures.build(text=text)
    batch = architectures.training_batch(model)
    del batch["labels"]
    valid = batch["attention_mask"].bool()
    with torch.no_grad():
        expected, before = model(**batch).logits[valid], plain(**batch).logits[valid]
        plain.load_state_dict(merged)
        torch.testing.assert_close(plain(**batch).logits[valid], expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, expected, rtol=1e-2, atol=1e-3)


def test_merging_does_not_round_to_the_dtype_under_lora(model):
    stage = with_lora(model)
    exact = split_lora(model.state_dict(), 2.0)[0]
    set_trainable(stage, model)
    bases = {name: tensor.clone() for name, tensor in model.state_dict().items() if ".base_layer.weight" in name}
    cast_frozen(model, torch.bfloat16)
    merged = split_lora(model.state_dict(), 2.0)[0]
    for name, base in bases.items():
        plain = name.replace(".base_layer.", ".")
        assert merged[plain].dtype == torch.float32
        rounding = base.bfloat16().float() - base
        torch.testing.assert_close(merged[plain], exact[plain] + rounding, rtol=0, atol=1e-6)


def test_cast_frozen_keeps_what_trains_in_full_precision(model):
    stage = with_lora(model)
    set_trainable(stage, model)
    cast_frozen(model, torch.bfloat16)
    for name, parameter in model.named_parameters():
        frozen_base = name.startswith(("model.language_model.", "lm_head.")) and ".lora_" not in name
        assert parameter.dtype == (torch.bfloat16 if frozen_base else torch.float32), name
