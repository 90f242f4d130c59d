# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""A stage's model, as it is when training begins, and the arguments that `Trainer` gets."""

import copy
import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path

import torch
from torch import nn

from ..configuration_part import PARTConfig
from ..data.batches import Batches
from ..data.encoder_cache import write_encoder_outputs
from ..evaluation.prediction import weights_fingerprint
from ..modeling_part import PARTForSpeechSeq2Seq
from ..processing_part import PARTProcessor
from ..recipes.arguments import ModelArguments, PARTTrainingArguments, Recipe
from ..recipes.stages import Stage
from ..recipes.values import shortened
from .freezing import cast_frozen, set_trainable
from .kernels import check_rows_stay_apart
from .lora import add_lora
from .memory import SMALLER_FORWARDS, enough_memory
from .sources import check_sources
from .trainer import PARTTrainer


logger = logging.getLogger(__name__)


def load_model(parent: Path | None, model_args: ModelArguments) -> tuple[PARTForSpeechSeq2Seq, PARTProcessor]:
    """The parent stage's model, the recipe's checkpoint, or the two pretrained parts with a new adapter.

    Raises:
        FileNotFoundError: the parent stage has not run.
        ValueError: the language model's chat template refuses `system_prompt`, or the recipe's `adapter` is another than the
            checkpoint's.
    """
    dtype = getattr(torch, model_args.model_dtype)
    checkpoint = parent or model_args.checkpoint
    if parent is None:
        check_sources(model_args)
    if checkpoint is None:
        model, processor = PARTForSpeechSeq2Seq.from_pretrained_parts(
            model_args.audio_model,
            model_args.language_model,
            dtype=dtype,
            attn_implementation=model_args.attn_implementation,
            system_prompt=model_args.system_prompt,
            **(model_args.adapter or {}),
        )
    else:
        if not (Path(checkpoint) / "config.json").is_file() and parent is not None:
            raise FileNotFoundError(f"Stage folder {parent} is not there; run that stage first (leave `--stage` out).")
        model = PARTForSpeechSeq2Seq.from_pretrained(
            checkpoint, dtype=dtype, attn_implementation=model_args.attn_implementation
        )
        processor = PARTProcessor.from_pretrained(checkpoint)
        if model_args.system_prompt is not None:
            processor.system_prompt = model_args.system_prompt
        _check_adapter(model_args.adapter or {}, model.config, checkpoint, is_first=parent is None)
    processor.turn()  # what the chat template refuses is said before anything trains
    processor.language_names |= model_args.language_names or {}
    return model, processor


def _check_adapter(settings: Mapping[str, object], config: PARTConfig, checkpoint: str | Path, is_first: bool) -> None:
    """Raise ValueError where the recipe sets an `adapter` that a checkpoint does not have: it would be without effect."""
    of_config = {name: value for name, value in settings.items() if hasattr(config, name)}
    held = json.loads(json.dumps({name: getattr(config, name) for name in of_config}))
    others = [
        name for name, value in of_config.items() if value is not None and json.loads(json.dumps(value)) != held[name]
    ]
    if others:
        name = others[0]
        raise ValueError(
            f"`adapter`: `{name}` is {shortened(settings[name])}, but {checkpoint} has {shortened(held[name])}, which a "
            "checkpoint keeps: write that, or `adapter: none`; for another adapter start from the two pretrained parts."
        )
    if is_first and (unused := sorted(settings.keys() - of_config.keys())):
        raise ValueError(
            f"`adapter`: `{unused[0]}` has no effect on a model that starts from {checkpoint}; leave it out."
        )


def prepare_model(
    model: nn.Module,
    stage: Stage,
    recipe: Recipe,
    token_counts: Callable[[int], torch.Tensor] | None = None,
    is_aligned: bool = True,
) -> dict[str, list[str]]:
    """Add the alignment head and LoRA where the stage uses them, freeze what it does not train, and give that its dtype.

    Args:
        model: as loaded.
        stage: to train.
        recipe: of the run.
        token_counts: gives `(V,)` counts of the tokens in the training transcripts, for V; asked where a head is new.
        is_aligned: a stage before it has CTC; if none has, a head that the recipe's `checkpoint` brings counts anew.

    Returns:
        Names of the trainable parameters of each part.

    Raises:
        ValueError: a part has no parameters to train, or `padding_free` would mix the rows.
    """
    if stage.losses.get("ctc") and not (is_aligned and model.alignment_head is not None):
        counts = token_counts(model.config.text_config.vocab_size)
        if model.alignment_head is None:
            model.add_alignment_head(counts)
        else:  # the tokens of a new language would start as the rarest
            model.alignment_head.set_token_frequencies(counts)
    if stage.trains_language_model and stage.tuning == "lora":
        add_lora(stage, model, autocast=recipe.training.bf16 or recipe.training.fp16)
    trainable = set_trainable(stage, model)
    # Where FSDP keeps the loaded weights on one process only, the others hold none to compute with yet.
    if recipe.training.padding_free and recipe.training.process_index == 0:
        check_rows_stay_apart(model)
    if recipe.model.frozen_dtype is not None:  # after freezing, which says what keeps its dtype
        cast_frozen(model, getattr(torch, recipe.model.frozen_dtype))
    return trainable


def stage_arguments(
    stage: Stage, folder: Path, batches: Batches, args: PARTTrainingArguments
) -> PARTTrainingArguments:
    """The run's arguments with what the stage sets."""
    steps = batches.sampler.num_steps
    stage_args = copy.copy(args)
    stage_args.output_dir = str(folder)
    stage_args.max_steps = steps
    # At its first step a warm-up stands at 0: where it took all of a stage's, nothing would train.
    stage_args.warmup_steps = min(math.ceil(stage.warmup_ratio * steps), steps - 1)
    stage_args.learning_rate = max(stage.learning_rates.values())
    stage_args.run_name = args.run_name or Path(args.output_dir).name  # one run for all stages (see `trackers`)
    stage_args.ignore_data_skip = batches.is_streamed  # a stream begins at the step where training stopped
    stage_args.push_to_hub = False  # publishing is per finished stage, not Trainer's
    return stage_args


@enough_memory("while the encoder outputs are computed", SMALLER_FORWARDS)
def cache_encoder_outputs(trainer: PARTTrainer, recipe: Recipe) -> None:
    """`cache_encoder_outputs`: compute what the frozen encoder gives for the stage's clips, and train on that.

    Raises:
        ValueError: the corpora are streamed, or FSDP2 shards the encoder.
    """
    if "encoder" in trainer.stage.learning_rates:
        logger.info("Stage %s trains the encoder: no encoder outputs are kept", trainer.stage.name)
        return
    batches, args, processor = trainer.batches, recipe.training, trainer.processing_class
    if batches.is_streamed:
        raise ValueError(
            "`cache_encoder_outputs` needs clips that can be met again; leave it out for streamed corpora."
        )
    if trainer.is_fsdp_enabled:
        raise ValueError("`cache_encoder_outputs` needs the whole encoder on every process, which FSDP2 shards.")
    encoder, config = trainer.model.model.audio_tower, trainer.model.config
    made_by = f"{weights_fingerprint(encoder)} {config.variable_length} {processor.feature_extractor.to_json_string()}"
    name = hashlib.sha256(f"{made_by} {args.bf16} {args.fp16}".encode()).hexdigest()[:16]
    outputs = write_encoder_outputs(
        trainer.model,
        processor,
        batches.train_rows,
        list(chain.from_iterable(batches.sampler)),
        Path(args.output_dir) / "data" / "encoder_outputs" / name,
        max_audio_seconds=recipe.data.max_audio_seconds,
        max_bad_fraction=batches.max_bad_fraction,
        autocast=trainer.accelerator.autocast,
    )
    collator = copy.copy(batches.collator)
    collator.encoder_outputs = outputs
    trainer.batches = replace(batches, collator=collator)
    trainer.data_collator = collator
