# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Speech encoders on clips of their own lengths, and clips packed into one row without padding.

Shapes are written with B clips, T input steps (mel frames), F encoder frames.
"""

from typing import ClassVar

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask, packed_sequence_mask_function
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder
from transformers.models.voxtral.modeling_voxtral import VoxtralEncoder
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_part import ENCODER_CONVOLUTIONS, PARTConfig, convolved_length
from .layout_part import clip_positions, put_positions, row_bounds, take_positions
from .san_m_part import SAN_M_ENCODERS


def lengths_to_mask(lengths: torch.Tensor, size: int) -> torch.Tensor:
    """`(B,)` lengths -> `(B, size)` boolean mask, True for valid positions."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def zero_padding(hidden_states: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
    """Zero the positions of `(B, channels, size)` past each clip's length, as a convolution's own padding is."""
    if lengths is None:
        return hidden_states
    mask = lengths_to_mask(lengths, hidden_states.shape[-1])
    return hidden_states * mask[:, None].to(hidden_states.dtype)


def pack_clips(
    config, hidden_states: torch.Tensor, lengths: torch.Tensor, total: int | None = None
) -> tuple[torch.Tensor, torch.Tensor | None, dict]:
    """Clips one after the other in a single row, for layers that mix positions by attention alone.

    Args:
        config: whose attention implementation gets the mask.
        hidden_states: `(B, size, hidden)`.
        lengths: `(B,)`.
        total: their sum, where it is known; None: the device is asked.

    Returns:
        `(1, sum of lengths, hidden)`; the mask that keeps the clips apart in sdpa and eager attention (None for flash
        attention); and the arguments that keep them apart in the kernels of flash attention, which the others ignore.
    """
    size = hidden_states.shape[1]
    kept = clip_positions(lengths, size, total)
    packed = take_positions(hidden_states, kept)[None]
    clips = (kept // size)[None]
    mask = create_bidirectional_mask(config, packed, None, and_mask_function=packed_sequence_mask_function(clips))
    return packed, mask, row_bounds(lengths, size)


def unpack_clips(packed: torch.Tensor, lengths: torch.Tensor, size: int) -> torch.Tensor:
    """`(1, sum of lengths, hidden)` -> `(B, size, hidden)`, zeros past each clip's length."""
    hidden_states = packed.new_zeros(len(lengths), size, packed.shape[-1])
    return put_positions(hidden_states, clip_positions(lengths, size, packed.shape[1]), packed[0])


def join_clips(outputs: list[BaseModelOutput]) -> BaseModelOutput:
    """Outputs of single clips -> those of a batch, zeros past each clip's frames."""

    def join(clips: list[torch.Tensor]) -> torch.Tensor:
        return nn.utils.rnn.pad_sequence([clip[0] for clip in clips], batch_first=True)

    def join_square(clips: list[torch.Tensor]) -> torch.Tensor:
        frames = max(clip.shape[-1] for clip in clips)
        spare = [frames - clip.shape[-1] for clip in clips]
        return torch.cat([nn.functional.pad(clip, (0, n, 0, n)) for clip, n in zip(clips, spare, strict=True)])

    states, attentions = (
        [getattr(output, name, None) for output in outputs] for name in ("hidden_states", "attentions")
    )
    return BaseModelOutput(
        last_hidden_state=join([output.last_hidden_state for output in outputs]),
        hidden_states=None if states[0] is None else tuple(map(join, zip(*states, strict=True))),
        attentions=None if attentions[0] is None else tuple(map(join_square, zip(*attentions, strict=True))),
    )


class VariableLengthEncoderMixin:
    """The forward of Whisper's encoder on the clips' own lengths: positions sliced, padding masked.

    transformers' version demands the full 30 s window and attends to its padding: a clip of 3 s costs ten times
    its share. Frames past a clip's end are zeroed before each convolution and masked in attention, so that a clip
    gives the same frames whatever it is batched with. Called with 3,000 frames and no mask it is the original.
    """

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_features: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        padding_free: bool = False,
        packed_frames: int | None = None,
        is_padded: bool = False,
        **kwargs,
    ) -> BaseModelOutput:
        """Features -> encoder frames.

        Args:
            input_features: `(B, mel bins, T)` log-mel features.
            attention_mask: `(B, T)`, 1 for valid input steps; None when every step is valid.
            padding_free: the layers get the clips packed into one row; the same frames, without computing padding.
            packed_frames: how many these are, where it is known; None: the device is asked.
            is_padded: it is known that some clip is shorter than T; else transformers asks the device.

        Returns:
            `last_hidden_state` of shape `(B, F, hidden)`.
        """
        hidden_states = input_features.to(self.conv1.weight.dtype)
        lengths = None if attention_mask is None else attention_mask.sum(-1)
        hidden_states = zero_padding(hidden_states, lengths)
        hidden_states = zero_padding(nn.functional.gelu(self.conv1(hidden_states)), lengths)
        hidden_states = nn.functional.gelu(self.conv2(hidden_states)).transpose(1, 2)
        frames = hidden_states.shape[1]
        if frames > self.max_source_positions:
            raise ValueError(
                f"A clip of {input_features.shape[-1]} feature frames gives {frames} encoder frames, but "
                f"{type(self).__name__} has {self.max_source_positions} positions. Cut the audio into shorter pieces "
                "(PARTPipeline does, see `chunk_length_s`) or filter it by `max_duration` in training."
            )
        places = torch.arange(frames, device=hidden_states.device)
        hidden_states = hidden_states + self.embed_positions(places)
        hidden_states = nn.functional.dropout(hidden_states, p=self.dropout, training=self.training)

        mask = None
        packed = padding_free and lengths is not None
        if lengths is not None:
            lengths = convolved_length(lengths, ENCODER_CONVOLUTIONS["whisper"])
        if packed:
            hidden_states, mask, bounds = pack_clips(self.config, hidden_states, lengths, packed_frames)
            kwargs |= bounds
        elif lengths is not None:
            valid = lengths_to_mask(lengths, frames)
            mask = create_bidirectional_mask(
                self.config, hidden_states, valid, allow_is_bidirectional_skip=not is_padded
            )
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask, **kwargs)
        if packed:
            hidden_states = unpack_clips(hidden_states, lengths, frames)
        return BaseModelOutput(last_hidden_state=self._finish(hidden_states))

    def _finish(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.layer_norm(hidden_states)


class PARTWhisperEncoder(VariableLengthEncoderMixin, WhisperEncoder):
    """Whisper's encoder on clips of any length up to 30 s. Source: transformers `models/whisper`."""

    # WhisperEncoder also lists the decoder's layers, which are not here: wrapping by these names would raise.
    _no_split_modules: ClassVar = ["WhisperEncoderLayer"]


class PARTVoxtralEncoder(VariableLengthEncoderMixin, VoxtralEncoder):
    """Voxtral's encoder on clips of any length up to 30 s. Source: transformers `models/voxtral`."""

    _no_split_modules: ClassVar = ["VoxtralEncoderLayer"]


class PARTQwen2AudioEncoder(VariableLengthEncoderMixin, Qwen2AudioEncoder):
    """Qwen2-Audio's encoder on clips of any length up to 30 s. Source: transformers `models/qwen2_audio`."""

    _no_split_modules: ClassVar = ["Qwen2AudioEncoderLayer"]

    def _finish(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # Pairs of frames are averaged; an odd last frame is dropped, so no pair mixes a clip with its padding.
        pooled = self.avg_pooler(hidden_states.transpose(1, 2)).transpose(1, 2)
        return self.layer_norm(pooled)


def build_audio_tower(config: PARTConfig) -> PreTrainedModel:
    """The encoder of `config.audio_config`, on the meta device or not, without weights."""
    classes = {
        "whisper": PARTWhisperEncoder,
        "qwen2_audio_encoder": PARTQwen2AudioEncoder,
        "voxtral_encoder": PARTVoxtralEncoder,
        **SAN_M_ENCODERS,
    }
    encoder_class = classes.get(config.audio_config.model_type)
    if encoder_class is not None:
        return encoder_class._from_config(config.audio_config)
    return AutoModel.from_config(config.audio_config)
