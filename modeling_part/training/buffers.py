# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Buffers under FSDP2: accelerate, loading on one rank, takes all that a checkpoint holds for sharded parameters."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed
from torch import nn


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
