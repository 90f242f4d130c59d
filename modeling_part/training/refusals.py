# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""What `Trainer` takes and a stage of PART cannot follow: refused before anything is computed or sent.

Recipes know fewer settings (see `recipes.trainer_settings`); these are met where [`PARTTrainer`] is used in Python.
"""

from collections.abc import Mapping

from accelerate import ParallelismConfig
from accelerate.utils import parse_flag_from_env
from torch import nn

from ..data.batches import Batches
from ..prompts_part import TEXT_TASKS
from ..recipes.arguments import PARTTrainingArguments
from ..recipes.stages import Stage
from ..recipes.trainer_settings import REFUSED, REFUSED_VALUES


# Arguments of `Trainer`.
WITHOUT_EFFECT = {
    "compute_metrics": "the dev answers are scored by `generation_monitor` (`predict_with_generate` of a recipe)",
    "preprocess_logits_for_metrics": "no logits are kept; leave it out",
    "compute_loss_func": "the loss is the model's own, weighted by the stage's `losses`",
    "train_dataset": "rows are those of `batches`; plan batches of yours",
    "eval_dataset": "dev rows are those of `batches`; plan batches with yours",
    "model_init": "a stage trains one model, which is prepared for it (`setup.prepare_model`); give it as `model`",
    "data_collator": "the collator is that of `batches`",
    "optimizer_cls_and_kwargs": "learning rates are per part; set `optim` and `optim_args`, or give `optimizers`",
}
# Fields of `TrainingArguments`, with the value that changes nothing.
NOT_FOLLOWED = {
    "auto_find_batch_size": False,
    "batch_eval_metrics": False,
    "bf16_full_eval": False,
    "data_seed": None,
    "dataloader_drop_last": False,
    "eval_accumulation_steps": None,
    "fp16_full_eval": False,
    "include_for_metrics": [],
    "label_smoothing_factor": 0.0,
    "load_best_model_at_end": False,
    "neftune_noise_alpha": None,
    "optim_target_modules": None,
    "per_device_train_batch_size": 8,
    "prediction_loss_only": False,
    "train_sampling_strategy": "random",
}
# Fields of accelerate's `ParallelismConfig` -> what processes then have in common.
PARALLEL_MODELS = {"tp_size": "layers", "cp_size": "sequences", "sp_size": "sequences"}
PUBLISH_INSTEAD = (
    "`Trainer` would send all that `output_dir` holds, such as the answers to the dev data and half-written checkpoints. "
    "Publish a finished stage with `part publish FOLDER --repo_id USER/NAME`; what a trainer in Python holds, save with "
    "`save_model(FOLDER)` and send that folder with `huggingface_hub.upload_folder`."
)


def refuse_wrong_settings(
    args: PARTTrainingArguments, stage: Stage, model: nn.Module | None, options: Mapping[str, object]
) -> None:
    """Raise ValueError for a setting that breaks the task gate or the loss, sends too much, or would have no effect.

    Args:
        args: of the trainer.
        stage: what trains.
        model: of the trainer.
        options: what `Trainer` is given beside them.
    """
    if not isinstance(args, PARTTrainingArguments):
        raise ValueError(f"`args` is {type(args).__name__}; give PARTTrainingArguments, which deal whole batches.")
    for name in filter(options.get, WITHOUT_EFFECT):
        raise ValueError(f"`{name}` would have no effect: {WITHOUT_EFFECT[name]}.")
    if model is None:
        raise ValueError("There is no `model`: give one that is prepared for the stage (see `setup.prepare_model`).")
    for name, harmless in NOT_FOLLOWED.items():
        if (value := getattr(args, name)) != harmless:
            raise ValueError(f"`{name}` is {value!r}, which is not supported: {REFUSED[name]}.")
    for start, instead in REFUSED_VALUES["optim"].items():
        if args.optim.value.startswith(start):
            raise ValueError(f"`optim` is {args.optim.value!r}, which is not supported: {instead}.")
    if args.push_to_hub:
        raise ValueError(f"`push_to_hub` is not followed while a stage trains. {PUBLISH_INSTEAD}")
    if args.n_gpu > 1:
        raise ValueError(
            f"One process sees {args.n_gpu} GPUs, over which torch would divide each batch in a way that PART's do not "
            f"allow: start a process for each (`accelerate launch --num_processes {args.n_gpu}`), or name one in "
            "CUDA_VISIBLE_DEVICES."
        )
    refuse_parallel_models(args)
    if args.ddp_static_graph:
        raise ValueError("`ddp_static_graph` contradicts the task gate, whose graph depends on the task; unset it.")
    if args.ddp_find_unused_parameters is False and has_unused_parameters(stage):
        raise ValueError(
            f"`ddp_find_unused_parameters: false` lets the ranks drift apart in stage {stage.name!r}, whose batches do "
            "not all reach every trainable parameter; leave it out."
        )
    if not args.average_tokens_across_devices:
        raise ValueError("`average_tokens_across_devices: false` weighs tokens by rank in the loss; leave it out.")


def refuse_parallel_models(args: PARTTrainingArguments) -> None:
    """Raise ValueError where accelerate's `parallelism_config` lets several processes share a batch: each gets another."""
    config = args.parallelism_config
    if config is None and parse_flag_from_env("ACCELERATE_USE_PARALLELISM_CONFIG"):  # of the launcher
        config = ParallelismConfig()
    for name, what in PARALLEL_MODELS.items():
        if config is not None and (size := getattr(config, name)) > 1:
            raise ValueError(
                f"`parallelism_config` has `{name}: {size}`: processes would share {what}, but PART gives each batches of "
                "its own. Leave it out of the launcher's config; a model too large for one device is divided by "
                "accelerate_configs/fsdp2_bf16.yaml."
            )


def refuse_other_batches(args: PARTTrainingArguments, batches: Batches) -> None:
    """Raise ValueError where training would take other steps than the batches were planned for.

    They are those of the whole stage, all its epochs: `Trainer` would pass over them `num_train_epochs` times.
    """
    steps, planned = batches.sampler.num_steps, batches.sampler.batches_per_step
    if not 0 < args.max_steps <= steps:
        raise ValueError(
            f"`max_steps` is {args.max_steps}, and the stage's batches are of {steps} steps, over which a trainer passes "
            f"once: set `max_steps` to {steps} (`setup.stage_arguments` does), or plan more."
        )
    if planned != (given := args.world_size * args.gradient_accumulation_steps):
        raise ValueError(
            f"The batches are planned for {planned} per optimizer step (processes times `gradient_accumulation_steps`), and "
            f"the trainer would take {given}: plan them for {given}."
        )


def has_unused_parameters(stage: Stage) -> bool:
    """Whether some batch leaves a trainable parameter without gradient, which DDP must then search for."""
    gated = stage.trains_language_model and not all(map(stage.opens_language_model, stage.active_tasks))
    return gated or any(task in TEXT_TASKS for task in stage.active_tasks)
