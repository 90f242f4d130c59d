# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""One stage of a run: where it goes on from, what is recorded of it, and what is left when it is finished."""

import logging
import shlex
import shutil
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

import torch
from accelerate import Accelerator, PartialState
from torch import nn

from .. import __version__
from ..data.batches import Batches, Progress
from ..data.loading import Rows
from ..evaluation.alignments import write_alignments
from ..evaluation.prediction import count_unanswered, predict_and_report
from ..modeling_part import PARTForSpeechSeq2Seq
from ..processing_part import PARTProcessor
from ..publishing.cards import stage_tag, write_card
from ..publishing.hub import publish, read_tags
from ..recipes.arguments import PARTTrainingArguments, Recipe
from ..recipes.files import CheckpointError, read_json, write_json
from ..recipes.program import part_command
from ..recipes.stage_files import LORA_FOLDER, check_files, check_finite, checksums, weight_files
from ..recipes.stage_record import ancestry, find_alike, read_stage_json, write_stage_json
from ..recipes.stages import Stage
from .checkpoints import (
    checkpoint_step,
    checkpoints_in,
    has_checkpoint_name,
    last_checkpoint,
    read_history,
    size_of,
)
from .checks import check_publishable
from .console import figures_with_table, terminal_width, write_total
from .freezing import trainable_per_part
from .launches import INDENT, command
from .memory import GIB
from .monitoring import GenerationMonitor, report_metrics
from .recorded_settings import base_models, hyperparameters
from .resuming import why_none_is_alike
from .set_aside import is_dev, mark_for_training, remove_set_aside, set_aside, written_by_training
from .sources import files_of_start
from .trackers import continue_trackers, end_trackers, show_test
from .trainer import PARTTrainer


logger = logging.getLogger(__name__)

VERSIONED = ("torch", "transformers", "accelerate", "peft", "datasets", "tokenizers", "safetensors")


@dataclass(frozen=True)
class StageRun:
    """One stage of a run.

    Attributes:
        plan: what trains.
        folder: of the finished stage, its checkpoints inside.
        parent: folder of the stage before; None for the first.
        predicts: whether it predicts the test data in the end.
        restarts: whether it begins anew, whatever its folder holds (`--force`).
        number: its place in the plan, from 1.
        is_aligned: whether a stage before it trains the alignment head, which then has counted this run's transcripts.
        later: the stages that follow it in the run.
    """

    plan: Stage
    folder: Path
    parent: Path | None
    predicts: bool
    restarts: bool = False
    number: int = 1
    is_aligned: bool = False
    later: tuple[Stage, ...] = ()

    def find_checkpoint(self, args: PARTTrainingArguments) -> tuple[Path | None, Progress]:
        """Where an interrupted stage continues.

        Raises:
            ValueError: there is a checkpoint and no `--resume`.
            CheckpointError: a file of the checkpoint cannot be read.
        """
        checkpoint = None if args.dry_run or self.restarts else last_checkpoint(self.folder)
        for path in filter(has_checkpoint_name, self.folder.glob("checkpoint-*")):
            damaged = (path / "stage.json").is_file() and not (path / "trainer_state.json").is_file()
            if args.resume and not self.restarts and damaged:
                raise CheckpointError(f"{path} has no trainer_state.json: it is damaged. Remove it to go on.")
        if checkpoint is None:
            return None, Progress()
        if not args.resume:
            raise ValueError(
                f"{self.folder} holds checkpoints of an interrupted run: continue it with --resume, or start again with "
                f"--stage {self.plan.name} --force (which sets them aside until the stage is finished)."
            )
        state = read_json(checkpoint / "trainer_state.json")
        step = state.get("global_step") if isinstance(state, dict) else None
        if step != checkpoint_step(checkpoint):
            raise CheckpointError(
                f"{checkpoint / 'trainer_state.json'} is of step {step}, and its folder of another: it is damaged, or was "
                "renamed. Put it back, or remove the checkpoint to go on from an earlier one."
            )
        history = read_history(checkpoint, args.world_size * args.gradient_accumulation_steps)
        logger.info("Stage %s continues from %s", self.plan.name, checkpoint)
        if history:
            logger.info(
                "It was made with %d batches per optimizer step (ranks times accumulation), now there are %d: the rest of "
                "the stage is dealt anew",
                history[-1][0],
                args.world_size * args.gradient_accumulation_steps,
            )
        return checkpoint, Progress(checkpoint_step(checkpoint), history)

    def record(
        self,
        rows: Rows,
        batches: Batches,
        model: nn.Module,
        processor: PARTProcessor,
        trainable: dict[str, list[str]],
        recipe: Recipe,
    ) -> dict:
        """What `stage.json` will say of where the stage's weights come from; one that could not be written is an error."""
        start = self.start_of(recipe)
        started_from = {} if start is None else {"parent_files": files_of_start(start)}
        data = {**rows.record, **{key: batches.report[key] for key in ("rows", "hours")}}
        if rows.is_streamed:  # each reads its own part of a stream: with another number other rows come
            data["stream_shares"] = recipe.training.world_size * max(1, recipe.training.dataloader_num_workers)
        record = {
            **started_from,
            "stage": self.plan.name,
            "parent": None if self.parent is None else self.parent.name,
            "seed": recipe.training.seed,
            "base_models": base_models(recipe.model),
            "data": data,
            "hyperparameters": hyperparameters(self.plan, batches.sampler.num_steps, recipe),
            "versions": {"modeling-part": __version__, **{package: version(package) for package in VERSIONED}},
            "trainable_parameters": trainable_per_part(model, trainable),
        }
        repo_id = recipe.training.hub_model_id if recipe.training.push_to_hub else None
        check_publishable(record, model.config, processor, repo_id)
        return record

    def start_of(self, recipe: Recipe) -> Path | None:
        """The folder whose weights the stage starts from: its parent's, or the recipe's `checkpoint`; None without one."""
        if self.parent is not None:
            return self.parent if (self.parent / "stage.json").is_file() else None
        checkpoint = recipe.model.checkpoint
        return Path(checkpoint) if checkpoint is not None and Path(checkpoint).is_dir() else None

    def monitor(
        self, rows: Rows, record: Mapping, processor: PARTProcessor, recipe: Recipe
    ) -> GenerationMonitor | None:
        """`predict_with_generate`: the dev data's answers, scored at each evaluation."""
        args = recipe.training
        if not args.predict_with_generate:
            return None
        if rows.eval is None:
            raise ValueError("`predict_with_generate` needs `eval_data` in the recipe.")
        return GenerationMonitor(
            rows.eval,
            processor,
            self.folder,
            self.parent,
            record["data"]["rows"] or None,
            args.seed,
            args.predict_unnamed,
            **generation_settings(args),
        )

    def leave(self, trainer: PARTTrainer) -> NoReturn:
        """Exit after a signal, saying where the stage stands and the command to go on with."""
        end_trackers(trainer)
        state = trainer.state
        message = "Stopped in stage %s at step %d of %d, which is saved in %s. Go on with:\n%s%s"
        step, folder = state.global_step, self.folder / f"checkpoint-{state.global_step}"
        if PartialState().is_main_process:
            logger.warning(message, self.plan.name, step, state.max_steps, folder, INDENT, command(resume=True))
        sys.exit(128 + signal.SIGTERM)

    def check_disk(self, model: nn.Module, args: PARTTrainingArguments) -> None:
        """Raise OSError where the stage's folder and its checkpoints (weights, gradients' averages) do not fit."""
        weights = sum(parameter.numel() * 4 for parameter in model.parameters())
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        # The newest, and beside it the best where one is known.
        kept = max(args.save_total_limit or 1, 1 if args.metric_for_best_model is None else 2)
        checkpoints = int(self.predicts) if args.save_strategy == "no" else kept + 1
        needed = weights * (1 + checkpoints) + 8 * trained * checkpoints
        if not self.restarts:  # those of an interrupted run are there already, and replaced one by one
            needed -= size_of(checkpoints_in(self.folder))
        free = shutil.disk_usage(self.folder.parent).free
        if free < needed:
            raise OSError(
                f"Stage {self.plan.name!r} writes up to {needed / GIB:.1f} GiB into {self.folder}, and "
                f"{free / GIB:.1f} GiB are free: make room, set another `output_dir`, or lower `save_total_limit`."
            )

    def begin(self, trainer: PARTTrainer) -> None:
        """Training is about to begin: what an earlier one has left is set aside, if this one does not go on from it."""
        state = PartialState()
        continue_trackers(trainer, self._steps_before(), self.folder.parent)
        if self.restarts and state.is_main_process:
            set_aside(self.folder)
            for stage in self.later if trainer.args.force and trainer.args.stage is None else ():
                mark_for_training(self.folder.parent / stage.name)
        state.wait_for_everyone()

    def _steps_before(self) -> int:
        """Optimizer steps of the stages that this one follows."""
        records = {} if self.parent is None else ancestry(self.parent)
        return sum(record["hyperparameters"].get("num_steps") or 0 for record in records.values())

    def find_copy(self, record: Mapping, rows: Rows, args: PARTTrainingArguments) -> Path | None:
        """`--reuse_runs`: the folder of a stage of another run that was trained exactly alike; streams never are."""
        if rows.is_streamed:
            return None
        alike = find_alike(record, self.folder.parent, args.reuse_runs or ())
        if alike is None and args.reuse_runs and PartialState().is_main_process:
            logger.info("Stage %s %s", self.plan.name, why_none_is_alike(record, args.reuse_runs))
        try:
            if alike is not None:
                check_files(alike, read_stage_json(alike), "It is not copied.")
                check_finite(alike)
        except CheckpointError as error:
            logger.warning("Stage %s was trained alike in %s, but: %s", self.folder.name, alike, error)
            return None
        return alike

    def take_copy(self, source: Path, rows: Rows, args: PARTTrainingArguments) -> None:
        """Take a stage of another run; rows of the test data that it has not predicted are predicted."""
        state = PartialState()
        if state.is_main_process:
            logger.info("Stage %s was trained alike in %s: copied", self.folder.name, source)
            record, partial = read_stage_json(source), self.folder.with_name(f"{self.folder.name}.copying")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            for path in written_by_training(source):
                if path.is_file() and path.name != "stage.json":
                    shutil.copy2(path, partial)
                elif path.name == LORA_FOLDER or is_dev(path):  # with these answers the next stage's are compared
                    shutil.copytree(path, partial / path.name)
            check_files(partial, record, "Copying went wrong: see to the disk and start again.")
            set_aside(self.folder)
            self.folder.mkdir(exist_ok=True)
            for path in partial.iterdir():
                path.replace(self.folder / path.name)
            partial.rmdir()
        state.wait_for_everyone()
        self._predict(rows, args, args.device)
        if state.is_main_process:
            shutil.copy2(source / "stage.json", self.folder / "stage.json")  # last: it says that the stage is finished
            write_card(self.folder)
            remove_set_aside(self.folder)
        state.wait_for_everyone()

    def finish(self, trainer: PARTTrainer, record: Mapping, rows: Rows, args: PARTTrainingArguments) -> None:
        """Save, predict with what was saved, and write `stage.json` last: it says that the stage is finished.

        Raises:
            NotFiniteError: a weight is NaN or infinite; the stage is not finished.
        """
        metrics = dict(trainer.last_metrics()) if trainer.batches.eval_batches else {}
        metrics |= trainer.check_listening()
        trainer.save_model(str(self.folder))
        state = PartialState()
        if state.is_main_process:
            write_json(self.folder / "log_history.json", trainer.state.log_history)
            check_finite(self.folder)
            record = {**record, "files": checksums(weight_files(self.folder), self.folder)}
        state.wait_for_everyone()
        trainer.model.to("cpu")  # makes room for the one that predicts
        report = self._predict(rows, args, trainer.args.device, trainer.accelerator)
        if report is not None:
            show_test(trainer, report, self.folder, rows.test)
        end_trackers(trainer)
        if state.is_main_process:
            write_stage_json(self.folder, {**record, "metrics": metrics})
            write_card(self.folder)
            remove_set_aside(self.folder)
            if args.save_strategy == "no":  # it was there in case that the answers were interrupted
                shutil.rmtree(self.folder / f"checkpoint-{trainer.state.global_step}", ignore_errors=True)
            logger.info("Stage %s is finished: %s", self.plan.name, self.folder)
            write_total({**metrics, "epoch": trainer.state.epoch})
            self._say_what_stays()
        state.wait_for_everyone()

    def _say_what_stays(self) -> None:
        """Checkpoints inside a finished stage, with their optimizers, are of no use to the run any more."""
        if checkpoints := checkpoints_in(self.folder):
            message = "Its %d checkpoints inside (%.2f GiB) are needed no more; remove them with: %s"
            logger.info(
                message, len(checkpoints), size_of(checkpoints) / GIB, shlex.join(["rm", "-r", *map(str, checkpoints)])
            )

    def _predict(
        self, rows: Rows, args: PARTTrainingArguments, device, accelerator: Accelerator | None = None
    ) -> dict | None:
        """The report on the test data; None where the stage does not answer it."""
        if not self.predicts or rows.test is None or not len(rows.test):
            return None
        return predict_and_score(self.folder, rows.test, self.folder, args, device, accelerator)

    def say_what_is_unanswered(self, rows: Rows) -> None:
        """A finished stage's report is of the test data as they were: say so where they are others now."""
        if not self.predicts or rows.test is None or not PartialState().is_main_process:
            return
        if unanswered := count_unanswered(rows.test, self.folder):
            message = (
                "Stage %s has not answered %d of the %d rows of `test_data` as they are now; it does so with:\n%s%s"
            )
            line = f"{command()} --do_predict --stage {self.plan.name}"
            logger.warning(message, self.plan.name, unanswered, len(rows.test), INDENT, line)

    def publish(self, args: PARTTrainingArguments, only_missing: bool = False) -> bool:
        """One commit and one tag on the Hub; training goes on if it cannot be reached. Returns whether it worked.

        Args:
            args: the repository, and the token.
            only_missing: not where its tag is there already, or that of a later stage, whose place it would take.
        """
        try:
            tags = read_tags(args.hub_model_id, args.hub_token) if only_missing else {}
            if stage_tag(self.plan.name) in tags:
                return True
            if newer := [stage.name for stage in self.later if stage_tag(stage.name) in tags]:
                message = "Stage %s is not in %s, where %s is: as the newest commit it would take its place. It is not published."
                logger.warning(message, self.plan.name, args.hub_model_id, newer[0])
                return True
            publish(self.folder, args.hub_model_id, private=bool(args.hub_private_repo), token=args.hub_token)
        except (OSError, CheckpointError) as error:  # what publishing does not explain too, such as a full disk
            private = ["--private"] if args.hub_private_repo else []
            line = part_command("publish", str(self.folder), "--repo_id", args.hub_model_id, *private)
            logger.error("%s is trained but not published: %s Publish it later with: %s", self.folder, error, line)
            return False
        return True


def predict_and_score(
    checkpoint: Path, rows, folder: Path, args: PARTTrainingArguments, device, accelerator: Accelerator | None = None
) -> dict:
    """`predictions.jsonl` and `report.json` of a saved checkpoint, loaded as users load it; returns the report."""
    dtype = torch.bfloat16 if args.bf16 else "auto"
    model = PARTForSpeechSeq2Seq.from_pretrained(checkpoint, dtype=dtype).to(device).eval()
    processor = PARTProcessor.from_pretrained(checkpoint)
    settings = {"seed": args.seed, "ask_unnamed": args.predict_unnamed, **generation_settings(args)}
    report = predict_and_report(model, processor, rows, folder, accelerator=accelerator, **settings)
    logger.info("%s", figures_with_table(f"test data, {checkpoint}", report_metrics(report), terminal_width()))
    if PartialState().is_main_process:
        write_alignments(model, processor, rows, folder)
    return report


def generation_settings(args: PARTTrainingArguments) -> dict:
    """How answers are generated, as `predict` takes it."""
    return {
        "batch_size": args.per_device_eval_batch_size,
        "max_audio_seconds": args.generation_batch_seconds,
        "max_new_tokens": args.max_new_tokens,
    }
