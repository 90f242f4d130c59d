# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""How much memory a training step needs on each device (arithmetic), and what is said where there is too little."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ..recipes.user_errors import UserError


GIB = 2**30

# What takes less.
SMALLER_BATCHES = (
    "Lower `max_audio_seconds` (or `max_tokens` for text), raise `gradient_accumulation_steps`, or set "
    "`activation_checkpointing: true`."
)
SMALLER_FORWARDS = "Lower `max_audio_seconds` (or `max_tokens` for text)."
FEWER_WEIGHTS = (
    "Train less of the language model (`tuning: lora`), keep what is frozen in half the room (`frozen_dtype: auto`), "
    "take a smaller optimizer (`optim: adamw_8bit`, which needs bitsandbytes), or divide all over several GPUs "
    "(accelerate_configs/fsdp2_bf16.yaml)."
)


@contextmanager
def enough_memory(phase: str, way_out: str) -> Iterator[None]:
    """Where a device has too little memory, say in which phase and what takes less; also as a decorator.

    Raises:
        UserError: in the place of torch's error, unless a phase inside has said so.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(f"Out of memory {phase}. {way_out}") from error


def estimate_memory(
    model: nn.Module,
    trainable: dict[str, int],
    shapes: dict[str, int],
    *,
    world_size: int = 1,
    sharded: bool = False,
    gradient_checkpointing: bool = False,
    autocast: bool = False,
) -> dict[str, float]:
    """GiB per device of one AdamW step.

    Without the allocator's slack and the communication buffers of FSDP2; expect the truth within a third.

    Args:
        model: [`PARTForSpeechSeq2Seq`], on any device (the meta device too).
        trainable: trainable parameters per part.
        shapes: of a batch: `frames` (encoder frames, all clips), `positions` (of the language model's sequences) and
            `targets` (positions that reach the vocabulary).
        world_size: number of devices.
        sharded: weights, gradients and optimizer state are divided among them (FSDP2); else each holds all (DDP).
        gradient_checkpointing: only the inputs of the layers are kept.
        autocast: bfloat16 compute over float32 weights, whose casts are kept during the step.

    Returns:
        `weights`, `gradients`, `optimizer`, `activations`, `logits` and their `total`.
    """
    shards = world_size if sharded else 1
    parameters = list(model.parameters())
    weights = sum(parameter.numel() * parameter.element_size() for parameter in parameters) / shards
    if autocast:
        weights += 2 * sum(parameter.numel() for parameter in parameters if parameter.element_size() == 4) / shards
    trained = sum(trainable.values())
    # DDP reduces in buckets that hold a second copy of the gradients.
    gradients = 4 * trained / shards * (2 if world_size > 1 and not sharded else 1)
    width = 2 if autocast or parameters[0].element_size() == 2 else 4
    activations = 0.0
    if trainable["encoder"]:
        activations += shapes["frames"] * _layer_bytes(model.config.audio_config, gradient_checkpointing, width)
    # Gradients pass through the language model in every stage, frozen or not.
    activations += shapes["positions"] * _layer_bytes(model.config.text_config, gradient_checkpointing, width)
    # Logits, their float32 copy and its gradient.
    logits = shapes["targets"] * model.config.text_config.vocab_size * (width + 4 + 4)
    parts = {
        "weights": weights,
        "gradients": gradients,
        "optimizer": 8 * trained / shards,
        "activations": activations,
        "logits": float(logits),
    }
    parts["total"] = sum(parts.values())
    return {name: size / GIB for name, size in parts.items()}


def _layer_bytes(config, gradient_checkpointing: bool, width: int) -> float:
    """Bytes kept per position over all layers: their inputs, or all that the backward pass of a layer needs."""
    hidden = getattr(config, "hidden_size", None) or config.d_model
    layers = getattr(config, "encoder_layers", None) or config.num_hidden_layers
    sizes = (getattr(config, name, None) for name in ("encoder_ffn_dim", "intermediate_size", "n_inner"))
    feed_forward = next((size for size in sizes if size), 4 * hidden)  # GPT-2 leaves its own unnamed
    inner = 9 * hidden + 3 * feed_forward  # norms, query, key, value, attention, two residuals; the feed-forward part
    if gradient_checkpointing:
        return width * (layers * hidden + inner)
    return width * layers * inner
