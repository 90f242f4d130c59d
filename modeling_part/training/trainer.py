# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""PARTTrainer: `transformers.Trainer` with the task gate, per-part learning rates and checkpoints that survive."""

import copy
import logging
import math
import os
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import NoReturn

import torch
from accelerate.utils import send_to_device
from torch import nn
from torch._dynamo import config as dynamo_config
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import TrainOutput

from ..data.batches import Batches
from ..data.numbered_batches import NumberedBatches, NumberedRows
from ..evaluation.failure_signs import how_to_listen
from ..prompts_part import TASKS, TEXT_TASKS
from ..recipes.arguments import PARTTrainingArguments
from ..recipes.stages import LOSSES, Stage
from .broken_rows import BrokenRows
from .checkpoints import INCOMPLETE, complete_checkpoint, remove_oldest, restore_weights, save_weights
from .dev_loss import DevSums, dev_sums, listens
from .freezing import LanguageModelGate, frozen_modules, gradient_norms
from .kernels import COMPILED_VARIANTS, let_flex_attention_autocast, use_liger_kernels
from .lora import without_lora
from .losses import StepStatistics
from .memory import FEWER_WEIGHTS, SMALLER_BATCHES, SMALLER_FORWARDS, enough_memory
from .refusals import PUBLISH_INSTEAD, has_unused_parameters, refuse_other_batches, refuse_wrong_settings
from .stability import NonFiniteTrainingError
from .stopping import StopCallback
from .wrappers import keep_sums_in_float32, refuse_wrong_wrappers, whole_on_every_rank


logger = logging.getLogger(__name__)


class PARTTrainer(Trainer):
    """Trains one stage.

    `training_step` reads the batch's task and opens or closes the language model's gradients (see
    [`LanguageModelGate`]); learning rates are per part; the log holds loss, tokens and gradient norms per task,
    language and part; checkpoints hold plain weights (LoRA merged) beside what resuming needs. A stage that a signal
    stops, or too many broken rows, has saved first ([`StopCallback`]).

    Args:
        model ([`PARTForSpeechSeq2Seq`]): prepared for the stage (see `setup.prepare_model`).
        stage ([`Stage`]): what trains.
        trainable (dict of lists of str): names of the parameters that train, per part.
        batches ([`Batches`]): what is drawn.
        args ([`PARTTrainingArguments`]): with the stage's `max_steps` (see `setup.stage_arguments`).
        generation_monitor (callable, *optional*): called at each evaluation with the model, the accelerator, the step
            and the context of the forward; its figures join the dev loss (see [`GenerationMonitor`]).
        on_save (callable, *optional*): gets a checkpoint folder before it becomes visible, to add `stage.json`.
        **kwargs: of `transformers.Trainer`, but for those of `refusals.WITHOUT_EFFECT`.

    Raises:
        ImportError: `use_liger_kernel` without liger-kernel.
        ValueError: DeepSpeed ZeRO, FSDP1, or a setting that breaks the task gate or the loss, or would have no effect.
    """

    @enough_memory("while the model is put on its device", FEWER_WEIGHTS)
    def __init__(
        self,
        model: nn.Module | None = None,  # not without: as in `Trainer`, where `model_init` may stand for it
        *,
        stage: Stage,
        trainable: dict[str, list[str]],
        batches: Batches,
        args: PARTTrainingArguments,
        generation_monitor: Callable[..., dict[str, float]] | None = None,
        on_save: Callable[[Path], None] | None = None,
        **kwargs,
    ) -> None:
        refuse_wrong_settings(args, stage, model, kwargs)
        self.stage = stage
        self.trainable_names = trainable
        self.batches = batches
        self.generation_monitor = generation_monitor
        self.on_save = on_save
        self.gate = self._make_gate(model)
        args = copy.copy(args)  # a script may give them to the next stage's trainer too
        refuse_other_batches(args, batches)
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = has_unused_parameters(stage)
        if args.use_liger_kernel:
            use_liger_kernels(model.model.language_model, args.liger_kernel_config)
            args.use_liger_kernel = False  # done: `Trainer` would look for kernels of the whole model's type
        if model.config._attn_implementation == "flex_attention":
            let_flex_attention_autocast()
        self._filters_losses = args.logging_nan_inf_filter
        args.logging_nan_inf_filter = False  # done by `training_step`: `Trainer` waits for each loss to look at it
        # Done by `_save_checkpoint`: `Trainer` would end with removing all but the best, from which it cannot go on.
        self._checkpoints_kept, args.save_total_limit = args.save_total_limit, None
        if args.torch_compile:
            dynamo_config.recompile_limit = max(dynamo_config.recompile_limit, COMPILED_VARIANTS)
        super().__init__(
            model=model,
            args=args,
            train_dataset=batches.train_rows,
            eval_dataset=batches.eval_rows,
            data_collator=batches.collator,
            **kwargs,
        )
        refuse_wrong_wrappers(self.accelerator, model, generation_monitor is not None)
        keep_sums_in_float32(self.accelerator)
        self._refuse_wrong_lengths()
        # The model divides by `num_items_in_batch` itself, whatever `Trainer` infers from a wrapped forward.
        self.model_accepts_loss_kwargs = True
        self._frozen_modules = frozen_modules(model)
        self.broken_rows = BrokenRows(batches.max_bad_fraction)
        for printer in (PrinterCallback, ProgressCallback):  # [`Console`] says it in a line
            self.remove_callback(printer)
        self.stopping = StopCallback(self.broken_rows)
        self.add_callback(self.stopping)
        self._statistics = StepStatistics()
        self._bad_steps = self._bad_steps_in_a_row = 0
        self._step_batches: list[tuple[list[str], torch.Tensor]] = []  # row ids and loss of each batch of the step
        self._evaluated: tuple[int, dict[str, float]] = (-1, {})  # step and figures of the last evaluation
        self._own_clips = DevSums()  # its sums, see `check_listening`
        self._saving = False

    def train(self, *args, **kwargs) -> TrainOutput:
        """See `Trainer.train`; SIGINT (Ctrl-C), SIGTERM and SIGHUP (a closed terminal) save and stop.

        Raises:
            TooManyBrokenRowsError: it has stopped and saved because of them.
            NonFiniteTrainingError: `max_bad_steps` in a row had no finite loss and gradient; it has stopped and saved.
        """
        # What an earlier call has left: a stage that was stopped in a notebook goes on in the same trainer.
        self.stopping.reset()
        self.broken_rows.reset()
        self._statistics.reset()  # its clock too: what came before was no training
        self._bad_steps_in_a_row, self._evaluated = 0, (-1, {})
        with self.stopping.handling_signals():
            output = super().train(*args, **kwargs)
            self.stopping.hear_the_last(self.args)
        if self.stopping.failure is not None:
            raise self.stopping.failure
        if self.broken_rows.are_too_many:
            raise self.broken_rows.error(self.state.global_step, self.args.output_dir)
        return output

    # Around all that is not a batch or an evaluation: gradients are summed and weights updated, with the first step's state.
    @enough_memory("between two batches, with weights, gradients and the optimizer's state", FEWER_WEIGHTS)
    def _inner_training_loop(self, *args, **kwargs) -> TrainOutput:
        return super()._inner_training_loop(*args, **kwargs)

    def _make_gate(self, model: nn.Module) -> LanguageModelGate:
        return LanguageModelGate(self.stage, model, self.trainable_names.get("language_model", []))

    def _prepare_for_training(self, *args, **kwargs) -> tuple:
        with whole_on_every_rank(self.model) if self.is_fsdp_enabled else nullcontext():
            prepared = super()._prepare_for_training(*args, **kwargs)
        self.gate = self._make_gate(self.model)  # FSDP2 has replaced the parameters
        return prepared

    def _refuse_wrong_lengths(self) -> None:
        given = getattr(self.processing_class, "audio_token_convolutions", None)
        wanted = self.model.config.audio_token_convolutions
        if [*map(list, given or ())] != [*map(list, wanted)]:
            raise ValueError(
                f"The processor's `audio_token_convolutions` are {given} and the model's {wanted}: the prompts would hold "
                "another number of placeholders than there are audio tokens. Give the model's own PARTProcessor."
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
            "worker_init_fn": _in_a_group_of_its_own,
        }
        if self.batches.is_streamed:  # a stream deals its batches to the ranks itself
            # The loader draws a seed after `Trainer` has put back what is drawn next: not from the same generator.
            return DataLoader(self.batches.sampler, batch_size=None, generator=torch.Generator(), **options)
        batches = NumberedBatches(self.batches.sampler)
        return self.accelerator.prepare(DataLoader(NumberedRows(self.train_dataset), batch_sampler=batches, **options))

    def _prepare_inputs(self, inputs: dict) -> dict:
        """A batch on the device: those of streams and of the dev data, which accelerate does not copy, do not wait either."""
        return send_to_device(inputs, self.args.device, non_blocking=self.accelerator.non_blocking)

    def get_batch_samples(self, epoch_iterator, num_batches, device) -> tuple[list[dict], torch.Tensor | int | None]:
        """The micro-batches of one optimizer step: checked to be of one task on all ranks."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        tasks = {batch["batch_info"]["task"] for batch in batches}
        code = TASKS.index(next(iter(tasks))) if len(tasks) == 1 else -1
        infos = [batch["batch_info"] for batch in batches]
        rows, broken = (sum(len(info[key]) for info in infos) for key in ("ids", "broken"))
        # All that the ranks must know of each other before a step, in one exchange: Python waits for the device here.
        codes, rows, broken, requests = self._gather([code, rows, broken, int(self.stopping.is_requested)])
        self.stopping.is_agreed = any(requests)
        if batches and (code == -1 or len(set(codes)) > 1):
            raise ValueError(
                f"Step {self.state.global_step}: ranks hold batches of the tasks "
                f"{[TASKS[i] if i >= 0 else 'several' for i in codes]}. A global step is of one task; "
                "use TaskBatchSampler with this world size and gradient_accumulation_steps."
            )
        for info in infos:
            self.broken_rows.warn(info)
        self.broken_rows.add(sum(rows), sum(broken))
        self._statistics.add_step(has_rows=sum(rows) > sum(broken))
        self._step_batches = []
        return batches, num_items

    def _gather(self, values: list[int]) -> list[list[int]]:
        """Of each value, what every rank holds."""
        if self.args.world_size == 1:
            return [[value] for value in values]
        return self.accelerator.gather(torch.tensor([values], device=self.args.device)).T.tolist()

    # ---- the step ----

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """One group per part, with and without weight decay, at the stage's learning rates."""
        if self.optimizer is not None:
            return self.optimizer
        model = self.model if model is None else model
        decayed = set(self.get_decay_parameter_names(model))
        parameters = dict(model.named_parameters())  # tied weights once
        groups = []
        for part, names in self.trainable_names.items():
            group = {"lr": self.stage.learning_rates[part], "part": part}
            for decay in (True, False):
                chosen = [parameters[name] for name in names if name in parameters and (name in decayed) == decay]
                if chosen:
                    weight_decay = self.args.weight_decay if decay else 0.0
                    groups.append({"params": chosen, "weight_decay": weight_decay, **group})
        optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
        self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """Set the gate for the batch's task, then forward and backward."""
        info = inputs["batch_info"]
        self.gate.set_task(info["task"])
        tokens = len(inputs["layout"]["positions"])
        batch = (
            f"in a {info['task']} batch of {len(info['ids'])} rows, {sum(info['audio_seconds']):.0f} s of audio "
            f"({info['padded_seconds']:.1f} s the longest) and {tokens} positions; ids {info['ids'][:3]}.."
        )
        with enough_memory(batch, SMALLER_BATCHES):
            loss = super().training_step(model, inputs, num_items_in_batch)
        self._step_batches.append((info["ids"], loss))
        if not self._filters_losses:
            return loss
        # As `Trainer` does: in the place of a loss that is not finite, the mean of those since the last line.
        mean = self._tr_loss / (1 + self.state.global_step - self._globalstep_last_logged)
        return torch.where(loss.isfinite(), loss, mean)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None) -> torch.Tensor | tuple:
        """The model's loss; notes what the log needs."""
        inputs = dict(inputs)
        info = inputs.pop("batch_info")
        if model.training:
            for module in self._frozen_modules:  # no dropout where nothing learns
                # Layers recompute their activations only in training mode; to the audio tower no gradient comes back.
                recomputes = any(getattr(layer, "gradient_checkpointing", False) for layer in module.modules())
                if module is self.model.model.audio_tower or not recomputes:
                    module.eval()
        inputs |= self.loss_options
        if self.stage.losses.get("kl") and info["task"] in TEXT_TASKS:
            inputs["at_start"] = partial(without_lora, self.model.model.language_model)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        self._statistics.add_batch(info, inputs, outputs, self.gate.is_open and bool(self.gate.parameters))
        # Trainer multiplies by the world size because DDP averages gradients; that is the loss it wants back.
        return (loss, outputs) if return_outputs else loss

    @property
    def loss_options(self) -> dict:
        """What the model's forward is told about the loss."""
        weights = {f"{name}_weight": self.stage.losses.get(name, 0.0) for name in LOSSES}
        options = {"loss_chunk_size": self.args.loss_chunk_size, "padding_free": self.args.padding_free}
        # A layer that is recomputed (accelerate's checkpointing under FSDP2) would add its keys to a cache twice.
        return {**options, "use_cache": False, **weights}

    def _clip_grad_norm(self, model) -> torch.Tensor | float | None:
        self._norms = self._norms_before_clipping()
        return super()._clip_grad_norm(model)

    def _norms_before_clipping(self) -> dict[str, torch.Tensor]:
        """Of the parts that the step trains: not of a language model behind a closed gate."""
        norms = gradient_norms(self.model, self.trainable_names)
        scaler = self.accelerator.scaler  # of fp16, which divides by its scale later
        scale = 1.0 if scaler is None else scaler.get_scale()
        return {part: norm / scale for part, norm in norms.items() if part != "language_model" or self.gate.is_open}

    def _get_grad_norm(self, model, grad_norm=None) -> torch.Tensor | float | None:
        """The norm before clipping; a step whose gradient is not finite is dropped before the optimizer."""
        if grad_norm is None:  # nothing is clipped
            self._norms = self._norms_before_clipping()
        norm = super()._get_grad_norm(model, grad_norm)
        value = float(norm)  # Python waits for the device here: whether the optimizer may run must be known
        if math.isfinite(value):
            self._bad_steps_in_a_row = 0
            self._statistics.add_norms(self._norms)
        else:
            self._skip_step(value)
        return norm

    def _skip_step(self, norm: float) -> None:
        self._bad_steps += 1
        scaler = self.accelerator.scaler  # of fp16: it halves its scale until the gradients bear it
        if scaler is None or scaler.get_scale() <= 1.0:
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
            checkpoint = os.path.join(self.args.output_dir, f"checkpoint-{step}")
            self.stopping.failure = NonFiniteTrainingError(self._bad_steps_in_a_row, ids, checkpoint)

    # ---- log ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the sums since the last line: loss per task and language, speed, padding, gate, norms per part."""
        if "loss" in logs:
            figures = self._statistics.figures(self.accelerator)
            figures |= {"skipped_steps": self._bad_steps, "broken_rows": self.broken_rows.broken}
            if not self.stage.trains_language_model:
                del figures["gate_open_share"]
            logs.update({name: float(f"{value:.6g}") for name, value in figures.items()})
            if (loss := self._statistics.mean_over_steps_with_rows(logs.pop("loss"))) is not None:
                logs["loss"] = loss
            self._statistics.reset()
        if "train_samples_per_second" in logs:  # which `Trainer` takes for `per_device_train_batch_size` in each batch
            logs["train_samples_per_second"] = round(self.broken_rows.drawn / max(logs["train_runtime"], 1e-3), 3)
        if self.batches.report["steps"]:  # to `Trainer` the whole stage is one epoch
            self.state.epoch = self.state.global_step / self.batches.report["steps"]
        super().log(logs, start_time)

    # ---- evaluation ----

    @enough_memory("in an evaluation", SMALLER_FORWARDS)
    @torch.no_grad()
    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Dev loss (nats per token) per task and language, and the figures of `generation_monitor`.

        Every rank takes its share of the dev batches and must make the call.
        """
        if eval_dataset is not None and eval_dataset is not self.eval_dataset:
            raise ValueError("The dev rows are those of `batches`; for others see `evaluation.prediction.predict`.")
        if self.eval_dataset is None or not self.batches.eval_batches:
            raise ValueError("There is no dev data: name `eval_data` in the recipe, or set `eval_strategy: no`.")
        started = time.perf_counter()
        sums, of_several = dev_sums(self, self.batches, self.loss_options)
        self._own_clips = of_several
        metrics = sums.figures(f"{metric_key_prefix}_")
        if self.generation_monitor is not None:
            figures = self.generation_monitor(
                self.model, self.accelerator, self.state.global_step, self.accelerator.autocast
            )
            metrics |= {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
        self._statistics.pause(time.perf_counter() - started)  # the log's speed is that of training
        self._evaluated = (self.state.global_step, metrics)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predict(self, *args, **kwargs) -> NoReturn:
        """Answers are generated by [`evaluation.prediction.predict`], from a saved checkpoint by `--do_predict`."""
        raise NotImplementedError(
            "PARTTrainer computes losses. For answers call `predict_and_report(model, processor, rows, folder)` of "
            "`modeling_part.evaluation.prediction`, or run the recipe with --do_predict."
        )

    def hyperparameter_search(self, *args, **kwargs) -> NoReturn:
        """A trainer has one model, prepared for one stage."""
        raise NotImplementedError(
            "PARTTrainer trains the model that it is given once. To compare settings, train a recipe with each "
            "(`part train RECIPE --SETTING VALUE --output_dir FOLDER`) and then `part compare` their stages' folders."
        )

    def push_to_hub(self, *args, **kwargs) -> NoReturn:
        """Whole stages are published, see [`publishing.hub.publish`]; `Trainer` would send all that its folder holds."""
        raise NotImplementedError(PUBLISH_INSTEAD)

    def last_metrics(self) -> dict[str, float]:
        """What [`evaluate`] found at this step, now where it was not asked; every rank must make the call."""
        step, metrics = self._evaluated
        return metrics if step == self.state.global_step else self.evaluate()

    def check_listening(self) -> dict[str, float | bool]:
        """Say it aloud where the stage has not learned to use its audio; every rank must make the call."""
        found = None
        if self.batches.eval_batches:
            self.last_metrics()
            found = listens(self, self.batches, self.loss_options, self._own_clips)
        if found is not None and not found["listens"]:
            logger.warning(
                "Stage %s does not use its audio: the dev loss is %.3f with each row's own clip and %.3f with another "
                "row's. %s",
                self.stage.name,
                found["own_clip_loss"],
                found["other_clip_loss"],
                how_to_listen(self.stage.losses),
            )
        return found or {}

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
        except RuntimeError as error:
            if "PytorchStreamWriter" not in str(error):
                raise
            raise OSError(f"{staged} cannot be written, mostly because the disk is full: {error}") from error
        finally:
            self._saving = False
        self.accelerator.wait_for_everyone()
        if self.state.best_model_checkpoint is not None and self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = str(final)
            if self.args.should_save:  # it was written with the place that is left now
                self.state.save_to_json(str(staged / TRAINER_STATE_NAME))
        if self.args.should_save:
            earlier = self.batches.progress.history
            steps = self.state.global_step - sum(steps for _, steps in earlier)
            history = [*earlier, (self.args.world_size * self.args.gradient_accumulation_steps, steps)]
            complete_checkpoint(staged, final, history, self.on_save)
            remove_oldest(run_folder, self._checkpoints_kept, self.state.best_global_step)
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Plain weights with LoRA merged, the LoRA tensors beside them, the processor."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        save_weights(
            self.accelerator.unwrap_model(self.model, keep_torch_compile=False), self.stage, folder, state_dict
        )
        self.processing_class.save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        """Weights of a checkpoint into the model, which holds the parent stage's (the base of LoRA)."""
        if self.is_fsdp_enabled:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        restore_weights(self.model if model is None else model, Path(resume_from_checkpoint), self.stage)


def _in_a_group_of_its_own(worker: int) -> None:
    """Signals that launchers and schedulers send to the trainer's group are for the trainer: it has a checkpoint to save.

    torch would take a worker that ended by one for an accident, and end the step with an error.
    """
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
