# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""From the language model's hidden states to logits and losses: which positions, how many at a time, at what scale.

Shapes are written with B rows, L positions, H the language model's width, V its vocabulary.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig


def keep_positions(hidden_states: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    """Positions of `(B, L, H)`: the last so many (0: all), those of an index `(kept,)`, or of a mask `(B, L)`."""
    if isinstance(logits_to_keep, int):
        return hidden_states[:, -logits_to_keep:]
    return hidden_states[logits_to_keep] if logits_to_keep.ndim == 2 else hidden_states[:, logits_to_keep]


def scale_logits(config: PreTrainedConfig, logits: torch.Tensor) -> torch.Tensor:
    """What some language models do to their logits after the head (Granite, Cohere, Falcon-H1, Gemma 2 and 3)."""
    if (divisor := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / divisor
    for name in ("logit_scale", "lm_head_multiplier"):
        if (factor := getattr(config, name, None)) is not None:
            logits = logits * factor
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits


def answer_loss(
    logits_of: Callable,
    loss_function: Callable,
    hidden_states: torch.Tensor,
    targets: torch.Tensor,
    chunk_size: int | None,
    items: int | torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Negative log-likelihood of the targets, their sum over `items`.

    Args:
        logits_of: `(targets, H)` -> `(targets, V)`.
        loss_function: transformers' own for causal language models.
        hidden_states: `(targets, H)`.
        targets: `(targets,)` token ids.
        chunk_size: targets at a time; None: all at once.
        items: what all losses of a batch are divided by.

    Returns:
        The loss; all at once, the logits `(targets, V)`, else None; in chunks, the nats `(targets,)` without gradient.
    """
    if chunk_size:
        losses = chunked_token_losses(logits_of, hidden_states, targets, chunk_size)
        return losses.sum() / items, None, losses.detach()
    logits = logits_of(hidden_states)
    loss = loss_function(
        logits=logits,
        labels=None,
        shift_labels=targets,
        vocab_size=logits.shape[-1],
        num_items_in_batch=items,
    )
    return loss, logits, None


def chunked_token_losses(
    logits_of: Callable, hidden_states: torch.Tensor, targets: torch.Tensor, size: int
) -> torch.Tensor:
    """Nats of every target, never with the logits of more than `size` of them at once.

    Args:
        logits_of: `(targets, H)` -> `(targets, V)`; computed again in the backward pass.
        hidden_states: `(targets, H)`.
        targets: `(targets,)` token ids.
        size: targets at a time.

    Returns:
        `(targets,)` in float32.
    """

    def token_losses(hidden_states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = logits_of(hidden_states).float()
        return nn.functional.cross_entropy(logits, targets.to(logits.device), reduction="none")

    return _in_chunks(token_losses, hidden_states, targets, size)


def chunked_divergences(
    logits_of: Callable, hidden_states: torch.Tensor, start_states: torch.Tensor, size: int
) -> torch.Tensor:
    """KL divergence of what the language model predicts from what it predicted at its start, `KL(start || now)`.

    Args:
        logits_of, size: see [`chunked_token_losses`].
        hidden_states: `(targets, H)`.
        start_states: `(targets, H)`, those of the language model at its start; no gradient goes there.

    Returns:
        `(targets,)` nats in float32.
    """

    def divergences(hidden_states: torch.Tensor, start_states: torch.Tensor) -> torch.Tensor:
        start, now = (logits_of(states).float().log_softmax(-1) for states in (start_states, hidden_states))
        return nn.functional.kl_div(now, start, reduction="none", log_target=True).sum(-1)

    return _in_chunks(divergences, hidden_states, start_states.detach(), size)


def _in_chunks(nats_of: Callable, hidden_states: torch.Tensor, others: torch.Tensor, size: int) -> torch.Tensor:
    """`(targets,)` nats, of `size` targets at a time."""
    chunks = list(zip(hidden_states.split(size), others.split(size), strict=True))
    if len(chunks) == 1:  # small enough to be kept for the backward pass
        return nats_of(*chunks[0])
    return torch.cat([checkpoint(nats_of, *chunk, use_reentrant=False) for chunk in chunks])
