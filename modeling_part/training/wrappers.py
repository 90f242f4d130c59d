# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""What accelerate wraps a model in for several devices: what would break the training is refused, the rest set right."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn


def refuse_wrong_wrappers(accelerator: Accelerator, model: nn.Module, answers_dev_data: bool) -> None:
    """Raise ValueError where the gate, the weights that are saved or the answers would be wrong.

    Args:
        accelerator: of the launch.
        model: not wrapped yet.
        answers_dev_data: whether evaluations generate (`predict_with_generate`).
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise ValueError(
            "DeepSpeed ZeRO turns absent gradients into zeros, and AdamW then moves the gated language model by "
            "momentum and weight decay. Use multi_gpu_bf16.yaml (DDP) or fsdp2_bf16.yaml of accelerate_configs."
        )
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        return
    if getattr(plugin, "fsdp_version", 2) == 1:
        raise ValueError(
            "FSDP1 flattens frozen and trained parameters together, which the task gate cannot toggle. Set "
            "`fsdp_version: 2` (see accelerate_configs/fsdp2_bf16.yaml)."
        )
    if "FULL_STATE_DICT" not in str(plugin.state_dict_type):
        raise ValueError(
            f"FSDP2 with {plugin.state_dict_type} saves no model that can be loaded: set `fsdp_state_dict_type: "
            "FULL_STATE_DICT` (see accelerate_configs/fsdp2_bf16.yaml)."
        )
    # One parameter of each dtype, the most frequent dtype first: the others are those that differ.
    named = list(model.named_parameters())
    dtypes = [parameter.dtype for _, parameter in named]
    examples = {dtype: named[dtypes.index(dtype)][0] for dtype in sorted(set(dtypes), key=dtypes.count, reverse=True)}
    if len(examples) > 1:
        told = ", ".join(f"{dtype} such as {name}" for dtype, name in examples.items())
        raise ValueError(
            f"The model's parameters are {told}, and FSDP2 shards those of one dtype as one: leave `frozen_dtype` out of "
            "the recipe, and set `model_dtype: float32`."
        )
    if answers_dev_data:
        raise ValueError(
            "`predict_with_generate` needs the whole model on every process, which FSDP2 shards: leave it out. The dev "
            "loss stays, and the answers of each finished stage are scored."
        )


def keep_sums_in_float32(accelerator: Accelerator) -> None:
    """Let FSDP2 compute in bfloat16 and add up in float32, as DDP under autocast does.

    accelerate would cast what every unit returns, losses in float32 among it, and add the ranks' gradients in bfloat16.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.mixed_precision_policy is not None:
        policy = replace(plugin.mixed_precision_policy, reduce_dtype=torch.float32, output_dtype=None)
        plugin.mixed_precision_policy = policy


@contextmanager
def whole_on_every_rank(model: nn.Module) -> Iterator[None]:
    """Let buffers that are saved pass for others while FSDP2 wraps a model; then all ranks get those of the first.

    Such as the bias of the alignment head. `fsdp2_load_full_state_dict` of accelerate 1.15 asks each entry of the state
    dict for its mesh, which a buffer has not; those that are not saved it keeps aside. Where one rank alone reads the
    checkpoint, the others have nothing in theirs.
    """
    saved = []
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer is not None and name not in module._non_persistent_buffers_set:
                module._non_persistent_buffers_set.add(name)
                saved.append((module, name))
    yield
    for module, name in saved:
        module._non_persistent_buffers_set.discard(name)
        torch.distributed.broadcast(getattr(module, name), src=0)
