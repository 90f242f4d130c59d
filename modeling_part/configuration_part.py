# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Configuration of PART: a speech encoder, an adapter and a causal language model.

The file also holds the one formula that everything else relies on: how many frames and audio tokens a clip becomes
(`convolved_length` over `PARTConfig.audio_token_convolutions`).
"""

from typing import ClassVar

import torch
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES

from .requirements_part import SubConfigSpec  # first: it says which transformers is needed
from .san_m_part import SenseVoiceEncoderConfig


# Convolutions between the input features and the encoder's frames, as (kernel, stride, padding) in order, for the
# encoders that do not list them in their own config. An encoder that is in neither place keeps its input length.
ENCODER_CONVOLUTIONS = {
    "whisper": ((3, 1, 1), (3, 2, 1)),
    "voxtral_encoder": ((3, 1, 1), (3, 2, 1)),
    "qwen2_audio_encoder": ((3, 1, 1), (3, 2, 1), (2, 2, 0)),  # the last one is its average pooling
}

# Encoders that give other frames for a clip beside a longer one: their convolutions over time hear the padding.
PADDING_HEARING_ENCODERS = ("data2vec-audio", "wav2vec2-conformer")

# Encoders that transformers runs on a fixed 30 s window and that PART can run on the clip's own length.
FIXED_WINDOW_ENCODERS = ("whisper", "qwen2_audio_encoder", "voxtral_encoder")


def convolved_length(length: int | torch.Tensor, convolutions: list[list[int]]) -> int | torch.Tensor:
    """Length of a sequence after convolutions: THE audio-token-length formula.

    Args:
        length (`int` or integer `torch.Tensor`): input steps of a clip, or of each clip.
        convolutions (list of `[kernel, stride, padding]`): such as `PARTConfig.audio_token_convolutions`.

    Returns:
        The same type; 0 or less where a clip is too short.

    Example: 3 s are 300 mel frames, 150 Whisper frames, 38 audio tokens at stride 4.

    >>> convolved_length(300, [[3, 1, 1], [3, 2, 1], [5, 4, 2]])
    38
    """
    for kernel, stride, padding in convolutions:
        length = (length + 2 * padding - kernel) // stride + 1
    return length


class PARTConfig(PreTrainedConfig):
    r"""Configuration of a [`PARTForSpeechSeq2Seq`] model.

    Args:
        audio_config (`dict` or `PreTrainedConfig`, *optional*):
            Configuration of the speech encoder: any that `AutoModel` maps to a model that yields frames. Those of Whisper,
            Qwen2-Audio, Voxtral, SenseVoice and Fun-ASR-Nano, the wav2vec2 family and w2v-BERT are tested.
            Layer drop and the encoder's own SpecAugment are switched off: both would make training differ from the
            recipe silently. Defaults to Whisper.
        text_config (`dict` or `PreTrainedConfig`, *optional*):
            Configuration of the language model: any that `AutoModelForCausalLM` maps. Defaults to Qwen2.
        adapter_hidden_size (`int`, defaults to 512):
            Width of the adapter. The paper (section 2.1) gives 2 transformer layers and 1 CNN layer, no sizes.
        adapter_num_hidden_layers (`int`, defaults to 2): Transformer layers of the adapter.
        adapter_num_attention_heads (`int`, defaults to 8): Must divide `adapter_hidden_size`.
        adapter_intermediate_size (`int`, *optional*): Defaults to four times `adapter_hidden_size`.
        adapter_conv_kernel_size (`int`, defaults to 5):
            Kernel of the CNN layer, in encoder frames. Odd, and at least the stride, so that no frame is skipped.
        adapter_conv_stride (`int`, defaults to 4):
            Encoder frames per audio token. The rate of audio tokens is the encoder's frame rate over the stride:

            | encoder | frames | stride 4 | stride 2 | stride 1 |
            |---|---|---|---|---|
            | Whisper, Voxtral, wav2vec2, HuBERT, WavLM, w2v-BERT | 50 Hz | 12.5 Hz | 25 Hz | 50 Hz |
            | Qwen2-Audio | 25 Hz | 6.25 Hz | 12.5 Hz | 25 Hz |
            | SenseVoice / Fun-ASR-Nano (SAN-M) | 16.7 Hz | 4.2 Hz | 8.3 Hz | 16.7 Hz |
        adapter_dropout (`float`, defaults to 0.0): Dropout in the adapter's layers.
        adapter_hidden_act (`str`, defaults to `"gelu"`): Activation of the CNN and the feed-forward layers.
        adapter_output_scale (`float`, defaults to 0.02):
            Root mean square of a freshly initialised adapter's outputs.
            [`PARTForSpeechSeq2Seq.from_pretrained_parts`] sets it to that of the language model's token embeddings.
        alignment_scale (`float`, *optional*):
            Scale of the alignment head's scores, see [`PARTForSpeechSeq2Seq.add_alignment_head`]. None: no such head.
        variable_length (`bool`, defaults to `True`):
            Run Whisper-like encoders on the clip's own length, with positions sliced and padding masked. `False`
            gives the original 30 s window. Other encoders always run on the clip's own length.
        audio_token_id (`int`, defaults to 0): Id of the placeholder that is replaced by audio embeddings.
        initializer_range (`float`, defaults to 0.02): Standard deviation of the adapter's initial weights.

    Raises:
        ValueError: when a value is impossible; the message names the field and the fix.
    """

    model_type = "part"
    sub_configs_defaults: ClassVar[dict] = {
        "audio_config": SubConfigSpec(config_class=AutoConfig, model_type="whisper"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="qwen2"),
    }

    audio_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    adapter_hidden_size: int = 512
    adapter_num_hidden_layers: int = 2
    adapter_num_attention_heads: int = 8
    adapter_intermediate_size: int | None = None
    adapter_conv_kernel_size: int = 5
    adapter_conv_stride: int = 4
    adapter_dropout: float | int = 0.0
    adapter_hidden_act: str = "gelu"
    adapter_output_scale: float = 0.02
    alignment_scale: float | None = None
    variable_length: bool = True
    audio_token_id: int = 0
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs) -> None:
        if self.adapter_intermediate_size is None and isinstance(self.adapter_hidden_size, int):
            self.adapter_intermediate_size = 4 * self.adapter_hidden_size
        super().__post_init__(**kwargs)
        # Tied embeddings are honoured only where the top-level config asks for them.
        self.tie_word_embeddings = getattr(self.text_config, "tie_word_embeddings", False)
        for name, off in {"encoder_layerdrop": 0.0, "layerdrop": 0.0, "apply_spec_augment": False}.items():
            if hasattr(self.audio_config, name):
                setattr(self.audio_config, name, off)
        self.validate_architecture()

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: str, **kwargs) -> tuple[dict, dict]:
        """See `PreTrainedConfig.get_config_dict`; refuses a folder without config.json, for which that gives an empty one."""
        found, unused = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if not found:  # defaults would be another model, and a large one
            raise OSError(
                f"{str(pretrained_model_name_or_path)!r} has no config.json: it is no PART checkpoint, or damaged."
            )
        return found, unused

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """See `PreTrainedConfig.from_dict`; refuses another architecture, which transformers only warns about."""
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ValueError(
                f"This is a configuration of {model_type!r}, not of {cls.model_type!r}. Name a PART checkpoint, or build "
                "one from an encoder and a language model with `PARTForSpeechSeq2Seq.from_pretrained_parts`."
            )
        lost = [name for name in ("audio_config", "text_config") if not config_dict.get(name)]
        # Where it was saved, defaults would be another model, and a large one.
        if lost and "transformers_version" in config_dict:
            raise ValueError(
                f"This config.json has no {' and no '.join(lost)}: it is damaged. Fetch the checkpoint again."
            )
        return super().from_dict(config_dict, **kwargs)

    def to_dict(self) -> dict:
        """See `PreTrainedConfig.to_dict`, from which files are written.

        Only a class that came with a checkpoint is saved with its code beside it: of one of the installed package the file
        names no code, though the checkpoint it was loaded from had some.
        """
        settings = super().to_dict()
        if not self.is_remote_code():
            for name in ("auto_map", "custom_pipelines"):
                settings.pop(name, None)
        return settings

    def validate_architecture(self) -> None:
        """Refuse impossible values, whenever a config is built or read."""
        for name in (
            "adapter_hidden_size",
            "adapter_num_attention_heads",
            "adapter_intermediate_size",
            "adapter_conv_kernel_size",
            "adapter_conv_stride",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` is {value!r}; it must be a whole number of at least 1.")
        for name in ("adapter_dropout", "adapter_output_scale"):
            if not isinstance(getattr(self, name), (int, float)):
                raise ValueError(f"`{name}` is {getattr(self, name)!r}; it must be a number.")
        if not isinstance(self.adapter_num_hidden_layers, int) or self.adapter_num_hidden_layers < 0:
            raise ValueError(
                f"`adapter_num_hidden_layers` is {self.adapter_num_hidden_layers!r}; use 0 for an adapter "
                "without transformer layers, or the paper's 2."
            )
        if self.adapter_hidden_size % self.adapter_num_attention_heads != 0:
            raise ValueError(
                f"`adapter_hidden_size` ({self.adapter_hidden_size}) is not a multiple of "
                f"`adapter_num_attention_heads` ({self.adapter_num_attention_heads}); change one of the two."
            )
        if self.adapter_conv_kernel_size % 2 == 0 or self.adapter_conv_kernel_size < self.adapter_conv_stride:
            raise ValueError(
                f"`adapter_conv_kernel_size` is {self.adapter_conv_kernel_size} at stride {self.adapter_conv_stride}; "
                "it must be odd (so that a token is centred on its frames) and at least the stride (so that no "
                f"frame is skipped): use {self.adapter_conv_stride + 1 - self.adapter_conv_stride % 2}."
            )
        if not 0.0 <= self.adapter_dropout < 1.0:
            raise ValueError(f"`adapter_dropout` is {self.adapter_dropout}; it must be in [0, 1).")
        if self.adapter_output_scale <= 0.0:
            raise ValueError(f"`adapter_output_scale` is {self.adapter_output_scale}; it must be positive.")
        if not 0 <= self.audio_token_id < self.text_config.vocab_size:
            raise ValueError(
                f"`audio_token_id` is {self.audio_token_id}, outside the language model's vocabulary of "
                f"{self.text_config.vocab_size}; resize the embeddings or choose a token that exists."
            )
        if getattr(self.audio_config, "add_adapter", False):
            raise ValueError(
                f"`audio_config.add_adapter` is True ({self.audio_config.model_type}); PART brings its own adapter: "
                "set `add_adapter=False`."
            )

    @property
    def encoder_hidden_size(self) -> int:
        """Width of the encoder's frames."""
        return getattr(self.audio_config, "hidden_size", None) or self.audio_config.d_model

    @property
    def encoder_num_hidden_layers(self) -> int:
        """Number of transformer layers of the encoder."""
        return getattr(self.audio_config, "encoder_layers", None) or self.audio_config.num_hidden_layers

    @property
    def encoder_convolutions(self) -> list[list[int]]:
        """`[kernel, stride, padding]` of each convolution between the input features and the encoder's frames."""
        config = self.audio_config
        if hasattr(config, "conv_kernel") and hasattr(config, "conv_stride"):  # the wav2vec2 family
            return [[kernel, stride, 0] for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True)]
        return [list(convolution) for convolution in ENCODER_CONVOLUTIONS.get(config.model_type, ())]

    @property
    def adapter_convolution(self) -> list[int]:
        """`[kernel, stride, padding]` of the adapter's CNN layer."""
        kernel = self.adapter_conv_kernel_size
        return [kernel, self.adapter_conv_stride, (kernel - 1) // 2]

    @property
    def audio_token_convolutions(self) -> list[list[int]]:
        """All convolutions between the input features and the audio tokens; the processor keeps a copy."""
        return [*self.encoder_convolutions, self.adapter_convolution]


# An encoder that transformers does not have. `exist_ok`: a checkpoint's own code may be loaded beside the package.
AutoConfig.register(SenseVoiceEncoderConfig.model_type, SenseVoiceEncoderConfig, exist_ok=True)

# `transformers serve` looks a model's type up in this table, which registration with the Auto classes leaves as it is.
MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES[PARTConfig.model_type] = "PARTForSpeechSeq2Seq"

__all__ = ["PARTConfig", "convolved_length"]
