"""trainer: the task gate's invariants, the loss, learning rates per part, bad steps, refusals, the log, checkpoints."""

import copy
import json
import logging
import math
import os
import shutil
import signal
import sys
import types
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import tiny_training
import torch
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments

from modeling_part import PARTForSpeechSeq2Seq, PARTProcessor
from modeling_part.data.batches import Progress
from modeling_part.data.budget import Budget
from modeling_part.data.collator import PARTCollator
from modeling_part.data.row_tokens import count_row_tokens
from modeling_part.data.streaming import StreamingTaskBatches
from modeling_part.recipes.arguments import PARTTrainingArguments
from modeling_part.recipes.stages import BUILT_IN_STAGES, Stage, build_plan, part_of
from modeling_part.recipes.user_errors import UserError
from modeling_part.training import dry_run as dry_run_module
from modeling_part.training import losses
from modeling_part.training import trainer as trainer_module
from modeling_part.training.checkpoints import last_checkpoint, read_history
from modeling_part.training.dry_run import log_plan
from modeling_part.training.epochs import EpochEnds
from modeling_part.training.lora import load_lora, split_lora
from modeling_part.training.refusals import WITHOUT_EFFECT
from modeling_part.training.stability import NonFiniteTrainingError
from modeling_part.training.stage_run import StageRun
from modeling_part.training.trainer import PARTTrainer
from modeling_part.training.wrappers import refuse_wrong_wrappers


@pytest.fixture(scope="module")
def shared():
    """A tiny model with separate input and output embeddings, its processor, and rows."""
    model, processor = tiny_training.tiny_model()
    return SimpleNamespace(model=model, processor=processor, dataset=tiny_training.tiny_dataset())


def build(shared, folder, stage, **options):
    """A trainer on a copy of the shared model."""
    options = {
        "dataset": shared.dataset,
        "model": copy.deepcopy(shared.model),
        "processor": shared.processor,
    } | options
    return tiny_training.make_trainer(folder, stage, **options)


class Recorder(TrainerCallback):
    """Which parameters and optimizer states each step changed, bit for bit."""

    def __init__(self):
        self.steps: list[SimpleNamespace] = []
        self.gradients: list[dict] = []

    def watch(self, trainer):
        self.trainer = trainer
        trainer.add_callback(self)
        return self

    def _state(self) -> tuple[dict, dict]:
        names = {parameter: name for name, parameter in self.trainer.model.named_parameters()}
        state = {
            f"{names[parameter]}/{key}": value.clone()
            for parameter, values in self.trainer.optimizer.state.items()
            for key, value in values.items()
        }
        return tiny_training.snapshot(self.trainer.model), state

    def on_step_begin(self, args, state, control, **kwargs):
        self.before = self._state()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        parameters = self.trainer.model.named_parameters()
        self.gradients.append({name: p.grad.clone() for name, p in parameters if p.grad is not None})

    def on_step_end(self, args, state, control, **kwargs):
        weights, states = self._state()
        old = self.before[1]
        self.steps.append(
            SimpleNamespace(
                weights=tiny_training.changed(self.before[0], weights),
                states={name for name in states if name not in old or not torch.equal(states[name], old[name])},
                known_states=set(old),
                rates={group["part"]: group["lr"] for group in self.trainer.optimizer.param_groups},
            )
        )

    def with_tasks(self) -> list[tuple[str, SimpleNamespace]]:
        """(task, what changed) of every step, the task from the log."""
        logs = [entry for entry in self.trainer.state.log_history if "loss" in entry]
        tasks = [next(task for task in ("asr", "s2tt", "mt") if f"{task}_loss" in entry) for entry in logs]
        assert len(tasks) == len(self.steps)
        return list(zip(tasks, self.steps, strict=True))


def parts(names) -> set[str]:
    return {part_of(name) for name in names}


# ---- the task gate ----


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_transcription_steps_leave_the_language_model_and_its_optimizer_state(shared, tmp_path, tuning, accumulation):
    stage = tiny_training.joint_stage(tuning=tuning)
    trainer = build(shared, tmp_path, stage, steps=9, accumulation=accumulation, max_rows=2)
    recorder = Recorder().watch(trainer)
    trainer.train()
    steps = recorder.with_tasks()
    tasks = [task for task, _ in steps]
    assert {"asr", "s2tt", "mt"} <= set(tasks)
    assert any(task == "asr" and parts(step.known_states) >= {"language_model"} for task, step in steps), tasks
    language_model = set(trainer.trainable_names["language_model"])
    for task, step in steps:
        if task == "asr":
            assert parts(step.weights) == {"adapter", "encoder"}
            assert parts(step.states) == {"adapter", "encoder"}
        else:
            assert language_model <= step.weights, language_model - step.weights
            assert parts(step.weights) == (
                {"language_model"} if task == "mt" else {"adapter", "encoder", "language_model"}
            )
        trainable = {name for names in trainer.trainable_names.values() for name in names}
        assert step.weights <= trainable
    for entry in filter(lambda entry: "loss" in entry, trainer.state.log_history):
        assert ("grad_norm/language_model" in entry) is ("asr_loss" not in entry), (
            "a closed gate has no norm, not one of 0"
        )


@pytest.mark.parametrize("gate", ["always", "frozen"])
def test_the_other_policies(shared, tmp_path, gate):
    stage = tiny_training.joint_stage(gate=gate, tasks={"asr": 1.0, "s2tt": 1.0})
    trainer = build(shared, tmp_path, stage, steps=4)
    recorder = Recorder().watch(trainer)
    trainer.train()
    expected = {"adapter", "encoder"} | ({"language_model"} if gate == "always" else set())
    assert {task for task, _ in recorder.with_tasks()} == {"asr", "s2tt"}
    assert all(parts(step.weights) == expected for _, step in recorder.with_tasks())
    assert all(parts(step.states) == expected for _, step in recorder.with_tasks())


@pytest.mark.parametrize(
    ("name", "layers", "prefixes"),
    [
        ("adapter", None, ("model.adapter.",)),
        ("encoder_top", 1, ("model.adapter.", "model.audio_tower.layers.1.", "model.audio_tower.layer_norm.")),
        ("encoder", None, ("model.adapter.", "model.audio_tower.")),
    ],
)
@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_stage_moves_what_it_names_and_nothing_else(shared, tmp_path, name, layers, prefixes, accumulation):
    (stage,) = build_plan([{"name": name, "encoder_layers": layers, "warmup_ratio": 0.0}])
    trainer = build(shared, tmp_path, stage, steps=3, accumulation=accumulation, max_rows=2)
    before = tiny_training.snapshot(trainer.model)
    trainer.train()
    moved = tiny_training.changed(before, tiny_training.snapshot(trainer.model))
    named = {name for name in before if name.startswith(prefixes) and "embed_positions" not in name}
    assert moved == named


def test_a_closed_gate_passes_the_same_gradient_to_the_adapter(shared, tmp_path):
    rows = [row for row in shared.dataset if row["task"] == "asr"][:2]
    gradients = {}
    for gate in ("task_gated", "always"):
        trainer = build(shared, tmp_path, tiny_training.joint_stage(gate=gate, tuning="full"), steps=1)
        trainer.gate.set_task("asr")
        batch = PARTCollator(shared.processor)(rows)
        batch.pop("batch_info")
        trainer.model.train()(**batch).loss.backward()
        gradients[gate] = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
    closed, opened = gradients["task_gated"], gradients["always"]
    assert parts(closed) == {"adapter", "encoder"} and parts(opened) == {"adapter", "encoder", "language_model"}
    for name, gradient in closed.items():
        assert torch.equal(gradient, opened[name])
    assert sum(float(gradient.abs().sum()) for name, gradient in closed.items() if "adapter" in name) > 0


def test_tied_embeddings_are_gated_too(tmp_path):
    model, processor = tiny_training.tiny_model("llama")
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    trainer = tiny_training.make_trainer(
        tmp_path, tiny_training.joint_stage(tuning="full"), model=model, processor=processor, steps=7
    )
    recorder = Recorder().watch(trainer)
    trainer.train()
    tied = "model.language_model.embed_tokens.weight"
    for task, step in recorder.with_tasks():
        assert (tied in step.weights) == (task != "asr")
    groups = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
    assert len(groups) == len(set(groups))


# ---- the optimizer ----


def test_learning_rates_are_per_part_and_warm_up(shared, tmp_path):
    stage = tiny_training.joint_stage(learning_rates={"adapter": 4e-3, "encoder": 2e-3, "language_model": 1e-3})
    options = {"lr_scheduler_type": "linear", "warmup_steps": 2, "steps": 6, "weight_decay": 0.1}
    trainer = build(shared, tmp_path, stage, **options)
    recorder = Recorder().watch(trainer)
    trainer.train()
    # After step s the schedule stands at s: up over 2 steps, then down to 0 at step 6.
    for step, factor in enumerate([0.5, 1.0, 0.75, 0.5, 0.25, 0.0]):
        expected = {part: rate * factor for part, rate in stage.learning_rates.items()}
        assert recorder.steps[step].rates == pytest.approx(expected)
    decay = {}
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    for group in trainer.optimizer.param_groups:
        decay |= {names[parameter]: group["weight_decay"] for parameter in group["params"]}
    spared = {name for name in decay if name.endswith("bias") or "norm" in name}
    assert {decay[name] for name in spared} == {0.0}
    assert {decay[name] for name in set(decay) - spared} == {0.1}


# ---- the loss ----


def reference_loss(model, processor, batches: list[list[dict]]) -> torch.Tensor:
    """Mean negative log-likelihood of all target tokens, one row at a time, written by hand."""
    total, tokens = 0.0, 0
    for row in [row for batch in batches for row in batch]:
        batch = PARTCollator(processor)([row])
        batch.pop("batch_info")
        labels = batch.pop("labels")[0, 1:]
        log_probabilities = model(**batch).logits[0, :-1].log_softmax(-1)
        kept = labels != -100
        total = total - log_probabilities[kept, labels[kept]].sum()
        tokens += int(kept.sum())
    return total / tokens


@pytest.mark.parametrize(("accumulation", "chunk"), [(1, 1024), (4, 1024), (4, 3)])
def test_the_loss_is_the_mean_over_all_target_tokens_of_the_step(shared, tmp_path, accumulation, chunk):
    """Very unequal lengths: a mean of means would weigh tokens differently."""
    short = tiny_training.tiny_dataset(("asr",), count=3, words=(1, 1))
    long = tiny_training.tiny_dataset(("asr",), count=2, seed=1, words=(6, 6))
    rows = list(short) + [{**row, "id": f"long-{row['id']}"} for row in long]
    dataset = type(short).from_list(rows, features=tiny_training.FEATURES)
    stage = Stage("encoder", tasks={"asr": 1.0}, learning_rates={"adapter": 1e-3, "encoder": 1e-3}, warmup_ratio=0.0)
    options = {"dataset": dataset, "steps": 1, "accumulation": accumulation, "max_rows": 3, "max_grad_norm": 1e9}
    options["loss_chunk_size"] = chunk
    trainer = build(shared, tmp_path, stage, **options)
    recorder = Recorder().watch(trainer)
    batches = [[dataset[row] for row in batch] for batch in trainer.batches.sampler]
    assert len(batches) == accumulation
    reference = copy.deepcopy(trainer.model)
    loss = reference_loss(reference, shared.processor, batches)
    loss.backward()
    trainer.train()
    entry = trainer.state.log_history[0]
    assert entry["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert entry["asr_loss"] == pytest.approx(loss.item(), rel=1e-5)
    expected = {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}
    assert recorder.gradients[0].keys() == expected.keys()
    for name, gradient in recorder.gradients[0].items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


def test_packed_rows_train_the_same_weights(shared, tmp_path):
    weights = []
    for name, options in (("padded", {}), ("packed", {"padding_free": True})):
        trainer = build(shared, tmp_path / name, tiny_training.joint_stage(), steps=6, max_rows=3, **options)
        trainer.train()
        weights.append(tiny_training.snapshot(trainer.model))
    assert not torch.equal(weights[0]["model.adapter.conv.weight"], shared.model.model.adapter.conv.weight)
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-3, atol=2e-5)


def test_packing_is_tried_without_the_kernels_of_a_gpu(shared, tmp_path):
    """Flash attention does not run where the model lies when the trainer is made; then the setting is as before."""
    model = copy.deepcopy(shared.model)
    language_model = model.model.language_model
    language_model.set_attn_implementation("sdpa")
    used = []
    language_model.register_forward_pre_hook(lambda *_: used.append(language_model.config._attn_implementation))
    build(shared, tmp_path, tiny_training.joint_stage(), model=model, padding_free=True)
    assert used == ["eager", "eager"]
    assert language_model.config._attn_implementation == "sdpa"


def test_a_language_model_that_mixes_packed_rows_is_refused(shared, tmp_path):
    """As a state space does: every position takes something from all before it."""
    model = copy.deepcopy(shared.model)
    layer = model.model.language_model.layers[-1]
    layer.register_forward_hook(lambda module, arguments, output: output + output.cumsum(1))
    with pytest.raises(ValueError, match="Qwen2Model mixes the rows"):
        build(shared, tmp_path, tiny_training.joint_stage(), model=model, padding_free=True)


# ---- Liger's kernels ----


@pytest.fixture
def liger(monkeypatch):
    """Stands in for liger-kernel, whose kernels need a GPU (see test_gpu.py); notes what it is asked to patch."""
    asked = []
    transformers_part = types.ModuleType("liger_kernel.transformers")
    transformers_part._apply_liger_kernel_to_instance = lambda model, **settings: asked.append((model, settings))
    patches = types.ModuleType("liger_kernel.transformers.monkey_patch")
    patches.MODEL_TYPE_TO_APPLY_LIGER_FN = {"qwen2": None}
    for module in (types.ModuleType("liger_kernel"), transformers_part, patches):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for module in ("modeling_part.training.kernels", "transformers.integrations.liger"):
        monkeypatch.setattr(f"{module}.is_liger_kernel_available", lambda: True)
    return asked


def test_liger_gets_the_language_model_and_leaves_the_loss(shared, tmp_path, liger):
    settings = {"use_liger_kernel": True, "liger_kernel_config": {"rope": False}}
    trainer = build(shared, tmp_path, tiny_training.joint_stage(), steps=2, **settings)
    trainer.train()
    ((patched, given),) = liger
    assert patched is trainer.model.model.language_model
    assert given == {"rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False}


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"cross_entropy": True}, "qwen2", "loss_chunk_size"),
        ({}, "gpt2", "no kernels for a language model of type 'gpt2'"),
    ],
)
def test_what_liger_cannot_do_is_refused(shared, tmp_path, liger, settings, kind, message):
    model = copy.deepcopy(shared.model)
    model.model.language_model.config.model_type = kind
    with pytest.raises(ValueError, match=message):
        build(
            shared,
            tmp_path,
            tiny_training.joint_stage(),
            model=model,
            use_liger_kernel=True,
            liger_kernel_config=settings,
        )
    assert not liger


def test_liger_is_asked_for_where_it_is_missing(shared, tmp_path, monkeypatch):
    monkeypatch.setattr("modeling_part.training.kernels.is_liger_kernel_available", lambda: False)
    with pytest.raises(ImportError, match=r"modeling-part\[liger\]"):
        build(shared, tmp_path, tiny_training.joint_stage(), use_liger_kernel=True)


# ---- the log ----


def test_the_log_says_what_was_trained(shared, tmp_path):
    """Learning rates so small that every step sees the first weights: the sums can be recomputed afterwards."""
    rates = dict.fromkeys(tiny_training.JOINT, 1e-30)
    stage = tiny_training.joint_stage(learning_rates=rates)
    options = {"steps": 6, "logging_steps": 6, "weight_decay": 0.0, "max_rows": 3, "report_to": ["tensorboard"]}
    trainer = build(shared, tmp_path, stage, **options, run_name="x")
    batches = [[shared.dataset[row] for row in batch] for batch in trainer.batches.sampler]
    trainer.train()
    entry = trainer.state.log_history[0]
    rows = [row for batch in batches for row in batch]
    for task in ("asr", "s2tt", "mt"):
        chosen = [row for row in rows if row["task"] == task]
        with torch.no_grad():
            assert entry[f"{task}_loss"] == pytest.approx(
                reference_loss(trainer.model, shared.processor, [chosen]).item(), rel=1e-4
            )
            for source, target in (("en", "fr"), ("fr", "en")):
                direction = source if task == "asr" else f"{source}-{target}"
                group = [row for row in chosen if row["source_lang"] == source]
                expected = reference_loss(trainer.model, shared.processor, [group]).item() if group else None
                assert entry.get(f"{task}/{direction}_loss") == (expected and pytest.approx(expected, rel=1e-4))
    collated = [PARTCollator(shared.processor)(batch) for batch in batches]
    positions = sum(batch["attention_mask"].numel() for batch in collated)
    valid = sum(int(batch["attention_mask"].sum()) for batch in collated)
    assert entry["position_padding_share"] == pytest.approx(1 - valid / positions, abs=1e-5)
    seconds = sum(row["duration"] for row in rows)
    padded = sum(len(batch) * 0.2 * math.ceil(max(row["duration"] for row in batch) / 0.2 - 1e-4) for batch in batches)
    assert entry["audio_padding_share"] == pytest.approx(1 - seconds / padded, abs=1e-5)
    assert entry["gate_open_share"] == pytest.approx(sum(batch[0]["task"] != "asr" for batch in batches) / 6, abs=1e-5)
    assert entry["skipped_steps"] == 0
    ratio = entry["tokens_per_second"] / entry["audio_hours_per_second"]
    assert ratio == pytest.approx(valid / (seconds / 3600), rel=0.05)  # both are rounded

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = tmp_path.rglob("events.out.tfevents.*")
    written = EventAccumulator(str(events))
    written.Reload()
    for key in ("asr_loss", "s2tt/en-fr_loss", "tokens_per_second", "gate_open_share", "grad_norm/adapter"):
        assert written.Scalars(f"train/{key}")[0].value == pytest.approx(entry[key], rel=1e-5)


def test_samples_per_second_are_the_rows_of_the_batches(shared, tmp_path):
    trainer = build(shared, tmp_path, BUILT_IN_STAGES["adapter"], steps=3, max_rows=2, accumulation=2)
    figures = trainer.train().metrics
    rows = sum(map(len, trainer.batches.sampler))
    assert figures["train_samples_per_second"] == pytest.approx(rows / figures["train_runtime"], rel=1e-2)
    assert trainer.state.log_history[-1]["train_samples_per_second"] == figures["train_samples_per_second"]


def test_a_long_time_without_a_line_of_the_log_fills_no_memory(monkeypatch):
    monkeypatch.setattr(losses, "MOST_WAITING", 10)
    statistics, groups = losses.StepStatistics(), [("asr", "fr", "fr"), ("s2tt", "fr", "en")]
    for number in range(25):
        statistics.losses.add(groups, [2, 0], torch.tensor([float(number), 9.0]))
        statistics.add_norms(
            {"adapter": torch.tensor(float(number)), **({"encoder": torch.ones(())} if number else {})}
        )
    assert len(statistics.losses._nats) == 5 and len(statistics.part_norms) == 2
    assert statistics.losses.sums() == {groups[0]: (300.0, 50)} == statistics.losses.sums()
    assert statistics._mean_norms() == {"adapter": 12.0, "encoder": 1.0}


def test_the_dev_loss_is_per_task_and_language(shared, tmp_path):
    dev = tiny_training.tiny_dataset(count=3, seed=5)
    trainer = build(shared, tmp_path, BUILT_IN_STAGES["adapter"], eval_dataset=dev, max_rows=2)
    metrics = trainer.evaluate()
    rows = list(dev)
    with torch.no_grad():
        assert metrics["eval_loss"] == pytest.approx(
            reference_loss(trainer.model.eval(), shared.processor, [rows]).item(), rel=1e-5
        )
        for key, task, source in (("asr/fr", "asr", "fr"), ("s2tt/en-fr", "s2tt", "en"), ("mt/fr-en", "mt", "fr")):
            chosen = [row for row in rows if (row["task"], row["source_lang"]) == (task, source)]
            expected = reference_loss(trainer.model, shared.processor, [chosen]).item()
            assert metrics[f"eval_{key}_loss"] == pytest.approx(expected, rel=1e-5)


# ---- steps that are not finite ----


class Poison:
    """Makes the features of some rows NaN."""

    def __init__(self, collator, ids):
        self.collator, self.ids = collator, ids

    def __call__(self, rows):
        batch = self.collator(rows)
        if any(row["id"] in self.ids for row in rows):
            batch["input_features"] = batch["input_features"] * float("nan")
        return batch


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
def test_a_step_that_is_not_finite_is_skipped_counted_and_named(shared, tmp_path, max_grad_norm, caplog):
    stage = BUILT_IN_STAGES["encoder"]
    trainer = build(shared, tmp_path, stage, steps=3, accumulation=2, max_rows=2, max_grad_norm=max_grad_norm)
    batches = list(trainer.batches.sampler)
    bad = shared.dataset[batches[2][0]]["id"]  # the first batch of the second step
    trainer.data_collator = Poison(trainer.data_collator, {bad})
    recorder = Recorder().watch(trainer)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert recorder.steps[0].weights and recorder.steps[2].weights
    assert not recorder.steps[1].weights and not recorder.steps[1].states
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["skipped_steps"] for entry in logs] == [0, 1, 1]
    assert "Step 2 is skipped" in caplog.text
    named = next(line for line in caplog.messages if "not finite" in line)
    assert bad in named
    assert all(shared.dataset[row]["id"] not in named for row in batches[3])
    losses = [value for entry in logs for key, value in entry.items() if key.endswith("_loss")]
    assert losses and all(map(math.isfinite, losses))
    norms = [value for entry in logs for key, value in entry.items() if key.startswith("grad_norm/")]
    assert len(norms) == 4 and all(map(math.isfinite, norms)), "of two parts, in the steps that were not skipped"


def test_a_stopped_trainer_goes_on_and_can_be_stopped_again(shared, tmp_path):
    class Terminate(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step in (1, 3):
                os.kill(os.getpid(), signal.SIGTERM)

    saving = {"save_strategy": "steps", "save_steps": 100}
    trainer = build(shared, tmp_path, BUILT_IN_STAGES["adapter"], steps=6, callbacks=[Terminate()], **saving)
    trainer.train()
    assert (trainer.state.global_step, trainer.stopping.was_stopped) == (2, True)
    trainer._statistics.since -= 24 * 3600
    trainer.train(resume_from_checkpoint=True)
    assert (trainer.state.global_step, trainer.stopping.was_stopped) == (4, True)
    speeds = [entry["tokens_per_second"] for entry in trainer.state.log_history if "loss" in entry]
    assert speeds[2] > 1, "time between two trainings is no training"
    trainer.train(resume_from_checkpoint=True)
    assert (trainer.state.global_step, trainer.stopping.was_stopped) == (6, False)


@pytest.mark.parametrize(("bearable", "trains"), [(2.0**8, True), (0.0, False)])
def test_fp16_looks_for_its_scale_as_long_as_it_needs(shared, tmp_path, bearable, trains):
    """A gradient is infinite until the scale is bearable, eight steps from where torch begins; at 1 it is really bad."""
    trainer = build(shared, tmp_path, BUILT_IN_STAGES["adapter"], steps=24, max_bad_steps=3, logging_steps=24)
    scaler = torch.amp.GradScaler("cpu")  # which accelerate makes on a GPU alone
    trainer.accelerator.scaler, trainer.accelerator.native_amp = scaler, True
    weight = trainer.model.model.adapter.projection.weight
    weight.register_hook(lambda gradient: gradient / float(scaler.get_scale() <= bearable))
    before = weight.detach().clone()
    with patch.object(type(trainer.accelerator), "mixed_precision", "fp16"):
        if trains:
            trainer.train()
        else:
            with pytest.raises(NonFiniteTrainingError, match="3 steps in a row"):
                trainer.train()
    assert (trainer.state.global_step, trainer._bad_steps) == ((24, 8) if trains else (19, 19))
    assert torch.equal(weight, before) != trains


def test_norms_of_parts_are_those_of_the_gradients_without_the_scale_of_fp16(shared, tmp_path):
    trainer = build(shared, tmp_path, BUILT_IN_STAGES["adapter"], steps=1)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, 8.0)
    values = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
    for scale in (1.0, 8.0):
        trainer.accelerator.scaler = SimpleNamespace(get_scale=lambda scale=scale: scale)
        assert trainer._norms_before_clipping() == {"adapter": pytest.approx(8.0 / scale * values**0.5)}


@pytest.mark.parametrize("strategy", ["steps", "no"])
def test_too_many_bad_steps_stop_with_the_good_weights_saved(shared, tmp_path, strategy):
    dataset = tiny_training.tiny_dataset(("asr",), count=12)  # one epoch: no row comes twice
    saving = {"save_strategy": strategy, "save_steps": 1, "max_bad_steps": 3}
    trainer = build(shared, tmp_path, BUILT_IN_STAGES["encoder"], dataset=dataset, steps=6, **saving)
    batches = list(trainer.batches.sampler)
    bad = {dataset[batch[0]]["id"] for batch in batches[2:]}
    trainer.data_collator = Poison(trainer.data_collator, bad)
    recorder = Recorder().watch(trainer)
    with pytest.raises(NonFiniteTrainingError, match=r"3 steps in a row .* --resume --resume_with") as caught:
        trainer.train()
    assert [bool(step.weights) for step in recorder.steps] == [True, True, False, False, False]
    checkpoint = last_checkpoint(tmp_path)
    assert str(checkpoint) in str(caught.value)
    loaded = PARTForSpeechSeq2Seq.from_pretrained(checkpoint)
    assert not tiny_training.changed(tiny_training.snapshot(trainer.model), tiny_training.snapshot(loaded))
    assert all(parameter.isfinite().all() for parameter in loaded.parameters())


# ---- refusals ----


def exhausted(*args, **kwargs):
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_out_of_memory_names_the_batch_and_the_setting(shared, tmp_path, monkeypatch):
    trainer = build(shared, tmp_path, BUILT_IN_STAGES["adapter"], steps=1, max_rows=2)
    rows = [shared.dataset[row] for row in next(iter(trainer.batches.sampler))]
    monkeypatch.setattr(trainer.model.model, "forward", exhausted)
    with pytest.raises(RuntimeError, match="Lower `max_audio_seconds`") as caught:
        trainer.train()
    assert rows[0]["id"] in str(caught.value) and "asr batch of 2 rows" in str(caught.value)
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ((PARTForSpeechSeq2Seq, "to"), "Out of memory while the model is put on its device. .*`tuning: lora`"),
        ((torch.optim.AdamW, "step"), "Out of memory between two batches, .*optimizer.*`optim: adamw_8bit`"),
        ((trainer_module, "dev_sums"), "Out of memory in an evaluation. Lower `max_audio_seconds`"),
        ((dry_run_module, "estimate_memory"), "Out of memory in the forward pass of the dry run. Lower"),
    ],
    ids=["move", "optimizer", "evaluation", "dry run"],
)
def test_out_of_memory_elsewhere_names_the_phase_and_the_way_out(shared, tmp_path, monkeypatch, place, message):
    monkeypatch.setattr(*place, exhausted)
    with pytest.raises(UserError, match=message) as caught:
        trainer = build(
            shared, tmp_path, BUILT_IN_STAGES["adapter"], steps=1, eval_dataset=shared.dataset, eval_strategy="steps",
            eval_steps=1,
        )  # fmt: skip
        if place[0] is dry_run_module:
            dry_run_module.dry_run(trainer)
        trainer.train()
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"ddp_static_graph": True}, "ddp_static_graph"),
        ({"ddp_find_unused_parameters": False}, "drift apart in stage 'joint'"),
        ({"average_tokens_across_devices": False}, "weighs tokens by rank"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
        ({"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"}, "load_best_model"),
        ({"optim": "schedule_free_adamw"}, "weights while it trains are not those to evaluate and save"),
        ({"optim": "galore_adamw"}, "past the task gate"),
        ({"auto_find_batch_size": True}, "filled up to `max_audio_seconds`"),
        ({"per_device_train_batch_size": 2}, "filled up to `max_audio_seconds`"),
        ({"train_sampling_strategy": "group_by_length"}, "`train_sampling_strategy` is"),
        ({"neftune_noise_alpha": 5.0}, "`neftune_noise_alpha` is 5.0, .*embeddings are frozen"),
        ({"include_for_metrics": ["inputs"]}, "`include_for_metrics` is .* the answers are scored too"),
        ({"batch_eval_metrics": True}, "the answers are scored too"),
        ({"bf16_full_eval": True}, "in the precision of training"),
        ({"push_to_hub": True, "hub_model_id": "user/name"}, "answers to the dev data .* `part publish FOLDER"),
        ({"max_steps": -1}, "`max_steps` is -1, and the stage's batches are of 6 steps"),
        ({"max_steps": 7}, "set `max_steps` to 6"),
        ({"gradient_accumulation_steps": 2}, "planned for 1 per optimizer step .* would take 2"),
    ],
)
def test_settings_that_contradict_the_method_are_refused(shared, tmp_path, setting, message):
    with pytest.raises(ValueError, match=message):
        build(shared, tmp_path, tiny_training.joint_stage(), **setting)


@pytest.mark.parametrize("name", ["tp_size", "cp_size", "sp_size"])
def test_processes_that_would_share_a_batch_are_refused(shared, tmp_path, monkeypatch, name):
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    build(shared, tmp_path, tiny_training.joint_stage())
    monkeypatch.setenv(f"PARALLELISM_CONFIG_{name.upper()}", "2")
    with pytest.raises(ValueError, match=f"`{name}: 2`: processes would share .*fsdp2_bf16.yaml"):
        build(shared, tmp_path, tiny_training.joint_stage())


def test_the_same_arguments_serve_the_next_stage(shared, tmp_path):
    first = build(shared, tmp_path, BUILT_IN_STAGES["adapter"])
    stage = tiny_training.joint_stage()
    args = tiny_training.PARTTrainingArguments(output_dir=str(tmp_path), use_cpu=True, max_steps=6)
    given = {"batches": first.batches, "args": args, "processing_class": shared.processor}
    PARTTrainer(first.model, stage=first.stage, trainable=first.trainable_names, **given)
    trainer = PARTTrainer(copy.deepcopy(shared.model), stage=stage, trainable={}, **given)
    assert trainer.args.ddp_find_unused_parameters is True and trainer._filters_losses
    with pytest.raises(ValueError, match="`args` is TrainingArguments; give PARTTrainingArguments"):
        PARTTrainer(first.model, stage=stage, trainable={}, **given | {"args": TrainingArguments(str(tmp_path))})
    with pytest.raises(ValueError, match=r"`audio_token_convolutions` are None .* the model's own PARTProcessor"):
        PARTTrainer(first.model, stage=stage, trainable={}, **given | {"processing_class": None})


def test_wrappers_that_break_the_gate_are_refused(shared, tmp_path):
    trainer = build(shared, tmp_path, tiny_training.joint_stage())
    plugin = SimpleNamespace(fsdp_version=1)
    in_parts = SimpleNamespace(fsdp_version=2, state_dict_type="SHARDED_STATE_DICT")
    for accelerator, message in (
        (SimpleNamespace(distributed_type=DistributedType.DEEPSPEED), "DeepSpeed ZeRO"),
        (
            SimpleNamespace(distributed_type=DistributedType.FSDP, state=SimpleNamespace(fsdp_plugin=plugin)),
            "fsdp_version: 2",
        ),
        (
            SimpleNamespace(distributed_type=DistributedType.FSDP, state=SimpleNamespace(fsdp_plugin=in_parts)),
            "saves no model that can be loaded: set `fsdp_state_dict_type: FULL_STATE_DICT`",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            refuse_wrong_wrappers(accelerator, trainer.model, answers_dev_data=False)


def test_fsdp2_says_which_parameters_are_of_another_dtype():
    model = tiny_training.tiny_model()[0]
    model.add_alignment_head(torch.ones(model.config.text_config.vocab_size))
    plugin = SimpleNamespace(fsdp_version=2, state_dict_type="FULL_STATE_DICT")
    accelerator = SimpleNamespace(distributed_type=DistributedType.FSDP, state=SimpleNamespace(fsdp_plugin=plugin))
    refuse_wrong_wrappers(accelerator, model, answers_dev_data=False)
    model.model.adapter.to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"float32 such as .*, torch.bfloat16 such as model\.adapter\."):
        refuse_wrong_wrappers(accelerator, model, answers_dev_data=False)
    with pytest.raises(ValueError, match="`predict_with_generate` needs the whole model"):
        refuse_wrong_wrappers(accelerator, model.float(), answers_dev_data=True)


@pytest.mark.parametrize(
    ("stage", "searches"),
    [
        (BUILT_IN_STAGES["adapter"], False),
        (BUILT_IN_STAGES["encoder_top"], False),
        (BUILT_IN_STAGES["encoder"], False),
        (tiny_training.joint_stage(), True),
        (tiny_training.joint_stage(gate="always"), True),  # text batches skip encoder and adapter
        (tiny_training.joint_stage(gate="always", tasks={"asr": 1.0, "s2tt": 1.0}), False),
    ],
)
def test_ddp_searches_for_unused_parameters_only_where_there_are_some(shared, tmp_path, stage, searches):
    trainer = build(shared, tmp_path, stage)
    assert trainer.args.ddp_find_unused_parameters is searches
    assert trainer.accelerator.ddp_handler.find_unused_parameters is searches


def test_two_tasks_in_one_step_are_refused(shared, tmp_path):
    trainer = build(shared, tmp_path, tiny_training.joint_stage(), steps=2, accumulation=2)
    first = {task: shared.dataset["task"].index(task) for task in ("asr", "s2tt")}
    trainer.batches = replace(trainer.batches, sampler=[[first["asr"]], [first["s2tt"]]])
    with pytest.raises(ValueError, match=r"\['several'\]. A global step is of one task"):
        trainer.train()


def test_recomputing_activations_reaches_a_frozen_language_model(shared, tmp_path):
    """A frozen part is put in evaluation mode (no dropout), in which layers would keep their activations."""
    trainer = build(shared, tmp_path, BUILT_IN_STAGES["adapter"], steps=1, gradient_checkpointing=True)
    calls = []
    layer = trainer.model.model.language_model.layers[0]
    layer.self_attn.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    trainer.train()
    assert len(calls) == 2, "once in the forward pass and once again in the backward pass"


def test_other_rows_than_the_dev_data_are_not_evaluated_as_if_they_were(shared, tmp_path):
    trainer = build(shared, tmp_path, BUILT_IN_STAGES["adapter"], steps=1)
    with pytest.raises(ValueError, match=r"The dev rows are those of `batches`"):
        trainer.evaluate(shared.dataset.select([0]))
    with pytest.raises(NotImplementedError, match="predict_and_report"):
        trainer.predict(shared.dataset)
    with pytest.raises(NotImplementedError, match="all that `output_dir` holds"):
        trainer.push_to_hub()
    with pytest.raises(NotImplementedError, match="`part compare` their stages' folders"):
        trainer.hyperparameter_search()
    with pytest.raises(ValueError, match="There is no `model`"):
        PARTTrainer(stage=trainer.stage, trainable={}, batches=trainer.batches, args=trainer.args)
    for name in WITHOUT_EFFECT:
        with pytest.raises(ValueError, match=f"`{name}` would have no effect"):
            PARTTrainer(
                shared.model,
                stage=trainer.stage,
                trainable={},
                batches=trainer.batches,
                args=trainer.args,
                **{name: print},
            )


@pytest.mark.parametrize(
    ("tasks", "gate", "is_told"),
    [
        ({"asr": 1.0, "s2tt": 0.0}, "task_gated", True),
        ({"asr": 1.0, "s2tt": 0.0}, "always", False),
        ({"asr": 1.0, "s2tt": 1.0}, "task_gated", False),
    ],
)
def test_a_language_model_that_no_row_opens_is_told(shared, tmp_path, caplog, tasks, gate, is_told):
    caplog.set_level("INFO")
    stage = tiny_training.joint_stage(tasks={"asr": 1.0, "s2tt": 1.0}, gate=gate)
    trainer = build(shared, tmp_path, stage, steps=1)
    drawn = {f"{task}/en": 3 for task, weight in tasks.items() if weight}
    report = {**trainer.batches.report, "rows": drawn, "hours": dict.fromkeys(drawn, 0.1)}
    trainer.batches = replace(trainer.batches, report=report)
    log_plan(trainer, StageRun(stage, tmp_path, None, predicts=False))
    assert ("No row of this stage opens the language model (tasks: asr)" in caplog.text) is is_told


def test_a_frozen_encoder_has_no_dropout_where_activations_are_recomputed(shared, tmp_path):
    trainer = build(shared, tmp_path, BUILT_IN_STAGES["adapter"], steps=1, gradient_checkpointing=True)
    modes, tower = [], trainer.model.model.audio_tower
    tower.register_forward_hook(lambda module, *_: modes.append([one.training for one in module.modules()]))
    trainer.train()
    assert modes and not any(map(any, modes))


def test_frozen_parts_have_no_dropout_and_what_trains_has(shared, tmp_path):
    trainer = build(shared, tmp_path, BUILT_IN_STAGES["adapter"], steps=1)
    modes: dict[str, set[bool]] = {}
    for name in ("audio_tower", "adapter", "language_model"):
        getattr(trainer.model.model, name).register_forward_hook(
            lambda module, *_, name=name: (
                modes.setdefault(name, {one.training for one in module.modules()}) and None
            )  # the output stays
        )
    trainer.train()
    assert modes == {"audio_tower": {False}, "adapter": {True}, "language_model": {False}}


def test_training_fills_no_cache(shared, tmp_path):
    """Layers that accelerate recomputes under FSDP2 would add their keys a second time."""
    trainer = build(shared, tmp_path, tiny_training.joint_stage(), steps=2)
    asked = []
    trainer.model.model.language_model.register_forward_pre_hook(
        lambda module, arguments, options: asked.append(options["use_cache"]), with_kwargs=True
    )
    trainer.train()
    assert asked == [False, False]


# ---- checkpoints ----


def test_a_saved_stage_is_the_trained_model(shared, tmp_path):
    trainer = build(shared, tmp_path / "run", tiny_training.joint_stage(), steps=5)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    merged, lora = split_lora(trainer.model.state_dict(), 2.0)
    loaded = PARTForSpeechSeq2Seq.from_pretrained(tmp_path / "saved")
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, merged[name]), name
    assert any(float(tensor.abs().max()) > 0 for name, tensor in lora.items() if ".lora_B." in name)
    batch = PARTCollator(PARTProcessor.from_pretrained(tmp_path / "saved"))(list(shared.dataset.select([0])))
    batch.pop("batch_info")
    with torch.no_grad():
        expected = trainer.model.eval()(**batch)
        torch.testing.assert_close(loaded.eval()(**batch).logits, expected.logits, rtol=1e-4, atol=1e-5)


def test_checkpoints_are_whole_counted_and_remember_their_batches(shared, tmp_path):
    trainer = build(
        shared, tmp_path, tiny_training.joint_stage(), steps=5, save_strategy="steps", save_steps=1, save_total_limit=2
    )
    trainer.batches = replace(trainer.batches, progress=Progress(2, [(7, 2)]))
    saved = []
    trainer.on_save = lambda folder: saved.append(sorted(path.name for path in folder.iterdir()))
    trainer.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-5"]
    assert not (tmp_path / "incomplete").exists()
    assert len(saved) == 5
    for name in ("config.json", "model.safetensors", "lora", "processor_config.json", "optimizer.pt",
                 "scheduler.pt", "rng_state.pth", "trainer_state.json"):  # fmt: skip
        assert name in saved[0]
    checkpoint = last_checkpoint(tmp_path)
    assert checkpoint.name == "checkpoint-5"
    assert json.loads((checkpoint / "batches.json").read_text()) == [[7, 2], [1, 3]]
    assert read_history(checkpoint, 1) == [(7, 2)] and read_history(checkpoint, 2) == [(7, 2), (1, 3)]
    (checkpoint / "trainer_state.json").unlink()
    assert last_checkpoint(tmp_path).name == "checkpoint-4"
    assert load_file(checkpoint / "model.safetensors")


@pytest.mark.parametrize(
    ("text_kind", "tuning", "written"),
    [("qwen2", "lora", "now"), ("qwen2", "lora", "formerly"), ("llama", "lora", "now"), ("qwen2", "full", "now"),
     ("llama", "full", "now")],
)  # fmt: skip
def test_resuming_gives_the_same_weights_bit_for_bit(tmp_path, text_kind, tuning, written):
    def trainer(folder):
        model, processor = tiny_training.tiny_model(text_kind)
        options = {"save_strategy": "steps", "save_steps": 3, "lr_scheduler_type": "linear", "save_total_limit": None}
        return tiny_training.make_trainer(
            folder, tiny_training.joint_stage(tuning=tuning), model=model, processor=processor, steps=7, **options
        )

    whole = trainer(tmp_path)
    whole.train()
    if written == "formerly":
        folder = tmp_path / "checkpoint-3" / "lora"
        save_file(load_lora(folder), tmp_path / "checkpoint-3" / "lora.safetensors")
        shutil.rmtree(folder)
    resumed = trainer(tmp_path / "again")
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert not tiny_training.changed(tiny_training.snapshot(whole.model), tiny_training.snapshot(resumed.model))
    tail = [entry["loss"] for entry in whole.state.log_history if entry["step"] > 3 and "loss" in entry]
    assert [entry["loss"] for entry in resumed.state.log_history if entry["step"] > 3 and "loss" in entry] == tail


class _StopBefore(TrainerCallback):
    """Asks for a stop while a step runs."""

    def __init__(self, step: int) -> None:
        self.step, self.trainer = step, None

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            self.trainer.stopping.request(signal.SIGTERM)


def test_a_stop_where_an_evaluation_was_due_changes_no_bit_of_dropout(shared, tmp_path):
    """The evaluation is left out, and what it would draw from the generator of training is nothing."""
    dev = tiny_training.tiny_dataset(count=2, seed=5)
    options = {"eval_dataset": dev, "eval_strategy": "steps", "eval_steps": 2, "steps": 4}
    stage = tiny_training.joint_stage(lora_dropout=0.3)
    whole = build(shared, tmp_path / "whole", stage, **options)
    whole.train()
    stop = _StopBefore(2)
    stop.trainer = build(shared, tmp_path / "run", stage, callbacks=[stop], **options)
    stop.trainer.train()
    assert stop.trainer.state.global_step == 2
    resumed = build(shared, tmp_path / "run", stage, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert not tiny_training.changed(tiny_training.snapshot(whole.model), tiny_training.snapshot(resumed.model))


def test_a_resumed_stream_has_the_dropout_that_it_would_have_had(shared, tmp_path):
    rows = list(tiny_training.tiny_dataset())

    def trainer(folder, begin: int):
        options = {"steps": 4, "save_strategy": "steps", "save_steps": 2, "ignore_data_skip": True}
        made = build(shared, folder, tiny_training.joint_stage(lora_dropout=0.3), **options)
        stream = StreamingTaskBatches(
            {task: [row for row in rows if row["task"] == task] for task in made.stage.tasks},
            made.stage.tasks,
            lambda row: count_row_tokens(row, made.processing_class),
            Budget(60.0, 4000, 3),
            steps=range(begin, 4),
        )
        made.batches = replace(made.batches, sampler=stream, train_rows=stream)
        return made

    whole, resumed = trainer(tmp_path / "whole", 0), trainer(tmp_path / "again", 2)
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert not tiny_training.changed(tiny_training.snapshot(whole.model), tiny_training.snapshot(resumed.model))


@pytest.mark.parametrize(("limit", "kept"), [(1, [2, 5]), (2, [2, 5]), (3, [2, 4, 5])])
def test_the_best_checkpoint_is_kept_where_the_state_says(shared, tmp_path, limit, kept):
    """`EarlyStoppingCallback` (and the schedule by plateaus) compare evaluations."""
    told = iter([3.0, 1.0, 2.0, 2.0, 2.0, 2.0])
    trainer = build(
        shared, tmp_path, tiny_training.joint_stage(), eval_dataset=tiny_training.tiny_dataset(count=1), steps=6,
        save_strategy="steps", save_steps=1, save_total_limit=limit, eval_strategy="steps", eval_steps=1,
        metric_for_best_model="told", greater_is_better=False, callbacks=[EarlyStoppingCallback(3)],
    )  # fmt: skip
    trainer.generation_monitor = lambda *_: {"told": next(told)}
    trainer.train()
    assert trainer.state.global_step == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"checkpoint-{step}" for step in kept]
    for step in kept:
        state = json.loads((tmp_path / f"checkpoint-{step}" / "trainer_state.json").read_text())
        assert state["best_model_checkpoint"] == trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")


@pytest.mark.parametrize(
    ("settings", "kept"),
    [({}, 1), ({"eval_strategy": "steps", "eval_steps": 1, "lr_scheduler_type": "reduce_lr_on_plateau"}, 2)],
)
def test_the_disk_must_hold_the_best_checkpoint_beside_the_newest_and_the_next(
    shared, tmp_path, monkeypatch, settings, kept
):
    args = PARTTrainingArguments(str(tmp_path), use_cpu=True, save_steps=1, save_total_limit=1, **settings)
    weights = 4 * sum(parameter.numel() for parameter in shared.model.parameters())
    needed = (2 + kept) * weights + (1 + kept) * 2 * weights  # all train
    run = StageRun(BUILT_IN_STAGES["adapter"], tmp_path / "adapter", None, predicts=False)
    for free in (needed, needed - 1):
        monkeypatch.setattr("shutil.disk_usage", lambda folder, free=free: SimpleNamespace(free=free))
        with pytest.raises(OSError, match="make room") if free < needed else nullcontext():
            run.check_disk(copy.deepcopy(shared.model).requires_grad_(True), args)


def test_an_early_stop_at_the_end_of_an_epoch_is_evaluated_and_saved_once(shared, tmp_path):
    told, saves = iter([1.0, 2.0, 3.0]), []
    trainer = build(
        shared, tmp_path, tiny_training.joint_stage(), eval_dataset=tiny_training.tiny_dataset(count=1), steps=6,
        save_strategy="epoch", eval_strategy="epoch", metric_for_best_model="told", greater_is_better=False,
        callbacks=[EpochEnds([2, 4, 6]), EarlyStoppingCallback(1)],
    )  # fmt: skip
    trainer.generation_monitor = lambda *_: {"told": next(told)}
    trainer.on_save = lambda folder: saves.append(folder.name)
    trainer.train()
    assert [line["step"] for line in trainer.state.log_history if "eval_told" in line] == [2, 4]
    assert saves == ["checkpoint-2", "checkpoint-4"]


def test_a_checkpoint_of_another_stage_is_refused(shared, tmp_path):
    trainer = build(shared, tmp_path, tiny_training.joint_stage(), steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    shutil.rmtree(tmp_path / "checkpoint-1" / "lora")
    other = build(shared, tmp_path, tiny_training.joint_stage(), steps=2)
    with pytest.raises(ValueError, match=r"does not fit stage 'joint': missing .*lora_A"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


# ---- compilation ----


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("regional", "ctc"),
    # The first is a part of the last.
    [pytest.param("false", 0.0, marks=pytest.mark.slow), ("true", 0.0), ("false", 0.5)],
)
def test_compiled_training_gives_the_same_weights_and_is_compiled_throughout(
    shared, tmp_path, monkeypatch, regional, ctc
):
    """Gate open and closed, with and without audio, many shapes: compiled each, none left out, no endless recompiling."""
    from torch._dynamo import config, reset
    from torch._dynamo.utils import counters

    monkeypatch.setenv("ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION", regional)
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "no")  # TrainingArguments sets it; restored afterwards
    weights = []
    with config.patch(recompile_limit=config.recompile_limit):  # restored afterwards
        for name, options in (("plain", {}), ("compiled", {"torch_compile_backend": "eager"})):
            reset()
            counters.clear()
            stage = tiny_training.joint_stage(losses={"nll": 1.0, "ctc": ctc})
            trainer = build(shared, tmp_path / name, stage, steps=16, max_rows=3, **options)
            trainer.train()
            trainer.save_model(str(tmp_path / name / "saved"))
            weights.append(load_file(tmp_path / name / "saved" / "model.safetensors"))
    frames = counters["frames"]
    assert 0 < frames["ok"] == frames["total"] <= 90
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-5, atol=1e-6)
    reset()
