# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""What `stage.json` and the model card say of the recipe that a stage was trained by."""

from dataclasses import asdict
from pathlib import Path

from ..recipes.arguments import ModelArguments, Recipe
from ..recipes.stages import Stage


# What of the arguments the result of a stage depends on, besides data, seed and versions; the model card states it.
MODEL_SETTINGS = (
    "checkpoint",
    "adapter",
    "system_prompt",
    "language_names",
    "model_dtype",
    "frozen_dtype",
    "attn_implementation",
)
DATA_SETTINGS = (
    "max_audio_seconds",
    "max_tokens",
    "max_rows",
    "temperature",
    "direction_weights",
    "augmentation",
    "unnamed_share",
    "context_drop_rate",
    "pad_seconds_multiple",
    "pad_tokens_multiple",
)
TRAINING_SETTINGS = (
    "gradient_accumulation_steps",
    "weight_decay",
    "max_grad_norm",
    "bf16",
    "fp16",
    "world_size",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "lr_scheduler_kwargs",
    "padding_free",
    "cache_encoder_outputs",
    "optim_args",
)


def base_models(model_args: ModelArguments) -> dict[str, str]:
    """What the run's first stage starts from: `{"checkpoint": ...}`, or the two pretrained parts.

    A folder is recorded with its whole path: `models/whisper-base` could be taken for a repository of the Hub later.
    """
    return {
        setting: str(Path(name).resolve()) if Path(name).is_dir() else name
        for setting, name in model_args.starts_from.items()
    }


def hyperparameters(stage: Stage, num_steps: int, recipe: Recipe) -> dict:
    """What the model card states; all that the stage's result depends on, besides data, seed and versions."""
    args = recipe.training
    return {
        **asdict(stage),
        "num_steps": num_steps,
        **{name: getattr(recipe.model, name) for name in MODEL_SETTINGS},
        **{name: getattr(recipe.data, name) for name in DATA_SETTINGS},
        **{name: getattr(args, name) for name in TRAINING_SETTINGS},
        "lr_scheduler_type": str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
        "optim": str(getattr(args.optim, "value", args.optim)),
    }
