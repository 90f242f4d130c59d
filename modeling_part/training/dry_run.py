# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""The plan of a stage in a few lines, and `--dry_run`: two batches, one forward, the memory of a step."""

import logging
from itertools import islice

import torch

from ..configuration_part import convolved_length
from ..data.checking import size_parts
from ..data.downloads import as_lines, planned_downloads
from ..data.expansion import corpus_specs
from ..data.loading import check_corpora
from ..evaluation.run_files import is_number, read_log_history, training_seconds
from ..evaluation.tables import duration
from ..recipes.arguments import Recipe
from .console import fold, memory_line, terminal_width
from .freezing import parameters_per_part, trainable_per_part
from .memory import SMALLER_FORWARDS, enough_memory, estimate_memory
from .sources import check_sources, planned_parts
from .stage_run import StageRun
from .trainer import PARTTrainer


logger = logging.getLogger(__name__)


def log_plan(trainer: PARTTrainer, run: StageRun) -> None:
    """What is about to happen, in a few lines."""
    stage, batches, config = trainer.stage, trainer.batches, trainer.model.config
    report, steps = batches.report, batches.sampler.num_steps
    name = f"Stage {run.number} of {run.number + len(run.later)}: {stage.name}"
    gate = f", gate {stage.gate}" if stage.trains_language_model else ", language model frozen"
    logger.info("%s, %d steps, %d per epoch%s", name, steps, report["steps"], gate)
    logger.info("  %s%s", memory_line(trainer.args.device), _time_of_stage(steps, run))
    trainable = trainable_per_part(trainer.model, trainer.trainable_names)
    for part, total in parameters_per_part(trainer.model).items():
        rate = stage.learning_rates.get(part)
        share = f"{trainable[part]:,} of {total:,} parameters train"
        logger.info("  %-15s %s%s", part, share, f", learning rate {rate:g}" if trainable[part] else "")
    if stage.encoder_layers is not None and stage.encoder_layers > config.encoder_num_hidden_layers:
        layers = config.encoder_num_hidden_layers
        logger.info("  the encoder has %d layers, fewer than %d: all of them train", layers, stage.encoder_layers)
    logger.info("  An epoch:")
    for parts in size_parts(report["rows"], report["hours"]):
        logger.info("%s", fold([f"  {parts[0]}", *parts[1:]], terminal_width()))
    tasks = {group.split("/")[0] for group in report["rows"]}
    if stage.trains_language_model and tasks and not any(map(stage.opens_language_model, tasks)):
        logger.warning(
            "  No row of this stage opens the language model (tasks: %s), which stays as it is: set `gate: always` in the "
            "stage, or add translations",
            ", ".join(sorted(tasks)),
        )
    _report_too_long(report.get("transcripts_too_long", {}), trainer)
    logger.info("  %.1f %% of the padded audio is padding", 100 * report["padding_share"])


def needs_download(recipe: Recipe) -> bool:
    """Say what a recipe's corpora and pretrained parts fetch, how large it is, and whether some of it is still missing.

    Raises:
        CorpusError: a repository, config or split is not there, or the Hub cannot be reached.
        FileNotFoundError, ConnectionError: a pretrained part is not there, see [`check_sources`].
    """
    check_corpora(recipe)
    check_sources(recipe.model)
    entries = [
        entry for name in ("train_data", "eval_data", "test_data") for entry in getattr(recipe.data, name) or ()
    ]
    downloads = planned_parts(recipe.model) + planned_downloads(corpus_specs(entries))
    if not downloads:
        return False
    logger.info("What is fetched:\n%s", "\n".join(as_lines(downloads)))
    missing = any(one.missing for one in downloads)
    if missing:
        logger.info(
            "A dry run downloads nothing: rows, batches and memory can be checked when this is here. Training fetches it first."
        )
    return missing


def _time_of_stage(steps: int, run: StageRun) -> str:
    """How long the stage would take at the pace of the one before it, where that is known."""
    history = [] if run.parent is None else read_log_history(run.parent)
    seconds = training_seconds(history)
    done = max((entry["step"] for entry in history if is_number(entry.get("step"))), default=0)
    if not seconds or not done:
        return ""
    return f"; about {duration(steps * seconds / done)} at the pace of {run.parent.name}"


def _report_too_long(counts: dict[str, tuple[int, int]], trainer: PARTTrainer) -> None:
    """Which transcripts the alignment leaves out because their clip has too few audio tokens, and what cures it."""
    left_out = {language: numbers for language, numbers in counts.items() if numbers[0]}
    if left_out:
        told = ", ".join(f"{language} {wrong:,} of {total:,}" for language, (wrong, total) in sorted(left_out.items()))
        stride = trainer.model.config.adapter_conv_stride
        logger.warning(
            "  Transcripts with more tokens than their clip has audio tokens are left out of the alignment: %s. A smaller "
            "`adapter_conv_stride` (now %d) gives more audio tokens.",
            told,
            stride,
        )


@enough_memory("in the forward pass of the dry run", SMALLER_FORWARDS)
def dry_run(trainer: PARTTrainer) -> None:
    """Two batches, one forward, and what a step of that size takes in memory."""
    source = trainer.batches
    rows = islice(source.sampler, 2)
    if not source.is_streamed:
        rows = [[source.train_rows[index] for index in batch] for batch in rows]
    batches = [source.eval_collator(batch) for batch in rows]
    inputs = trainer._prepare_inputs(dict(batches[0]))
    info = inputs.pop("batch_info")
    trainer.broken_rows.warn(info)
    if trainer.is_fsdp_enabled:  # its weights come to the devices when they are sharded
        logger.info("  dry run: no forward pass with FSDP2")
    else:
        with torch.no_grad(), trainer.accelerator.autocast():  # which accelerate puts around a model that it prepares
            loss = trainer.model(**inputs, **trainer.loss_options).loss
        logger.info("  dry run: loss %.3f on %d %s rows", float(loss), len(info["ids"]), info["task"])
    config, args = trainer.model.config, trainer.args
    steps = max(batch["input_features_mask"].numel() if "input_features_mask" in batch else 0 for batch in batches)
    gibibytes = estimate_memory(
        trainer.model,
        trainable_per_part(trainer.model, trainer.trainable_names),
        {
            "frames": convolved_length(steps, config.encoder_convolutions),
            "positions": max(batch["input_ids"].numel() for batch in batches),
            "targets": max(int((batch["labels"] != -100).sum()) for batch in batches),
        },
        world_size=args.world_size,
        sharded=trainer.is_fsdp_enabled,
        gradient_checkpointing=args.gradient_checkpointing,
        autocast=args.bf16 or args.fp16,
    )
    logger.info("  memory per device, GiB: %s", ", ".join(f"{name} {size:.2f}" for name, size in gibibytes.items()))
