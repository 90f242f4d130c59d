"""What every rank runs for train_part.py under FSDP2 as accelerate wraps it, on the CPU. Not a test module.

    torchrun ... fsdp_on_cpu.py fsdp2_bf16.yaml RECIPE [--NAME VALUE ...]

accelerate shards where there are accelerators; nothing in the sharding needs one. Here its ranks pass for those of GPUs
and read what `accelerate launch` reads from its file: loading on one rank, gathering when saving, and the rest.
"""

import os
import sys
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
import yaml
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp._fully_shard import _fully_shard

import train_part
from modeling_part.training.trainer import PARTTrainer


class CheckedTrainer(PARTTrainer):
    """Sees to it that losses, and the sums of gradients over the ranks, are in float32 whatever is computed in."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        nats = ("token_losses", "kl_divergences", "ctc_losses")
        found = {name: outputs[name].dtype for name in nats if outputs.get(name) is not None} | {"loss": loss.dtype}
        assert set(found.values()) == {torch.float32}, found
        policy = model._get_fsdp_state()._mp_policy
        assert (policy.param_dtype, policy.reduce_dtype) == (torch.bfloat16, torch.float32), policy
        return (loss, outputs) if return_outputs else loss


def read_settings(path: Path) -> dict[str, str]:
    """The environment that the launcher makes of a file."""
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert settings["distributed_type"] == "FSDP"
    environment = {name.upper(): str(value).lower() for name, value in settings["fsdp_config"].items()}
    for name in ("FSDP_AUTO_WRAP_POLICY", "FSDP_STATE_DICT_TYPE"):
        environment[name] = environment[name].upper()
    environment["ACCELERATE_MIXED_PRECISION"] = settings["mixed_precision"]
    return environment | {"ACCELERATE_USE_FSDP": "true", "ACCELERATE_USE_CPU": "true"}


def run(config: Path, argv: list[str]):
    """Train as one of the ranks."""
    os.environ |= read_settings(config)
    make_state = PartialState.__init__

    def pass_for_a_gpu(state, *args, **kwargs):
        make_state(state, *args, **kwargs)
        if state.distributed_type == DistributedType.MULTI_CPU:
            state._shared_state["distributed_type"] = DistributedType.MULTI_GPU

    train_part.PARTTrainer = CheckedTrainer
    with patch.object(PartialState, "__init__", pass_for_a_gpu):
        PartialState(cpu=True)
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        with patch.object(_fully_shard, "_init_default_mesh", lambda *_, **__: mesh):
            train_part.main(argv)
    dist.destroy_process_group()


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2:])
