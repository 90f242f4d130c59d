"""SenseVoice-Small's encoder out of FunASR's checkpoint: frame by frame what FunASR itself gives."""

import io
import json
import os
import re
import shutil
import sys
from copy import deepcopy

import numpy as np
import pytest
import sense_voice
import tiny
import tiny_training
import torch
from transformers import (
    AutoFeatureExtractor,
    AutoModel,
    FunAsrNanoConfig,
    FunAsrNanoForConditionalGeneration,
    Qwen3Config,
)

from modeling_part import PARTForSpeechSeq2Seq
from modeling_part.__main__ import main
from modeling_part.fbank_part import PARTFbankFeatureExtractor
from modeling_part.quickstart.encoders import convert_encoder


# What `funasr` 1.4.16 makes of the checkpoint and the sound of sense_voice.py: `WavFrontend` with `dither=0`, every
# fourth step and every 139th value, and `SenseVoiceSmall.inference`'s encoder without the frames of its four queries,
# every fourth frame and every fifth value; the last of half a second.
FEATURES = [
    [0.10294, 1.25533, 0.96413, 0.39281, 1.61943],
    [0.22815, 1.26234, 0.94155, 0.78637, 1.62900],
    [0.48643, 1.27448, 0.84215, 0.29999, 1.52599],
    [0.10496, 1.12231, 0.84429, 0.51601, 1.68614],
    [0.68136, 1.32863, 0.90025, 0.49986, 1.52628],
]
FRAMES = [
    [0.53572, -0.39657, -0.27050, 1.95048],
    [0.60179, -0.34920, 0.27028, 0.42465],
    [1.19910, 0.32914, 0.18324, 1.41327],
    [1.02143, 0.67092, -0.28367, 0.22780],
    [1.80482, 0.50183, -0.67417, 1.44043],
]
FRAMES_OF_HALF = [[0.72443, -0.56322, -0.12134, 1.75124], [0.21004, 0.25795, -0.30384, -1.53527]]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """FunASR's folder."""
    return sense_voice.write_checkpoint(tmp_path_factory.mktemp("SenseVoiceSmall"))


@pytest.fixture(scope="module")
def folder(source, tmp_path_factory):
    """What the command makes of it."""
    folder = tmp_path_factory.mktemp("models") / "sensevoice-small"
    main(["convert-encoder", str(source), str(folder)])
    return folder


def test_an_encoder_folder(folder):
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "model.safetensors", "preprocessor_config.json"}


def test_features_of_funasr(folder):
    features = AutoFeatureExtractor.from_pretrained(folder)(sense_voice.sound()).input_features
    assert features.shape == (1, 17, 560)
    np.testing.assert_allclose(features[0, ::4, ::139], FEATURES, rtol=0, atol=2e-4)


@torch.no_grad()
def test_frames_of_funasr(folder):
    """Of clips in a batch, the shorter one padded."""
    encoder = AutoModel.from_pretrained(folder).eval()
    inputs = AutoFeatureExtractor.from_pretrained(folder)([sense_voice.sound(1.0), sense_voice.sound(0.5)])
    frames = encoder(inputs.input_features, inputs.input_features_mask).last_hidden_state
    assert frames.shape == (2, 17, sense_voice.WIDTH) and inputs.input_features_mask.sum(-1).tolist() == [17, 8]
    np.testing.assert_allclose(frames[0, ::4, ::5], FRAMES, rtol=0, atol=1e-4)
    np.testing.assert_allclose(frames[1, :8:4, ::5], FRAMES_OF_HALF, rtol=0, atol=1e-4)


@torch.no_grad()
def test_without_the_queries_the_frames_are_others(folder):
    encoder = AutoModel.from_pretrained(folder).eval()
    features = AutoFeatureExtractor.from_pretrained(folder)(sense_voice.sound()).input_features
    encoder.query_embeddings = torch.nn.Embedding(0, 560)
    given = encoder(features).last_hidden_state[0, ::4, ::5]
    assert np.abs(given.numpy() - FRAMES).mean() > 0.1


@torch.no_grad()
def test_a_recipe_takes_the_folder(folder, tmp_path):
    language_model = tiny.tiny_parts(tmp_path).language_model
    model, processor = PARTForSpeechSeq2Seq.from_pretrained_parts(str(folder), str(language_model))
    inputs = processor(sense_voice.sound())
    frames = model.get_audio_features(inputs["input_features"]).last_hidden_state
    np.testing.assert_allclose(frames[0, ::4, ::5], FRAMES, rtol=0, atol=1e-4)


def test_the_recipe_with_sensevoice_runs(folder, tmp_path, tiny_corpus):
    """Its plan, dry, on other data and with a small language model."""
    parts = tiny.TinyParts(folder, tiny.tiny_parts(tmp_path).language_model)
    adapter = {"adapter_conv_stride": 1, "adapter_conv_kernel_size": 3, "adapter_hidden_size": 32}
    laid_over = {"stages": None, "bf16": False, "adapter": adapter, "dataloader_num_workers": 0}
    recipe = tiny_training.write_recipe(tmp_path, parts, tiny_corpus, **laid_over)
    command = [sys.executable, "train_part.py", "part_sensevoice", str(recipe), "--dry_run", "true"]
    result = tiny_training.execute([*command, "--frozen_dtype", "float32"])
    assert result.returncode == 0, result.stdout[-3000:]
    assert "dry run: loss" in result.stdout


@pytest.fixture(scope="module")
def fun_asr_nano(tmp_path_factory):
    """A whole tiny Fun-ASR-Nano, as transformers saves it."""
    folder = tmp_path_factory.mktemp("fun_asr_nano")
    text = Qwen3Config(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, head_dim=8
    )
    adaptor = {"hidden_size": 16, "intermediate_size": 4, "num_attention_heads": 2, "num_hidden_layers": 1}
    config = FunAsrNanoConfig(
        audio_config=tiny.tiny_audio_config("fun_asr_nano"),
        text_config=text,
        adaptor_config={**adaptor, "projector_hidden_size": 8},
        audio_token_id=31,
    )
    torch.manual_seed(0)
    FunAsrNanoForConditionalGeneration(config).save_pretrained(folder)
    settings = {
        **PARTFbankFeatureExtractor(feature_size=20).to_dict(),
        "feature_extractor_type": "FunAsrNanoFeatureExtractor",
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


class TestFunAsrNano:
    @torch.no_grad()
    def test_its_encoder(self, fun_asr_nano, tmp_path):
        convert_encoder(fun_asr_nano, tmp_path / "encoder")
        encoder = AutoModel.from_pretrained(tmp_path / "encoder").eval()
        whole = FunAsrNanoForConditionalGeneration.from_pretrained(fun_asr_nano).eval()
        inputs = AutoFeatureExtractor.from_pretrained(tmp_path / "encoder")(sense_voice.sound())
        assert inputs.input_features.shape == (1, 17, 140)
        expected = whole.get_audio_features(**inputs).last_hidden_state
        assert torch.equal(encoder(**inputs).last_hidden_state, expected)

    def test_another_encoder_needs_no_conversion(self, tiny_parts, tmp_path):
        with pytest.raises(
            ValueError, match="holds an encoder of type 'whisper', which `audio_model:` takes as it is"
        ):
            convert_encoder(tiny_parts.audio_model, tmp_path / "encoder")
        assert not (tmp_path / "encoder").exists()


def saved(content, **options) -> bytes:
    """What `torch.save` writes."""
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def test_weights_as_older_versions_of_torch_saved_them(folder, tmp_path):
    older = sense_voice.write_checkpoint(tmp_path / "source")
    (older / "model.pt").write_bytes(saved(sense_voice.tensors(), _use_new_zipfile_serialization=False))
    convert_encoder(older, tmp_path / "encoder")
    written = [(one / "model.safetensors").read_bytes() for one in (folder, tmp_path / "encoder")]
    assert written[0] == written[1]


class TestRefusals:
    @pytest.mark.parametrize(
        ("section", "name", "value", "message"),
        [
            (None, "model", "FunASRNano", "`model` is 'FunASRNano', not 'SenseVoiceSmall'"),
            ("encoder_conf", "sanm_shfit", 5, "`encoder_conf.sanm_shfit` is 5, not 0"),
            ("encoder_conf", "tp_blocks", 0, "`encoder_conf.tp_blocks` is 0"),
            ("encoder_conf", "num_blocks", 4, "are not those of SenseVoiceEncoder"),
            ("frontend_conf", "upsacle_samples", False, "`frontend_conf.upsacle_samples` is False, not True"),
            ("frontend_conf", "n_mels", 40, "has 560 values for <AddShift>, and the features have 280"),
        ],
    )
    def test_other_settings(self, source, tmp_path, section, name, value, message):
        settings = deepcopy(sense_voice.SETTINGS)
        (settings if section is None else settings[section])[name] = value
        folder = sense_voice.write_checkpoint(tmp_path / "source", settings)
        with pytest.raises(ValueError, match=message):
            convert_encoder(folder, tmp_path / "encoder")

    def test_settings_that_are_missing(self, tmp_path):
        settings = deepcopy(sense_voice.SETTINGS)
        del settings["frontend_conf"]["lfr_n"], settings["encoder_conf"]["num_blocks"]
        folder = sense_voice.write_checkpoint(tmp_path / "source", settings)
        with pytest.raises(ValueError, match="`encoder_conf` does not say num_blocks"):
            convert_encoder(folder, tmp_path / "encoder")

    def test_other_tensors(self, tmp_path):
        weights = sense_voice.tensors()
        weights["encoder.stranger.weight"] = weights.pop("encoder.tp_norm.bias")
        weights["encoder.encoders.0.norm1.weight"] = torch.ones(3)
        folder = sense_voice.write_checkpoint(tmp_path / "source", weights=weights)
        with pytest.raises(ValueError) as error:
            convert_encoder(folder, tmp_path / "encoder")
        for part in (
            "1 missing (layers.4.final_layernorm.bias)",
            "1 unexpected (encoder.stranger.weight)",
            "1 of another",
        ):
            assert part in str(error.value)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_tensors_that_are_not_finite(self, source, tmp_path, value):
        weights = sense_voice.tensors()
        weights["encoder.tp_norm.bias"][0] = value
        folder = sense_voice.write_checkpoint(tmp_path / "source", weights=weights)
        with pytest.raises(
            ValueError, match=r"1 tensors .* not finite, such as layers\.4\.final_layernorm\.bias: fetch"
        ):
            convert_encoder(folder, tmp_path / "encoder")
        assert not (tmp_path / "encoder").exists()
        cmvn = source / "am.mvn"
        shutil.copytree(source, tmp_path / "other")
        numbers = re.sub(r"<LearnRateCoef> 0 \[ \S+", f"<LearnRateCoef> 0 [ {value}", cmvn.read_text(), count=1)
        assert numbers != cmvn.read_text()
        (tmp_path / "other" / "am.mvn").write_text(numbers)
        with pytest.raises(ValueError, match="values for <AddShift> that are not finite"):
            convert_encoder(tmp_path / "other", tmp_path / "encoder")

    @pytest.mark.parametrize(
        ("name", "change", "message"),
        [
            ("model.pt", lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "`git lfs pull`"),
            ("model.pt", lambda _: b"", "no checkpoint of torch, or not all of it"),
            ("model.pt", lambda whole: whole[:-2000], "no checkpoint of torch, or not all of it"),
            ("model.pt", lambda _: saved([torch.ones(2)]), "holds a list, not tensors by name"),
            ("model.pt", lambda _: saved({"embed.weight": torch.ones(3, 560)}), "are not those of SenseVoiceEncoder"),
            ("config.yaml", lambda _: b"model: [", "config.yaml is no YAML"),
            ("config.yaml", lambda _: b"- SenseVoiceSmall", "`model` is None"),
            ("config.yaml", lambda whole: whole + b"encoder_conf: small\n", "`encoder_conf` does not say"),
            ("config.yaml", lambda whole: whole + b"frontend_conf:\n", "`frontend_conf` does not say"),
        ],
    )
    def test_files_that_are_damaged_or_others(self, tmp_path, name, change, message):
        path = sense_voice.write_checkpoint(tmp_path / "source") / name
        path.write_bytes(change(path.read_bytes()))
        with pytest.raises(ValueError, match=message):
            convert_encoder(tmp_path / "source", tmp_path / "encoder")

    def test_a_pickle_that_runs_code_is_not_opened(self, tmp_path):
        class Stranger:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "ran"),)

        folder = sense_voice.write_checkpoint(tmp_path / "source", weights={"embed.weight": Stranger()})
        with pytest.raises(ValueError, match=r"model.pt holds more than tensors, and is not read"):
            convert_encoder(folder, tmp_path / "encoder")
        assert not (tmp_path / "ran").exists()

    def test_a_folder_that_holds_something(self, source, tmp_path):
        (tmp_path / "mine.txt").write_text("mine")
        with pytest.raises(FileExistsError, match="is no empty folder; name a new one"):
            convert_encoder(source, tmp_path)
