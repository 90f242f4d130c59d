"""The configuration: its checks, its round trip, and the audio-token-length formula against the encoders themselves."""

import configparser
import re
import runpy

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModel, Wav2Vec2BertConfig
from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2Model

import modeling_part
from modeling_part import requirements_part
from modeling_part.configuration_part import PARTConfig, convolved_length
from modeling_part.requirements_part import OLDEST_TRANSFORMERS


def build(audio_kind: str = "whisper", **settings) -> PARTConfig:
    settings = {"adapter_hidden_size": 16, "adapter_num_attention_heads": 2, **settings}
    return PARTConfig(audio_config=tiny.tiny_audio_config(audio_kind), text_config=tiny.tiny_text_config(), **settings)


class TestValidation:
    @pytest.mark.parametrize(
        ("settings", "told"),
        [
            ({"adapter_hidden_size": 0}, "`adapter_hidden_size` is 0"),
            ({"adapter_hidden_size": "512"}, "`adapter_hidden_size` is '512'"),
            ({"adapter_conv_stride": 2.0}, "`adapter_conv_stride` is 2.0"),
            ({"adapter_hidden_size": 15}, "not a multiple of `adapter_num_attention_heads`"),
            ({"adapter_num_attention_heads": 0}, "`adapter_num_attention_heads` is 0"),
            ({"adapter_intermediate_size": -1}, "`adapter_intermediate_size` is -1"),
            ({"adapter_num_hidden_layers": -1}, "`adapter_num_hidden_layers` is -1"),
            ({"adapter_conv_stride": 0}, "`adapter_conv_stride` is 0"),
            ({"adapter_conv_kernel_size": 4}, "use 5"),
            ({"adapter_conv_kernel_size": 3, "adapter_conv_stride": 8}, "use 9"),
            ({"adapter_dropout": 1.0}, "`adapter_dropout` is 1.0"),
            ({"adapter_output_scale": 0.0}, "`adapter_output_scale` is 0.0"),
            ({"audio_token_id": 259}, "`audio_token_id` is 259"),
            ({"audio_token_id": -1}, "`audio_token_id` is -1"),
        ],
    )
    def test_impossible_values_name_the_field(self, settings, told):
        with pytest.raises(ValueError, match=told):
            build(**settings)

    def test_the_encoders_own_adapter_is_refused(self):
        with pytest.raises(ValueError, match="set `add_adapter=False`"):
            PARTConfig(
                audio_config=tiny.tiny_audio_config("wav2vec2", add_adapter=True), text_config=tiny.tiny_text_config()
            )

    def test_another_architecture_is_refused(self, tmp_path):
        tiny.tiny_audio_config().save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="'whisper', not of 'part'"):
            PARTConfig.from_pretrained(tmp_path)

    def test_layer_drop_and_spec_augment_are_off(self):
        audio = tiny.tiny_audio_config("wav2vec2", layerdrop=0.3, apply_spec_augment=True)
        config = PARTConfig(audio_config=audio, text_config=tiny.tiny_text_config())
        assert config.audio_config.layerdrop == 0.0
        assert config.audio_config.apply_spec_augment is False
        whisper = tiny.tiny_audio_config(encoder_layerdrop=0.3)
        assert (
            PARTConfig(audio_config=whisper, text_config=tiny.tiny_text_config()).audio_config.encoder_layerdrop == 0
        )


class TestRoundTrip:
    @pytest.mark.parametrize("audio_kind", tiny.AUDIO_KINDS)
    @pytest.mark.parametrize("text_kind", tiny.TEXT_KINDS)
    def test_saved_and_loaded_by_the_auto_class(self, audio_kind, text_kind, tmp_path):
        config = PARTConfig(
            audio_config=tiny.tiny_audio_config(audio_kind),
            text_config=tiny.tiny_text_config(text_kind),
            adapter_conv_stride=2,
            variable_length=False,
            audio_token_id=7,
        )
        config.save_pretrained(tmp_path)
        loaded = AutoConfig.from_pretrained(tmp_path)
        assert type(loaded) is modeling_part.PARTConfig
        assert loaded.to_diff_dict() == config.to_diff_dict()
        assert loaded.tie_word_embeddings is (text_kind == "llama")
        assert loaded.adapter_intermediate_size == 4 * loaded.adapter_hidden_size

    def test_sub_configurations_may_be_dictionaries(self):
        config = PARTConfig(
            audio_config=tiny.tiny_audio_config().to_dict(), text_config=tiny.tiny_text_config().to_dict()
        )
        assert config.encoder_hidden_size == 16
        assert config.encoder_num_hidden_layers == 2
        assert config.text_config.hidden_size == 32


def reference_whisper(length: int) -> int:
    """OpenAI's encoder: conv1 keeps the length, conv2 halves it, rounding up."""
    return (length + 1) // 2


class TestLengths:
    def test_literal_values(self):
        # 3 s: 300 mel frames, 150 encoder frames, 38 tokens; 1 s of Qwen2-Audio: 100 -> 50 -> 25 -> 7 tokens.
        assert convolved_length(300, [[3, 1, 1], [3, 2, 1]]) == 150
        assert convolved_length(300, [[3, 1, 1], [3, 2, 1], [5, 4, 2]]) == 38
        assert convolved_length(100, build("qwen2_audio").audio_token_convolutions) == 7
        assert convolved_length(3000, build().audio_token_convolutions) == 375  # 12.5 Hz over 30 s
        # 50 Hz for wav2vec2: 10 s of samples give 499 frames (its convolutions are not padded).
        assert convolved_length(160_000, build("wav2vec2").encoder_convolutions) == 499
        assert convolved_length(77, build("fun_asr_nano").encoder_convolutions) == 77

    @given(st.integers(1, 4000), st.integers(1, 8), st.integers(0, 3))
    @settings(max_examples=100, deadline=None)
    def test_is_torchs_convolution(self, length, stride, extra):
        kernel = stride + 1 - stride % 2 + 2 * extra
        convolution = torch.nn.Conv1d(1, 1, kernel, stride=stride, padding=(kernel - 1) // 2)
        config = build(adapter_conv_stride=stride, adapter_conv_kernel_size=kernel)
        with torch.no_grad():
            expected = convolution(torch.zeros(1, 1, length)).shape[-1]
        assert convolved_length(length, [config.adapter_convolution]) == expected == -(-length // stride)

    @given(st.lists(st.integers(1, 3000), min_size=1, max_size=8))
    def test_tensors_and_integers_agree(self, lengths):
        convolutions = build("qwen2_audio").audio_token_convolutions
        assert convolved_length(torch.tensor(lengths), convolutions).tolist() == [
            convolved_length(length, convolutions) for length in lengths
        ]

    @given(st.integers(1, 3000))
    def test_whisper(self, length):
        assert convolved_length(length, build().encoder_convolutions) == reference_whisper(length)

    @given(st.integers(2, 3000))
    def test_qwen2_audio_agrees_with_transformers(self, length):
        # The method reads nothing from the encoder, so none is built.
        _, expected = Qwen2AudioEncoder._get_feat_extract_output_lengths(None, torch.tensor(length))
        assert convolved_length(length, build("qwen2_audio").encoder_convolutions) == int(expected)

    @given(st.integers(400, 480_000))
    @settings(deadline=None)
    def test_wav2vec2_agrees_with_transformers(self, length):
        config = build("wav2vec2")
        model = WAV2VEC2.setdefault("model", Wav2Vec2Model(config.audio_config))
        expected = model._get_feat_extract_output_lengths(torch.tensor(length))
        assert convolved_length(length, config.encoder_convolutions) == int(expected)

    @given(st.integers(1, 60))
    @settings(max_examples=20, deadline=None)
    def test_w2v_bert_keeps_the_length(self, length):
        audio = Wav2Vec2BertConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            feature_projection_input_dim=8,
        )
        model = WAV2VEC2.setdefault("bert", AutoModel.from_config(audio).eval())
        with torch.no_grad():
            frames = model(torch.randn(1, length, 8)).last_hidden_state.shape[1]
        config = PARTConfig(audio_config=audio, text_config=tiny.tiny_text_config())
        assert convolved_length(length, config.encoder_convolutions) == frames == length


WAV2VEC2 = {}  # models that hypothesis' examples share


def test_an_older_transformers_is_refused_with_the_one_that_is_needed(monkeypatch):
    monkeypatch.delattr("transformers.configuration_utils.SubConfigSpec")
    monkeypatch.setattr("transformers.__version__", "5.17.0")
    with pytest.raises(
        ImportError, match=f"needs transformers {OLDEST_TRANSFORMERS} or newer, and this is 5.17.0: `pip"
    ):
        runpy.run_path(requirements_part.__file__)


def test_the_transformers_that_travelling_code_asks_for_is_that_of_the_package():
    parser = configparser.ConfigParser()
    parser.read(tiny.REPOSITORY / "setup.cfg", encoding="utf-8")
    (wanted,) = re.findall(r"^transformers >= ([\d.]+),", parser["options"]["install_requires"], flags=re.MULTILINE)
    assert wanted == OLDEST_TRANSFORMERS
