# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""LoRA of the language model (Interspeech version of the paper): injected, and merged when saved."""

from collections.abc import Collection

import torch
from torch import nn

from ..recipes.stages import Stage


def add_lora(stage: Stage, model: nn.Module) -> None:
    """Inject LoRA (peft) into every linear layer of the language model's blocks, and only there."""
    from peft import LoraConfig, inject_adapter_in_model
    from transformers.pytorch_utils import Conv1D

    linear = {
        name: module
        for name, module in model.model.language_model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
    }
    # Explicit names: a pattern such as `q_proj` would also match the encoder and the adapter.
    targets = [f"model.language_model.{name}" for name in linear]
    if not targets:
        raise ValueError(f"{type(model.model.language_model).__name__} has no linear layers for LoRA; use `full`.")
    config = LoraConfig(
        r=stage.lora_rank,
        lora_alpha=stage.lora_alpha,
        lora_dropout=stage.lora_dropout,
        target_modules=targets,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in linear.values()),
    )
    inject_adapter_in_model(config, model)


def transposed_lora(model: nn.Module) -> set[str]:
    """Names of the layers under LoRA that keep their weight as `(in, out)`: GPT-2's `Conv1D`."""
    from transformers.pytorch_utils import Conv1D

    return {name.removesuffix(".base_layer") for name, module in model.named_modules() if isinstance(module, Conv1D)}


def split_lora(
    state_dict: dict[str, torch.Tensor], scaling: float, transposed: Collection[str] = ()
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A state dict with LoRA -> (plain weights with LoRA merged, the LoRA tensors alone).

    W + scaling * B A, as `peft`'s own merge, but on a state dict: the live model stays as it is, and a gathered
    FSDP state dict works too.

    Args:
        state_dict: may hold `X.base_layer.weight`, `X.lora_A.default.weight` `(r, in)` and
            `X.lora_B.default.weight` `(out, r)`.
        scaling: alpha / rank.
        transposed: prefixes X whose weight is `(in, out)`, see [`transposed_lora`].

    Returns:
        Both dicts; what was merged is in float32, whatever the dtype of the weight under LoRA.
    """
    lora = {name: tensor for name, tensor in state_dict.items() if ".lora_" in name}
    merged = {}
    for name, tensor in state_dict.items():
        if name in lora:
            continue
        prefix = name.removesuffix(".base_layer.weight")
        if prefix != name:
            down, up = lora[f"{prefix}.lora_A.default.weight"], lora[f"{prefix}.lora_B.default.weight"]
            delta = (up.float() @ down.float()) * scaling
            tensor = tensor.float() + (delta.T if prefix in transposed else delta)
        merged[name.replace(".base_layer.", ".")] = tensor
    return merged, lora
