# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Train PART, stage by stage.

    accelerate launch train_part.py RECIPE.yaml [--overrides]

A recipe is a file, or the name of one in modeling_part/recipes. Each stage starts from the previous stage's folder
and ends as a folder that `from_pretrained` loads; a finished stage is not run again unless `--force`.

    --stage NAME     only this stage           --resume       continue inside a stage
    --dry_run        check, print the plan     --do_predict   only predict and score `test_data`
"""

import logging
import sys
from functools import partial


if __name__ == "__main__":  # help does not wait for what training imports
    from modeling_part.recipes.help import leave_with_help

    leave_with_help(sys.argv[1:])

from accelerate import PartialState
from transformers import set_seed

from modeling_part.data.batches import plan_batches
from modeling_part.data.loading import Rows, load_rows
from modeling_part.data.transcripts import count_transcript_tokens
from modeling_part.evaluation.run_report import run_report
from modeling_part.recipes.arguments import Recipe, parse_recipe
from modeling_part.training.checkpoints import write_checkpoint_record
from modeling_part.training.console import Console, set_up_logging
from modeling_part.training.dry_run import dry_run, log_plan, needs_download
from modeling_part.training.epochs import epoch_callbacks, with_fractions
from modeling_part.training.launches import in_a_process, record_launch
from modeling_part.training.limits import check_lengths
from modeling_part.training.lock import only_run_in
from modeling_part.training.resuming import NewSettings, SteadySchedule, continued
from modeling_part.training.run import Run, predict_checkpoint
from modeling_part.training.setup import cache_encoder_outputs, load_model, prepare_model, stage_arguments
from modeling_part.training.stability import StabilityCallback
from modeling_part.training.stage_run import StageRun
from modeling_part.training.trainer import PARTTrainer


logger = logging.getLogger("train_part")


def main(argv: list[str] | None = None) -> None:
    """Parse, read the data, then train and publish each stage; at the end one report."""
    recipe = parse_recipe(argv)
    args = recipe.training
    set_up_logging(args)
    if args.do_predict:
        return predict_checkpoint(recipe)
    with only_run_in(args.output_dir):
        unpublished = train(recipe)
    if unpublished:
        sys.exit(f"Trained, but not published: {', '.join(unpublished)}; the messages above say how to publish them.")


def train(recipe: Recipe) -> list[str]:
    """Every stage that is asked for and not finished; the names of those that could not be published."""
    args, run = recipe.training, Run(recipe)
    run.check_settings()
    if args.dry_run and needs_download(recipe):
        return []
    rows = load_rows(recipe)
    run.check(rows)
    record_launch(run.folder, args)
    for stage in run.stages_to_train(rows):
        train_stage(stage, rows, recipe)
        run.publish(stage)
    if not args.dry_run and PartialState().is_main_process:
        run_report(run.folder)
        logger.info("The report is in %s", run.folder / "report.html")
    return run.unpublished


def train_stage(stage: StageRun, rows: Rows, recipe: Recipe) -> None:
    """One stage, from its parent's folder to its own."""
    args = recipe.training
    set_seed(args.seed)  # then load, then LoRA: the order of the random draws
    model, processor = load_model(stage.parent, recipe.model)
    counts = partial(count_transcript_tokens, rows, processor)
    trainable = prepare_model(model, stage.plan, recipe, counts, is_aligned=stage.is_aligned)
    checkpoint, progress = stage.find_checkpoint(args)
    batches = with_fractions(stage.plan, lambda plan: plan_batches(plan, rows, processor, recipe, progress))
    check_lengths(model, processor, rows, recipe)
    record, changed = continued(stage.record(rows, batches, model, processor, trainable, recipe), checkpoint, args)
    trainer = PARTTrainer(
        model,
        stage=stage.plan,
        trainable=trainable,
        batches=batches,
        args=stage_arguments(stage.plan, stage.folder, batches, args),
        processing_class=processor,
        generation_monitor=stage.monitor(rows, record, processor, recipe),
        on_save=lambda folder: write_checkpoint_record(folder, record),
        callbacks=[*epoch_callbacks(batches, args), SteadySchedule(record)],
    )
    trainer.stopping.saves_last_step = stage.predicts
    for callback in (Console(stage.plan, stage.later, batches, rows), StabilityCallback(stage.plan)):
        trainer.add_callback(callback)
    if changed:
        trainer.add_callback(NewSettings(stage.plan, record, set(trainer.get_decay_parameter_names(model))))
    stage.check_disk(model, args)
    log_plan(trainer, stage)
    if args.dry_run:
        return dry_run(trainer)
    alike = stage.find_copy(record, rows, args) if checkpoint is None else None
    if alike is not None:
        return stage.take_copy(alike, rows, args)
    if args.cache_encoder_outputs:
        cache_encoder_outputs(trainer, recipe)
    stage.begin(trainer)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if trainer.stopping.was_stopped:
        stage.leave(trainer)
    stage.finish(trainer, record, rows, args)


def launch(argv: list[str] | None = None) -> None:
    """[`main`] in a process of its own."""
    in_a_process(main, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    launch()
