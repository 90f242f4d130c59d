# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Faster kernels and packed rows: what they need of the language model, checked before training."""

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.liger import apply_liger_kernel
from transformers.utils import is_liger_kernel_available

from ..loading_part import eager_attention


# torch gives up on compiling a function after 8 variants. One entry point serves the layers of all parts, each with
# its gate open and closed, with and without audio; shapes are made dynamic by torch after the second one.
COMPILED_VARIANTS = 64
LIGER_LOSSES = ("cross_entropy", "fused_linear_cross_entropy")


def use_liger_kernels(language_model: PreTrainedModel, settings: dict | None) -> None:
    """`use_liger_kernel`: Liger's norms, rotations and feed-forward parts in the language model's blocks.

    The loss stays PART's own, whose logits reach targets only and whose nats the log needs by language.

    Raises:
        ImportError: liger-kernel is not installed.
        ValueError: Liger does not know the language model, or `settings` ask for its loss.
    """
    settings = settings or {}
    if any(settings.get(name) for name in LIGER_LOSSES):
        raise ValueError(
            f"`liger_kernel_config` asks for {' or '.join(LIGER_LOSSES)}, but the loss is PART's own: set "
            "`loss_chunk_size` to bound the memory of the logits."
        )
    if not is_liger_kernel_available():
        raise ImportError("`use_liger_kernel` needs the package liger-kernel: pip install 'modeling-part[liger]'.")
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    kind = language_model.config.model_type
    if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise ValueError(f"Liger has no kernels for a language model of type {kind!r}: leave `use_liger_kernel` out.")
    apply_liger_kernel(language_model, {**settings, **dict.fromkeys(LIGER_LOSSES, False)})


def let_flex_attention_autocast() -> None:
    """Make `flex_attention` cast what it gets, as sdpa and flash attention do under autocast.

    Rotations leave queries and keys in float32 beside values in bfloat16, and torch's kernel refuses such a mixture.
    """
    AttentionInterface.register("flex_attention", autocast_flex_attention)


def autocast_flex_attention(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args, **kwargs
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """As transformers' `flex_attention_forward`; query, key and value in the dtype of autocast where that is on."""
    device = query.device.type
    if torch.is_autocast_enabled(device):
        query, key, value = (one.to(torch.get_autocast_dtype(device)) for one in (query, key, value))
    return flex_attention_forward(module, query, key, value, *args, **kwargs)


@torch.no_grad()
def check_rows_stay_apart(model: nn.Module) -> None:
    """Refuse `padding_free` for a language model that lets packed rows see each other (state spaces, convolutions)."""
    was_training, device = model.training, model.model.get_input_embeddings().weight.device
    ids = torch.arange(1, 11, device=device).reshape(2, 5)
    mask = torch.tensor([[1] * 5, [0, 0, 1, 1, 1]], device=device)
    model.eval()
    with eager_attention(model.model.language_model):
        padded = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[mask.bool()]
        packed = model.model(input_ids=ids, attention_mask=mask, padding_free=True).last_hidden_state[0]
    model.train(was_training)
    if not torch.allclose(packed, padded, rtol=1e-2, atol=1e-2 * padded.abs().max().item()):
        raise ValueError(
            f"{type(model.model.language_model).__name__} mixes the rows of a batch when they are packed: leave "
            "`padding_free` out of the recipe."
        )
