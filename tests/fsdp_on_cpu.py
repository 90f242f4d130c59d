"""What every rank runs for train_part.py under FSDP2 as accelerate wraps it, on the CPU. Not a test module.

    torchrun ... fsdp_on_cpu.py fsdp2_bf16.yaml RECIPE [--NAME VALUE ...]

accelerate shards where there are accelerators; nothing in the sharding needs one. Here its ranks pass for those of GPUs
and read what `accelerate launch` reads from its file: loading on one rank, gathering when saving, and the rest.
"""

import os
import sys
from pathlib import Path
from unittest.mock import patch

import torch.distributed as dist
import yaml
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp._fully_shard import _fully_shard

from train_part import main


def read_settings(path: Path) -> dict[str, str]:
    """The environment that the launcher makes of a file."""
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert settings["distributed_type"] == "FSDP"
    environment = {name.upper(): str(value).lower() for name, value in settings["fsdp_config"].items()}
    for name in ("FSDP_AUTO_WRAP_POLICY", "FSDP_STATE_DICT_TYPE"):
        environment[name] = environment[name].upper()
    return environment | {"ACCELERATE_USE_FSDP": "true", "ACCELERATE_USE_CPU": "true"}


def run(config: Path, argv: list[str]):
    """Train as one of the ranks."""
    os.environ |= read_settings(config)
    make_state = PartialState.__init__

    def pass_for_a_gpu(state, *args, **kwargs):
        make_state(state, *args, **kwargs)
        if state.distributed_type == DistributedType.MULTI_CPU:
            state._shared_state["distributed_type"] = DistributedType.MULTI_GPU

    with patch.object(PartialState, "__init__", pass_for_a_gpu):
        PartialState(cpu=True)
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        with patch.object(_fully_shard, "_init_default_mesh", lambda *_, **__: mesh):
            main(argv)
    dist.destroy_process_group()


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2:])
