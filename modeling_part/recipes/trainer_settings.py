# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Which fields of transformers' `TrainingArguments` a recipe may set, and what to write instead of the others.

`Trainer` would take every one of them, and some would be without effect: stages, batches, resuming and publishing are
PART's own. A setting without effect is refused.
"""

from collections.abc import Collection, Mapping
from dataclasses import fields
from functools import cache
from typing import get_type_hints

from .stages import Stage
from .suggestions import did_you_mean
from .values import as_held, shortened


# These do what transformers documents, for the whole run.
WORKING = frozenset(
    # the optimizer
    "lr_scheduler_type lr_scheduler_kwargs optim optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm "
    "gradient_accumulation_steps "
    # precision, speed, memory
    "bf16 fp16 tf32 activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing "
    "gradient_checkpointing_kwargs torch_compile torch_compile_backend torch_compile_mode use_liger_kernel "
    "liger_kernel_config torch_empty_cache_steps use_cpu accelerator_config "
    # the log
    "logging_strategy logging_steps logging_first_step log_on_each_node logging_nan_inf_filter log_level "
    "log_level_replica report_to run_name project trackio_space_id trackio_bucket_id "
    "trackio_static_space_id debug skip_memory_metrics "
    # evaluation and checkpoints
    "output_dir eval_strategy eval_steps eval_delay eval_on_start per_device_eval_batch_size save_strategy save_steps "
    "save_total_limit do_predict push_to_hub hub_token hub_private_repo hub_model_id seed full_determinism "
    # processes
    "dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor "
    "ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_backend ddp_timeout".split()
)

_STAGES = "it is set per stage: `stages: [{{name: adapter, {} ...}}]`"
_ANSWERS = "the dev loss is PART's own; with `predict_with_generate: true` the answers are scored too"
_LAUNCHER = (
    "how a run is spread over devices is the launcher's: `accelerate launch --config_file ...` (accelerate_configs)"
)
_LAST = "a stage ends with its last weights; compare the stages and checkpoints by their `report.json`"

# What to write instead, and why. A value that changes nothing (the default's, or that of `IN_FORCE`) is no error.
REFUSED = {
    "learning_rate": _STAGES.format("learning_rates: {adapter: 1.0e-3}"),
    "num_train_epochs": _STAGES.format("epochs: 3"),
    "max_steps": _STAGES.format("max_steps: 100"),
    "warmup_steps": _STAGES.format("warmup_ratio: 0.05"),
    "per_device_train_batch_size": "batches are filled up to `max_audio_seconds`, `max_tokens` and `max_rows`",
    "auto_find_batch_size": "batches are filled up to `max_audio_seconds`, `max_tokens` and `max_rows`: lower these",
    "train_sampling_strategy": "batches hold rows of one task and similar length; `temperature` and `tasks` mix them",
    "length_column_name": "rows are grouped by their own lengths; leave it out",
    "dataloader_drop_last": "every row is drawn once in an epoch, and batches are never padded with others; leave it out",
    "dataloader_in_order": "batches come in the order of the plan, from which a run resumes; leave it out",
    "dataloader_multiprocessing_context": "the workers are started as torch does; leave it out",
    "data_seed": "`seed` is the seed of the batches too",
    "label_names": "the labels are the collator's own; leave it out",
    "remove_unused_columns": "the collator needs every canonical column; leave it out",
    "average_tokens_across_devices": "otherwise tokens are weighed by rank in the loss; leave it out",
    "label_smoothing_factor": "the loss is the model's own; leave it out",
    "optim_target_modules": "the optimizers that project gradients are not supported; leave it out",
    "neftune_noise_alpha": "embeddings are frozen and take no noise; for noise in the audio see `augmentation`",
    "disable_tqdm": "the log says how far a stage is, and bars are drawn on terminals alone; leave it out",
    "use_cache": "training computes no cache; leave it out",
    "include_num_input_tokens_seen": "the log has the tokens of every task; leave it out",
    "bf16_full_eval": "dev loss and answers are computed in the precision of training: `bf16: true`",
    "fp16_full_eval": "dev loss is computed in the precision of training: `fp16: true`",
    "prediction_loss_only": _ANSWERS,
    "eval_do_concat_batches": _ANSWERS,
    "eval_use_gather_object": _ANSWERS,
    "eval_accumulation_steps": _ANSWERS,
    "include_for_metrics": _ANSWERS,
    "batch_eval_metrics": _ANSWERS,
    "do_eval": "set `eval_strategy: steps` (or epoch); a finished stage is evaluated in any case",
    "do_train": "train_part.py trains; `do_predict: true` only predicts, `dry_run: true` only shows the plan",
    "load_best_model_at_end": _LAST,
    "metric_for_best_model": _LAST,
    "greater_is_better": _LAST,
    "save_only_model": "a checkpoint inside a stage is there to resume from; the stage's own folder holds the model alone",
    "save_on_each_node": "a run has one folder, which all nodes see; leave it out",
    "enable_jit_checkpoint": "SIGTERM saves and stops anyway; leave it out",
    "resume_from_checkpoint": "`resume: true` goes on from the stage's last checkpoint; `checkpoint` names a model to start from",
    "ignore_data_skip": "a resumed stage sees the rows that it has not yet seen; leave it out",
    "restore_callback_states_from_checkpoint": "no callback has a state to restore; leave it out",
    "hub_strategy": "each finished stage is published; leave it out",
    "hub_always_push": "each finished stage is published; leave it out",
    "hub_revision": "each finished stage is a commit to the main branch and a tag; leave it out",
    "ddp_static_graph": "the graph depends on the task, which the gate decides; leave it out",
    "fsdp": _LAUNCHER,
    "fsdp_config": _LAUNCHER,
    "deepspeed": _LAUNCHER,
    "parallelism_config": _LAUNCHER,
    "local_rank": _LAUNCHER,
}

# Values in force that are not the default's; none where the default is without effect, too.
IN_FORCE = {
    "do_train": (True,),
    "remove_unused_columns": (False,),
    "disable_tqdm": (None, False),
    "learning_rate": (),
    "num_train_epochs": (),
    "max_steps": (),
    "warmup_steps": (),
    "per_device_train_batch_size": (),
    "train_sampling_strategy": (),
}

# Single values of fields that otherwise work, by what they begin with.
REFUSED_VALUES = {
    "save_strategy": {"best": _LAST},
    "optim": dict.fromkeys(
        ("galore", "apollo", "lomo", "adalomo"),
        "it projects gradients or steps inside the backward pass, past the task gate and the skipped steps",
    )
    | {"schedule_free": "its weights while it trains are not those to evaluate and save; take one with a schedule"},
    "debug": {
        "underflow_overflow": "it fails on masks; steps that are not finite are skipped and told, with `grad_norm/PART`"
    },
}


@cache
def _trainer_fields() -> dict[str, tuple[object, object]]:
    """The default and the annotation of each field, by name."""
    from transformers import TrainingArguments  # here: the help needs `WORKING` alone, and does not wait

    hints = get_type_hints(TrainingArguments)
    return {one.name: (one.default, hints[one.name]) for one in fields(TrainingArguments) if one.init}


def refuse_without_effect(values: Mapping[str, object]) -> None:
    """Raise ValueError for a setting that would have no effect; the message says what to write instead.

    Args:
        values: the settings of recipe and command line, by the name of the field.
    """
    trainer_fields = _trainer_fields()
    for name, value in values.items():
        if name not in trainer_fields:
            continue
        default, annotation = trainer_fields[name]
        for start, instead in REFUSED_VALUES.get(name, {}).items():
            if str(getattr(value, "value", value)).startswith(start):
                raise ValueError(f"`{name}: {start}` is not supported: {instead}.")
        harmless = (None, [], *IN_FORCE.get(name, (default,)))
        if name not in WORKING and as_held(name, value, annotation) not in harmless:
            instead = REFUSED.get(name, "PART has not been tried with it; leave it out")
            raise ValueError(f"`{name}` is {shortened(value)}, which would have no effect: {instead}.")


def unknown_name(name: str, known: Collection[str]) -> str:
    """What to say of a key or option that there is none of: where it belongs, or what may have been meant."""
    if name in {one.name for one in fields(Stage)}:
        return f" It is a field of the stages: `stages: {{NAME: {{{name}: ...}}}}`."
    return did_you_mean(name, [one for one in known if one not in REFUSED])
