"""Freezing: which parameters a stage trains, and the gate before the language model."""

import copy

import architectures
import pytest
import tiny_training
import torch

from modeling_part.recipes.stages import BUILT_IN_STAGES, build_plan
from modeling_part.training.freezing import LanguageModelGate, cast_frozen, parameters_per_part, set_trainable
from modeling_part.training.lora import add_lora


@pytest.fixture(scope="module")
def shared_model():
    """A tiny model; tests that change it take a copy."""
    return tiny_training.tiny_model()[0]


@pytest.fixture
def model(shared_model):
    return copy.deepcopy(shared_model)


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


@pytest.mark.parametrize("kind", ["wav2vec2", "wav2vec2_group", "hubert_group", "data2vec", "conformer", "whisper"])
def test_encoder_top_trains_nothing_that_runs_before_its_layers(kind):
    """Some encoders of wav2vec2's family have the norm that others have at their end before their first layer."""
    model = architectures.build(kind)
    set_trainable(build_plan([{"name": "encoder_top", "encoder_layers": 1}])[0], model)
    order, tower = [], model.model.audio_tower
    for name, module in tower.named_modules():
        parameters = list(module.parameters(recurse=False))
        if parameters:
            trains = parameters[0].requires_grad
            module.register_forward_pre_hook(lambda *_, name=name, trains=trains: order.append((trains, name)))
    clips = architectures.random_clips(kind, [90])
    model.get_audio_features(*architectures.batch_clips(kind, clips))
    trained = [trains for trains, _ in order]
    assert any(trained) and all(trained[trained.index(True) :]), order


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
    gate = LanguageModelGate(stage, model, names["language_model"])
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


def test_cast_frozen_keeps_what_trains_in_full_precision(model):
    stage = tiny_training.joint_stage()
    add_lora(stage, model)
    set_trainable(stage, model)
    cast_frozen(model, torch.bfloat16)
    for name, parameter in model.named_parameters():
        frozen_base = name.startswith(("model.language_model.", "lm_head.")) and ".lora_" not in name
        assert parameter.dtype == (torch.bfloat16 if frozen_base else torch.float32), name
