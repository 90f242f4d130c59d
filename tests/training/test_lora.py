"""LoRA: on the language model only, merged without rounding."""

import copy
import json

import architectures
import pytest
import tiny_training
import torch

from modeling_part import PARTForSpeechSeq2Seq
from modeling_part.recipes.stages import Stage
from modeling_part.training.checkpoints import save_weights
from modeling_part.training.freezing import cast_frozen, set_trainable
from modeling_part.training.lora import add_lora, split_lora, transposed_lora


@pytest.fixture(scope="module")
def shared_model():
    """A tiny model; tests that change it take a copy."""
    return tiny_training.tiny_model()[0]


@pytest.fixture
def model(shared_model):
    return copy.deepcopy(shared_model)


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


@pytest.mark.parametrize("text", list(architectures.TEXT_CONFIGS))
def test_the_adapter_on_its_base_is_the_saved_model(text, tmp_path):
    """LoRA and the encoder have trained; peft's own loading, on the former language model, gives the saved model."""
    from peft import PeftModel

    before = architectures.build(text=text)
    model = copy.deepcopy(before)
    stage = with_lora(model, lora_rank=4, lora_alpha=6)
    with torch.no_grad():
        for parameter in model.model.audio_tower.parameters():
            parameter.add_(0.01)
    save_weights(model, stage, tmp_path)
    saved, base = (PARTForSpeechSeq2Seq.from_pretrained(tmp_path).eval() for _ in range(2))
    base.model.language_model = before.model.language_model
    base.tie_weights()
    batch = architectures.training_batch(saved)
    del batch["labels"]
    valid = batch["attention_mask"].bool()

    with torch.no_grad():
        expected = saved(**batch).logits[valid]
        assert not torch.allclose(base(**batch).logits[valid], expected, rtol=1e-2, atol=1e-3)
        adapted = PeftModel.from_pretrained(base, str(tmp_path / "lora")).eval()
        torch.testing.assert_close(adapted(**batch).logits[valid], expected, rtol=1e-4, atol=1e-5)
        merged = adapted.merge_and_unload()
        torch.testing.assert_close(merged(**batch).logits[valid], expected, rtol=1e-4, atol=1e-5)
    for name, weight in saved.state_dict().items():
        torch.testing.assert_close(merged.state_dict()[name], weight, rtol=0, atol=1e-6)


def test_the_adapter_names_its_layers_and_is_written_alike(model, tmp_path):
    """In full, since `q_proj` is in the encoder too, and in one order, so that the same training gives the same file."""
    stage = with_lora(model, lora_rank=3, lora_alpha=5, lora_dropout=0.1)
    for name in ("one", "two"):
        save_weights(model, stage, tmp_path / name)
    files = [(tmp_path / name / "lora" / "adapter_config.json").read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]
    config = json.loads(files[0])
    assert (config["peft_type"], config["r"], config["lora_alpha"], config["lora_dropout"]) == ("LORA", 3, 5, 0.1)
    assert config["inference_mode"] is True and config["base_model_name_or_path"] is None
    assert config["target_modules"] == sorted(config["target_modules"]) and len(config["target_modules"]) == 14
    assert all(name.startswith("model.language_model.layers.") for name in config["target_modules"])
    # Beside the model's files, `from_pretrained` would add it to weights that hold it already.
    assert not list((tmp_path / "one").glob("adapter_*"))
