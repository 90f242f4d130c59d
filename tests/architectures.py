"""Tiny random PART models of every encoder and language model that the tests build, and batches for them."""

import tiny
import torch
from torch import nn
from transformers import (
    CohereConfig,
    Data2VecAudioConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    HubertConfig,
    OPTConfig,
    PhiConfig,
    VoxtralEncoderConfig,
    Wav2Vec2BertConfig,
    Wav2Vec2ConformerConfig,
    WavLMConfig,
)

from modeling_part import PARTConfig, PARTForSpeechSeq2Seq
from modeling_part.configuration_part import convolved_length


AUDIO_TOKEN = 259
VOCABULARY = 264


def wav2vec2_family(config_class, norm: str):
    """A tiny encoder of the family; `norm` is that of its convolutions: "layer" or "group"."""
    base = tiny.tiny_audio_config("wav2vec2").to_dict()
    settings = {name: base[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "conv_dim")}
    settings |= {name: base[name] for name in ("intermediate_size", "num_conv_pos_embeddings", "vocab_size")}
    settings |= {"num_conv_pos_embedding_groups": 2, "do_stable_layer_norm": norm == "layer"}
    return config_class(feat_extract_norm=norm, conv_bias=norm == "layer", **settings)


ENCODER_SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}

AUDIO_CONFIGS = {
    "whisper": tiny.tiny_audio_config,
    "qwen2_audio": lambda: tiny.tiny_audio_config("qwen2_audio"),
    "voxtral": lambda: VoxtralEncoderConfig(
        **ENCODER_SHAPE, num_mel_bins=20, max_source_positions=50 * tiny.WHISPER_WINDOW
    ),
    "fun_asr_nano": lambda: tiny.tiny_audio_config("fun_asr_nano"),
    "sense_voice": lambda: tiny.tiny_audio_config("sense_voice"),
    "wav2vec2": lambda: tiny.tiny_audio_config("wav2vec2"),
    "wav2vec2_group": lambda: wav2vec2_family(type(tiny.tiny_audio_config("wav2vec2")), "group"),
    "hubert": lambda: wav2vec2_family(HubertConfig, "layer"),
    "hubert_group": lambda: wav2vec2_family(HubertConfig, "group"),
    "wavlm": lambda: wav2vec2_family(WavLMConfig, "layer"),
    "w2v_bert": lambda: Wav2Vec2BertConfig(**ENCODER_SHAPE, feature_projection_input_dim=24),
}

PADDING_HEARING_CONFIGS = {  # encoders whose convolutions over time hear the padding
    "conformer": lambda: wav2vec2_family(Wav2Vec2ConformerConfig, "layer"),
    "data2vec": lambda: wav2vec2_family(Data2VecAudioConfig, "layer"),
}

MEL_FIRST = ("whisper", "qwen2_audio", "voxtral")  # whose features are (mel bins, steps), others' (steps, ...)

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
    "opt": lambda: OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=32,
        max_position_embeddings=1024,
        eos_token_id=2,
        pad_token_id=0,
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
        audio_config=(AUDIO_CONFIGS | PADDING_HEARING_CONFIGS)[audio](),
        text_config=TEXT_CONFIGS[text](),
        **{**defaults, **settings},
    )
    model = PARTForSpeechSeq2Seq(config).eval()
    for name, parameter in model.named_parameters():
        if name == "lm_head.bias":
            nn.init.normal_(parameter)
    return model


def random_clips(kind: str, lengths: list[int], seed: int = 0) -> list[torch.Tensor]:
    """Unpadded features of each clip, time first: mel frames, or samples for the wav2vec2 family."""
    generator = torch.Generator().manual_seed(seed)
    width = dict.fromkeys(MEL_FIRST, (20,)) | {"fun_asr_nano": (140,), "sense_voice": (140,), "w2v_bert": (24,)}
    width = width.get(kind, ())
    scale = 1 if width else 40
    return [torch.randn(length * scale, *width, generator=generator) for length in lengths]


def batch_clips(kind: str, clips: list[torch.Tensor], extra: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips -> features in the encoder's layout, padded with zeros by `extra` more steps, and the mask."""
    features = nn.utils.rnn.pad_sequence(
        [*clips, clips[0].new_zeros(max(map(len, clips)) + extra, *clips[0].shape[1:])]
    )
    features = features.transpose(0, 1)[:-1]
    mask = (torch.arange(features.shape[1]) < torch.tensor([[len(clip)] for clip in clips])).long()
    return (features.transpose(1, 2) if kind in MEL_FIRST else features), mask


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


def generated(model, inputs, **settings) -> list[list[int]]:
    """New tokens of each row, up to and including the end token."""
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, **settings}
    ids = model.generate(**inputs, **settings)
    start = inputs["input_ids"].shape[1]
    return [row[start:].tolist() for row in ids]


def assert_same_weights(first, second):
    left, right = first.state_dict(), second.state_dict()
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name
