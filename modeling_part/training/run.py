# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""A run: its folder, its stages one after the other, and what is left of a stage when it is finished."""

import logging
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

import torch
from accelerate import Accelerator, PartialState
from torch import nn

from .. import __version__
from ..data.augmentation import build_augmentation
from ..data.batches import Batches, Progress, check_number_of_steps
from ..data.encoder_cache import refuse_augmentation
from ..data.expansion import is_streamed
from ..data.loading import Rows, check_corpora, check_prompts, load_test_rows
from ..evaluation.alignments import write_alignments
from ..evaluation.prediction import count_unanswered, predict_and_report
from ..modeling_part import PARTForSpeechSeq2Seq
from ..processing_part import PARTProcessor
from ..publishing.cards import write_card
from ..publishing.hub import PublishingError, publish
from ..recipes.arguments import PARTTrainingArguments, Recipe
from ..recipes.files import CheckpointError, read_json, write_json
from ..recipes.stage_files import LORA_FOLDER, check_files, check_finite, checksums, weight_files
from ..recipes.stage_record import find_alike, read_stage_json, write_stage_json
from ..recipes.stages import Stage, build_plan
from .checkpoints import checkpoint_step, last_checkpoint, read_history
from .checks import (
    check_languages_named,
    check_languages_of,
    check_optimizer,
    check_publishable,
    check_test_rows,
)
from .console import figures_with_table, terminal_width, write_total
from .freezing import trainable_per_part
from .launches import INDENT, command
from .lock import only_run_in
from .monitoring import GenerationMonitor, report_metrics
from .recorded_settings import base_models, hyperparameters
from .resuming import DEVICES, NOT_RECORDED, differences, in_words, why_none_is_alike
from .set_aside import is_checkpoint, remove_set_aside, set_aside, written_by_training
from .sources import check_sources
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
        for path in self.folder.glob("checkpoint-*/stage.json"):
            if args.resume and not self.restarts and not (path.parent / "trainer_state.json").is_file():
                raise CheckpointError(f"{path.parent} has no trainer_state.json: it is damaged. Remove it to go on.")
        if checkpoint is None:
            return None, Progress()
        if not args.resume:
            raise ValueError(
                f"{self.folder} holds checkpoints of an interrupted run: continue it with --resume, or start again with "
                "--force (which sets them aside until the stage is finished)."
            )
        read_json(checkpoint / "trainer_state.json")
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
        started_from = {}
        if self.parent is not None and (self.parent / "stage.json").is_file():
            started_from = {"parent_files": read_stage_json(self.parent).get("files") or {}}
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
        checkpoints = 0 if args.save_strategy == "no" else 1 + (args.save_total_limit or 1)
        needed = weights * (1 + checkpoints) + 8 * trained * checkpoints
        if not self.restarts:  # those of an interrupted run are there already, and replaced one by one
            there = [path for path in self.folder.glob("checkpoint-*") if is_checkpoint(path)]
            needed -= sum(path.stat().st_size for one in there for path in one.rglob("*") if path.is_file())
        free = shutil.disk_usage(self.folder.parent).free
        if free < needed:
            raise OSError(
                f"Stage {self.plan.name!r} writes up to {needed / 2**30:.1f} GiB into {self.folder}, and "
                f"{free / 2**30:.1f} GiB are free: make room, set another `output_dir`, or lower `save_total_limit`."
            )

    def begin(self, trainer: PARTTrainer) -> None:
        """Training is about to begin: what an earlier one has left is set aside, if this one does not go on from it."""
        state = PartialState()
        continue_trackers(trainer, self._steps_before(), self.folder.parent)
        if self.restarts and state.is_main_process:
            set_aside(self.folder)
        state.wait_for_everyone()

    def _steps_before(self) -> int:
        """Optimizer steps of the stages that this one follows."""
        steps, folder = 0, self.parent
        while folder is not None and (folder / "stage.json").is_file():
            record = read_stage_json(folder)
            steps += record["hyperparameters"].get("num_steps") or 0
            folder = self.folder.parent / record["parent"] if record.get("parent") else None
        return steps

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
                elif path.name == LORA_FOLDER:
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
            logger.info("Stage %s is finished: %s", self.plan.name, self.folder)
            write_total({**metrics, "epoch": trainer.state.epoch})
            self._say_what_stays()
        state.wait_for_everyone()

    def _say_what_stays(self) -> None:
        """Checkpoints inside a finished stage, with their optimizers, are of no use to the run any more."""
        checkpoints = [path for path in self.folder.glob("checkpoint-*") if is_checkpoint(path)]
        size = sum(path.stat().st_size for one in checkpoints for path in one.rglob("*") if path.is_file())
        if checkpoints:
            message = (
                "Its %d checkpoints inside (%.2f GiB) are needed no more; remove them with: rm -r %s/checkpoint-*"
            )
            logger.info(message, len(checkpoints), size / 2**30, self.folder)

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

    def publish(self, args: PARTTrainingArguments) -> bool:
        """One commit and one tag on the Hub; training goes on if it cannot be reached. Returns whether it worked."""
        try:
            publish(self.folder, args.hub_model_id, private=bool(args.hub_private_repo), token=args.hub_token)
        except (PublishingError, CheckpointError) as error:
            words = ["part", "publish", str(self.folder), "--repo_id", args.hub_model_id]
            line = shlex.join([*words, *(["--private"] if args.hub_private_repo else [])])
            logger.error("%s is trained but not published: %s Publish it later with: %s", self.folder, error, line)
            return False
        return True


class Run:
    """The stages of a recipe in one folder, each from the folder of the one before it.

    Args:
        recipe: the whole of it.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.folder = Path(recipe.training.output_dir)
        plan = build_plan(recipe.training.stages)
        last_only = recipe.training.predict_last_stage_only
        parents = [None, *(self.folder / stage.name for stage in plan)]
        self.stages = [
            # Before the language model has run, it has nothing to answer: greedy CTC on the dev data stands for it.
            StageRun(
                stage,
                self.folder / stage.name,
                parent,
                predicts=bool(stage.losses.get("nll")) and (stage is plan[-1] or not last_only),
                number=number,
                is_aligned=any(earlier.losses.get("ctc") for earlier in plan[: number - 1]),
                later=tuple(plan[number:]),
            )
            for number, (stage, parent) in enumerate(zip(plan, parents, strict=False), start=1)
        ]

    def check_settings(self) -> None:
        """What is wrong with the recipe whatever the data, before they are read.

        Raises:
            ValueError: the message names it.
        """
        args, names = self.recipe.training, [stage.plan.name for stage in self.stages]
        check_optimizer(args)
        build_augmentation(self.recipe.data.augmentation)
        if args.stage is not None and args.stage not in names:
            raise ValueError(f"Unknown stage {args.stage!r}; the recipe's stages are {names}.")
        if args.cache_encoder_outputs:
            refuse_augmentation(self.recipe.data.augmentation)
        check_corpora(self.recipe)
        check_languages_named(self.recipe.data)
        if any(map(is_streamed, self.recipe.data.train_data or ())):
            for stage in self.stages:
                check_number_of_steps(stage.plan)
        first = self.stages[0]
        starts = args.stage in (None, first.plan.name) and (args.force or not (first.folder / "stage.json").is_file())
        if starts and not args.dry_run:  # which loads the parts, if need be for the plan alone, and says so itself
            check_sources(self.recipe.model)

    def check(self, rows: Rows) -> None:
        """What would otherwise fail after hours: no data, a language without normaliser, ids twice.

        Raises:
            ValueError: the message names it.
        """
        args = self.recipe.training
        if rows.train is None or len(rows.train) == 0:
            raise ValueError("There are no training rows: check `train_data` and data_report_train.json.")
        for dataset in rows.datasets.values():
            check_languages_of(dataset)
        if rows.test is not None:
            check_test_rows(rows.test)
        if rows.eval is not None and args.predict_with_generate:
            check_test_rows(rows.eval, "eval_data")
        self.folder.mkdir(parents=True, exist_ok=True)

    def stages_to_train(self, rows: Rows) -> Iterator[StageRun]:
        """The stages that are asked for and not finished, in order; each is looked at when its turn has come."""
        args = self.recipe.training
        for stage in self.stages:
            if args.stage not in (None, stage.plan.name):
                continue
            if args.dry_run:  # the plan can be shown before any stage has run
                known = stage.parent is not None and (stage.parent / "config.json").is_file()
                yield replace(stage, parent=stage.parent if known else None)
                continue
            restarts = args.force
            if not restarts and (stage.folder / "stage.json").is_file():
                restarts = self._is_outdated(stage, rows)
                if not restarts:
                    self._check_finished(stage.folder)
                    logger.info("Stage %s is finished (%s); --force runs it again.", stage.plan.name, stage.folder)
                    stage.say_what_is_unanswered(rows)
                    continue
            if stage.parent is not None:
                if not (stage.parent / "stage.json").is_file():
                    raise FileNotFoundError(
                        f"Stage {stage.parent.name!r} is not finished (no {stage.parent / 'stage.json'}); run that stage "
                        "first (leave `--stage` out)."
                    )
                self._check_finished(stage.parent)
            yield replace(stage, restarts=restarts)

    def _check_finished(self, folder: Path) -> None:
        """Raise CheckpointError where the weights of a finished stage are not whole; the main process looks."""
        if PartialState().is_main_process:
            fix = f"Put the file back, or train the stage again with --stage {folder.name} --force."
            check_files(folder, read_stage_json(folder), fix)
        PartialState().wait_for_everyone()

    def _is_outdated(self, stage: StageRun, rows: Rows) -> bool:
        """Whether a finished stage must be trained again: the weights that it started from are not there any more.

        Raises:
            ValueError: it must, and nothing says that it may.
        """
        record = read_stage_json(stage.folder)
        now = {
            "seed": self.recipe.training.seed,
            "hyperparameters": hyperparameters(stage.plan, record["hyperparameters"].get("num_steps"), self.recipe),
            "base_models": base_models(self.recipe.model),
            "data": rows.record,
        }
        changes = {
            name: pair
            for name, pair in differences({name: record[name] for name in now}, now).items()
            if NOT_RECORDED not in pair and name not in DEVICES
        }
        if changes:
            message = "Stage %s was trained with other data or settings than the recipe has now: %s"
            logger.warning(message, stage.plan.name, in_words(changes))
        if stage.parent is None or not record.get("parent_files") or not (stage.parent / "stage.json").is_file():
            return False
        if record["parent_files"] == (read_stage_json(stage.parent).get("files") or record["parent_files"]):
            return False
        if not self.recipe.training.resume:
            raise ValueError(
                f"Stage {stage.plan.name!r} was trained from other weights of {stage.parent.name!r} than are there now: "
                "--resume trains it again (its files are set aside until then), and so does --force with every stage."
            )
        return True


def predict_checkpoint(recipe: Recipe) -> None:
    """`--do_predict`: score `test_data` with `--checkpoint` (or a stage's folder) into `output_dir`.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: there is nothing to predict, or a language that cannot be scored.
    """
    args, named = recipe.training, recipe.model.checkpoint
    folder = Path(args.output_dir)
    checkpoint = Path(named) if named else folder / (args.stage or "joint")
    if not (checkpoint / "config.json").is_file():
        raise FileNotFoundError(f"{checkpoint} is no checkpoint (no config.json); give `--checkpoint` or `--stage`.")
    target = folder if named else checkpoint
    with only_run_in(folder):
        rows = load_test_rows(recipe)
        check_languages_of(rows)
        check_prompts([rows], PARTProcessor.from_pretrained(checkpoint))
        check_test_rows(rows)
        predict_and_score(checkpoint, rows, target, args, args.device)
    logger.info("The report is in %s", target / "report.md")


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
