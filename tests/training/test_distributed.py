"""Several processes on the CPU: train_part.py under DDP, the gate and the loss under FSDP2, resuming with more ranks.

Every test starts real processes with torchrun, asserts the world size and the wrapper that it got, and has a time-out:
a hang is a failure.
"""

import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import tiny
import tiny_training
import torch
from safetensors.torch import load_file

from modeling_part import PARTForSpeechSeq2Seq


WORKER = Path(tiny_training.__file__).parent / "distributed_worker.py"
FSDP_WORKER = Path(tiny_training.__file__).parent / "fsdp_worker.py"

# A large epsilon keeps AdamW smooth where a gradient is nearly zero: otherwise its first steps turn a difference of
# 1e-9 in the gradient into one of the learning rate.
RATES = {"adapter": 1e-3, "encoder": 1e-3, "language_model": 1e-3}
STAGES = [
    {"name": "adapter", "max_steps": 2, "learning_rates": {"adapter": 1e-3}, "losses": {"ctc": 1.0}},
    {"name": "encoder_top", "max_steps": 2, "encoder_layers": 1},
    {"name": "encoder", "max_steps": 2, "losses": {"nll": 1.0, "ctc": 0.5}},
    {  # every step moves something
        "name": "joint",
        "max_steps": 8,
        "learning_rates": RATES,
        "warmup_ratio": 0.0,
        "losses": {"nll": 1.0, "ctc": 0.5, "kl": 0.5},
    },
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Sentences of one to six words: the ranks' batches differ in length."""
    return tiny.tiny_corpus(
        tmp_path_factory.mktemp("corpus"), sentences={"train": 10, "dev": 2, "test": 1}, words=(1, 6)
    )


def train(folder, tiny_parts, corpus, processes, accumulation, stages, timeout=280, overrides=(), **variables):
    """Run train_part.py with the probe; returns the probe's lines per rank and the run's output."""
    folder.mkdir(exist_ok=True)
    adapter = {"adapter_hidden_size": 32, "adapter_num_attention_heads": 2, "adapter_conv_stride": 1}
    settings = {"test_data": None, "adam_epsilon": 1e-4, "max_rows": 2, "stages": stages, "adapter": adapter}
    recipe = tiny_training.write_recipe(folder, tiny_parts, corpus, **settings)
    options = ["--gradient_accumulation_steps", str(accumulation), *overrides]
    arguments = [str(folder), str(recipe), *options]
    if processes == 1:
        command = [sys.executable, str(WORKER), *arguments]
    else:
        command = tiny_training.torchrun_command(processes, WORKER, *arguments)
        variables["ACCELERATE_USE_CPU"] = "true"
    result = tiny_training.execute(command, timeout=timeout, **variables)
    lines = {}
    for path in sorted(folder.glob("rank*.jsonl")):
        lines[path.stem] = [json.loads(line) for line in path.read_text().splitlines()]
    return lines, result


def assert_ranks_agree(lines, processes):
    """World size, wrapper, the same bits on every rank after every step."""
    assert len(lines) == processes
    for rank in lines.values():
        assert {line["world_size"] for line in rank} == {processes}
        assert {line["wrapper"] for line in rank} == {"DistributedDataParallel"}
        assert len(rank) == len(lines["rank0"])
    for index, line in enumerate(lines["rank0"]):
        assert len({rank[index]["weights"] for rank in lines.values()}) == 1, (line["stage"], line["step"])
        assert len({rank[index]["gated_states"] for rank in lines.values()}) == 1


def assert_gated(lines):
    """Over every transcription step the language model and its optimizer state keep their bits."""
    tasks = []
    for before, after in pairwise(lines):
        if after["event"] != "step" or after["stage"] != "joint":
            continue
        tasks.append(after["task"])
        gated = (before["gated_weights"], before["gated_states"]) == (after["gated_weights"], after["gated_states"])
        assert gated == (after["task"] == "asr"), (after["step"], after["task"])
        assert (before["other_weights"] == after["other_weights"]) == (after["task"] == "mt")
    assert {"asr", "s2tt", "mt"} <= set(tasks), tasks
    assert "asr" in tasks[min(map(tasks.index, ("s2tt", "mt"))) :], (
        "a transcription step after the optimizer has state"
    )


def assert_same_weights(folder, reference, stages):
    for stage in stages:
        ours = load_file(folder / "run" / stage / "model.safetensors")
        expected = load_file(reference / "run" / stage / "model.safetensors")
        assert ours.keys() == expected.keys()
        for name, tensor in ours.items():
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=2e-6, msg=f"{stage}: {name}")


@pytest.fixture(scope="module")
def reference(tmp_path_factory, tiny_parts, corpus):
    """One process that sees the global steps of two ranks as two accumulated batches."""
    folder = tmp_path_factory.mktemp("reference")
    lines, result = train(folder, tiny_parts, corpus, 1, 2, STAGES)
    assert result.returncode == 0, result.stdout[-3000:]
    assert {line["world_size"] for line in lines["rank0"]} == {1}
    return folder, lines["rank0"]


@pytest.mark.timeout(600)
def test_two_processes_give_the_weights_of_one_in_all_stages(tmp_path, tiny_parts, corpus, reference):
    lines, result = train(tmp_path, tiny_parts, corpus, 2, 1, STAGES)
    assert result.returncode == 0, result.stdout[-3000:]
    assert_ranks_agree(lines, 2)
    assert_gated(lines["rank0"])
    searches = {line["stage"]: line["searches"] for line in lines["rank0"]}
    assert searches == {"adapter": False, "encoder_top": False, "encoder": False, "joint": True}
    names = [stage["name"] for stage in STAGES]
    assert_same_weights(tmp_path, reference[0], names)
    # The same global steps, dealt to two ranks.
    for index, line in enumerate(reference[1]):
        if line["event"] == "step":
            dealt = sorted(row for rank in lines.values() for row in rank[index]["ids"])
            assert dealt == sorted(line["ids"])
    # The logged losses are means over the target tokens of both ranks, whose lengths differ.
    for name in names:
        logs = [
            json.loads((folder / "run" / name / "log_history.json").read_text()) for folder in (tmp_path, reference[0])
        ]
        for ours, expected in zip(*logs, strict=True):
            for key in ours:
                if key.endswith("loss"):
                    assert ours[key] == pytest.approx(expected[key], abs=2e-5), (name, key)


@pytest.mark.timeout(600)
def test_the_check_catches_ddp_without_its_search(tmp_path, tiny_parts, corpus):
    """Negative control: without `find_unused_parameters` the ranks drift apart, and then DDP raises."""
    lines, result = train(tmp_path, tiny_parts, corpus, 2, 1, STAGES[-1:], timeout=200, WITHOUT_SEARCH="1")
    assert {line["searches"] for line in lines["rank0"]} == {False}
    drifted = [ours["weights"] != theirs["weights"] for ours, theirs in zip(*lines.values(), strict=False)]
    raised = result.returncode != 0 and "find_unused_parameters" in result.stdout
    assert any(drifted) or raised, result.stdout[-3000:]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("processes", "accumulation"), [(2, 4), (4, 1), (4, 4)])
def test_more_processes_and_accumulation(tmp_path, tiny_parts, corpus, processes, accumulation):
    folders = [tmp_path / "many", tmp_path / "one"]
    lines, result = train(folders[0], tiny_parts, corpus, processes, accumulation, STAGES, timeout=900)
    assert result.returncode == 0, result.stdout[-3000:]
    assert_ranks_agree(lines, processes)
    assert_gated(lines["rank0"])
    _, result = train(folders[1], tiny_parts, corpus, 1, accumulation * processes, STAGES, timeout=900)
    assert result.returncode == 0, result.stdout[-3000:]
    assert_same_weights(*folders, [stage["name"] for stage in STAGES])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_resuming_with_two_ranks_covers_the_same_rows(tmp_path, tiny_parts, corpus):
    """One epoch: what one process had seen when it was killed, and what two ranks see after it, is every row once."""
    stages = [{"name": "adapter", "epochs": 1}]
    saving = ["--save_strategy", "steps", "--save_steps", "2"]
    lines, result = train(tmp_path, tiny_parts, corpus, 1, 1, stages, overrides=saving, KILL_AFTER="3")
    assert result.returncode == -9
    seen = [row for line in lines["rank0"] if line["event"] == "step" and line["step"] <= 2 for row in line["ids"]]
    (tmp_path / "rank0.jsonl").unlink()
    lines, result = train(tmp_path, tiny_parts, corpus, 2, 1, stages, overrides=[*saving, "--resume"])
    assert result.returncode == 0, result.stdout[-3000:]
    assert_ranks_agree(lines, 2)
    assert "was made with 1 batches per optimizer step (ranks times accumulation), now there are 2" in result.stdout
    seen += [row for rank in lines.values() for line in rank if line["event"] == "step" for row in line["ids"]]
    expected = [json.loads(line) for line in corpus["train"].read_text().splitlines()]
    expected = {row["id"] for row in expected if row["task"] == "asr"}
    assert set(seen) == expected
    assert len(seen) - len(expected) <= 1, "at most one row is repeated to fill the last step"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_signal_to_one_rank_stops_all_after_the_same_step(tmp_path, tiny_parts, corpus):
    """After the step that follows the signal: the ranks agree when it begins."""
    stages = [{"name": "joint", "max_steps": 5, "learning_rates": RATES}]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    lines, result = train(whole, tiny_parts, corpus, 2, 1, stages)
    assert result.returncode == 0, result.stdout[-3000:]
    lines, result = train(stopped, tiny_parts, corpus, 2, 1, stages, TERMINATE_AFTER="2")
    assert result.returncode != 0 and "Stopped in stage joint at step 3 of" in result.stdout
    assert all(rank[-1]["step"] == 3 for rank in lines.values())
    assert [path.name for path in (stopped / "run" / "joint").glob("checkpoint-*")] == ["checkpoint-3"]
    lines, result = train(stopped, tiny_parts, corpus, 2, 1, stages, overrides=["--resume"])
    assert result.returncode == 0, result.stdout[-3000:]
    weights = [load_file(folder / "run" / "joint" / "model.safetensors") for folder in (whole, stopped)]
    assert not tiny_training.changed(*weights), "bit-equal to the uninterrupted run"


# ---- FSDP2 ----


@pytest.mark.timeout(600)
@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_fsdp2_keeps_the_gate_the_loss_and_exports_a_loadable_checkpoint(tmp_path, tiny_checkpoint, tuning):
    folders = {1: tmp_path / "one", 2: tmp_path / "two"}
    for processes, folder in folders.items():
        folder.mkdir()
        arguments = [str(tiny_checkpoint), str(folder), tuning]
        command = [sys.executable, str(FSDP_WORKER), *arguments]
        if processes > 1:
            command = tiny_training.torchrun_command(processes, FSDP_WORKER, *arguments)
        result = tiny_training.execute(command, timeout=280, ACCELERATE_USE_CPU="true")
        assert result.returncode == 0, result.stdout[-3000:]
        for rank in range(processes):
            report = json.loads((folder / f"report{rank}.json").read_text())
            assert report["world_size"] == processes
            for step in report["steps"]:
                expected = {"asr": ["adapter", "encoder"], "mt": ["language_model"]}.get(
                    step["task"], ["adapter", "encoder", "language_model"]
                )
                assert step["weights"] == step["states"] == expected, step
            assert any(step["task"] == "asr" and step["had_language_model_state"] for step in report["steps"])
    ours, expected = (load_file(folders[count] / "weights.safetensors") for count in (2, 1))
    assert ours.keys() == expected.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=2e-6, msg=name)
    exported = [PARTForSpeechSeq2Seq.from_pretrained(folder / "export").state_dict() for folder in folders.values()]
    assert exported[0].keys() == exported[1].keys()
    for name, tensor in exported[0].items():
        torch.testing.assert_close(tensor, exported[1][name], rtol=0, atol=2e-6, msg=name)


@pytest.mark.timeout(900)
def test_fsdp2_as_accelerate_wraps_it_trains_and_saves(tmp_path, tiny_parts, corpus):
    """train_part.py with what fsdp2_bf16.yaml says: checkpoints on the way, and stages that load without it."""
    stages = [
        {"name": "adapter", "max_steps": 2},
        {"name": "encoder", "max_steps": 2, "losses": {"nll": 0.0, "ctc": 1.0}},
        {
            "name": "joint",
            "max_steps": 4,
            "learning_rates": RATES,
            "warmup_ratio": 0.0,
            "losses": {"nll": 1.0, "ctc": 0.5},
        },
    ]
    saving = {"save_strategy": "steps", "save_steps": 2}
    recipe = tiny_training.write_recipe(tmp_path, tiny_parts, corpus, stages=stages, max_rows=2, **saving)
    config = tiny_training.CPU_CONFIG.parent / "fsdp2_bf16.yaml"
    worker = Path(tiny_training.__file__).parent / "fsdp_on_cpu.py"
    result = tiny_training.execute(tiny_training.torchrun_command(2, worker, str(config), str(recipe)), timeout=800)
    assert result.returncode == 0, result.stdout[-3000:]
    for name in ("adapter", "encoder", "joint"):
        model = PARTForSpeechSeq2Seq.from_pretrained(tmp_path / "run" / name)
        assert all(parameter.isfinite().all() for parameter in model.parameters())
        # The alignment head is new in `encoder`, and its bias is a buffer that a checkpoint holds.
        if name != "adapter":
            assert model.alignment_head.token_bias.max() == 0 and len(model.alignment_head.known_tokens()) > 1
    assert (tmp_path / "run" / "joint" / "checkpoint-2" / "model.safetensors").is_file()
    lines = json.loads((tmp_path / "run" / "joint" / "log_history.json").read_text())
    assert all(line["gate_open_share"] == 0.0 for line in lines if "asr_loss" in line and "loss" in line)
