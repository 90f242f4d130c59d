"""accelerate_configs: accelerate's own loader reads every file, and its launcher starts what the file promises."""

import json
import os
import subprocess
import sys
from importlib import resources

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from tiny_training import free_port


CONFIGS = resources.files("modeling_part") / "accelerate_configs"

# Prints the environment that the launcher gave to each process and the world that the processes formed.
PROBE = """
import json, os
import torch.distributed
world = 1
if "RANK" in os.environ:
    torch.distributed.init_process_group("gloo")
    world = torch.distributed.get_world_size()
# One write per process: the lines of two processes must not mix.
os.write(1, ("PROBE " + json.dumps({"world": world, **os.environ}) + chr(10)).encode())
"""


@pytest.fixture
def launch(tmp_path):
    """Start `accelerate launch` once per given list of options, all at the same time; return each process's report."""
    script = tmp_path / "probe.py"
    script.write_text(PROBE)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "FSDP_", "OMP_"))}

    def start(config: str, *runs: list[str]) -> list[dict]:
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / config)]
        launchers = [
            subprocess.Popen(
                [*command, *options, str(script)],
                env=kept,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            for options in runs
        ]
        outputs = [launcher.communicate(timeout=120)[0] for launcher in launchers]
        assert [launcher.returncode for launcher in launchers] == [0] * len(runs), "\n".join(outputs)
        lines = [line for output in outputs for line in output.splitlines() if line.startswith("PROBE ")]
        return sorted((json.loads(line[6:]) for line in lines), key=lambda report: int(report.get("RANK", 0)))

    return start


@pytest.mark.parametrize(
    ("name", "distributed_type", "machines", "processes", "precision"),
    [
        ("cpu", DistributedType.NO, 1, 1, "no"),
        ("single_gpu", DistributedType.NO, 1, 1, "bf16"),
        ("multi_gpu_bf16", DistributedType.MULTI_GPU, 1, 8, "bf16"),
        ("fsdp2_bf16", DistributedType.FSDP, 1, 8, "bf16"),
        ("multi_node_bf16", DistributedType.MULTI_GPU, 32, 256, "bf16"),
    ],
)
def test_accelerate_reads_the_file(name, distributed_type, machines, processes, precision):
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert config.distributed_type == distributed_type
    assert (config.num_machines, config.num_processes, config.mixed_precision) == (machines, processes, precision)
    assert config.use_cpu is (name == "cpu")


def test_every_file_is_tested_here():
    names = {path.name for path in CONFIGS.iterdir()}
    assert names == {
        f"{name}.yaml" for name in ("cpu", "single_gpu", "multi_gpu_bf16", "fsdp2_bf16", "multi_node_bf16")
    }


def test_cpu_starts_one_process(launch):
    (report,) = launch("cpu.yaml", [])
    assert report["ACCELERATE_USE_CPU"] == "True"
    assert report["world"] == 1


def test_multi_gpu_starts_data_parallel_processes(launch):
    reports = launch("multi_gpu_bf16.yaml", ["--num_processes", "2", "--main_process_port", str(free_port())])
    assert [report["world"] for report in reports] == [2, 2]
    assert [report["ACCELERATE_MIXED_PRECISION"] for report in reports] == ["bf16", "bf16"]
    assert not any("ACCELERATE_USE_FSDP" in report for report in reports)


def test_fsdp2_reaches_the_processes_as_fsdp2(launch, monkeypatch):
    from accelerate import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import StateDictType
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

    reports = launch("fsdp2_bf16.yaml", ["--num_processes", "2", "--main_process_port", str(free_port())])
    assert [report["world"] for report in reports] == [2, 2]
    assert reports[0]["ACCELERATE_USE_FSDP"] == "true"
    for name, value in reports[0].items():
        if name.startswith("FSDP_"):
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.cpu_ram_efficient_loading is True
    assert plugin.activation_checkpointing is False
    assert plugin.state_dict_type == StateDictType.FULL_STATE_DICT
    # The layers to wrap are the model's `_no_split_modules`.
    assert plugin.auto_wrap_policy is transformer_auto_wrap_policy
    assert plugin.transformer_cls_names_to_wrap is None


def test_two_machines_meet_with_rank_and_address_from_the_command_line(launch):
    options = ["--num_machines", "2", "--num_processes", "4"]
    options += ["--main_process_ip", "127.0.0.1", "--main_process_port", str(free_port())]
    reports = launch("multi_node_bf16.yaml", *([*options, "--machine_rank", str(rank)] for rank in range(2)))
    assert [(report["RANK"], report["LOCAL_RANK"]) for report in reports] == [
        ("0", "0"),
        ("1", "1"),
        ("2", "0"),
        ("3", "1"),
    ]
    assert [report["world"] for report in reports] == [4, 4, 4, 4]
