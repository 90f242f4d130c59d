"""The encoders and language models that the documentation names, and a tiny random PART of each, made as a recipe makes it."""

from pathlib import Path
from typing import NamedTuple

import tiny
import torch
from architectures import AUDIO_CONFIGS, SHAPE, TEXT_CONFIGS
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    FalconH1Config,
    PreTrainedConfig,
    Qwen3Config,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2FeatureExtractor,
)

from modeling_part import PARTForSpeechSeq2Seq, PARTProcessor


# As a recipe's `audio_model` or `language_model` may name them.
ENCODERS = {
    "whisper": "Whisper",
    "qwen2_audio": "Qwen2-Audio",
    "voxtral": "Voxtral",
    "sense_voice": "SenseVoice-Small, after `part convert-encoder`",
    "fun_asr_nano": "Fun-ASR-Nano, whole or after `part convert-encoder`",
    "wav2vec2": "wav2vec 2.0 with layer norms (large, XLS-R, MMS)",
    "wav2vec2_group": "wav2vec 2.0 with a group norm (base)",
    "hubert": "HuBERT with layer norms (large)",
    "hubert_group": "HuBERT with a group norm (base)",
    "wavlm": "WavLM",
    "w2v_bert": "w2v-BERT 2.0",
}
LANGUAGE_MODELS = {
    "qwen2": "Qwen2.5",
    "qwen3": "Qwen3",
    "llama_tied": "Llama, SmolLM2",
    "gpt2": "GPT-2",
    "opt": "OPT",
    "gpt_neox": "GPT-NeoX",
    "phi": "Phi",
    "granite": "Granite",
    "cohere": "Cohere",
    "gemma2": "Gemma 2",
    "gemma3": "Gemma 3",
    "falcon_h1": "Falcon-H1",
}
COLUMNS = ("from sound to text", "trained", "long audio", "one graph", "published", "vLLM")
# A group norm over time would mix a clip with its padding: these run clip by clip, in a Python loop.
LOOPS = ("wav2vec2_group", "hubert_group")
# vLLM asks the encoder's config for its most frames, and these have no such limit: it must be told one.
WITHOUT_POSITIONS = ("wav2vec2", "wav2vec2_group", "hubert", "hubert_group", "wavlm")
# It hands the weights of its projections to torch's attention, and vLLM has put layers of its own, fused, in their place.
NOT_BY_VLLM = ("wavlm",)


def feature_extractor(kind: str):
    if kind in tiny.AUDIO_KINDS:
        return tiny.tiny_feature_extractor(kind)
    if kind == "voxtral":
        return tiny.tiny_feature_extractor("whisper")
    if kind == "w2v_bert":
        return SeamlessM4TFeatureExtractor(feature_size=12, num_mel_bins=12, stride=2)
    return Wav2Vec2FeatureExtractor(return_attention_mask=kind not in LOOPS)


def text_config(kind: str):
    if kind == "falcon_h1":
        mamba = dict(mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, mamba_chunk_size=8)
        return FalconH1Config(**SHAPE, **mamba, num_key_value_heads=2)
    if kind == "qwen3":
        return Qwen3Config(**SHAPE, num_key_value_heads=2, head_dim=8)
    return TEXT_CONFIGS[kind]()


class Made(NamedTuple):
    model: PARTForSpeechSeq2Seq
    processor: PARTProcessor
    folder: Path


def make(folder: Path, audio: str = "whisper", text: PreTrainedConfig | None = None) -> Made:
    """A PART out of two checkpoint folders, saved in `folder / "part"`; the language model is a Qwen2 by default."""
    torch.manual_seed(0)
    AutoModel.from_config(AUDIO_CONFIGS[audio]()).save_pretrained(folder / "encoder")
    feature_extractor(audio).save_pretrained(folder / "encoder")
    AutoModelForCausalLM.from_config(text or text_config("qwen2")).save_pretrained(folder / "text")
    tiny.tiny_tokenizer().save_pretrained(folder / "text")
    settings = {"adapter_hidden_size": 16, "adapter_num_attention_heads": 2, "adapter_output_scale": 1.0}
    parts = (str(folder / "encoder"), str(folder / "text"))
    model, processor = PARTForSpeechSeq2Seq.from_pretrained_parts(*parts, **settings, system_prompt="")
    model.save_pretrained(folder / "part")
    processor.save_pretrained(folder / "part")
    return Made(model, processor, folder / "part")
