"""Saving and loading: every architecture exactly, the auto classes, and what is refused."""

import json
import re
import shutil

import pytest
import tiny
import torch
from architectures import (
    AUDIO_TOKEN,
    ENCODERS,
    LENGTHS,
    SHAPE,
    TEXT_CONFIGS,
    assert_same_weights,
    build,
    inputs_of,
    random_clips,
)
from safetensors.torch import load_file, save_file
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    BioGptConfig,
    Gemma3Config,
    Gemma4TextConfig,
    MambaConfig,
    Mistral3Config,
    PreTrainedModel,
    Qwen2ForCausalLM,
    ViTConfig,
)
from transformers.masking_utils import flash_attention_mask

from modeling_part import PARTConfig, PARTForSpeechSeq2Seq, PARTModel, PARTProcessor


class TestCheckpoints:
    @pytest.fixture
    def saved(self, tmp_path):
        model = build(text="llama_tied")
        model.save_pretrained(tmp_path)
        return model, tmp_path

    @pytest.mark.parametrize("kind", ENCODERS)
    def test_every_encoder_is_saved_exactly(self, kind, tmp_path):
        model = build(kind)
        model.save_pretrained(tmp_path)
        assert_same_weights(PARTForSpeechSeq2Seq.from_pretrained(tmp_path), model)

    def test_auto_classes(self, saved):
        model, folder = saved
        assert type(AutoConfig.from_pretrained(folder)) is PARTConfig
        for auto in (AutoModelForSpeechSeq2Seq, AutoModelForMultimodalLM):
            loaded = auto.from_pretrained(folder)
            assert type(loaded) is PARTForSpeechSeq2Seq
            assert_same_weights(loaded, model)
        base = AutoModel.from_pretrained(folder)
        assert type(base) is PARTModel
        assert_same_weights(base, model.model)

    def test_what_vllm_leaves_out_of_a_checkpoint(self, saved):
        """It builds the model without heads, and skips the tensors that this ignores: its own head needs `lm_head`."""
        ignored = AutoModel.from_config(saved[0].config)._keys_to_ignore_on_load_unexpected
        names = ["lm_head.weight", "model.adapter.conv.bias", "alignment_head.blank"]
        assert [name for name in names if any(re.search(one, name) for one in ignored)] == names[2:]

    def test_the_heads_of_a_checkpoint_are_left_out_by_the_model_without_heads_alone(self, saved, tmp_path):
        model, _ = saved
        model.config.alignment_scale = 1.0
        with_heads = PARTForSpeechSeq2Seq(model.config)
        with_heads.save_pretrained(tmp_path / "heads")
        assert any(name.startswith("alignment_head.") for name in load_file(tmp_path / "heads" / "model.safetensors"))
        assert_same_weights(AutoModel.from_pretrained(tmp_path / "heads"), with_heads.model)
        config = json.loads((tmp_path / "heads" / "config.json").read_text())
        (tmp_path / "heads" / "config.json").write_text(json.dumps({**config, "alignment_scale": None}))
        with pytest.raises(ValueError, match=r"unexpected \(alignment_head"):
            AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "heads")

    def test_shards_and_device_map(self, saved, tmp_path):
        model, _ = saved
        model.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
        assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
        for settings in ({}, {"device_map": "cpu"}, {"device_map": "auto"}):
            assert_same_weights(PARTForSpeechSeq2Seq.from_pretrained(tmp_path / "shards", **settings), model)

    def test_builds_on_the_meta_device(self):
        config = build().config
        with torch.device("meta"):
            model = PARTForSpeechSeq2Seq(config)
        assert all(parameter.is_meta for parameter in model.parameters())

    def test_bfloat16(self, saved):
        model, folder = saved
        loaded = PARTForSpeechSeq2Seq.from_pretrained(folder, dtype=torch.bfloat16)
        assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
        for name, tensor in loaded.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[name].to(tensor.dtype)), name
        inputs = inputs_of(model, "whisper", random_clips("whisper", LENGTHS))
        inputs["labels"] = inputs["input_ids"].masked_fill(inputs["input_ids"] == AUDIO_TOKEN, -100)
        loss = loaded(**inputs).loss
        assert loss.item() == pytest.approx(model(**inputs).loss.item(), rel=0.02)
        loss.backward()

    @pytest.mark.parametrize("implementation", ["eager", "sdpa"])
    def test_attention_reaches_every_part(self, saved, implementation):
        loaded = PARTForSpeechSeq2Seq.from_pretrained(saved[1], attn_implementation=implementation)
        used = {module.config._attn_implementation for module in loaded.modules() if hasattr(module, "config")}
        assert used == {implementation}

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda tensors: tensors.pop("model.adapter.conv.bias"), r"1 missing \(model.adapter.conv.bias\)"),
            (lambda tensors: tensors.update({"extra.weight": torch.ones(1)}), r"1 unexpected \(extra.weight\)"),
            (
                lambda tensors: tensors.update({"model.adapter.conv.bias": torch.ones(3)}),
                r"1 of another shape \(model.adapter.conv.bias\)",
            ),
            (
                lambda tensors: [tensors.pop(name) for name in list(tensors) if "audio_tower" in name],
                r"missing \(model.audio_tower.*, \.\.\.\)",
            ),
        ],
    )
    def test_other_tensors_are_refused_by_name(self, saved, change, message):
        _, folder = saved
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=message):
            AutoModelForSpeechSeq2Seq.from_pretrained(folder)

    def test_a_part_of_a_checkpoint_loads_where_that_is_asked_for(self, saved):
        model, folder = saved
        tensors = load_file(folder / "model.safetensors")
        new = [name for name in tensors if "adapter" in name]
        for name in new:
            del tensors[name]
        save_file({**tensors, "extra.weight": torch.ones(1)}, folder / "model.safetensors", metadata={"format": "pt"})
        loaded, info = AutoModelForSpeechSeq2Seq.from_pretrained(folder, strict=False, output_loading_info=True)
        assert set(info["missing_keys"]) == set(new) and set(info["unexpected_keys"]) == {"extra.weight"}
        for name, tensor in loaded.state_dict().items():
            assert torch.isfinite(tensor).all()
            assert name in new or torch.equal(tensor, model.state_dict()[name])
        with pytest.raises(ValueError, match=r"missing .*; 1 unexpected"):
            AutoModelForSpeechSeq2Seq.from_pretrained(folder, strict=True)

    def test_pickles_are_refused(self, saved):
        _, folder = saved
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        torch.save(tensors, folder / "pytorch_model.bin")
        with pytest.raises(OSError, match="PART reads no pickles"):
            PARTForSpeechSeq2Seq.from_pretrained(folder)

    def test_another_architecture_is_refused(self, tiny_parts):
        with pytest.raises(ValueError, match="'whisper', not of 'part'"):
            PARTForSpeechSeq2Seq.from_pretrained(tiny_parts.audio_model)

    def test_adapter_folders_load(self, saved, tmp_path):
        peft = pytest.importorskip("peft")
        _, folder = saved
        settings = peft.LoraConfig(r=2, target_modules=r".*\.language_model\..*q_proj", init_lora_weights=False)
        wrapped = peft.get_peft_model(PARTForSpeechSeq2Seq.from_pretrained(folder), settings).eval()
        inputs = inputs_of(saved[0], "whisper", random_clips("whisper", LENGTHS))
        with torch.no_grad():
            expected = wrapped(**inputs).logits
            assert not torch.allclose(expected, saved[0](**inputs).logits)
            wrapped.save_pretrained(tmp_path / "lora")
            loaded = PARTForSpeechSeq2Seq.from_pretrained(tmp_path / "lora")
            torch.testing.assert_close(loaded(**inputs).logits, expected, atol=1e-5, rtol=1e-5)


SETTINGS = {"adapter_hidden_size": 16, "adapter_num_attention_heads": 2}


class TestFromPretrainedParts:
    @pytest.mark.parametrize("text_kind", tiny.TEXT_KINDS)
    @pytest.mark.parametrize("audio_kind", ["whisper", "qwen2_audio", "wav2vec2"])
    def test_weights_are_the_parts(self, audio_kind, text_kind, tmp_path):
        parts = tiny.tiny_parts(tmp_path, audio_kind, text_kind)
        model, processor = PARTForSpeechSeq2Seq.from_pretrained_parts(*parts, **SETTINGS)
        assert not model.training
        encoder = AutoModel.from_pretrained(parts.audio_model)
        encoder = encoder.encoder if audio_kind == "whisper" else encoder
        assert_same_weights(model.model.audio_tower, encoder)
        original = AutoModelForCausalLM.from_pretrained(parts.language_model)
        old = original.get_input_embeddings().num_embeddings
        for name, tensor in original.base_model.state_dict().items():
            assert torch.equal(model.model.language_model.state_dict()[name][: len(tensor)], tensor), name
        assert torch.equal(model.lm_head.weight[:old], original.lm_head.weight)
        assert (model.lm_head.weight is model.get_input_embeddings().weight) is (text_kind == "llama")
        assert isinstance(processor, PARTProcessor)

    def test_grows_only_when_needed(self, tmp_path):
        """259 tokens and a placeholder need 260 rows: a language model with 300 has them to spare."""
        parts = tiny.tiny_parts(tmp_path / "full")
        model, processor = PARTForSpeechSeq2Seq.from_pretrained_parts(*parts, **SETTINGS)
        assert model.get_input_embeddings().num_embeddings == 320  # 260, in multiples of 64
        assert model.config.audio_token_id == processor.audio_token_id == 259
        spare = tiny.tiny_parts(tmp_path / "spare")
        AutoModelForCausalLM.from_config(tiny.tiny_text_config(vocab_size=300)).save_pretrained(spare.language_model)
        model, processor = PARTForSpeechSeq2Seq.from_pretrained_parts(*spare, **SETTINGS)
        assert model.get_input_embeddings().num_embeddings == 300
        assert len(processor.tokenizer) == 260
        known = tiny.tiny_parts(tmp_path / "known")
        _, processor = PARTForSpeechSeq2Seq.from_pretrained_parts(*known, audio_token="<|im_start|>", **SETTINGS)
        assert len(processor.tokenizer) == 259
        assert processor.audio_token_id == 1

    def test_audio_enters_at_the_scale_of_the_embeddings(self, tiny_parts):
        model, processor = PARTForSpeechSeq2Seq.from_pretrained_parts(*tiny_parts, **SETTINGS)
        batch = processor(0.1 * torch.randn(32_000).numpy())
        with torch.no_grad():
            audio = model.get_audio_features(batch["input_features"], batch["input_features_mask"]).pooler_output
        words = AutoModelForCausalLM.from_pretrained(tiny_parts.language_model).get_input_embeddings().weight
        assert audio.pow(2).mean().sqrt().item() == pytest.approx(words.pow(2).mean().sqrt().item(), rel=0.05)

    def test_scaled_embeddings(self, tmp_path):
        """Gemma 3 multiplies its embeddings by the root of its width; audio must enter as large."""
        parts = tiny.tiny_parts(tmp_path)
        gemma = AutoModelForCausalLM.from_config(TEXT_CONFIGS["gemma3"]())
        gemma.save_pretrained(parts.language_model)
        model, _ = PARTForSpeechSeq2Seq.from_pretrained_parts(*parts, **SETTINGS)
        weight = gemma.get_input_embeddings().weight
        expected = weight.pow(2).mean().sqrt().item() * 32**0.5
        assert model.config.adapter_output_scale == pytest.approx(expected, rel=1e-3)

    def test_settings_reach_the_model_and_the_processor(self, tiny_parts, tmp_path):
        model, processor = PARTForSpeechSeq2Seq.from_pretrained_parts(
            *tiny_parts,
            dtype=torch.bfloat16,
            attn_implementation="eager",
            system_prompt="",
            adapter_conv_stride=2,
            variable_length=False,
            **SETTINGS,
        )
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        assert model.model.language_model.config._attn_implementation == "eager"
        assert processor.system_prompt == ""
        assert processor.variable_length is model.config.variable_length is False
        assert (
            processor.audio_token_convolutions
            == model.config.audio_token_convolutions
            == [[3, 1, 1], [3, 2, 1], [5, 2, 2]]
        )
        model.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        loaded = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path)
        assert_same_weights(loaded, model)
        batch = AutoProcessor.from_pretrained(tmp_path)(0.1 * torch.randn(9_000).numpy())
        assert torch.equal(loaded.generate(**batch, max_new_tokens=4), model.generate(**batch, max_new_tokens=4))

    def test_generation_settings(self, tiny_parts):
        model, processor = PARTForSpeechSeq2Seq.from_pretrained_parts(*tiny_parts, **SETTINGS)
        settings = model.generation_config
        assert settings.do_sample is False
        assert settings.eos_token_id == [2]
        assert settings.pad_token_id == processor.tokenizer.pad_token_id
        assert settings.suppress_tokens == [processor.audio_token_id]

    def test_a_typo_in_the_settings_is_reported(self, tiny_parts):
        with pytest.raises(TypeError, match="adapter_hiden_size"):
            PARTForSpeechSeq2Seq.from_pretrained_parts(*tiny_parts, adapter_hiden_size=16)

    @pytest.mark.parametrize("part", [0, 1])
    def test_pickled_parts_are_refused(self, part, tmp_path):
        parts = tiny.tiny_parts(tmp_path)
        weights = parts[part] / "model.safetensors"
        torch.save(load_file(weights), parts[part] / "pytorch_model.bin")
        weights.unlink()
        with pytest.raises(OSError, match="has no weights in safetensors, and PART reads no pickles"):
            PARTForSpeechSeq2Seq.from_pretrained_parts(*parts, **SETTINGS)

    @pytest.mark.parametrize(
        ("part", "tensor"), [(0, "encoder.layers.0.fc1.weight"), (1, "layers.0.mlp.up_proj.weight")]
    )
    def test_incomplete_parts_are_refused(self, part, tensor, tmp_path):
        parts = tiny.tiny_parts(tmp_path)
        tensors = load_file(parts[part] / "model.safetensors")
        (name,) = (name for name in tensors if name.endswith(tensor))
        del tensors[name]
        save_file(tensors, parts[part] / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=tensor):
            PARTForSpeechSeq2Seq.from_pretrained_parts(*parts, **SETTINGS)

    def test_a_language_model_with_other_logits_is_refused(self, tiny_parts, monkeypatch):
        monkeypatch.setattr(
            PARTForSpeechSeq2Seq, "_logits", lambda self, hidden_states: 2 * self.lm_head(hidden_states)
        )
        with pytest.raises(ValueError, match="gives other logits inside PART"):
            PARTForSpeechSeq2Seq.from_pretrained_parts(*tiny_parts, **SETTINGS)

    @pytest.mark.parametrize(
        ("config", "told"),
        [
            (MambaConfig(vocab_size=264, hidden_size=32, num_hidden_layers=1, state_size=8), "no past_key_values"),
            # A second embedding of each token goes into each layer, and audio has none.
            (
                Gemma4TextConfig(
                    vocab_size=264,
                    hidden_size=32,
                    intermediate_size=64,
                    num_hidden_layers=2,
                    num_attention_heads=4,
                    num_key_value_heads=2,
                    vocab_size_per_layer_input=264,
                    hidden_size_per_layer_input=8,
                ),
                "do not take embeddings that are no token's",
            ),
        ],
    )
    def test_a_language_model_that_cannot_hear_is_refused(self, config, told, tiny_parts, tmp_path):
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
        tiny.tiny_tokenizer().save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=f"cannot be PART's language model: .*{told}"):
            PARTForSpeechSeq2Seq.from_pretrained_parts(str(tiny_parts.audio_model), str(tmp_path), **SETTINGS)

    def test_a_language_model_inside_a_larger_one_is_refused_before_its_weights_are_loaded(self, tiny_parts, tmp_path):
        """transformers takes none out of Mistral 3; of Gemma 3 it makes the whole."""
        tiny.tiny_tokenizer().save_pretrained(tmp_path)
        whole, no_such = "it is more than a language model", "transformers has no causal language model of its type"
        for config, told in ((Mistral3Config(), whole), (Gemma3Config(), whole), (ViTConfig(), no_such)):
            config.save_pretrained(tmp_path)
            with pytest.raises(ValueError, match=rf"\({config.model_type}\) cannot be PART's language model: {told}"):
                PARTForSpeechSeq2Seq.from_pretrained_parts(str(tiny_parts.audio_model), str(tmp_path), **SETTINGS)

    def test_flash_attention_is_not_needed_to_check_a_language_model(self, tiny_parts, monkeypatch, caplog):
        def attend(*args, **kwargs):
            raise RuntimeError("flash attention runs on a GPU")

        # transformers would look for kernels of that name on the Hub.
        monkeypatch.setattr(
            PreTrainedModel, "_check_and_adjust_attn_implementation", lambda self, name, *_, **__: name
        )
        monkeypatch.setitem(AttentionInterface._global_mapping, "flash_on_gpu", attend)
        monkeypatch.setitem(AttentionMaskInterface._global_mapping, "flash_on_gpu", flash_attention_mask)
        settings = SETTINGS | {"attn_implementation": "flash_on_gpu"}
        model, _ = PARTForSpeechSeq2Seq.from_pretrained_parts(*tiny_parts, **settings)
        assert model.model.language_model.config._attn_implementation == "flash_on_gpu"
        with monkeypatch.context() as patched:
            patched.setattr(PARTForSpeechSeq2Seq, "_logits", lambda self, states: 2 * self.lm_head(states))
            with pytest.raises(ValueError, match="gives other logits inside PART"):
                PARTForSpeechSeq2Seq.from_pretrained_parts(*tiny_parts, **settings)
        monkeypatch.setattr(Qwen2ForCausalLM, "_can_set_attn_implementation", classmethod(lambda cls: False))
        PARTForSpeechSeq2Seq.from_pretrained_parts(*tiny_parts, **settings)
        assert "Qwen2ForCausalLM cannot leave its flash_on_gpu" in caplog.text

    def test_a_head_of_another_name(self, tiny_parts, tmp_path):
        """BioGPT's, tied to its embeddings, is called `output_projection`."""
        config = BioGptConfig(**SHAPE, max_position_embeddings=256)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "text")
        tiny.tiny_tokenizer().save_pretrained(tmp_path / "text")
        parts = (str(tiny_parts.audio_model), str(tmp_path / "text"))
        model, _ = PARTForSpeechSeq2Seq.from_pretrained_parts(*parts, **SETTINGS)
        model.save_pretrained(tmp_path / "part")
        loaded = PARTForSpeechSeq2Seq.from_pretrained(tmp_path / "part")
        assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
        assert_same_weights(loaded, model)


DAMAGE = {
    "not UTF-8": ("processor_config.json", lambda text: text.encode("utf-16"), "processor"),
    "not JSON": ("tokenizer.json", lambda text: text[:-9].encode(), "processor"),
    "a decoder of no kind": ("tokenizer.json", lambda text: text.replace('"ByteLevel"', '"Bytes"').encode(), "processor"),
    "null": ("tokenizer_config.json", lambda text: b"null", "processor"),
    "no language model": ("config.json", lambda text: text.replace('"text_config"', '"text"').encode(), "model"),
    "a size in words": ("config.json", lambda text: re.sub(r'("adapter_output_scale"): [^,]*', r'\1: "a"', text).encode(), "model"),
    "a token in words": ("generation_config.json", lambda text: re.sub(r'"eos_token_id": \[[^]]*', r'"eos_token_id": ["a"', text).encode(), "model"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named(damage, tiny_checkpoint, tmp_path):
    name, change, part = DAMAGE[damage]
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, folder)
    text = (folder / name).read_text()
    (folder / name).write_bytes(change(text))
    assert (folder / name).read_bytes() != text.encode()
    load = PARTProcessor.from_pretrained if part == "processor" else PARTForSpeechSeq2Seq.from_pretrained
    with pytest.raises((ValueError, OSError), match=f"{re.escape(str(folder))}|adapter_output_scale|text_config"):
        load(folder)


def test_a_wrong_argument_is_no_damage(tiny_checkpoint):
    with pytest.raises(TypeError, match="unexpected keyword argument 'dtipe'"):
        PARTForSpeechSeq2Seq.from_pretrained(tiny_checkpoint, dtipe="float32")


def test_a_folder_without_a_config_is_refused(tiny_checkpoint, tmp_path):
    """The defaults would be a language model of billions of parameters."""
    shutil.copy(tiny_checkpoint / "model.safetensors", tmp_path)
    for loaded in (PARTConfig, PARTForSpeechSeq2Seq):
        with pytest.raises(OSError, match=r"has no config\.json"):
            loaded.from_pretrained(tmp_path)
