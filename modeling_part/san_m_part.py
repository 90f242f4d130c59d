# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""SAN-M encoders: Fun-ASR-Nano's, of transformers, and SenseVoice-Small's, the same behind four learned steps.

SenseVoice (arXiv 2407.04051) puts four query embeddings before the features, and its encoder never saw features without
them: they ask for language, emotion, event and the style of numbers, and the first four frames answer. Here they are
weights of the encoder; the frames that answer them are left out, so that frames and feature steps correspond.
"""

import torch
from torch import nn
from transformers import AutoFeatureExtractor, AutoModel, FunAsrNanoEncoderConfig
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.fun_asr_nano.modeling_fun_asr_nano import FunAsrNanoEncoder
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .fbank_part import PARTFbankFeatureExtractor


class SenseVoiceEncoderConfig(FunAsrNanoEncoderConfig):
    r"""Configuration of a [`SenseVoiceEncoder`]: that of the Fun-ASR-Nano encoder, and one more.

    Args:
        num_query_embeddings (`int`, defaults to 4): learned steps before the features.
    """

    model_type = "sense_voice_encoder"

    num_query_embeddings: int = 4


class PARTFunAsrNanoEncoder(FunAsrNanoEncoder):
    """Fun-ASR-Nano's encoder, called as the others are. Source: transformers `models/fun_asr_nano`."""

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_features: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        is_padded: bool = False,
        **kwargs,
    ) -> BaseModelOutput:
        """Features -> encoder frames.

        Args:
            input_features: `(B, T, stack)`.
            attention_mask: `(B, T)`, 1 for valid steps; None when every step is valid.
            is_padded: it is known that some clip is shorter than T; else transformers asks the device.

        Returns:
            `last_hidden_state` of shape `(B, T, hidden)`.

        Raises:
            ValueError: there are more steps than positions.
        """
        positions = self.config.max_position_embeddings - 1  # counted from one
        if input_features.shape[1] > positions:
            raise ValueError(
                f"A clip gives {input_features.shape[1]} feature steps, and {type(self).__name__} has {positions} "
                "positions. Cut the audio into shorter pieces (PARTPipeline does), filter it by `max_duration` in "
                "training, or raise the encoder's `max_position_embeddings`: they are computed, not learned."
            )
        hidden_states = input_features.to(self.layers[0].input_layernorm.weight.dtype)
        mask = create_bidirectional_mask(
            self.config, hidden_states, attention_mask, allow_is_bidirectional_skip=not is_padded
        )
        if attention_mask is None:  # the convolutions of the layers want one
            attention_mask = hidden_states.new_ones(hidden_states.shape[:2])
        hidden_states = hidden_states * self.scaling + self.position_embeddings(hidden_states)
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask, attention_mask, **kwargs)
        return BaseModelOutput(last_hidden_state=hidden_states)


class SenseVoiceEncoder(PARTFunAsrNanoEncoder):
    """SenseVoice-Small's encoder. Source: FunASR `models/sense_voice`."""

    config: SenseVoiceEncoderConfig

    def __init__(self, config: SenseVoiceEncoderConfig) -> None:
        super().__init__(config)
        self.query_embeddings = nn.Embedding(config.num_query_embeddings, config.input_size)
        self.post_init()

    def forward(
        self, input_features: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> BaseModelOutput:
        """See [`PARTFunAsrNanoEncoder.forward`]; attentions include the queries, frames and hidden states do not."""
        count, batch = self.query_embeddings.num_embeddings, len(input_features)
        if attention_mask is not None:
            attention_mask = nn.functional.pad(attention_mask, (count, 0), value=1)
        # By its forward, whose hooks fetch a weight that a `device_map` has put elsewhere.
        queries = self.query_embeddings(torch.arange(count, device=input_features.device))
        queries = queries.to(input_features.device, input_features.dtype).expand(batch, -1, -1)
        output = super().forward(torch.cat([queries, input_features], dim=1), attention_mask, **kwargs)
        output.last_hidden_state = output.last_hidden_state[:, count:]
        if output.hidden_states is not None:
            output.hidden_states = tuple(states[:, count:] for states in output.hidden_states)
        return output


# `exist_ok`: a checkpoint's own code may be loaded beside the package.
AutoModel.register(SenseVoiceEncoderConfig, SenseVoiceEncoder, exist_ok=True)
AutoFeatureExtractor.register(SenseVoiceEncoderConfig, PARTFbankFeatureExtractor, exist_ok=True)

SAN_M_ENCODERS = {FunAsrNanoEncoderConfig.model_type: PARTFunAsrNanoEncoder}
SAN_M_ENCODERS |= {SenseVoiceEncoderConfig.model_type: SenseVoiceEncoder}
