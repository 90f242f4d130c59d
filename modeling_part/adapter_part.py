# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""The adapter between speech encoder and language model (arXiv 2509.19745, section 2.1: two transformer layers, one CNN).

Shapes are written with B clips, F encoder frames, A audio tokens, H the language model's width.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_part import PARTConfig, convolved_length
from .encoder_part import lengths_to_mask, pack_clips, zero_padding
from .layout_part import OTHER_AUDIO_TOKENS, clip_positions, take_positions


class PARTAdapterAttention(nn.Module):
    """Bidirectional multi-head attention over audio tokens. Source: transformers `models/fun_asr_nano`."""

    def __init__(self, config: PARTConfig) -> None:
        super().__init__()
        self.config = config
        self.head_dim = config.adapter_hidden_size // config.adapter_num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.num_key_value_groups = 1
        self.is_causal = False
        self.dropout = config.adapter_dropout
        self.q_proj = nn.Linear(config.adapter_hidden_size, config.adapter_hidden_size)
        self.k_proj = nn.Linear(config.adapter_hidden_size, config.adapter_hidden_size)
        self.v_proj = nn.Linear(config.adapter_hidden_size, config.adapter_hidden_size)
        self.out_proj = nn.Linear(config.adapter_hidden_size, config.adapter_hidden_size)

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, **kwargs) -> torch.Tensor:
        """`(B, A, hidden)` -> `(B, A, hidden)`; `kwargs` reach the attention's kernel."""
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key, value = (
            projection(hidden_states).view(shape).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, _ = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.out_proj(output.reshape(hidden_states.shape).contiguous())


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain attention, `(B, heads, A, head size)` -> `(B, A, heads, head size)`. Source: `models/fun_asr_nano`."""
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class PARTAdapterLayer(GradientCheckpointingLayer):
    """A pre-norm transformer layer, `(B, A, hidden)` -> `(B, A, hidden)`."""

    def __init__(self, config: PARTConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.adapter_hidden_size)
        self.self_attn = PARTAdapterAttention(config)
        self.feed_forward_norm = nn.LayerNorm(config.adapter_hidden_size)
        self.fc1 = nn.Linear(config.adapter_hidden_size, config.adapter_intermediate_size)
        self.fc2 = nn.Linear(config.adapter_intermediate_size, config.adapter_hidden_size)
        self.activation = ACT2FN[config.adapter_hidden_act]
        self.dropout = nn.Dropout(config.adapter_dropout)

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, **kwargs) -> torch.Tensor:
        """Attention, then the feed-forward layers, each added to what came in."""
        attended = self.self_attn(self.attention_norm(hidden_states), attention_mask, **kwargs)
        hidden_states = hidden_states + self.dropout(attended)
        transformed = self.fc2(self.activation(self.fc1(self.feed_forward_norm(hidden_states))))
        return hidden_states + self.dropout(transformed)


class PARTOutputNorm(nn.RMSNorm):
    """The adapter's last norm, `(..., H)` -> `(..., H)`; its gain starts at `adapter_output_scale`."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """In the precision of the gain: autocast knows layer norms, and leaves this one to a mixture of both."""
        return super().forward(hidden_states.to(self.weight.dtype))


class PARTAdapter(nn.Module):
    """One CNN layer that shortens, two transformer layers, a projection to the language model's width.

    The CNN comes first, so that the transformer layers see `adapter_conv_stride` times fewer positions. The last
    norm starts at the scale of the token embeddings: audio enters the language model at the size that it knows.
    """

    def __init__(self, config: PARTConfig) -> None:
        super().__init__()
        self.config = config
        kernel = config.adapter_conv_kernel_size
        self.input_norm = nn.LayerNorm(config.encoder_hidden_size)
        self.conv = nn.Conv1d(
            config.encoder_hidden_size,
            config.adapter_hidden_size,
            kernel,
            stride=config.adapter_conv_stride,
            padding=(kernel - 1) // 2,
        )
        self.activation = ACT2FN[config.adapter_hidden_act]
        self.layers = nn.ModuleList([PARTAdapterLayer(config) for _ in range(config.adapter_num_hidden_layers)])
        self.norm = nn.LayerNorm(config.adapter_hidden_size)
        self.projection = nn.Linear(config.adapter_hidden_size, config.text_config.hidden_size)
        self.output_norm = PARTOutputNorm(config.text_config.hidden_size, eps=1e-6)

    def forward(
        self,
        frames: torch.Tensor,
        frame_lengths: torch.Tensor | None,
        padding_free: bool = False,
        audio_tokens: int | None = None,
    ) -> torch.Tensor:
        """Encoder frames -> audio embeddings.

        Args:
            frames: `(B, F, encoder hidden)`.
            frame_lengths: `(B,)`, valid frames of each clip; None: all.
            padding_free: the layers get the clips packed into one row; the same embeddings, without computing padding.
            audio_tokens: the sum of A, where it is known; None: the device is asked.

        Returns:
            `(sum of A, H)` audio embeddings, clip after clip.

        Raises:
            RuntimeError: these are not as many as `audio_tokens`; on a GPU maybe at a later operation.
        """
        hidden_states = self.input_norm(frames.to(self.conv.weight.dtype)).transpose(1, 2)
        hidden_states = zero_padding(hidden_states, frame_lengths)
        hidden_states = self.activation(self.conv(hidden_states)).transpose(1, 2)
        lengths = mask = None
        bounds = {}
        if frame_lengths is not None:
            lengths = convolved_length(frame_lengths, [self.config.adapter_convolution])
            if padding_free:
                hidden_states, mask, bounds = pack_clips(self.config, hidden_states, lengths, audio_tokens)
            else:
                valid = lengths_to_mask(lengths, hidden_states.shape[1])
                # Without the number of audio tokens the device is asked anyway, and maybe no mask is needed.
                mask = create_bidirectional_mask(
                    self.config, hidden_states, valid, allow_is_bidirectional_skip=audio_tokens is None
                )
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask, **bounds)
        if lengths is None or padding_free:
            hidden_states = hidden_states.flatten(0, 1)
            if audio_tokens not in (None, len(hidden_states)):
                raise RuntimeError(OTHER_AUDIO_TOKENS)
        else:
            kept = clip_positions(lengths, hidden_states.shape[1], audio_tokens)
            hidden_states = take_positions(hidden_states, kept)
        return self.output_norm(self.projection(self.norm(hidden_states)))
