"""A step of `PARTTrainer` as one rank of many, without the others: memory, collectives, bytes sent.

    python tests/benchmarks/ranks.py                                    # the table of 2B and 8B at 256 GPUs
    python tests/benchmarks/ranks.py --sizes tiny --worlds 2 4 --check  # the same against real ranks over gloo

Every tensor is a fake of torch's `FakeTensorMode`, which has a shape and no memory, and the process group is torch's fake
one, whose collectives return at once: `Trainer.train` runs as it is, with the wrapping by accelerate, on a CPU. What it
holds is counted by storages and what it sends by watching the collectives, as torchtitan's estimation does. Not in it: the
allocator's slack, the workspaces of kernels, and time. `--check` runs the same code on real tensors with torchrun.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.distributed._tools.fake_collectives  # what collectives do to fake tensors
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType
from memory import AUDIO_SECONDS, CLIP_SECONDS, PROMPT_TOKENS, QWEN, TEXT_TOKENS, WHISPER_LARGE_V3
from side_by_side import show
from tiny_training import free_port
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp._fully_shard import _fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Qwen2Config, TrainerCallback, WhisperConfig

from modeling_part import PARTConfig, PARTForSpeechSeq2Seq
from modeling_part.configuration_part import convolved_length
from modeling_part.data.batches import Batches
from modeling_part.layout_part import batch_layout
from modeling_part.recipes.arguments import DataArguments, ModelArguments, PARTTrainingArguments, Recipe
from modeling_part.recipes.stages import build_plan
from modeling_part.training.memory import GIB
from modeling_part.training.setup import prepare_model
from modeling_part.training.trainer import PARTTrainer


MARK = "RESULT "
STEPS = 3  # the optimizer's state is there from the second on; the last is counted
TINY_WHISPER = {"d_model": 64, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 128}
TINY_QWEN = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 128}
TINY_QWEN |= {"num_hidden_layers": 2, "vocab_size": 512}
# (size, tuning of the joint stage, wrapper, checkpointing), as the recipes part_2b and part_8b would be run.
ROWS = [
    ("2B", "lora", "ddp", False),
    ("2B", "full", "ddp", True),
    ("2B", "full", "fsdp2", False),
    ("2B", "full", "fsdp2", True),
    ("8B", "lora", "fsdp2", True),
    ("8B", "full", "fsdp2", True),
]
TINY_ROWS = [("tiny", tuning, wrapper, False) for tuning in ("lora", "full") for wrapper in ("ddp", "fsdp2")]


class Meter(TorchDispatchMode):
    """Bytes that live and that are sent, by watching every operation.

    Attributes:
        live, peak: bytes of storages.
        calls, sent: of each kind of collective, how often and the bytes that this rank sends in it.
    """

    def __init__(self):
        super().__init__()
        self.is_counting = True
        self.live = self.peak = 0
        self.calls, self.sent = Counter(), Counter()
        self._sizes: dict[int, int] = {}  # of each storage that lives, by id
        self._references = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(issubclass(one, DTensor) for one in types):
            return NotImplemented  # its operations on the local shards come here again
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            # The norm is finite; of ranks that are asked for integers, all say the same.
            return 1.0 if args[0].is_floating_point() else 0
        result = func(*args, **(kwargs or {}))
        if self.is_counting:
            if func.namespace in ("c10d", "_c10d_functional"):
                self._count(func.overloadpacket.__name__, args)
            for value in tree_leaves(result):
                if isinstance(value, torch.Tensor):
                    self.hold(value)
        return result

    def not_counting(self, function):
        """`function`, whose tensors a real run does not hold."""

        def call(*args, **kwargs):
            before, self.is_counting = self.is_counting, False
            try:
                return function(*args, **kwargs)
            finally:
                self.is_counting = before

        return call

    def hold(self, tensor: torch.Tensor):
        """Count what a tensor holds, until nothing does."""
        storage = tensor.untyped_storage()
        key = id(storage)
        if key not in self._references:
            self._references[key] = weakref.ref(storage, lambda _: self._let_go(key))
            self._sizes[key] = 0
        self._resize(key, storage.nbytes())

    def _resize(self, key: int, size: int):
        self.live += size - self._sizes[key]
        self._sizes[key] = size
        self.peak = max(self.peak, self.live)

    def _let_go(self, key: int):
        self.live -= self._sizes.pop(key)
        del self._references[key]

    def __enter__(self):
        inner = self._resize_storage = torch.UntypedStorage.resize_

        def resize(storage, size):  # FSDP frees and takes the gathered weights so
            result = inner(storage, size)
            if id(storage) in self._sizes:
                self._resize(id(storage), size)
            return result

        torch.UntypedStorage.resize_ = resize
        return super().__enter__()

    def __exit__(self, *error):
        torch.UntypedStorage.resize_ = self._resize_storage
        return super().__exit__(*error)

    def _count(self, name: str, args):
        """Bytes sent by the ring algorithms, whatever a library chooses."""
        others = (dist.get_world_size() - 1) / dist.get_world_size()
        tensors = [value for value in tree_leaves(args) if isinstance(value, torch.Tensor)]
        sizes = [tensor.numel() * tensor.element_size() for tensor in tensors]
        if "allreduce" in name or "all_reduce" in name:
            kind, sent = "all-reduce", 2 * others * sum(sizes)
        elif "allgather" in name or "all_gather" in name:
            # Of the tensors, the largest is the whole; a list of outputs is as large as the whole.
            whole = max(sizes) if "base" in name or "into" in name else sum(sizes) - min(sizes)
            kind, sent = "all-gather", others * (max(sizes) * dist.get_world_size() if len(sizes) == 1 else whole)
        elif "reduce_scatter" in name:
            kind, sent = "reduce-scatter", others * max(sizes)
        elif "broadcast" in name:
            kind, sent = "broadcast", sum(sizes)
        else:
            return  # waits and barriers
        self.calls[kind] += 1
        self.sent[kind] += int(sent)


class LastStep(TrainerCallback):
    """Begins to count collectives anew before the last step, and looks at what is held after it."""

    def __init__(self, meter: Meter):
        self.meter, self.trainer = meter, None
        self.held = {}

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:  # a model that is sharded was whole before, and on a CPU
            self.meter.peak = self.meter.live
        if state.global_step == STEPS - 1:
            self.meter.calls.clear()
            self.meter.sent.clear()

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        parameters = list(model.parameters())
        self.held["weights"] = held(parameters)
        self.held["gradients"] = held([one.grad for one in parameters if one.grad is not None])

    def on_step_end(self, args, state, control, optimizer=None, **kwargs):
        self.held["optimizer"] = held(
            [one for values in optimizer.state.values() for one in values.values() if isinstance(one, torch.Tensor)]
        )


def held(tensors) -> int:
    """Bytes on this rank, shared storages once."""
    local = [one.to_local() if isinstance(one, DTensor) else one for one in tensors]
    return sum({one.untyped_storage()._cdata: one.untyped_storage().nbytes() for one in local}.values())


class PythonDDP(nn.Module):
    """Stands in for torch's `DistributedDataParallel`, whose reducer is C++ and takes no fakes.

    It sends the buffers before the forward pass, keeps a second copy of the gradients in buckets of 25 MB, reduces each
    after the backward pass, and with `find_unused_parameters` a number per parameter; `--check` holds it against the
    real one.
    """

    def __init__(self, module, find_unused_parameters=False, bucket_cap_mb=25, **_):
        super().__init__()
        self.module, self.syncs, self._is_queued = module, True, False
        trained = [one for one in module.parameters() if one.requires_grad]
        limits = [dist._DEFAULT_FIRST_BUCKET_BYTES, (bucket_cap_mb or 25) * 2**20]
        indices, _ = dist._compute_bucket_assignment_by_size(trained[::-1], limits, [False] * len(trained))
        self.buckets = [torch.empty(sum(trained[::-1][i].numel() for i in bucket)) for bucket in indices]
        if find_unused_parameters:
            self.buckets.append(torch.empty(len(trained), dtype=torch.int32))
        for parameter in trained:
            parameter.register_post_accumulate_grad_hook(self._note)

    def forward(self, *args, **kwargs):
        if buffers := [one for one in self.module.buffers() if one.numel()]:
            dist.broadcast(torch.cat([one.flatten().view(torch.uint8) for one in buffers]), 0)
        return self.module(*args, **kwargs)

    @contextmanager
    def no_sync(self):
        self.syncs = False
        yield
        self.syncs = True

    def _note(self, _):
        if self.syncs and not self._is_queued:
            self._is_queued = True
            torch.autograd.Variable._execution_engine.queue_callback(self._reduce)

    def _reduce(self):
        self._is_queued = False
        for bucket in self.buckets:
            dist.all_reduce(bucket)


class OneRank(PARTTrainer):
    """A trainer on batches that are made beforehand."""

    made_batches = ()

    def get_train_dataloader(self):
        return self.made_batches


def make_config(size: str) -> PARTConfig:
    """Whisper-large-v3's encoder and Qwen2.5-1.5B or 7B by their shapes, or a tiny one."""
    whisper, qwen = (TINY_WHISPER, TINY_QWEN) if size == "tiny" else (WHISPER_LARGE_V3, QWEN[size])
    audio = WhisperConfig(num_mel_bins=128, decoder_layers=1, vocab_size=64, **whisper)
    text = Qwen2Config(**qwen)
    settings = {"adapter_hidden_size": 64, "adapter_num_attention_heads": 2} if size == "tiny" else {}
    return PARTConfig(
        audio_config=audio,
        text_config=text,
        audio_token_id=text.vocab_size - 1,
        attn_implementation="sdpa",
        **settings,
    )


def make_batch(config: PARTConfig, task: str, clips: int) -> dict:
    """A batch as the collator makes it, of real numbers: clips of 6 s, short answers, a little padding."""
    steps = 100 * CLIP_SECONDS
    audio_tokens = convolved_length(steps, config.audio_token_convolutions)
    shape = (clips, audio_tokens + PROMPT_TOKENS + TEXT_TOKENS)
    ids = torch.ones(shape, dtype=torch.long)
    ids[:, :audio_tokens] = config.audio_token_id
    labels = ids.clone()
    labels[:, :-TEXT_TOKENS] = -100
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    batch["input_features"] = torch.zeros(clips, 128, steps)
    batch["input_features_mask"] = torch.ones(clips, steps, dtype=torch.long)
    # transformers' masks of fakes never take the short cut for batches without padding; real ones mostly have some.
    batch["input_features_mask"][0, -1] = batch["attention_mask"][0, -1] = 0
    batch["labels"][0, -1] = -100
    batch["layout"] = batch_layout(batch, config.audio_token_id)
    groups = [(task, "fr", "fr" if task == "asr" else "en")] * clips
    batch["batch_info"] = {"task": task, "groups": groups, "ids": ["row"] * clips, "broken": []}
    batch["batch_info"] |= {"target_counts": [TEXT_TOKENS - 1] + [TEXT_TOKENS] * (clips - 1), "transcript_counts": []}
    batch["batch_info"] |= {"audio_seconds": [float(CLIP_SECONDS)] * clips, "padded_seconds": float(CLIP_SECONDS)}
    return batch


def on_device(value, mode: FakeTensorMode | None, meter: Meter):
    """A copy of a batch on the device, counted; of fakes in their mode."""
    if isinstance(value, dict):
        return {name: on_device(one, mode, meter) for name, one in value.items()}
    if not isinstance(value, torch.Tensor):
        return value
    copy = value.clone() if mode is None else mode.from_tensor(value)
    meter.hold(copy)
    return copy


def make_trainer(
    model: PARTForSpeechSeq2Seq, tuning: str, frozen_dtype: str | None, args: PARTTrainingArguments, callback: LastStep
) -> OneRank:
    """Of the joint stage, as train_part.py makes it."""
    (stage,) = build_plan([{"name": "joint", "tuning": tuning, "max_steps": STEPS}])
    recipe = Recipe(ModelArguments(checkpoint="made", frozen_dtype=frozen_dtype), DataArguments(), args)
    sampler = SimpleNamespace(num_steps=STEPS, batches_per_step=args.world_size)
    return OneRank(
        model=model,
        args=args,
        stage=stage,
        trainable=prepare_model(model, stage, recipe),
        batches=Batches(train_rows=[0] * STEPS, sampler=sampler, collator=list),
        processing_class=SimpleNamespace(audio_token_convolutions=model.config.audio_token_convolutions),
        callbacks=[callback],
    )


def run_step(size: str, tuning: str, wrapper: str, checkpointing: bool, task: str, is_fake: bool) -> dict:
    """Train a few steps in this process, whose group exists; figures of the last one."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        args = PARTTrainingArguments(
            output_dir=folder,
            use_cpu=True,
            bf16=size != "tiny",
            max_steps=STEPS,
            save_strategy="no",
            logging_steps=1000,
            dataloader_pin_memory=False,
            activation_checkpointing=checkpointing and wrapper == "ddp",
            disable_tqdm=True,
        )
        assert args.device.type == "cpu"  # makes the state, which takes the group for one of CPUs
        if wrapper == "fsdp2":  # accelerate shards on accelerators only; nothing in the sharding needs one
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        config = make_config(size)
        batch = make_batch(config, task, 2 if size == "tiny" else AUDIO_SECONDS // CLIP_SECONDS)
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))  # which is computed, before what computes nothing
        stack.enter_context(patch.object(_fully_shard, "_init_default_mesh", lambda *_, **__: mesh))
        mode = stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True)) if is_fake else None
        meter = stack.enter_context(Meter())
        # DTensor finds shapes by trying an operation on fakes of the whole tensors: of AdamW's, all weights at once.
        trying = meter.not_counting(ShardingPropagator._propagate_tensor_meta_non_cached)
        stack.enter_context(patch.object(ShardingPropagator, "_propagate_tensor_meta_non_cached", trying))
        if is_fake:
            stack.enter_context(patch.object(nn.parallel, "DistributedDataParallel", PythonDDP))
            # All is where it belongs, and the parameters of fakes cannot be swapped.
            stack.enter_context(patch.object(nn.Module, "to", lambda module, *_, **__: module))
            # accelerate knows an optimizer's parameters again by their address, which is 0 for fakes.
            stack.enter_context(patch.object(torch.Tensor, "data_ptr", lambda one: one.untyped_storage()._cdata))
        callback = LastStep(meter)
        frozen = "bfloat16" if wrapper == "ddp" and size != "tiny" else None
        trainer = make_trainer(PARTForSpeechSeq2Seq(config), tuning, frozen, args, callback)
        trainer.made_batches = [on_device(batch, mode, meter)] * STEPS
        trainer.train()
        wrapped = type(trainer.model_wrapped).__name__
    return {
        "size": size,
        "tuning": tuning,
        "wrapper": wrapper,
        "wrapped": wrapped,
        "checkpointing": checkpointing,
        "task": task,
        "world": dist.get_world_size(),
        "rank": dist.get_rank(),
        "peak": meter.peak,
        **callback.held,
        "calls": dict(meter.calls),
        "sent": dict(meter.sent),
    }


def run_cases(cases: list[dict], rank: int, is_fake: bool):
    """What a child process does: the figures of each case as a line of JSON."""
    world = cases[0]["world"]
    if is_fake:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank % 8), "WORLD_SIZE": str(world)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}  # nobody listens
        dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
    else:
        dist.init_process_group("gloo")
    for case in cases:
        settings = {"ACCELERATE_USE_CPU": "true", "ACCELERATE_TORCH_DEVICE": "cpu", "FSDP_VERSION": "2"}
        settings |= {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false"}
        settings |= {"FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}
        is_sharded = case["wrapper"] == "fsdp2"
        settings |= {"FSDP_ACTIVATION_CHECKPOINTING": str(is_sharded and case["checkpointing"]).lower()}
        os.environ |= settings | {"ACCELERATE_USE_FSDP": str(is_sharded).lower()}
        result = run_step(**{name: value for name, value in case.items() if name != "world"}, is_fake=is_fake)
        assert result["world"] == case["world"] == world
        if dist.get_rank() == (rank if is_fake else 0):
            print(MARK + json.dumps(result), flush=True)
        for state in (AcceleratorState, PartialState, GradientState):  # the next is wrapped otherwise
            state._reset_state()
    dist.destroy_process_group()


def measure(cases: list[dict], rank: int, is_fake: bool) -> Iterator[dict]:
    """The figures of cases of one world size, from a process (or as many as there are ranks): importing takes longest."""
    command = [sys.executable]
    if not is_fake:
        command += ["-m", "torch.distributed.run", "--nproc_per_node", str(cases[0]["world"])]
        command += ["--master_port", str(free_port())]
    command += [__file__, "--these", json.dumps(cases), "--rank", str(rank), *([] if is_fake else ["--real"])]
    paths = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            for line in process.stdout:
                if line.startswith(MARK):
                    yield json.loads(line.removeprefix(MARK))
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{errors.read()[-4000:]}")


def differences(fake: dict, real: dict) -> list[str]:
    """Where the simulation and a real run do not agree: kinds of collectives, bytes sent (0.1 %), memory (2 %)."""
    found = []
    if fake["sent"].keys() != real["sent"].keys():
        found.append(f"collectives {sorted(fake['sent'])} and {sorted(real['sent'])}")
    for name, tolerance in (("weights", 0), ("gradients", 0), ("optimizer", 0), ("peak", 0.02)):
        if abs(fake[name] - real[name]) > tolerance * real[name]:
            found.append(f"{name} {fake[name]:,} and {real[name]:,}")
    for kind, sent in real["sent"].items():
        if abs(fake["sent"].get(kind, 0) - sent) > 0.001 * sent + 64:
            found.append(f"{kind} {fake['sent'].get(kind, 0):,} and {sent:,} bytes")
    return found


def show_results(results: list[dict]):
    """Markdown for the README, and a table on the screen."""
    lines = []
    for one in results:
        gib = {name: f"{one[name] / GIB:.2f}" for name in ("weights", "gradients", "optimizer", "peak")}
        kinds = ", ".join(
            f"{kind} {calls} x" for kind, calls in sorted(one["calls"].items()) if one["sent"][kind] > 2**20
        )
        lines.append(
            one | gib | {"total": f"{sum(one['sent'].values()) / GIB:.2f}", "kinds": kinds or "none over 1 MiB"}
        )
        lines[-1]["checkpoint"] = "yes" if one["checkpointing"] else "no"
    columns = {"model": "{size}", "joint stage": "{tuning}, {task}", "GPUs": "{world}", "wrapped by": "{wrapper}"}
    columns |= {"checkpointing": "{checkpoint}", "weights": "{weights}", "gradients": "{gradients}"}
    columns |= {"optimizer": "{optimizer}", "peak GiB": "{peak}", "GiB sent": "{total}", "collectives": "{kinds}"}
    for line in lines:
        print("| " + " | ".join(column.format(**line) for column in columns.values()) + " |")
    show("One step of one rank", lines, columns)


def main():
    """Print the table, or hold the simulation against real ranks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=["tiny", *QWEN], default=list(QWEN))
    parser.add_argument("--wrappers", nargs="+", choices=["ddp", "fsdp2"], default=["ddp", "fsdp2"])
    parser.add_argument("--tunings", nargs="+", choices=["lora", "full"], default=["lora", "full"])
    parser.add_argument(
        "--tasks", nargs="+", choices=["asr", "s2tt"], default=["s2tt"], help="asr: the gate is closed"
    )
    parser.add_argument("--worlds", nargs="+", type=int, default=[256])
    parser.add_argument("--check", action="store_true", help="run real ranks over gloo too, and compare (tiny sizes)")
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("--these", help=argparse.SUPPRESS)  # cases, of a child process
    parser.add_argument("--real", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.these:
        return run_cases(json.loads(arguments.these), arguments.rank, not arguments.real)
    results, wrong = [], []
    for world in arguments.worlds:
        cases = [
            dict(zip(("size", "tuning", "wrapper", "checkpointing"), row, strict=True))
            | {"task": task, "world": world}
            for row in (*ROWS, *TINY_ROWS)
            for task in arguments.tasks
            if row[0] in arguments.sizes and row[1] in arguments.tunings and row[2] in arguments.wrappers
        ]
        real = measure(cases, arguments.rank, is_fake=False) if arguments.check else repeat(None)
        for case, fake, one in zip(cases, measure(cases, arguments.rank, is_fake=True), real, strict=False):
            results.append(fake)
            if one is not None:
                found = differences(fake, one)
                print(f"{case}: {'as real ranks' if not found else '; '.join(found)}", flush=True)
                wrong += found
            if arguments.output:
                arguments.output.write_text(json.dumps(results, indent=1), encoding="utf-8")
    show_results(results)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
