# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""What the model's methods return.

Shapes are written with B clips, F encoder frames, A audio tokens, L positions of the language model's sequence, H its
width, V its vocabulary.
"""

from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, ModelOutput


@dataclass
class PARTAudioOutput(BaseModelOutputWithPooling):
    """Output of `get_audio_features`.

    Attributes:
        last_hidden_state: `(B, F, encoder hidden)` encoder frames.
        pooler_output: `(sum of A, H)` audio embeddings of the valid positions, clip after clip.
        hidden_states, attentions: of the encoder's layers, when `output_hidden_states` and `output_attentions`.
    """


@dataclass
class PARTModelOutputWithPast(BaseModelOutputWithPast):
    """`BaseModelOutputWithPast` with `audio_hidden_states`, the `(sum of A, H)` audio embeddings that were placed."""

    audio_hidden_states: torch.Tensor | None = None


@dataclass
class PARTCausalLMOutputWithPast(ModelOutput):
    """Output of [`PARTForSpeechSeq2Seq`].

    Attributes:
        loss: `nll_weight` times the mean (or sum over `num_items_in_batch`) negative log-likelihood of the labels, plus
            the alignment and the divergence times their weights.
        logits: `(B, L, V)`, or of the positions that `logits_to_keep` asks for. With `labels` and without
            `logits_to_keep` only the positions that predict a label reach the vocabulary matrix: `(targets, V)`, or
            None with `loss_chunk_size`.
        token_losses: `(targets,)` nats in float32, without gradient, with `loss_chunk_size`.
        kl_divergences: `(targets,)` nats in float32, without gradient, with `kl_weight`.
        past_key_values, hidden_states, attentions: those of the language model.
        audio_hidden_states: `(sum of A, H)` audio embeddings that were placed.
        ctc_losses, ctc_counted: `(B,)` nats of each clip and whether it counts, with `ctc_weight` and audio.
        ctc_tokens: `(sum of A,)` the most probable token of each audio token, -1 for the blank, while evaluating.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    token_losses: torch.Tensor | None = None
    kl_divergences: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    audio_hidden_states: torch.Tensor | None = None
    ctc_losses: torch.Tensor | None = None
    ctc_counted: torch.Tensor | None = None
    ctc_tokens: torch.Tensor | None = None
