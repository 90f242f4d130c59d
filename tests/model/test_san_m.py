"""SAN-M from a sound: features without torchaudio, SenseVoice's queries, and the same through every surface."""

import io

import numpy as np
import pytest
import sense_voice
import soundfile
import tiny
import torch
from architectures import build
from hypothesis import given
from hypothesis import strategies as st
from tiny_training import make_trainer, tiny_dataset
from transformers import AutoFeatureExtractor, AutoProcessor, pipeline
from transformers.models.fun_asr_nano.modeling_fun_asr_nano import FunAsrNanoEncoder

from modeling_part import PARTForSpeechSeq2Seq, PARTProcessor
from modeling_part.fbank_part import PARTFbankFeatureExtractor
from modeling_part.recipes.stages import Stage
from modeling_part.san_m_part import SenseVoiceEncoder


# `torchaudio.compliance.kaldi.fbank` (2.11) of `sense_voice.sound()`, as `FunAsrNanoFeatureExtractor` calls it:
# frames 0, 24, ..., bands 0, 16, ...
BANDS = [
    [-10.6489, -10.4269, -8.1310, -1.5168, -3.8742],
    [-10.1456, -7.3408, -7.5993, -0.2539, -3.4983],
    [-12.0777, -9.4172, -8.0936, -7.5581, -3.8416],
    [-9.1129, -7.2016, -6.8972, -4.8628, -4.3944],
    [-11.6974, -6.0948, -4.0811, -6.6456, -4.2225],
]


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> tiny.TinyParts:
    """A tiny SenseVoice and a tiny Qwen2."""
    return tiny.tiny_parts(tmp_path_factory.mktemp("parts"), "sense_voice")


@pytest.fixture(scope="module")
def checkpoint(parts, tmp_path_factory):
    """Folder of a PART with SenseVoice's encoder."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    settings = {"adapter_hidden_size": 32, "adapter_num_attention_heads": 2}
    model, processor = PARTForSpeechSeq2Seq.from_pretrained_parts(*map(str, parts), **settings)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


class TestFeatures:
    def test_kaldis_filter_banks(self):
        bands = PARTFbankFeatureExtractor().filter_banks(sense_voice.sound())
        assert bands.shape == (98, 80)
        np.testing.assert_allclose(bands[::24, ::16], BANDS, rtol=0, atol=1e-3)

    def test_digital_silence_is_the_least_energy(self):
        bands = PARTFbankFeatureExtractor().filter_banks(np.zeros(1000, np.float32))
        np.testing.assert_allclose(bands, np.log(2.0**-23), rtol=1e-6)

    @given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 8))
    def test_stacks_are_centred_and_the_edges_repeated(self, frames, stacked, stride):
        """Frame k of stack i is frame i * stride + k - (stacked - 1) // 2, the first or last where there is none."""
        extractor = PARTFbankFeatureExtractor(feature_size=2, num_frames_lfr=stacked, stride_lfr=stride)
        bands = np.stack([np.arange(frames), -np.arange(frames)], axis=1).astype(np.float32)
        stacks = extractor.stack(bands).reshape(-1, stacked, 2)
        assert len(stacks) == -(-frames // stride)
        for index, stack in enumerate(stacks):
            for place, (rising, falling) in enumerate(stack):
                expected = index * stride + place - (stacked - 1) // 2
                assert rising == -falling == min(max(expected, 0), frames - 1)

    def test_normalization_is_of_whole_stacks(self):
        plain = PARTFbankFeatureExtractor(feature_size=20)
        shift, scale = np.linspace(-1, 1, 140), np.linspace(0.5, 2, 140)
        normal = PARTFbankFeatureExtractor(feature_size=20, cmvn_shift=shift.tolist(), cmvn_scale=scale.tolist())
        clip = sense_voice.sound()
        (before,), (after,) = (extractor(clip, return_tensors="np").input_features for extractor in (plain, normal))
        np.testing.assert_allclose(after, (before + shift) * scale, rtol=1e-5, atol=1e-5)

    def test_a_batch_is_its_clips(self):
        extractor, clips = PARTFbankFeatureExtractor(), [sense_voice.sound(1.0), sense_voice.sound(0.3)]
        batch = extractor(clips, sampling_rate=16_000)
        assert batch.input_features_mask.sum(-1).tolist() == [17, 5]
        for index, clip in enumerate(clips):
            (alone,) = extractor(clip).input_features
            assert torch.equal(batch.input_features[index, : len(alone)], alone)
            assert not batch.input_features[index, len(alone) :].any()

    def test_what_cannot_be_heard_is_said(self):
        extractor = PARTFbankFeatureExtractor()
        with pytest.raises(ValueError, match="at 8000 Hz; resample it to 16000 Hz"):
            extractor(sense_voice.sound(), sampling_rate=8_000)
        with pytest.raises(ValueError, match="399 samples is shorter than the window of 400"):
            extractor(np.ones(399, np.float32))
        with pytest.raises(ValueError, match="shape"):
            extractor(np.ones((2, 1000), np.float32)[None])
        with pytest.raises(ValueError, match="`cmvn_shift` has 3 values, and a stack of 7 frames of 80 bands 560"):
            PARTFbankFeatureExtractor(cmvn_shift=[0.0] * 3)

    def test_saved_and_loaded(self, tmp_path):
        extractor = PARTFbankFeatureExtractor(feature_size=20, cmvn_shift=[0.5] * 140, waveform_scale=32768.0)
        extractor(sense_voice.sound())
        extractor.save_pretrained(tmp_path)
        loaded = AutoFeatureExtractor.from_pretrained(tmp_path)
        assert type(loaded) is PARTFbankFeatureExtractor
        assert loaded.to_dict() == extractor.to_dict()

    def test_the_settings_of_transformers_own_extractor_are_read(self, parts, tmp_path):
        """A Fun-ASR-Nano checkpoint names a class that cannot be used without torchaudio."""
        folder = tiny.tiny_parts(tmp_path, "fun_asr_nano").audio_model
        settings = (folder / "preprocessor_config.json").read_text(encoding="utf-8")
        settings = settings.replace("PARTFbankFeatureExtractor", "FunAsrNanoFeatureExtractor")
        (folder / "preprocessor_config.json").write_text(settings, encoding="utf-8")
        _, processor = PARTForSpeechSeq2Seq.from_pretrained_parts(str(folder), str(parts.language_model))
        assert type(processor.feature_extractor) is PARTFbankFeatureExtractor
        assert processor.feature_extractor.feature_size == 20


class TestEncoder:
    def test_queries_are_steps_before_the_features(self):
        """Fun-ASR-Nano's encoder on the features behind the queries gives the same frames, after four more."""
        encoder = build("sense_voice").model.audio_tower
        plain = FunAsrNanoEncoder(encoder.config).eval()
        plain.load_state_dict({name: tensor for name, tensor in encoder.state_dict().items() if "query" not in name})
        features = torch.randn(1, 9, 140)
        with torch.no_grad():
            behind = torch.cat([encoder.query_embeddings.weight[None], features], dim=1)
            expected = plain(behind, torch.ones(1, 13, dtype=torch.long)).last_hidden_state[:, 4:]
            output = encoder(features, output_hidden_states=True)
        assert torch.equal(output.last_hidden_state, expected)
        assert [states.shape[1] for states in output.hidden_states] == [9] * 4

    def test_more_steps_than_positions(self):
        model = build("sense_voice")
        model.model.audio_tower.config.max_position_embeddings = 21
        model.get_audio_features(torch.randn(1, 16, 140))
        with pytest.raises(ValueError, match="gives 21 feature steps, and SenseVoiceEncoder has 20 positions"):
            model.get_audio_features(torch.randn(1, 17, 140))


class TestSurfaces:
    """Everything that takes sound gives the same for the same sound."""

    def test_files_bytes_and_arrays(self, checkpoint, tmp_path):
        processor = AutoProcessor.from_pretrained(checkpoint)
        clip = sense_voice.sound()
        soundfile.write(tmp_path / "clip.wav", clip, 16_000, subtype="FLOAT")
        buffer = io.BytesIO()
        soundfile.write(buffer, clip, 16_000, format="WAV", subtype="FLOAT")
        expected = processor(clip)
        for audio in (tmp_path / "clip.wav", buffer.getvalue(), {"array": clip, "sampling_rate": 16_000}):
            given = processor(audio)
            assert all(torch.equal(given[name], expected[name]) for name in expected)
        assert expected["input_features"].shape == (1, 17, 140)
        assert (expected["input_ids"] == processor.audio_token_id).sum() == processor.num_audio_tokens(17) == 5

    def test_loaded_model_hears_the_same(self, checkpoint, parts):
        model = PARTForSpeechSeq2Seq.from_pretrained(checkpoint).eval()
        assert type(model.model.audio_tower) is SenseVoiceEncoder
        encoder = SenseVoiceEncoder.from_pretrained(parts.audio_model).eval()
        features = PARTProcessor.from_pretrained(checkpoint)(sense_voice.sound())["input_features"]
        with torch.no_grad():
            frames = model.get_audio_features(features).last_hidden_state
            assert torch.equal(frames, encoder(features).last_hidden_state)

    def test_long_recordings_and_streaming(self, checkpoint):
        pipe = pipeline("speech-to-text", model=str(checkpoint), max_new_tokens=6, device="cpu")
        clip = np.concatenate([sense_voice.sound()] * 7)
        output = pipe(clip, chunk_length_s=3)
        assert len(output["chunks"]) == 3 and output["text"]
        *_, streamed = pipe.stream(clip, chunk_length_s=3)
        assert streamed == output["text"]

    def test_training_steps(self, checkpoint, tmp_path):
        """The queries learn; with workers the same batches, so the same losses."""
        stage = Stage("encoder", tasks={"asr": 1.0}, learning_rates={"adapter": 1e-3, "encoder": 1e-3})
        processor, losses = PARTProcessor.from_pretrained(checkpoint), []
        for workers in (0, 2):
            model = PARTForSpeechSeq2Seq.from_pretrained(checkpoint)
            before = model.model.audio_tower.query_embeddings.weight.detach().clone()
            rows, settings = tiny_dataset(("asr",)), {"steps": 3, "dataloader_num_workers": workers}
            trainer = make_trainer(tmp_path, stage, rows, model, processor, **settings)
            trainer.train()
            assert (model.model.audio_tower.query_embeddings.weight - before).abs().max() > 1e-4
            losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        assert losses[0] == losses[1] and len(losses[0]) == 3
