"""The model: padding, loss, generation, saving, and the language models and encoders that it is built from.

References are independent of the model: clips run one by one, transformers' own encoders, a hand-written
cross-entropy loop, the original language model.
"""

import itertools
import math

import hypothesis
import pytest
import tiny
import torch
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    CohereConfig,
    FalconH1Config,
    Gemma2Config,
    Gemma3TextConfig,
    GenerationConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    HubertConfig,
    PhiConfig,
    Wav2Vec2BertConfig,
    WavLMConfig,
)
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from modeling_part import PARTConfig, PARTForSpeechSeq2Seq, PARTModel, PARTProcessor
from modeling_part.configuration_part import convolved_length
from modeling_part.encoder_part import PARTQwen2AudioEncoder, PARTWhisperEncoder


AUDIO_TOKEN = 259
VOCABULARY = 264


def wav2vec2_family(config_class, norm: str):
    """A tiny encoder of the family; `norm` is that of its convolutions: "layer" or "group"."""
    base = tiny.tiny_audio_config("wav2vec2").to_dict()
    settings = {name: base[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "conv_dim")}
    settings |= {name: base[name] for name in ("intermediate_size", "num_conv_pos_embeddings", "vocab_size")}
    settings |= {"num_conv_pos_embedding_groups": 2, "do_stable_layer_norm": norm == "layer"}
    return config_class(feat_extract_norm=norm, conv_bias=norm == "layer", **settings)


AUDIO_CONFIGS = {
    "whisper": tiny.tiny_audio_config,
    "qwen2_audio": lambda: tiny.tiny_audio_config("qwen2_audio"),
    "fun_asr_nano": lambda: tiny.tiny_audio_config("fun_asr_nano"),
    "wav2vec2": lambda: tiny.tiny_audio_config("wav2vec2"),
    "wav2vec2_group": lambda: wav2vec2_family(type(tiny.tiny_audio_config("wav2vec2")), "group"),
    "hubert": lambda: wav2vec2_family(HubertConfig, "layer"),
    "hubert_group": lambda: wav2vec2_family(HubertConfig, "group"),
    "wavlm": lambda: wav2vec2_family(WavLMConfig, "layer"),
    "w2v_bert": lambda: Wav2Vec2BertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        feature_projection_input_dim=24,
    ),
}

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
TEXT_CONFIGS = {
    "qwen2": lambda: tiny.tiny_text_config(vocab_size=VOCABULARY),
    "llama_tied": lambda: tiny.tiny_text_config("llama", vocab_size=VOCABULARY),
    # Learned positions, and a base model that is not called `model`.
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=256, bos_token_id=1, eos_token_id=2
    ),
    "gpt_neox": lambda: GPTNeoXConfig(**SHAPE),
    "phi": lambda: PhiConfig(**SHAPE),  # its head has a bias
    "granite": lambda: GraniteConfig(**SHAPE, num_key_value_heads=2, logits_scaling=4.0, embedding_multiplier=3.0),
    "cohere": lambda: CohereConfig(**SHAPE, num_key_value_heads=2, logit_scale=0.5),
    "gemma2": lambda: Gemma2Config(
        **SHAPE, num_key_value_heads=2, head_dim=8, final_logit_softcapping=0.05, sliding_window=16
    ),
    "gemma3": lambda: Gemma3TextConfig(**SHAPE, num_key_value_heads=2, head_dim=8),
}


def build(audio: str = "whisper", text: str = "qwen2", seed: int = 0, **settings) -> PARTForSpeechSeq2Seq:
    torch.manual_seed(seed)
    defaults = {"adapter_hidden_size": 16, "adapter_num_attention_heads": 2, "audio_token_id": AUDIO_TOKEN}
    # Audio embeddings as large as a trained model's, so that mistakes about them show in the logits.
    defaults["adapter_output_scale"] = 1.0
    config = PARTConfig(
        audio_config=AUDIO_CONFIGS[audio](), text_config=TEXT_CONFIGS[text](), **{**defaults, **settings}
    )
    model = PARTForSpeechSeq2Seq(config).eval()
    for name, parameter in model.named_parameters():
        if name == "lm_head.bias":
            nn.init.normal_(parameter)
    return model


def random_clips(kind: str, lengths: list[int], seed: int = 0) -> list[torch.Tensor]:
    """Unpadded features of each clip, time first: mel frames, or samples for the wav2vec2 family."""
    generator = torch.Generator().manual_seed(seed)
    width = {"whisper": (20,), "qwen2_audio": (20,), "fun_asr_nano": (140,), "w2v_bert": (24,)}.get(kind, ())
    scale = 1 if width else 40
    return [torch.randn(length * scale, *width, generator=generator) for length in lengths]


def batch_clips(kind: str, clips: list[torch.Tensor], extra: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips -> features in the encoder's layout, padded with zeros by `extra` more steps, and the mask."""
    features = nn.utils.rnn.pad_sequence(
        [*clips, clips[0].new_zeros(max(map(len, clips)) + extra, *clips[0].shape[1:])]
    )
    features = features.transpose(0, 1)[:-1]
    mask = (torch.arange(features.shape[1]) < torch.tensor([[len(clip)] for clip in clips])).long()
    return (features.transpose(1, 2) if kind in ("whisper", "qwen2_audio") else features), mask


def tokens_of(model: PARTForSpeechSeq2Seq, clip: torch.Tensor) -> int:
    return convolved_length(len(clip), model.config.audio_token_convolutions)


def prompts_of(model, clips: list[torch.Tensor], seed: int = 0) -> list[torch.Tensor]:
    """A prompt of text, the clip's placeholders and text, for each clip."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for clip in clips:
        words = torch.randint(5, 250, (7,), generator=generator)
        rows.append(torch.cat([words[:3], torch.full((tokens_of(model, clip),), AUDIO_TOKEN), words[3:]]))
    return rows


def pad_rows(rows: list[torch.Tensor], side: str = "left", extra: int = 0, value: int = 0):
    """Rows of ids -> `(B, L)` ids and mask."""
    longest = max(map(len, rows)) + extra
    ids, mask = torch.full((len(rows), longest), value), torch.zeros(len(rows), longest, dtype=torch.long)
    for index, row in enumerate(rows):
        where = slice(longest - len(row), longest) if side == "left" else slice(0, len(row))
        ids[index, where], mask[index, where] = row, 1
    return ids, mask


def inputs_of(model, kind: str, clips, side: str = "left", extra: int = 0) -> dict[str, torch.Tensor]:
    features, features_mask = batch_clips(kind, clips, extra * 40 if clips[0].ndim == 1 else extra)
    ids, mask = pad_rows(prompts_of(model, clips), side, extra)
    return dict(input_ids=ids, attention_mask=mask, input_features=features, input_features_mask=features_mask)


def row_of(inputs: dict, index: int) -> dict[str, torch.Tensor]:
    """One row of a batch, without any padding: what a user with a single clip gives."""
    kept = inputs["attention_mask"][index].bool()
    ids = inputs["input_ids"][index][kept][None]
    length = int(inputs["input_features_mask"][index].sum())
    features = inputs["input_features"][index : index + 1]
    features = features[:, :, :length] if features.ndim == 3 and features.shape[1] == 20 else features[:, :length]
    ones = torch.ones(1, length, dtype=torch.long)
    return dict(input_ids=ids, attention_mask=torch.ones_like(ids), input_features=features, input_features_mask=ones)


LENGTHS = [90, 41, 17]
ENCODERS = list(AUDIO_CONFIGS)


class TestPadding:
    """A clip's results do not depend on what it is batched with, nor on how far it is padded."""

    @pytest.mark.parametrize("extra", [0, 13])
    @pytest.mark.parametrize("kind", ENCODERS)
    @torch.no_grad()
    def test_frames_embeddings_and_logits(self, kind, extra):
        model = build(kind)
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
        "kind", ["whisper", "qwen2_audio", "fun_asr_nano", "wav2vec2", "wav2vec2_group", "w2v_bert"]
    )
    def test_greedy_generation(self, kind):
        model = build(kind)
        inputs = inputs_of(model, kind, random_clips(kind, LENGTHS), extra=5)
        batched = generated(model, inputs, max_new_tokens=8)
        for index in range(len(LENGTHS)):
            assert generated(model, row_of(inputs, index), max_new_tokens=8)[0] == batched[index]

    @pytest.mark.parametrize("kind", ["whisper", "fun_asr_nano"])
    @torch.no_grad()
    def test_eager_attention_equals_sdpa(self, kind):
        model = build(kind)
        inputs = inputs_of(model, kind, random_clips(kind, LENGTHS))
        expected = model(**inputs).logits[inputs["attention_mask"].bool()]
        model.set_attn_implementation("eager")
        given = model(**inputs).logits[inputs["attention_mask"].bool()]
        torch.testing.assert_close(given, expected, atol=5e-5, rtol=1e-4)


def generated(model, inputs, **settings) -> list[list[int]]:
    """New tokens of each row, up to and including the end token."""
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, **settings}
    ids = model.generate(**inputs, **settings)
    start = inputs["input_ids"].shape[1]
    return [row[start:].tolist() for row in ids]


class TestOriginalEncoders:
    """On the original 30 s window (here 4 s) the encoders are transformers' own."""

    @pytest.mark.parametrize(
        ("kind", "ours", "original"),
        [("whisper", PARTWhisperEncoder, WhisperEncoder), ("qwen2_audio", PARTQwen2AudioEncoder, Qwen2AudioEncoder)],
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
        for kind in ("whisper", "qwen2_audio"):
            model = build(kind)
            present = {type(module).__name__ for module in model.modules()}
            assert set(model._no_split_modules) <= present, kind


def reference_loss(logits: torch.Tensor, labels: torch.Tensor, items: int | None = None) -> float:
    """Cross entropy, one position at a time, in plain Python."""
    total, count = 0.0, 0
    for row in range(labels.shape[0]):
        for position in range(1, labels.shape[1]):
            target = int(labels[row, position])
            if target == -100:
                continue
            scores = logits[row, position - 1].double().tolist()
            highest = max(scores)
            total += highest + math.log(sum(math.exp(score - highest) for score in scores)) - scores[target]
            count += 1
    return total / (count if items is None else items)


def training_batch(model, side: str = "right", extra: int = 0) -> dict[str, torch.Tensor]:
    """Three clips with answers of 4, 1 and 6 tokens."""
    clips = random_clips("whisper", LENGTHS)
    features, features_mask = batch_clips("whisper", clips, extra)
    answers = [torch.randint(5, 250, (size,), generator=torch.Generator().manual_seed(size)) for size in (4, 1, 6)]
    prompts = prompts_of(model, clips)
    ids, mask = pad_rows([torch.cat(pair) for pair in zip(prompts, answers, strict=True)], side, extra)
    hidden = [torch.full_like(prompt, -100) for prompt in prompts]
    labels, _ = pad_rows([torch.cat(pair) for pair in zip(hidden, answers, strict=True)], side, extra, value=-100)
    return dict(
        input_ids=ids,
        attention_mask=mask,
        input_features=features,
        input_features_mask=features_mask,
        labels=labels,
    )


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


class TestLoss:
    @pytest.mark.parametrize("items", [None, 11, 40])
    @pytest.mark.parametrize(("side", "extra"), [("right", 0), ("right", 6), ("left", 0), ("left", 6)])
    @torch.no_grad()
    def test_equals_a_hand_written_loop(self, side, extra, items):
        model = build()
        batch = training_batch(model, side, extra)
        labels = batch.pop("labels")
        expected = reference_loss(model(**batch).logits, labels, items)
        arguments = {} if items is None else {"num_items_in_batch": torch.tensor(items)}
        assert model(**batch, labels=labels, **arguments).loss.item() == pytest.approx(expected, rel=1e-5)

    @torch.no_grad()
    def test_padding_side_does_not_matter(self):
        model = build()
        losses = [model(**training_batch(model, side, extra)).loss for side in ("left", "right") for extra in (0, 9)]
        for loss in losses[1:]:
            torch.testing.assert_close(loss, losses[0], atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("text", ["qwen2", "phi", "gemma2", "granite"])
    @torch.no_grad()
    def test_logits_only_at_targets(self, text):
        model = build(text=text)
        batch = training_batch(model)
        labels = batch.pop("labels")
        full = model(**batch).logits
        reached = []
        handle = model.lm_head.register_forward_hook(lambda module, arguments, output: reached.append(output.shape))
        kept = model(**batch, labels=labels).logits
        handle.remove()
        assert reached == [torch.Size([11, VOCABULARY])]
        targets = [(row, position - 1) for row, position in (labels != -100).nonzero().tolist()]
        expected = torch.stack([full[row, position] for row, position in targets])
        torch.testing.assert_close(kept, expected, atol=1e-6, rtol=1e-5)

    @pytest.mark.parametrize("text", ["qwen2", "phi", "gemma2", "granite"])
    @pytest.mark.parametrize("size", [1, 4, 5, 11, 100])
    def test_logits_of_some_targets_at_a_time(self, text, size):
        """Loss, gradients and the loss of every target as without chunks; no more rows reach the vocabulary at once."""
        model = build(text=text)
        batch = training_batch(model)
        plain = model(**batch, num_items_in_batch=torch.tensor(17))
        plain.loss.backward()
        expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        reached = []
        handle = model.lm_head.register_forward_hook(lambda module, arguments, output: reached.append(output.shape[0]))
        chunked = model(**batch, num_items_in_batch=torch.tensor(17), loss_chunk_size=size)
        chunked.loss.backward()
        handle.remove()
        assert max(reached) == min(size, 11) and sum(reached) == (
            11 if size >= 11 else 22
        )  # again in the backward pass
        assert chunked.logits is None and plain.token_losses is None
        assert not chunked.token_losses.requires_grad
        targets = batch["labels"][batch["labels"] != -100]
        torch.testing.assert_close(
            chunked.token_losses,
            -plain.logits.detach().float().log_softmax(-1)[range(11), targets],
            rtol=1e-5,
            atol=1e-6,
        )
        torch.testing.assert_close(chunked.loss, plain.loss, rtol=1e-6, atol=1e-7)
        assert {name for name, p in model.named_parameters() if p.grad is not None} == set(expected)
        for name, gradient in expected.items():
            torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("text", ["qwen2", "phi", "gemma2", "granite"])
    def test_rows_packed_into_one(self, text, side, attention):
        """Loss, gradients and token losses as with padding, which the language model never sees."""
        if (text, attention) == ("gemma2", "sdpa"):
            pytest.skip("transformers' Gemma 2 has no sdpa attention")
        model = build(text=text)
        model.set_attn_implementation(attention)
        batch = training_batch(model, side, 6)
        plain = model(**batch, loss_chunk_size=4)
        plain.loss.backward()
        expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        seen = []
        hook = model.model.language_model.layers[0].register_forward_hook(
            lambda module, arguments, output: seen.append(tuple(arguments[0].shape[:2]))
        )
        packed = model(**batch, loss_chunk_size=4, padding_free=True)
        packed.loss.backward()
        hook.remove()
        assert seen == [(1, int(batch["attention_mask"].sum()))] and batch["attention_mask"].min() == 0
        torch.testing.assert_close(packed.token_losses, plain.token_losses, rtol=1e-4, atol=1e-5)
        for name, gradient in expected.items():
            torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-3, atol=1e-5)

    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    @pytest.mark.parametrize("audio", ["whisper", "qwen2_audio", "fun_asr_nano"])
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

    @torch.no_grad()
    def test_logits_to_keep(self):
        model = build()
        batch = training_batch(model)
        del batch["labels"]
        full = model(**batch).logits
        mask = torch.rand(full.shape[:2]) < 0.5
        for keep, expected in ((2, full[:, -2:]), (torch.tensor([3, 1]), full[:, [3, 1]]), (mask, full[mask])):
            torch.testing.assert_close(model(**batch, logits_to_keep=keep).logits, expected, atol=1e-6, rtol=1e-5)

    @torch.no_grad()
    def test_text_only_batches_skip_encoder_and_adapter(self):
        model = build()

        def refuse(*_):
            raise AssertionError("a text-only batch must not reach the audio")

        model.model.audio_tower.register_forward_pre_hook(refuse)
        model.model.adapter.register_forward_pre_hook(refuse)
        ids = torch.randint(5, 250, (2, 9))
        assert torch.isfinite(model(input_ids=ids, labels=ids).loss)
        assert model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=2).shape[0] == 2

    @pytest.mark.parametrize("change", [-1, 1])
    def test_a_wrong_number_of_placeholders_is_refused(self, change):
        model = build()
        (clip,) = random_clips("whisper", [40])
        inputs = inputs_of(model, "whisper", [clip])
        count = tokens_of(model, clip)
        ids = torch.tensor([[5, *[AUDIO_TOKEN] * (count + change), 6]])
        inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        told = f"hold {count + change} audio placeholders .* give {count} audio embeddings"
        with pytest.raises(ValueError, match=told):
            model(**inputs)
        with pytest.raises(ValueError, match=told):
            model.generate(**inputs, max_new_tokens=2)

    def test_audio_needs_ids(self):
        model = build()
        inputs = inputs_of(model, "whisper", random_clips("whisper", [40]))
        embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
        with pytest.raises(ValueError, match="need `input_ids`"):
            model(**inputs, inputs_embeds=embeds)

    def test_audio_embeddings_land_in_order(self):
        model = build()
        inputs = inputs_of(model, "whisper", random_clips("whisper", LENGTHS))
        embeds = model.get_audio_features(inputs["input_features"], inputs["input_features_mask"]).pooler_output
        words = model.get_input_embeddings()(inputs["input_ids"])
        placed = model.model.place_audio(inputs["input_ids"], words, embeds)
        source = iter(embeds)
        for row, position in itertools.product(*map(range, inputs["input_ids"].shape)):
            is_audio = inputs["input_ids"][row, position] == AUDIO_TOKEN
            assert torch.equal(placed[row, position], next(source) if is_audio else words[row, position])


class TestGradients:
    def test_a_frozen_language_model_passes_gradients_on(self):
        model = build()
        model.model.language_model.requires_grad_(False)
        model.lm_head.requires_grad_(False)
        model(**training_batch(model)).loss.backward()
        for part in (model.model.adapter, model.model.audio_tower.layers):
            assert all(
                parameter.grad is not None and parameter.grad.any()
                for parameter in part.parameters()
                if parameter.ndim > 1
            )
        assert all(parameter.grad is None for parameter in model.model.language_model.parameters())

    @pytest.mark.parametrize("kind", ["whisper", "fun_asr_nano", "wav2vec2"])
    def test_checkpointing_gives_the_same_gradients(self, kind):
        model = build(kind).train()
        inputs = inputs_of(model, kind, random_clips(kind, LENGTHS), side="right")
        inputs["labels"] = inputs["input_ids"].masked_fill(inputs["input_ids"] == AUDIO_TOKEN, -100)

        def gradients():
            model.zero_grad()
            model(**inputs, use_cache=False).loss.backward()
            return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

        expected = gradients()
        model.gradient_checkpointing_enable()
        assert any(getattr(module, "gradient_checkpointing", False) for module in model.model.adapter.modules())
        given = gradients()
        assert given.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(given[name], gradient, atol=1e-6, rtol=1e-5, msg=name)

    def test_training_mode_is_deterministic_without_dropout(self):
        model = build("wav2vec2").train()
        inputs = inputs_of(model, "wav2vec2", random_clips("wav2vec2", LENGTHS))
        with torch.no_grad():
            assert torch.equal(model(**inputs).logits, model(**inputs).logits)


def until_end(row: list[int]) -> list[int]:
    return row[: row.index(2) + 1] if 2 in row else row


class TestGeneration:
    @pytest.fixture
    def model(self):
        return build()

    @pytest.fixture
    def inputs(self, model):
        return inputs_of(model, "whisper", random_clips("whisper", LENGTHS))

    def test_greedy_equals_a_hand_written_loop(self, model, inputs):
        """The whole sequence again at every step, right to left padding and all: no cache."""
        for index in range(len(LENGTHS)):
            alone = row_of(inputs, index)
            ids = alone["input_ids"]
            with torch.no_grad():
                for _ in range(6):
                    scores = model(**{**alone, "input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits[0, -1]
                    scores[AUDIO_TOKEN] = -torch.inf
                    ids = torch.cat([ids, scores.argmax()[None, None]], 1)
            expected = ids[0, alone["input_ids"].shape[1] :].tolist()
            given = generated(model, inputs, max_new_tokens=6)[index]
            assert until_end(given) == until_end(expected)

    def test_the_prompt_is_returned_first(self, model, inputs):
        ids = model.generate(**inputs, max_new_tokens=3)
        assert torch.equal(ids[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])

    def test_the_cache_changes_nothing(self, model, inputs):
        assert generated(model, inputs, use_cache=True) == generated(model, inputs, use_cache=False)

    def test_a_static_cache_changes_nothing(self, model, inputs):
        static = generated(model, inputs, cache_implementation="static", disable_compile=True)
        assert static == generated(model, inputs)

    def test_greedy_is_the_default(self, model, inputs):
        assert (
            model.generate(**inputs, max_new_tokens=6).tolist()
            == model.generate(**inputs, max_new_tokens=6, do_sample=False).tolist()
        )

    @pytest.mark.parametrize("settings", [{"num_beams": 3}, {"num_beams": 3, "length_penalty": 2.0}])
    def test_beam_search_is_batch_invariant(self, model, inputs, settings):
        batched = generated(model, inputs, **settings)
        for index in range(len(LENGTHS)):
            assert generated(model, row_of(inputs, index), **settings)[0] == batched[index]

    def test_beam_search_finds_likelier_answers(self, model, inputs):
        def score(ids):
            kept = ids[:, inputs["input_ids"].shape[1] :]
            mask = torch.cat([inputs["attention_mask"], torch.ones_like(kept)], 1)
            with torch.no_grad():
                logits = model(**{**inputs, "input_ids": ids, "attention_mask": mask}).logits
            logits[..., AUDIO_TOKEN] = -torch.inf
            steps = logits[:, -kept.shape[1] - 1 : -1].log_softmax(-1).gather(-1, kept[..., None])[..., 0]
            return steps.sum(-1)

        settings = {"max_new_tokens": 4, "min_new_tokens": 4, "pad_token_id": 0}
        greedy, beams = (model.generate(**inputs, num_beams=beams, **settings) for beams in (1, 8))
        assert (score(beams) >= score(greedy) - 1e-4).all()

    @pytest.mark.parametrize(
        "settings", [{}, {"num_beams": 4}, {"do_sample": True, "num_return_sequences": 3}, {"use_cache": False}]
    )
    def test_the_encoder_runs_once(self, model, inputs, settings):
        seen = []
        handle = model.model.audio_tower.register_forward_pre_hook(
            lambda module, arguments, keywords: seen.append(keywords["input_features"].shape[0]), with_kwargs=True
        )
        model.generate(**inputs, max_new_tokens=4, **settings)
        handle.remove()
        assert seen == [len(LENGTHS)]

    def test_rows_without_audio_in_a_beam_search(self, model):
        """Every beam of a row gets that row's audio, whatever stands between the rows with audio."""
        clips = random_clips("whisper", [60, 25])
        rows = prompts_of(model, clips)
        features, features_mask = batch_clips("whisper", clips)
        ids, mask = pad_rows([rows[0], torch.arange(5, 14), rows[1]])
        inputs = dict(input_ids=ids, attention_mask=mask, input_features=features, input_features_mask=features_mask)
        batched = generated(model, inputs, num_beams=3)
        only_audio = inputs_of(model, "whisper", clips)
        assert [batched[0], batched[2]] == generated(model, only_audio, num_beams=3)
        text = {"input_ids": torch.arange(5, 14)[None], "attention_mask": torch.ones(1, 9, dtype=torch.long)}
        assert batched[1] == generated(model, text, num_beams=3)[0]

    def test_sampling_and_returned_sequences(self, model, inputs):
        def sample():
            torch.manual_seed(0)
            return model.generate(
                **inputs, do_sample=True, temperature=5.0, num_return_sequences=4, max_new_tokens=8, pad_token_id=0
            )

        ids = sample()
        assert ids.shape[0] == 12
        assert torch.equal(ids, sample())
        prompt = inputs["input_ids"].shape[1]
        assert torch.equal(ids[:, :prompt], inputs["input_ids"].repeat_interleave(4, 0))
        assert len({tuple(row) for row in ids[:4, prompt:].tolist()}) > 1

    def test_repetition_penalty(self, model, inputs):
        plain, penalised = generated(model, inputs), generated(model, inputs, repetition_penalty=50.0)
        assert plain != penalised
        assert all(len(set(row)) == len(row) for row in penalised)

    def test_the_placeholder_is_never_generated(self, inputs):
        model = build()
        # Make the placeholder by far the likeliest token.
        head = nn.Linear(32, VOCABULARY)
        head.load_state_dict({"weight": model.lm_head.weight, "bias": torch.zeros(VOCABULARY)})
        with torch.no_grad():
            head.bias[AUDIO_TOKEN] = 1e4
        model.lm_head = head
        settings_list = [
            {},
            {"num_beams": 2},
            {"do_sample": True},
            {"generation_config": GenerationConfig(max_new_tokens=4)},
        ]
        for settings in settings_list:
            ids = model.generate(**inputs, **{"max_new_tokens": 4, **settings})
            assert not (ids[:, inputs["input_ids"].shape[1] :] == AUDIO_TOKEN).any(), settings

    def test_scores_are_returned(self, model, inputs):
        output = model.generate(
            **inputs,
            num_beams=3,
            num_return_sequences=2,
            max_new_tokens=3,
            return_dict_in_generate=True,
            output_scores=True,
        )
        assert output.sequences.shape[0] == output.sequences_scores.shape[0] == 6


class TestLanguageModels:
    @pytest.mark.parametrize("text", [*TEXT_CONFIGS, "falcon_h1"])
    @torch.no_grad()
    def test_text_gives_the_original_logits(self, text):
        if text == "falcon_h1":
            mamba = dict(mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, mamba_chunk_size=8)
            text_config = FalconH1Config(**SHAPE, **mamba, num_key_value_heads=2, lm_head_multiplier=0.3)
        else:
            text_config = TEXT_CONFIGS[text]()
        torch.manual_seed(0)
        original = AutoModelForCausalLM.from_config(text_config).eval()
        model = PARTForSpeechSeq2Seq(
            PARTConfig(audio_config=AUDIO_CONFIGS["whisper"](), text_config=text_config)
        ).eval()
        model.model.language_model.load_state_dict(original.base_model.state_dict())
        model.lm_head.load_state_dict(original.get_output_embeddings().state_dict())
        ids = torch.randint(5, 250, (2, 20))
        torch.testing.assert_close(model(input_ids=ids).logits, original(input_ids=ids).logits, atol=1e-6, rtol=1e-5)

    @pytest.mark.parametrize("text", list(TEXT_CONFIGS))
    def test_saved_loaded_resized(self, text, tmp_path):
        model = build(text=text)
        tied = model.config.text_config.tie_word_embeddings
        assert model.config.tie_word_embeddings is tied
        assert (model.lm_head.weight is model.get_input_embeddings().weight) is tied
        model.save_pretrained(tmp_path)
        assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) is not tied
        loaded = PARTForSpeechSeq2Seq.from_pretrained(tmp_path)
        assert loaded.generation_config.suppress_tokens == [AUDIO_TOKEN]
        assert_same_weights(loaded, model)
        assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) is tied
        inputs = inputs_of(model, "whisper", random_clips("whisper", LENGTHS))
        with torch.no_grad():
            expected = model(**inputs).logits
            assert torch.equal(loaded(**inputs).logits, expected)
            loaded.resize_token_embeddings(300)
            torch.testing.assert_close(loaded(**inputs).logits[..., :VOCABULARY], expected, atol=1e-6, rtol=1e-5)
        assert loaded.config.text_config.vocab_size == 300
        assert loaded.lm_head.weight.shape[0] == loaded.get_input_embeddings().num_embeddings == 300
        assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) is tied
        loaded.save_pretrained(tmp_path / "resized")
        assert_same_weights(PARTForSpeechSeq2Seq.from_pretrained(tmp_path / "resized"), loaded)

    @pytest.mark.parametrize("text", ["llama_tied", "gpt2", "gemma2", "granite"])
    def test_generation_with_a_cache_and_left_padding(self, text):
        model = build(text=text)
        inputs = inputs_of(model, "whisper", random_clips("whisper", LENGTHS))
        batched = generated(model, inputs)
        assert batched == generated(model, inputs, use_cache=False)
        for index in range(len(LENGTHS)):
            assert generated(model, row_of(inputs, index))[0] == batched[index]


def assert_same_weights(first, second):
    left, right = first.state_dict(), second.state_dict()
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


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
        ("change", "told"),
        [
            (lambda tensors: tensors.pop("model.adapter.conv.bias"), r"1 missing \(model.adapter.conv.bias\)"),
            (lambda tensors: tensors.update({"extra.weight": torch.ones(1)}), r"1 surplus \(extra.weight\)"),
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
    def test_other_tensors_are_refused_by_name(self, saved, change, told):
        _, folder = saved
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=told):
            AutoModelForSpeechSeq2Seq.from_pretrained(folder)

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

    def test_a_typo_in_the_settings_is_told(self, tiny_parts):
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
        monkeypatch.setattr(PARTForSpeechSeq2Seq, "_scale_logits", lambda self, logits: 2 * logits)
        with pytest.raises(ValueError, match="gives other logits inside PART"):
            PARTForSpeechSeq2Seq.from_pretrained_parts(*tiny_parts, **SETTINGS)
