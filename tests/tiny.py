"""Tiny random models, tokenizers and corpora, built in code: what the tests and benchmarks share.

Everything is deterministic, needs no network, and is small enough that a training step takes milliseconds on a CPU.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    FunAsrNanoEncoderConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2AudioEncoderConfig,
    Qwen2Config,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)
from transformers.models.auto import AutoModel, AutoModelForCausalLM

from modeling_part.fbank_part import PARTFbankFeatureExtractor
from modeling_part.san_m_part import SenseVoiceEncoderConfig


REPOSITORY = Path(__file__).resolve().parent.parent

SAMPLING_RATE = 16_000
# Window of the tiny Whisper in seconds; 100 mel frames and 50 encoder frames per second, like the real one.
WHISPER_WINDOW = 4

# ChatML, as in Qwen2.5 and SmolLM2. `{% generation %}` and system defaults are left out on purpose.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# The same words in three languages: `WORDS["en"][i]` translates to `WORDS["fr"][i]`.
WORDS = {
    "en": ("one", "two", "red", "sun", "cat", "sea"),
    "fr": ("un", "deux", "rouge", "soleil", "chat", "mer"),
    "de": ("eins", "zwei", "rot", "sonne", "katze", "meer"),
}


# --------------------------------------------------------------------------------------------------------------------
# Tokenizer and feature extractors
# --------------------------------------------------------------------------------------------------------------------


def tiny_tokenizer(pad_token: str = "<|endoftext|>", extra_tokens: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 259 tokens (3 special + 256 bytes) with a ChatML template.

    Args:
        pad_token: "<|endoftext|>" as in Qwen2.5, or "<|im_end|>" as in SmolLM2, where padding equals the end token.
        extra_tokens: further special tokens, such as an audio placeholder.
    """
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(special + alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token=pad_token,
        extra_special_tokens=["<|im_start|>", *extra_tokens],
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def tiny_feature_extractor(kind: str = "whisper"):
    """The feature extractor that fits `tiny_audio_config(kind)`."""
    if kind == "whisper":
        return WhisperFeatureExtractor(feature_size=20, chunk_length=WHISPER_WINDOW)
    if kind == "qwen2_audio":
        return WhisperFeatureExtractor(feature_size=20, chunk_length=WHISPER_WINDOW, return_attention_mask=True)
    if kind in ("fun_asr_nano", "sense_voice"):
        return PARTFbankFeatureExtractor(feature_size=20)
    if kind == "wav2vec2":
        return Wav2Vec2FeatureExtractor(return_attention_mask=True, do_normalize=True)
    raise ValueError(f"Unknown tiny encoder {kind!r}; known: {', '.join(AUDIO_KINDS)}.")


# --------------------------------------------------------------------------------------------------------------------
# Configurations
# --------------------------------------------------------------------------------------------------------------------

AUDIO_KINDS = ("whisper", "qwen2_audio", "fun_asr_nano", "sense_voice", "wav2vec2")
TEXT_KINDS = ("qwen2", "llama")


def tiny_audio_config(kind: str = "whisper", **overrides) -> PreTrainedConfig:
    """Configuration of a two-layer encoder of width 16; without dropout, so that runs can be compared."""
    if kind == "whisper":
        special = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0)
        settings = dict(vocab_size=8, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32, **special)
        settings |= _whisper_encoder_settings() | {"max_target_positions": 16}
        return WhisperConfig(**settings | overrides)
    if kind == "qwen2_audio":
        return Qwen2AudioEncoderConfig(**_whisper_encoder_settings() | overrides)
    if kind in ("fun_asr_nano", "sense_voice"):
        config_class = FunAsrNanoEncoderConfig if kind == "fun_asr_nano" else SenseVoiceEncoderConfig
        settings = dict(
            num_mel_bins=20, hidden_size=16, num_attention_heads=2, intermediate_size=32, fsmn_kernel_size=3
        )
        settings |= dict(num_hidden_layers=3, num_timestamp_prediction_layers=1, hidden_dropout=0.0)
        return config_class(**settings | dict(attention_dropout=0.0) | overrides)
    if kind == "wav2vec2":
        dropouts = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "final_dropout")
        settings = dict.fromkeys(dropouts, 0.0) | dict(layerdrop=0.0, apply_spec_augment=False)
        settings |= dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
        # Layer norms in the feature encoder, as in the models that honour the attention mask (large, XLS-R).
        settings |= dict(feat_extract_norm="layer", do_stable_layer_norm=True, conv_dim=(8,) * 7, conv_bias=True)
        settings |= dict(num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, vocab_size=8)
        return Wav2Vec2Config(**settings | overrides)
    raise ValueError(f"Unknown tiny encoder {kind!r}; known: {', '.join(AUDIO_KINDS)}.")


def _whisper_encoder_settings() -> dict:
    return {
        "num_mel_bins": 20,
        "d_model": 16,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "max_source_positions": 50 * WHISPER_WINDOW,
        "dropout": 0.0,
    }


def tiny_text_config(kind: str = "qwen2", vocab_size: int = 259, **overrides) -> PreTrainedConfig:
    """Configuration of a two-layer causal language model of width 32; the token ids are `tiny_tokenizer`'s.

    "qwen2" has separate input and output embeddings (as Qwen2.5-7B), "llama" tied ones (as SmolLM2).
    """
    classes = {"qwen2": Qwen2Config, "llama": LlamaConfig}
    if kind not in classes:
        raise ValueError(f"Unknown tiny language model {kind!r}; known: {', '.join(TEXT_KINDS)}.")
    settings = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": kind == "llama",
        "bos_token_id": None,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    return classes[kind](**settings | overrides)


# --------------------------------------------------------------------------------------------------------------------
# Checkpoint folders
# --------------------------------------------------------------------------------------------------------------------


class TinyParts(NamedTuple):
    """Checkpoint folders such as a recipe names."""

    audio_model: Path
    language_model: Path


def tiny_parts(folder: Path, audio_kind: str = "whisper", text_kind: str = "qwen2", seed: int = 0) -> TinyParts:
    """Save a random encoder (with feature extractor) and a random language model (with tokenizer) under `folder`.

    Whisper is saved as its checkpoints on the Hub are, encoder and decoder.
    """
    parts = TinyParts(Path(folder) / audio_kind, Path(folder) / text_kind)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = tiny_audio_config(audio_kind)
        whole_whisper = audio_kind == "whisper"
        encoder = WhisperForConditionalGeneration(config) if whole_whisper else AutoModel.from_config(config)
        encoder.save_pretrained(parts.audio_model)
        AutoModelForCausalLM.from_config(tiny_text_config(text_kind)).save_pretrained(parts.language_model)
    tiny_feature_extractor(audio_kind).save_pretrained(parts.audio_model)
    tiny_tokenizer().save_pretrained(parts.language_model)
    return parts


# --------------------------------------------------------------------------------------------------------------------
# A corpus that can be learned
# --------------------------------------------------------------------------------------------------------------------


def word_sound(language: str, index: int, seconds: float = 0.25) -> np.ndarray:
    """Speech-like sound of word `index` of `language`: two steady tones of its own under a smooth envelope, float32."""
    time = np.arange(round(seconds * SAMPLING_RATE)) / SAMPLING_RATE
    low = 220.0 * 2 ** (index / 4)
    high = 1400.0 * 2 ** (list(WORDS).index(language) / 3 + index / 24)
    envelope = np.sin(np.pi * time / seconds) ** 0.5
    return (0.3 * envelope * (np.sin(2 * np.pi * low * time) + 0.5 * np.sin(2 * np.pi * high * time))).astype(
        np.float32
    )


def sentence_sound(language: str, indices: Sequence[int], generator: np.random.Generator) -> np.ndarray:
    """The words of a sentence with short pauses and a little noise, `(samples,)` float32 at 16 kHz."""
    pieces = []
    for index in indices:
        pieces += [word_sound(language, index), np.zeros(generator.integers(400, 1600), np.float32)]
    sound = np.concatenate(pieces)
    return sound + 0.005 * generator.standard_normal(len(sound)).astype(np.float32)


def tiny_corpus(
    folder: Path,
    languages: Sequence[str] = ("en", "fr"),
    tasks: Sequence[str] = ("asr", "s2tt", "mt"),
    sentences: dict[str, int] | None = None,
    words: tuple[int, int] = (1, 4),
    seed: int = 0,
) -> dict[str, Path]:
    """Write WAV files and JSONL manifests of generated sentences; return the manifest of each split.

    Every sentence is spoken in every language. Its `asr` row is a transcript, an `s2tt` row a translation of the
    speech and an `mt` row a translation of the text, in every direction between `languages`.

    Args:
        folder: receives `<split>.jsonl` and `audio/`.
        sentences: sentences per split; `{"train": 12, "dev": 4, "test": 4}` by default.
        words: fewest and most words of a sentence; its sound takes 0.3 s per word.
    """
    folder, generator = Path(folder), np.random.default_rng(seed)
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    manifests = {}
    for split, count in (sentences or {"train": 12, "dev": 4, "test": 4}).items():
        rows = []
        for number in range(count):
            indices = generator.integers(0, len(WORDS["en"]), generator.integers(words[0], words[1] + 1))
            for language in languages:
                name = f"{split}-{number}-{language}"
                sound = sentence_sound(language, indices, generator)
                soundfile.write(folder / "audio" / f"{name}.wav", sound, SAMPLING_RATE, subtype="PCM_16")
                rows += _rows(name, language, indices, languages, tasks, len(sound) / SAMPLING_RATE)
        manifests[split] = folder / f"{split}.jsonl"
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        manifests[split].write_text("\n".join(lines) + "\n", encoding="utf-8")
    return manifests


def _rows(name, language, indices, languages, tasks, duration) -> list[dict]:
    """The canonical rows of one spoken sentence, for `tasks`."""
    source_text = " ".join(WORDS[language][index] for index in indices)
    rows = []
    for task in tasks:
        for target in [language] if task == "asr" else [other for other in languages if other != language]:
            rows.append(
                {
                    "id": f"{name}-{task}-{target}",
                    "corpus": "tiny",
                    "task": task,
                    "source_lang": language,
                    "target_lang": target,
                    "text": " ".join(WORDS[target][index] for index in indices),
                    "source_text": source_text,
                    "duration": 0.0 if task == "mt" else duration,
                    "audio": None if task == "mt" else f"audio/{name}.wav",
                    "start": None,
                    "end": None,
                }
            )
    return rows
