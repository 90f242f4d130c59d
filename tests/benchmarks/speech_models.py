"""The speech LLMs that the benchmarks compare: random weights of equal sizes, clips, batches.

Encoders have 6 layers of width 512, language models are that of SmolLM2-135M by its shapes (Llama, 30 layers of width
576); Qwen3-ASR gets Llama in place of its Qwen3, which differs by a norm per head. What a class is beyond that stays
its own: Granite Speech's conformer has two feed-forward blocks and a convolution per layer, hence twice the weights,
and a Q-Former of 2 layers; Qwen3-ASR's convolutions are as wide beside its encoder as in its checkpoints (480 of
1,024).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist

import numpy as np
import torch
from transformers import (
    Blip2QFormerConfig,
    FunAsrNanoConfig,
    FunAsrNanoEncoderConfig,
    FunAsrNanoForConditionalGeneration,
    GraniteSpeechConfig,
    GraniteSpeechEncoderConfig,
    GraniteSpeechForConditionalGeneration,
    LlamaConfig,
    PreTrainedModel,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen3ASRConfig,
    Qwen3ASRForConditionalGeneration,
    VoxtralConfig,
    VoxtralForConditionalGeneration,
    WhisperConfig,
)
from transformers.models.qwen3_asr.configuration_qwen3_asr import Qwen3ASREncoderConfig

from modeling_part import PARTConfig, PARTForSpeechSeq2Seq
from modeling_part.configuration_part import convolved_length


VOCABULARIES = (49_152, 151_936)  # SmolLM2, Qwen2.5
PROMPT_TOKENS, TOKENS_PER_SECOND = 30, 4
MEL_BINS, STACKED_FRAMES, WINDOW_FRAMES = 80, 7, 3000  # SAN-M stacks 7 mel frames at every sixth
CHUNK_FRAMES = 100  # Qwen3-ASR convolves whole seconds
QFORMER_WINDOW, QFORMER_QUERIES = 15, 3  # Granite Speech: 3 tokens for 15 of its frames


@dataclass(frozen=True)
class Encoder:
    """Sizes that all encoders get."""

    layers: int
    width: int
    heads: int


ENCODER, TINY_ENCODER = Encoder(6, 512, 8), Encoder(2, 32, 2)


def text_config(vocabulary: int, tiny: bool) -> LlamaConfig:
    """The language model of all classes."""
    return LlamaConfig(
        vocab_size=vocabulary,
        num_hidden_layers=2 if tiny else 30,
        hidden_size=48 if tiny else 576,
        intermediate_size=96 if tiny else 1536,
        num_attention_heads=3 if tiny else 9,
        num_key_value_heads=1 if tiny else 3,
        tie_word_embeddings=True,
    )


# --------------------------------------------------------------------------------------------------------------------
# Building each class
# --------------------------------------------------------------------------------------------------------------------


def whisper_sizes(encoder: Encoder) -> dict:
    sizes = {"d_model": encoder.width, "encoder_layers": encoder.layers, "encoder_attention_heads": encoder.heads}
    return sizes | {"encoder_ffn_dim": 4 * encoder.width, "num_mel_bins": MEL_BINS}


def san_m(encoder: Encoder) -> FunAsrNanoEncoderConfig:
    return FunAsrNanoEncoderConfig(
        hidden_size=encoder.width,
        num_hidden_layers=encoder.layers,
        num_attention_heads=encoder.heads,
        intermediate_size=4 * encoder.width,
        num_timestamp_prediction_layers=0,
        hidden_dropout=0.0,  # the other encoders have none either
        attention_dropout=0.0,
    )


def part(encoder: Encoder, text: LlamaConfig, audio_token: int, audio: Callable, **convolution) -> PreTrainedModel:
    config = PARTConfig(
        audio_config=audio(encoder),
        text_config=text,
        adapter_hidden_size=encoder.width,
        audio_token_id=audio_token,
        **convolution,
    )
    return PARTForSpeechSeq2Seq(config)


def whisper(encoder: Encoder) -> WhisperConfig:
    """The whole Whisper's; only its encoder is built."""
    return WhisperConfig(**whisper_sizes(encoder))


def fun_asr_nano(encoder: Encoder, text: LlamaConfig, audio_token: int) -> PreTrainedModel:
    adaptor = {"hidden_size": text.hidden_size, "intermediate_size": text.hidden_size // 4}
    config = FunAsrNanoConfig(
        audio_config=san_m(encoder), text_config=text, adaptor_config=adaptor, audio_token_id=audio_token
    )
    return FunAsrNanoForConditionalGeneration(config)


def qwen3_asr(encoder: Encoder, text: LlamaConfig, audio_token: int) -> PreTrainedModel:
    sizes = whisper_sizes(encoder) | {"downsample_hidden_size": encoder.width * 480 // 1024}
    audio = Qwen3ASREncoderConfig(**sizes, output_dim=text.hidden_size)
    config = Qwen3ASRConfig(
        audio_config=audio, text_config=text, audio_token_id=audio_token, pad_token_id=0, eos_token_id=2
    )
    return Qwen3ASRForConditionalGeneration(config)


def granite_speech(encoder: Encoder, text: LlamaConfig, audio_token: int) -> PreTrainedModel:
    """Without the LoRA weights that its checkpoints switch on for speech: everything trains here."""
    audio = GraniteSpeechEncoderConfig(
        input_dim=2 * MEL_BINS,
        num_layers=encoder.layers,
        hidden_dim=encoder.width,
        num_heads=encoder.heads,
        dropout=0.0,
    )
    projector = Blip2QFormerConfig(
        hidden_size=encoder.width,
        num_hidden_layers=2,
        num_attention_heads=encoder.heads,
        intermediate_size=4 * encoder.width,
        cross_attention_frequency=1,
        encoder_hidden_size=encoder.width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    config = GraniteSpeechConfig(
        text_config=text,
        encoder_config=audio,
        projector_config=projector,
        audio_token_index=audio_token,
        has_lora_adapter=False,
        window_size=QFORMER_WINDOW,
        downsample_rate=QFORMER_WINDOW // QFORMER_QUERIES,
    )
    return GraniteSpeechForConditionalGeneration(config)


def qwen2_audio(encoder: Encoder, text: LlamaConfig, audio_token: int) -> PreTrainedModel:
    audio = {"model_type": "qwen2_audio_encoder", **whisper_sizes(encoder)}
    return Qwen2AudioForConditionalGeneration(
        Qwen2AudioConfig(audio_config=audio, text_config=text, audio_token_index=audio_token)
    )


def voxtral(encoder: Encoder, text: LlamaConfig, audio_token: int) -> PreTrainedModel:
    audio = dict(hidden_size=encoder.width, intermediate_size=4 * encoder.width, num_hidden_layers=encoder.layers)
    audio |= dict(model_type="voxtral_encoder", num_attention_heads=encoder.heads, num_mel_bins=MEL_BINS)
    return VoxtralForConditionalGeneration(
        VoxtralConfig(audio_config=audio, text_config=text, audio_token_id=audio_token)
    )


# --------------------------------------------------------------------------------------------------------------------
# Feeding each class: random features for clips of `seconds`, and the audio tokens of each clip
# --------------------------------------------------------------------------------------------------------------------


def steps_and_mask(seconds: torch.Tensor, rate: float, size: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Feature steps of each clip, and which of `size` (of the longest clip) are valid: `(B,)`, `(B, size)`."""
    steps = (rate * seconds).round().long()
    return steps, (torch.arange(size or int(steps.max())) < steps[:, None]).long()


def feed_stacked(model, seconds: torch.Tensor, generator: torch.Generator):
    """SAN-M's stacked frames, padded to the longest clip."""
    steps, mask = steps_and_mask(seconds, 100 / 6)
    features = torch.randn(*mask.shape, MEL_BINS * STACKED_FRAMES, generator=generator)
    return {"input_features": features, "input_features_mask": mask}, steps


def feed_mel(model, seconds: torch.Tensor, generator: torch.Generator, size: int | None = None):
    """Mel frames, padded to the longest clip unless `size` says otherwise."""
    steps, mask = steps_and_mask(seconds, 100, size)
    features = torch.randn(len(seconds), MEL_BINS, mask.shape[1], generator=generator)
    return {"input_features": features, "input_features_mask": mask}, steps


def feed_part(model, seconds: torch.Tensor, generator: torch.Generator, feed: Callable):
    inputs, steps = feed(model, seconds, generator)
    return inputs, convolved_length(steps, model.config.audio_token_convolutions)


def feed_qwen3_asr(model, seconds: torch.Tensor, generator: torch.Generator):
    """Padded to whole seconds, as its convolutions take them."""
    size = math.ceil(float(seconds.max()) * 100 / CHUNK_FRAMES) * CHUNK_FRAMES
    inputs, steps = feed_mel(model, seconds, generator, size)
    halved = ((3, 2, 1),) * 3
    chunk, rest = convolved_length(CHUNK_FRAMES, halved), convolved_length(steps % CHUNK_FRAMES, halved)
    return inputs, steps // CHUNK_FRAMES * chunk + rest


def feed_granite_speech(model, seconds: torch.Tensor, generator: torch.Generator):
    """Pairs of mel frames, padded to the longest clip; its mask is one of audio tokens, the encoder sees none."""
    steps, frames = steps_and_mask(seconds, 50)
    features = torch.randn(*frames.shape, 2 * MEL_BINS, generator=generator)
    tokens = (steps + QFORMER_WINDOW - 1) // QFORMER_WINDOW * QFORMER_QUERIES
    mask = torch.arange(int(tokens.max())) < tokens[:, None]
    return {"input_features": features, "input_features_mask": mask}, tokens


def feed_qwen2_audio(model, seconds: torch.Tensor, generator: torch.Generator):
    """The 30 s window, with as many tokens as the clip is long."""
    inputs, steps = feed_mel(model, seconds, generator, WINDOW_FRAMES)
    inputs["feature_attention_mask"] = inputs.pop("input_features_mask")
    return inputs, convolved_length(steps, ((3, 1, 1), (3, 2, 1), (2, 2, 0)))


def feed_voxtral(model, seconds: torch.Tensor, generator: torch.Generator):
    """The 30 s window, all of it tokens."""
    inputs, steps = feed_mel(model, seconds, generator, WINDOW_FRAMES)
    return {"input_features": inputs["input_features"]}, torch.full_like(steps, WINDOW_FRAMES // 8)


# --------------------------------------------------------------------------------------------------------------------
# All of them
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SpeechModel:
    """
    One class, or one setting of PART.

    Attributes:
        label: what tables call it.
        build: encoder sizes, language model and audio token -> model.
        feed: model, seconds of the clips and generator -> features with their mask, audio tokens of each clip.
        in_tree: transformers' own.
        padded: to 30 s, whatever the clips.
    """

    label: str
    build: Callable
    feed: Callable
    in_tree: bool = False
    padded: bool = False


part_san_m = partial(part, audio=san_m)
feed_part_stacked = partial(feed_part, feed=feed_stacked)
SPEECH_MODELS = {
    "fun_asr_nano": SpeechModel("Fun-ASR-Nano, 16.7 tokens/s", fun_asr_nano, feed_stacked, in_tree=True),
    "qwen3_asr": SpeechModel("Qwen3-ASR, 13 tokens/s", qwen3_asr, feed_qwen3_asr, in_tree=True),
    "granite_speech": SpeechModel("Granite Speech, 10 tokens/s", granite_speech, feed_granite_speech, in_tree=True),
    "part_sanm": SpeechModel("PART, SAN-M, 4.2 tokens/s", part_san_m, feed_part_stacked),
    "part_sanm_dense": SpeechModel(
        "PART, SAN-M, 16.7 tokens/s",
        partial(part_san_m, adapter_conv_kernel_size=1, adapter_conv_stride=1),
        feed_part_stacked,
    ),
    "part_whisper": SpeechModel(
        "PART, Whisper, 12.5 tokens/s", partial(part, audio=whisper), partial(feed_part, feed=feed_mel)
    ),
    "qwen2_audio": SpeechModel("Qwen2-Audio, 25 tokens/s", qwen2_audio, feed_qwen2_audio, in_tree=True, padded=True),
    "voxtral": SpeechModel("Voxtral, 30 s", voxtral, feed_voxtral, in_tree=True, padded=True),
}
PADDED = tuple(name for name, one in SPEECH_MODELS.items() if one.padded)


def build(name: str, vocabulary: int, tiny: bool = False, audio_token: int | None = None) -> PreTrainedModel:
    """A model of random weights; the audio token is the vocabulary's last unless given."""
    encoder = TINY_ENCODER if tiny else ENCODER
    token = vocabulary - 1 if audio_token is None else audio_token
    return SPEECH_MODELS[name].build(encoder, text_config(vocabulary, tiny), token)


def parameter_counts(model: PreTrainedModel) -> dict[str, int]:
    """Weights of the encoder's layers, of the whole encoder, of what joins both, and of the language model.

    Heads that are not tied to the embeddings belong to the language model.
    """
    encoder = next(part for name, part in model.model.named_children() if name in ("audio_tower", "encoder"))
    layers = [part for name, part in encoder.named_children() if name.endswith("layers")]
    text = [model.model.language_model, model.lm_head]

    def count(*modules) -> int:
        return sum(one.numel() for one in {one for module in modules for one in module.parameters()})

    counts = {"encoder_layers": count(*layers), "encoder": count(encoder), "language_model": count(*text)}
    return counts | {"joint": count(model) - counts["encoder"] - counts["language_model"]}


# --------------------------------------------------------------------------------------------------------------------
# Clips and batches
# --------------------------------------------------------------------------------------------------------------------


def make_batches(clips: str, rows: int, batches: int) -> tuple[tuple[float, ...], ...]:
    """
    Seconds of the clips of each batch.

    Args:
        clips: a number of seconds for clips of equal length (one batch), or `mix`: lengths as in Common Voice
            (log-normal around 5 s, cut to 1-20 s; its quantiles, in random order).
    """
    if clips != "mix":
        return ((float(clips),) * rows,)
    quantiles = (np.arange(rows * batches) + 0.5) / (rows * batches)
    lengths = [min(max(5 * np.exp(0.45 * NormalDist().inv_cdf(q)), 1.0), 20.0) for q in quantiles]
    lengths = np.random.default_rng(0).permutation(np.round(lengths, 1)).tolist()
    return tuple(tuple(lengths[i : i + rows]) for i in range(0, len(lengths), rows))


def by_duration(batches: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
    """The same clips in batches of neighbours by length, as `TaskBatchSampler` makes them (from far more clips)."""
    lengths = sorted(length for batch in batches for length in batch)
    rows = len(batches[0])
    return tuple(tuple(lengths[i : i + rows]) for i in range(0, len(lengths), rows))


def make_batch(
    name: str, model: PreTrainedModel, vocabulary: int, seconds: tuple[float, ...]
) -> dict[str, torch.Tensor]:
    """Inputs and labels for clips of `seconds`: random features; prompt, audio and answer tokens, padded right."""
    generator = torch.Generator().manual_seed(0)
    inputs, audio_tokens = SPEECH_MODELS[name].feed(model, torch.tensor(seconds), generator)
    ids, labels = [], []
    for duration, tokens in zip(seconds, audio_tokens.tolist(), strict=True):
        prompt = torch.randint(vocabulary - 1, (PROMPT_TOKENS,), generator=generator)
        answer = torch.randint(vocabulary - 1, (round(TOKENS_PER_SECOND * duration) + 1,), generator=generator)
        audio = torch.full((tokens,), vocabulary - 1)
        ids.append(torch.cat([prompt, audio, answer]))
        labels.append(torch.cat([torch.full((PROMPT_TOKENS + tokens,), -100), answer]))
    pad = torch.nn.utils.rnn.pad_sequence
    return inputs | {
        "input_ids": pad(ids, batch_first=True),
        "attention_mask": pad([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad(labels, batch_first=True, padding_value=-100),
    }
