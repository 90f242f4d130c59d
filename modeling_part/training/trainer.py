# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""PARTTrainer: `transformers.Trainer` with the task gate, per-part learning rates and checkpoints that survive."""

import json
import logging
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from pathlib import Path

import torch
from accelerate.utils import DistributedType, gather_object
from safetensors.torch import load_file, save_file
from torch import nn
from torch._dynamo import config as dynamo_config
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer
from transformers.trainer_utils import rotate_checkpoints

from ..data.rows import EXAMPLES_PER_REASON, ROWS_BEFORE_JUDGEMENT, too_many_broken
from ..prompts_part import TASKS
from ..recipes.stages import Stage
from .checkpoints import HISTORY_FILE, INCOMPLETE, LORA_FILE, load_weights, retied
from .freezing import LanguageModelGate, frozen_modules, named_parameters, set_trainable
from .kernels import COMPILED_VARIANTS, check_rows_stay_apart, use_liger_kernels
from .lora import split_lora, transposed_lora
from .losses import GroupLosses, add_losses, batch_losses, mean_losses


logger = logging.getLogger(__name__)


class NonFiniteTrainingError(RuntimeError):
    """Too many steps in a row had a loss or a gradient that is not finite."""


class TooManyBrokenRowsError(RuntimeError):
    """More rows could not be decoded than `max_bad_fraction` allows."""


class PARTTrainer(Trainer):
    """Trains one stage.

    `training_step` reads the batch's task and opens or closes the language model's gradients (see
    [`LanguageModelGate`]); learning rates are per part; the log holds loss, tokens and gradient norms per task,
    language and part; checkpoints hold plain weights (LoRA merged) beside what resuming needs.

    Args:
        model ([`PARTForSpeechSeq2Seq`]): with LoRA injected where the stage uses it.
        stage ([`Stage`]): what trains.
        batch_sampler ([`TaskBatchSampler`]): batches of `train_dataset`; every global step is of one task.
        eval_batches (list of lists of int, *optional*): batches of `eval_dataset`, each of one task.
        generation_monitor (callable, *optional*): called at each evaluation with the model, the accelerator, the step
            and the context of the forward; its figures join the dev loss (see [`GenerationMonitor`]).
        max_bad_fraction (float, defaults to 0.01): share of the rows drawn that may be broken (see `skip_broken` of
            [`PARTCollator`]); they are warned of and counted in the log as `broken_rows`. With more, after 1,000
            rows, training saves and stops.
        on_save (callable, *optional*): gets a checkpoint folder before it becomes visible, to add `stage.json`.
        history (list of tuple, *optional*): the `history` that `batch_sampler` was given, see [`read_history`].
        **kwargs: of `transformers.Trainer`; `data_collator` is a [`PARTCollator`].

    Raises:
        ImportError: `use_liger_kernel` without liger-kernel.
        ValueError: DeepSpeed ZeRO, FSDP1 or a setting that breaks the task gate or the loss; or a pattern that
            matches nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        stage: Stage,
        batch_sampler=None,
        eval_batches: list[list[int]] | None = None,
        eval_collator: Callable | None = None,
        generation_monitor: Callable[..., dict[str, float]] | None = None,
        max_bad_fraction: float = 0.01,
        on_save: Callable[[Path], None] | None = None,
        history: list[tuple[int, int]] | None = None,
        **kwargs,
    ) -> None:
        self.stage = stage
        self.history = list(history or [])
        self.batch_sampler = batch_sampler
        self.eval_batches = eval_batches
        self.eval_collator = eval_collator or kwargs.get("data_collator")
        self.generation_monitor = generation_monitor
        self.max_bad_fraction = max_bad_fraction
        self.on_save = on_save
        self.trainable_names = set_trainable(stage, model)
        self.gate = self._make_gate(model)
        args = kwargs["args"]
        self._refuse_wrong_settings(args)
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = self._has_unused_parameters()
        # Where FSDP loads weights on one process only, the others hold none to compute with yet.
        if args.padding_free and args.process_index == 0:
            check_rows_stay_apart(model)
        if args.use_liger_kernel:
            use_liger_kernels(model.model.language_model, args.liger_kernel_config)
            args.use_liger_kernel = False  # done: `Trainer` would look for kernels of the whole model's type
        if args.torch_compile:
            dynamo_config.recompile_limit = max(dynamo_config.recompile_limit, COMPILED_VARIANTS)
        super().__init__(model=model, **kwargs)
        self._refuse_wrong_wrappers()
        # The model divides by `num_items_in_batch` itself, whatever `Trainer` infers from a wrapped forward.
        self.model_accepts_loss_kwargs = True
        self._frozen_modules = frozen_modules(model)
        self._reset_statistics()
        self.stop_requested = self._stop_agreed = False
        self._bad_steps = self._bad_steps_in_a_row = 0
        self._rows_drawn = self._rows_broken = 0  # over all ranks, since training began or was resumed
        self._faults: dict[str, None] = {}  # this rank's, in the order they were met
        self._step_batches: list[tuple[list[str], torch.Tensor]] = []  # row ids and loss of each batch of the step
        self._saving = False

    def _make_gate(self, model: nn.Module) -> LanguageModelGate:
        parameters = named_parameters(model)
        return LanguageModelGate(
            self.stage, [parameters[name] for name in self.trainable_names.get("language_model", [])]
        )

    def _prepare_for_training(self, *args, **kwargs):
        prepared = super()._prepare_for_training(*args, **kwargs)
        self.gate = self._make_gate(self.model)  # FSDP2 has replaced the parameters
        return prepared

    def _has_unused_parameters(self) -> bool:
        """Whether some batch leaves a trainable parameter without gradient, which DDP must then search for."""
        gated = self.stage.trains_language_model and not all(
            self.stage.opens_language_model(task) for task in self.stage.active_tasks
        )
        text_only = "mt" in self.stage.active_tasks
        # The mask embedding of wav2vec2's own SpecAugment, which PART switches off.
        masked = any(name.endswith("masked_spec_embed") for names in self.trainable_names.values() for name in names)
        return gated or text_only or masked

    def _refuse_wrong_settings(self, args) -> None:
        if args.ddp_static_graph:
            raise ValueError(
                "`ddp_static_graph` contradicts the task gate, whose graph depends on the task; unset it."
            )
        if args.ddp_find_unused_parameters is False and self._has_unused_parameters():
            raise ValueError(
                f"`ddp_find_unused_parameters: false` lets the ranks drift apart in stage {self.stage.name!r}, whose "
                "batches do not all reach every trainable parameter; leave it out."
            )
        if not args.average_tokens_across_devices:
            raise ValueError("`average_tokens_across_devices: false` weighs tokens by rank in the loss; leave it out.")
        if args.label_smoothing_factor:
            raise ValueError("`label_smoothing_factor` is not supported: the loss is the model's own; unset it.")
        if args.load_best_model_at_end:
            raise ValueError(
                "`load_best_model_at_end` is not supported: a stage ends with its last weights; unset it."
            )

    def _refuse_wrong_wrappers(self) -> None:
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            raise ValueError(
                "DeepSpeed ZeRO turns absent gradients into zeros, and AdamW then moves the gated language model by "
                "momentum and weight decay. Use multi_gpu_bf16.yaml (DDP) or fsdp2_bf16.yaml of accelerate_configs."
            )
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if plugin is not None and getattr(plugin, "fsdp_version", 2) == 1:
            raise ValueError(
                "FSDP1 flattens frozen and trained parameters together, which the task gate cannot toggle. Set "
                "`fsdp_version: 2` (see accelerate_configs/fsdp2_bf16.yaml)."
            )
        if plugin is not None and self.generation_monitor is not None:
            raise ValueError(
                "`predict_with_generate` needs the whole model on every process, which FSDP2 shards: leave it out. The dev "
                "loss stays, and the answers of each finished stage are scored."
            )

    # ---- data ----

    def get_train_dataloader(self) -> DataLoader:
        """Batches as the sampler plans them; accelerate deals batch i to rank i modulo the world size."""
        options = {
            "collate_fn": self.data_collator,
            "num_workers": self.args.dataloader_num_workers,
            "pin_memory": self.args.dataloader_pin_memory,
            "persistent_workers": self.args.dataloader_persistent_workers,
            "prefetch_factor": self.args.dataloader_prefetch_factor,
        }
        if isinstance(self.batch_sampler, IterableDataset):  # a stream deals its batches to the ranks itself
            return DataLoader(self.batch_sampler, batch_size=None, **options)
        return self.accelerator.prepare(DataLoader(self.train_dataset, batch_sampler=self.batch_sampler, **options))

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of one optimizer step: checked to be of one task on all ranks."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        tasks = {batch["batch_info"]["task"] for batch in batches}
        code = TASKS.index(next(iter(tasks))) if len(tasks) == 1 else -1
        infos = [batch["batch_info"] for batch in batches]
        rows, broken = (sum(len(info[key]) for info in infos) for key in ("ids", "broken"))
        codes, rows, broken = self._gather([code, rows, broken]).T.tolist()
        if batches and (code == -1 or len(set(codes)) > 1):
            raise ValueError(
                f"Step {self.state.global_step}: ranks hold batches of the tasks "
                f"{[TASKS[i] if i >= 0 else 'several' for i in codes]}. A global step is of one task; "
                "use TaskBatchSampler with this world size and gradient_accumulation_steps."
            )
        for info in infos:
            self.warn_of_broken(info)
        self._rows_drawn += sum(rows)
        self._rows_broken += sum(broken)
        self._step_batches = []
        return batches, num_items

    def warn_of_broken(self, info: dict) -> None:
        """Say once what is wrong with each row that a batch leaves out of the loss."""
        for fault in info["broken"]:
            if fault not in self._faults:
                logger.warning("%s Left out of the loss.", fault)
                self._faults[fault] = None

    @property
    def _too_many_broken(self) -> bool:
        return too_many_broken(self._rows_broken, self._rows_drawn, self.max_bad_fraction, ROWS_BEFORE_JUDGEMENT)

    def _gather(self, values: list[int]) -> torch.Tensor:
        """`(world size, values)`: what every rank holds."""
        mine = torch.tensor([values], device=self.args.device)
        return self.accelerator.gather(mine) if self.args.world_size > 1 else mine

    # ---- the step ----

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """One group per part, with and without weight decay, at the stage's learning rates."""
        if self.optimizer is None:
            model = self.model if model is None else model
            decayed = set(self.get_decay_parameter_names(model))
            parameters = dict(model.named_parameters())  # tied weights once
            groups = []
            for part, names in self.trainable_names.items():
                for decay in (True, False):
                    chosen = [parameters[name] for name in names if name in parameters and (name in decayed) == decay]
                    if chosen:
                        groups.append(
                            {
                                "params": chosen,
                                "lr": self.stage.learning_rates[part],
                                "weight_decay": self.args.weight_decay if decay else 0.0,
                                "part": part,
                            }
                        )
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Set the gate for the batch's task, then forward and backward."""
        info = inputs["batch_info"]
        self.gate.set_task(info["task"])
        try:
            loss = super().training_step(model, inputs, num_items_in_batch)
            self._step_batches.append((info["ids"], loss))
            return loss
        except torch.OutOfMemoryError as error:
            tokens = int(inputs["attention_mask"].sum())
            raise RuntimeError(
                f"Out of memory in a {info['task']} batch of {len(info['ids'])} rows, {sum(info['audio_seconds']):.0f} "
                f"s of audio ({info['padded_seconds']:.1f} s the longest) and {tokens} positions; ids "
                f"{info['ids'][:3]}... Lower `max_audio_seconds` (or `max_tokens` for text), raise "
                "`gradient_accumulation_steps`, or set `gradient_checkpointing: true`."
            ) from error

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The model's loss; notes what the log needs."""
        inputs = dict(inputs)
        info = inputs.pop("batch_info")
        if model.training:
            for module in self._frozen_modules:  # no dropout where nothing learns
                # Layers recompute their activations only in training mode.
                if not any(getattr(layer, "gradient_checkpointing", False) for layer in module.modules()):
                    module.eval()
        inputs |= self._loss_options
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        self._note_batch(info, inputs, outputs)
        # Trainer multiplies by the world size because DDP averages gradients; that is the loss it wants back.
        return (loss, outputs) if return_outputs else loss

    @property
    def _loss_options(self) -> dict:
        return {"loss_chunk_size": self.args.loss_chunk_size, "padding_free": self.args.padding_free}

    def _clip_grad_norm(self, model):
        self._note_part_norms()
        return super()._clip_grad_norm(model)

    def _get_grad_norm(self, model, grad_norm=None):
        """The norm before clipping; a step whose gradient is not finite is dropped before the optimizer."""
        if grad_norm is None:  # nothing is clipped
            self._note_part_norms()
        norm = super()._get_grad_norm(model, grad_norm)
        if math.isfinite(float(norm)):
            self._bad_steps_in_a_row = 0
        else:
            self._skip_step(float(norm))
        return norm

    def _skip_step(self, norm: float) -> None:
        self._bad_steps += 1
        self._bad_steps_in_a_row += 1
        # Without gradients the optimizer touches nothing; the learning rate schedule goes on.
        self.model.zero_grad(set_to_none=True)
        ids = [row for rows, loss in self._step_batches if not bool(loss.isfinite().all()) for row in rows]
        step = self.state.global_step + 1
        logger.warning("Step %d is skipped: gradient norm %s (skipped so far: %d).", step, norm, self._bad_steps)
        if ids:
            logger.warning("The loss of these rows is not finite: %s", ", ".join(ids))
        else:
            rows = [row for batch, _ in self._step_batches for row in batch]
            logger.warning("The losses of rank %d are finite: %s", self.args.process_index, ", ".join(rows))
        if self._bad_steps_in_a_row >= self.args.max_bad_steps:
            raise NonFiniteTrainingError(
                f"{self._bad_steps_in_a_row} steps in a row had a loss or gradient that is not finite (rows of the last "
                f"one: {ids[:5]}). The last good checkpoint is in {self.args.output_dir}; lower the learning rate or "
                "remove these rows, then run again with --resume."
            )

    # ---- stopping ----

    def request_stop(self, signal_number: int, frame=None) -> None:
        """Signal handler: all ranks agree after the step, save there and stop."""
        self.stop_requested = True
        logger.warning("Received %s: saving after this step.", signal.Signals(signal_number).name)

    def _maybe_log_save_evaluate(self, *args, **kwargs) -> None:
        stops = self._too_many_broken
        if not self._stop_agreed and bool(self._gather([int(self.stop_requested)]).any()):
            stops = self._stop_agreed = True
        if stops:
            self.control.should_save = self.control.should_training_stop = True
            self.control.should_evaluate = False
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if self._too_many_broken:
            raise TooManyBrokenRowsError(
                f"{self._rows_broken} of {self._rows_drawn} rows drawn are broken, more than max_bad_fraction = "
                f"{self.max_bad_fraction:g} allows; step {self.state.global_step} is saved in {self.args.output_dir}. Mend "
                "the files or raise `max_bad_fraction`, then go on with --resume. "
                + " ".join(list(self._faults)[:EXAMPLES_PER_REASON])
            )

    @property
    def was_stopped(self) -> bool:
        """Whether a signal ended training before its last step."""
        return self._stop_agreed

    # ---- log ----

    def _reset_statistics(self) -> None:
        self._losses: GroupLosses = {}
        self._totals = torch.zeros(4, dtype=torch.float64)  # positions, valid positions, audio s, padded audio s
        self._part_norms: dict[str, float] = {}
        self._gate_open = [0, 0]  # open, all
        self._since = time.perf_counter()

    def _note_batch(self, info: dict, inputs: dict, outputs) -> None:
        """Add one batch to the sums of the log: losses per group, tokens, audio, padding."""
        add_losses(self._losses, batch_losses(info["groups"], inputs["labels"], outputs["token_losses"]))
        mask = inputs["attention_mask"]
        rows = len(info["ids"])
        self._totals += torch.tensor(
            [mask.numel(), float(mask.sum()), sum(info["audio_seconds"]), info["padded_seconds"] * rows],
            dtype=torch.float64,
        )
        self._gate_open[0] += self.gate.is_open and bool(self.gate.parameters)
        self._gate_open[1] += 1

    def _note_part_norms(self) -> None:
        parameters = named_parameters(self.model)
        for part, names in self.trainable_names.items():
            # Tied weights have two names.
            gradients = {parameters[name]: parameters[name].grad for name in names}.values()
            gradients = [gradient for gradient in gradients if gradient is not None]
            norm = torch.nn.utils.get_total_norm(gradients) if gradients else torch.zeros(())
            norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
            self._part_norms[part] = float(norm)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the sums since the last line: loss per task and language, speed, padding, gate, norms per part."""
        if "loss" in logs:
            logs.update(self._statistics())
            self._reset_statistics()
        super().log(logs, start_time)

    def _statistics(self) -> dict[str, float]:
        totals = self._totals
        if self.args.world_size > 1:
            dtype = torch.float32 if self.args.device.type == "mps" else torch.float64
            totals = self.accelerator.reduce(totals.to(self.args.device, dtype), "sum").cpu()
        seconds = time.perf_counter() - self._since
        logs = mean_losses(self._over_ranks(self._losses), "")
        logs |= {f"grad_norm/{part}": norm for part, norm in self._part_norms.items()}
        positions, valid, audio, padded = totals.tolist()
        logs |= {
            "tokens_per_second": valid / seconds,
            "audio_hours_per_second": audio / 3600 / seconds,
            "position_padding_share": 1.0 - valid / max(positions, 1),
            "audio_padding_share": 1.0 - audio / padded if padded else 0.0,
            "gate_open_share": self._gate_open[0] / max(self._gate_open[1], 1),
            "skipped_steps": self._bad_steps,
            "broken_rows": self._rows_broken,
        }
        return {name: float(f"{value:.6g}") for name, value in logs.items()}

    def _over_ranks(self, losses: GroupLosses) -> GroupLosses:
        """The sums of all ranks, which may have met different languages."""
        total: GroupLosses = {}
        for one in gather_object([losses]):
            add_losses(total, one)
        return total

    # ---- evaluation ----

    @torch.no_grad()
    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Dev loss (nats per token) over `eval_batches`, per task and language, and the figures of `generation_monitor`;
        each rank takes its share.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None or not self.eval_batches:
            raise ValueError("There is no dev data: name `eval_data` in the recipe, or set `eval_strategy: no`.")
        started = time.perf_counter()
        mine = self.eval_batches[self.args.process_index :: self.args.world_size]
        loader = DataLoader(dataset, batch_sampler=mine, collate_fn=self.eval_collator)
        model, was_training = self.model_wrapped, self.model.training
        # FSDP gathers weights inside forward, so every rank must run as many forwards as the one with the most.
        rounds = math.ceil(len(self.eval_batches) / self.args.world_size)
        model.eval()
        losses: GroupLosses = {}
        last = None
        for index, batch in enumerate(_padded(loader, rounds)):
            batch = last if batch is None else batch
            if batch is None:
                batch = self.eval_collator([dataset[row] for row in self.eval_batches[0]])
            last = batch
            inputs = self._prepare_inputs(dict(batch))
            info = inputs.pop("batch_info")
            self.warn_of_broken(info)
            with self.compute_loss_context_manager():
                outputs = model(**inputs, **self._loss_options)
            if index < len(mine):
                add_losses(losses, batch_losses(info["groups"], inputs["labels"], outputs["token_losses"]))
        if was_training:
            model.train()
        losses = self._over_ranks(losses)
        nats, tokens = (sum(values) for values in zip(*losses.values(), strict=True))
        metrics = {f"{metric_key_prefix}_loss": nats / max(tokens, 1)} | mean_losses(losses, f"{metric_key_prefix}_")
        if self.generation_monitor is not None:
            figures = self.generation_monitor(
                self.model, self.accelerator, self.state.global_step, self.compute_loss_context_manager
            )
            metrics |= {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
        self._since += time.perf_counter() - started  # the log's speed is that of training
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # ---- checkpoints ----

    def _get_output_dir(self, trial) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, INCOMPLETE) if self._saving else folder

    def _save_checkpoint(self, model, trial) -> None:
        """Write the checkpoint aside and rename it when it is whole: a half-written one is never resumed from."""
        run_folder = Path(super()._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        staged, final = run_folder / INCOMPLETE / name, run_folder / name
        if self.args.should_save:  # what an interrupted run had only half written
            shutil.rmtree(staged.parent, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._saving = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._saving = False
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            steps = self.state.global_step - sum(steps for _, steps in self.history)
            history = [*self.history, (self.args.world_size * self.args.gradient_accumulation_steps, steps)]
            (staged / HISTORY_FILE).write_text(json.dumps(history))
            if self.on_save is not None:
                self.on_save(staged)
            if final.exists():
                shutil.rmtree(final)
            os.replace(staged, final)
            staged.parent.rmdir()
            rotate_checkpoints(
                output_dir=str(run_folder),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=False,
            )
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Plain weights with LoRA merged, the LoRA tensors beside them, the processor."""
        folder = Path(output_dir or self.args.output_dir)
        if not self.args.should_save:
            return
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        state_dict = model.state_dict() if state_dict is None else state_dict
        scaling = self.stage.lora_alpha / self.stage.lora_rank
        merged, lora = split_lora(state_dict, scaling, transposed_lora(model))
        # Parts that a stage keeps frozen in another dtype are stored like the rest (bfloat16 -> float32 is exact).
        dtype = model.config.dtype or torch.float32
        dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        merged = {name: t.to(dtype) if t.is_floating_point() else t for name, t in merged.items()}
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder, state_dict=retied(merged, model))
        if lora:
            save_file({name: tensor.contiguous() for name, tensor in lora.items()}, folder / LORA_FILE)
        self.processing_class.save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        """Weights of a checkpoint into the model, which holds the parent stage's (the base of LoRA)."""
        if self.is_fsdp_enabled:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        model = self.model if model is None else model
        state_dict = model.state_dict()
        folder = Path(resume_from_checkpoint)
        loaded = load_weights(folder)
        if (folder / LORA_FILE).is_file():
            loaded |= load_file(folder / LORA_FILE)
        # Weights under LoRA are merged in the file; the frozen originals are already here.
        bases = {name.replace(".base_layer.", ".") for name in state_dict if ".base_layer." in name}
        loaded = {
            name: tensor
            for name, tensor in loaded.items()
            if name not in bases or not name.endswith((".weight", ".bias"))
        }
        missing, surplus = model.load_state_dict(loaded, strict=False)
        tied = set(model.all_tied_weights_keys) if hasattr(model, "all_tied_weights_keys") else set()
        missing = [name for name in missing if ".base_layer." not in name and name not in tied]
        if missing or surplus:
            raise ValueError(
                f"{folder} does not fit stage {self.stage.name!r}: missing {missing[:5]}, surplus {surplus[:5]}."
            )


def _padded(items: DataLoader, size: int) -> Iterator:
    """`items`, then None until there are `size`."""
    yield from chain(items, repeat(None, size - len(items)))
