"""The encoders and the adapter: padding that changes nothing, and transformers' own encoders as the reference."""

import hypothesis
import pytest
import torch
from architectures import (
    AUDIO_CONFIGS,
    AUDIO_TOKEN,
    ENCODERS,
    LENGTHS,
    PADDING_HEARING_CONFIGS,
    batch_clips,
    build,
    generated,
    inputs_of,
    random_clips,
    row_of,
    tokens_of,
)
from hypothesis import strategies as st
from torch import nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder
from transformers.models.voxtral.modeling_voxtral import VoxtralEncoder
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from modeling_part.configuration_part import convolved_length
from modeling_part.encoder_part import PARTQwen2AudioEncoder, PARTVoxtralEncoder, PARTWhisperEncoder


class TestPadding:
    """A clip's results do not depend on what it is batched with, nor on how far it is padded."""

    @pytest.mark.parametrize("extra", [0, 13])
    @pytest.mark.parametrize("kind", [*ENCODERS, *PADDING_HEARING_CONFIGS])
    @torch.no_grad()
    def test_frames_embeddings_and_logits(self, kind, extra):
        model = build(kind)
        if kind in PADDING_HEARING_CONFIGS:  # as they are made, they hardly mix anything
            for parameter in model.model.audio_tower.parameters():
                parameter.mul_(3.0)
        inputs = inputs_of(model, kind, random_clips(kind, LENGTHS), extra=extra)
        audio = {name: inputs[name] for name in ("input_features", "input_features_mask")}
        output = model.get_audio_features(**audio)
        logits = model(**inputs).logits
        counts = (inputs["input_ids"] == AUDIO_TOKEN).sum(-1).tolist()
        rows = output.pooler_output.split(counts)
        for index in range(len(LENGTHS)):
            alone = row_of(inputs, index)
            expected = model.get_audio_features(alone["input_features"], None)
            frames = expected.last_hidden_state[0]
            torch.testing.assert_close(output.last_hidden_state[index, : len(frames)], frames, atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(rows[index], expected.pooler_output, atol=2e-5, rtol=1e-4)
            masked = model.get_audio_features(alone["input_features"], alone["input_features_mask"])
            torch.testing.assert_close(masked.pooler_output, expected.pooler_output, atol=2e-5, rtol=1e-4)
            kept = inputs["attention_mask"][index].bool()
            torch.testing.assert_close(logits[index][kept], model(**alone).logits[0], atol=5e-5, rtol=1e-4)

    @pytest.mark.parametrize("kind", ENCODERS)
    def test_the_length_formula_is_what_the_encoders_give(self, kind):
        model = build(kind)

        @hypothesis.given(st.integers(12, 397))
        @hypothesis.settings(max_examples=15, deadline=None)
        @torch.no_grad()
        def check(length):
            (clip,) = random_clips(kind, [length])
            features, mask = batch_clips(kind, [clip], extra=3)
            output = model.get_audio_features(features, mask)
            alone = model.get_audio_features(batch_clips(kind, [clip])[0])
            frames = convolved_length(len(clip), model.config.encoder_convolutions)
            assert alone.last_hidden_state.shape == (1, frames, 16)
            assert output.pooler_output.shape == alone.pooler_output.shape == (tokens_of(model, clip), 32)

        check()

    @pytest.mark.parametrize("kind", ENCODERS)
    @torch.no_grad()
    def test_states_and_attentions_of_the_layers(self, kind):
        model = build(kind)
        model.set_attn_implementation("eager")
        features, mask = batch_clips(kind, random_clips(kind, LENGTHS))
        output = model.get_audio_features(features, mask, output_attentions=True, output_hidden_states=True)
        batch, frames, width = output.last_hidden_state.shape
        assert len(output.hidden_states) == len(output.attentions) + 1 == model.config.encoder_num_hidden_layers + 1
        last = output.attentions[-1]
        assert last.shape[0] == batch and last.shape[-1] == last.shape[-2]
        assert output.hidden_states[-1].shape[::2] == (batch, width)
        kept = convolved_length(mask.sum(-1), model.config.encoder_convolutions)
        if last.shape[-1] == frames:  # Qwen2-Audio pools after its layers
            for row, length in enumerate(kept.tolist()):
                shares = last[row, :, :length, :length].sum(-1)
                torch.testing.assert_close(shares, torch.ones_like(shares))
        plain = model.get_audio_features(features, mask)
        torch.testing.assert_close(output.pooler_output, plain.pooler_output, atol=1e-6, rtol=1e-5)

    @pytest.mark.parametrize("kind", ["whisper", "wav2vec2_group"])
    @torch.no_grad()
    def test_a_single_clip_with_padding(self, kind):
        model = build(kind)
        inputs = inputs_of(model, kind, random_clips(kind, [33]), extra=9)
        alone = row_of(inputs, 0)
        padded = model.get_audio_features(inputs["input_features"], inputs["input_features_mask"]).pooler_output
        expected = model.get_audio_features(alone["input_features"]).pooler_output
        torch.testing.assert_close(padded, expected, atol=2e-5, rtol=1e-4)

    @torch.no_grad()
    def test_the_padding_values_do_not_matter(self):
        model = build()
        inputs = inputs_of(model, "whisper", random_clips("whisper", LENGTHS))
        expected = model(**inputs).logits
        padding = inputs["input_features_mask"][:, None] == 0
        inputs["input_features"] = inputs["input_features"].masked_fill(padding, 7.0)
        torch.testing.assert_close(model(**inputs).logits, expected, atol=0, rtol=0)

    @pytest.mark.parametrize(
        "kind", ["whisper", "qwen2_audio", "sense_voice", "wav2vec2", "wav2vec2_group", "w2v_bert"]
    )
    def test_greedy_generation(self, kind):
        model = build(kind)
        inputs = inputs_of(model, kind, random_clips(kind, LENGTHS), extra=5)
        batched = generated(model, inputs, max_new_tokens=8)
        for index in range(len(LENGTHS)):
            assert generated(model, row_of(inputs, index), max_new_tokens=8)[0] == batched[index]

    @pytest.mark.parametrize("kind", ["whisper", "fun_asr_nano", "sense_voice"])
    @torch.no_grad()
    def test_eager_attention_equals_sdpa(self, kind):
        model = build(kind)
        inputs = inputs_of(model, kind, random_clips(kind, LENGTHS))
        expected = model(**inputs).logits[inputs["attention_mask"].bool()]
        model.set_attn_implementation("eager")
        given = model(**inputs).logits[inputs["attention_mask"].bool()]
        torch.testing.assert_close(given, expected, atol=5e-5, rtol=1e-4)


class TestOriginalEncoders:
    """On the original 30 s window (here 4 s) the encoders are transformers' own."""

    @pytest.mark.parametrize(
        ("kind", "ours", "original"),
        [
            ("whisper", PARTWhisperEncoder, WhisperEncoder),
            ("qwen2_audio", PARTQwen2AudioEncoder, Qwen2AudioEncoder),
            ("voxtral", PARTVoxtralEncoder, VoxtralEncoder),
        ],
    )
    @torch.no_grad()
    def test_full_window(self, kind, ours, original):
        torch.manual_seed(0)
        reference = original(AUDIO_CONFIGS[kind]()).eval()
        model = build(kind)
        model.model.audio_tower.load_state_dict(reference.state_dict())
        assert type(model.model.audio_tower) is ours
        features, mask = batch_clips(kind, random_clips(kind, [400, 400]))
        expected = reference(features).last_hidden_state
        assert torch.equal(model.model.encode(features).last_hidden_state, expected)
        # With a mask of ones attention takes another path of the same arithmetic.
        torch.testing.assert_close(
            model.model.encode(features, mask).last_hidden_state, expected, atol=1e-5, rtol=1e-5
        )

    @pytest.mark.parametrize(("kind", "original"), [("whisper", WhisperEncoder), ("qwen2_audio", Qwen2AudioEncoder)])
    @torch.no_grad()
    def test_opting_out_attends_to_the_padding_as_the_original_does(self, kind, original):
        model = build(kind, variable_length=False)
        reference = original(model.config.audio_config).eval()
        reference.load_state_dict(model.model.audio_tower.state_dict())
        features, mask = batch_clips(kind, random_clips(kind, [400, 100]))
        frames = model.get_audio_features(features, mask).last_hidden_state
        assert torch.equal(frames, reference(features).last_hidden_state)

    def test_longer_than_the_positions(self):
        features, mask = batch_clips("whisper", random_clips("whisper", [402]))
        with pytest.raises(ValueError, match="gives 201 encoder frames, but PARTWhisperEncoder has 200 positions"):
            build().get_audio_features(features, mask)

    def test_wrapped_classes_are_present(self):
        """FSDP and device maps wrap by these names; a name that is not there raises."""
        for kind in ("whisper", "qwen2_audio", "voxtral"):
            model = build(kind)
            present = {type(module).__name__ for module in model.modules()}
            assert set(model._no_split_modules) <= present, kind


@pytest.fixture
def varlen_attention(monkeypatch):
    """An attention that runs on a CPU and takes its arguments as flash attention's kernels do."""

    def attend(module, query, key, value, attention_mask, scaling, dropout=0.0, cu_seq_lens_q=None, **kwargs):
        assert attention_mask is None and kwargs["max_length_q"] == cu_seq_lens_q.diff().max()
        pieces = (tensor.split(cu_seq_lens_q.diff().tolist(), dim=2) for tensor in (query, key, value))
        attended = [
            nn.functional.scaled_dot_product_attention(*clip, scale=scaling) for clip in zip(*pieces, strict=True)
        ]
        return torch.cat(attended, dim=2).transpose(1, 2), None

    name = "varlen_loop"
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, name, attend)
    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, name, flash_attention_mask)
    return name


class TestPackedClips:
    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    @pytest.mark.parametrize("audio", ["whisper", "qwen2_audio", "voxtral", "fun_asr_nano"])
    def test_clips_packed_into_one_row(self, audio, attention):
        """The same frames, embeddings and gradients; the layers of Whisper's encoder and of the adapter see no padding."""
        model = build(audio)
        model.set_attn_implementation(attention)
        features, mask = batch_clips(audio, random_clips(audio, [40, 64, 22]))
        assert mask.min() == 0
        plain = model.get_audio_features(features, mask)
        plain.pooler_output.square().mean().backward()
        expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        rows = {}

        def note(part):
            return lambda module, arguments, output: rows.update({part: arguments[0].shape[0]})

        hooks = [model.model.adapter.layers[0].register_forward_hook(note("adapter"))]
        if audio != "fun_asr_nano":  # whose memory blocks mix neighbours: its clips stay padded
            hooks.append(model.model.audio_tower.layers[0].register_forward_hook(note("encoder")))
        packed = model.get_audio_features(features, mask, padding_free=True)
        packed.pooler_output.square().mean().backward()
        for hook in hooks:
            hook.remove()
        assert set(rows.values()) == {1} and len(rows) == len(hooks)
        torch.testing.assert_close(packed.pooler_output, plain.pooler_output, rtol=1e-4, atol=1e-5)
        assert expected and {name for name, p in model.named_parameters() if p.grad is not None} == set(expected)
        for name, gradient in expected.items():
            torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-3, atol=1e-5)

    @pytest.mark.parametrize("audio", ["whisper", "qwen2_audio"])
    def test_packed_clips_reach_the_kernels_with_their_bounds(self, audio, varlen_attention):
        """Without a mask, as flash attention takes them: its arguments alone keep the clips apart."""
        model = build(audio)
        features, mask = batch_clips(audio, random_clips(audio, [40, 64, 22]))
        expected = model.get_audio_features(features, mask).pooler_output
        for part in (model.model.audio_tower, model.model.adapter):
            part.config._attn_implementation = varlen_attention
        packed = model.get_audio_features(features, mask, padding_free=True).pooler_output
        torch.testing.assert_close(packed, expected, rtol=1e-4, atol=1e-5)
