# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""LoRA of the language model (Interspeech version of the paper): injected, merged when saved, kept as a PEFT adapter."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..recipes.stages import Stage


if TYPE_CHECKING:
    from peft import LoraConfig


# peft's names: of an adapter's weights, of the model in its wrapper, and how tensors end in a model and in a file.
WEIGHTS_FILE = "adapter_model.safetensors"
WRAPPER = "base_model.model."
IN_MODEL, IN_FILE = ".default.weight", ".weight"


def add_lora(stage: Stage, model: nn.Module, autocast: bool = False) -> None:
    """Inject LoRA (peft) into every linear layer of the language model's blocks, and only there.

    Args:
        stage: says rank and scale.
        model: changed in place.
        autocast: the model always runs under autocast, which casts what enters LoRA. peft would cast it to LoRA's own
            float32 first, only to have it cast back: a copy of every layer's input, kept for the backward pass.

    Raises:
        ValueError: the language model has no linear layers.
    """
    from peft import inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    language_model = model.model.language_model
    # Explicit names: a pattern such as `q_proj` would also match the encoder and the adapter.
    targets = [
        f"model.language_model.{name}"
        for name, module in language_model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
    ]
    if not targets:
        raise ValueError(f"{type(language_model).__name__} has no linear layers for LoRA; use `full`.")
    inject_adapter_in_model(_peft_config(stage, targets, transposed_lora(language_model)), model)
    for module in language_model.modules():
        if isinstance(module, BaseTunerLayer):
            module.cast_input_dtype_enabled = not autocast


@contextmanager
def without_lora(language_model: nn.Module) -> Iterator[None]:
    """Inside it, a language model with LoRA is the one under it, and as in evaluation: nothing is dropped at random.

    peft's `disable_adapter` would also freeze LoRA, which DDP and the gate must not see.
    """
    from peft.helpers import rescale_adapter_scale

    was_training = language_model.training
    language_model.eval()
    try:
        with rescale_adapter_scale(language_model, 0.0):
            yield
    finally:
        language_model.train(was_training)


def save_lora(lora: Mapping[str, torch.Tensor], stage: Stage, transposed: Collection[str], folder: Path) -> None:
    """LoRA tensors as a PEFT adapter: `adapter_config.json` and `adapter_model.safetensors`.

    Its base is a PART model with the encoder and the adapter of this stage and the language model from before it.

    Args:
        lora: from [`split_lora`].
        stage: whose LoRA it is.
        transposed: see [`transposed_lora`].
        folder: created.
    """
    config = _peft_config(stage, {name.split(".lora_")[0] for name in lora}, transposed)
    config.inference_mode = True
    config.target_modules = sorted(config.target_modules)  # a set would be written in another order each time
    config.save_pretrained(str(folder))
    tensors = {
        f"{WRAPPER}{name.removesuffix(IN_MODEL)}{IN_FILE}": tensor.contiguous() for name, tensor in lora.items()
    }
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def load_lora(folder: Path) -> dict[str, torch.Tensor]:
    """What [`save_lora`] wrote, by the names in the model's state dict."""
    tensors = load_file(folder / WEIGHTS_FILE)
    return {name.removeprefix(WRAPPER).removesuffix(IN_FILE) + IN_MODEL: tensor for name, tensor in tensors.items()}


def _peft_config(stage: Stage, targets: Collection[str], transposed: Collection[str]) -> LoraConfig:
    from peft import LoraConfig

    return LoraConfig(
        r=stage.lora_rank,
        lora_alpha=stage.lora_alpha,
        lora_dropout=stage.lora_dropout,
        target_modules=list(targets),
        fan_in_fan_out=bool(transposed),
    )


def transposed_lora(model: nn.Module) -> set[str]:
    """Names of the layers under LoRA that keep their weight as `(in, out)`: GPT-2's `Conv1D`."""
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
