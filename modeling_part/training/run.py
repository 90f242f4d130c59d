# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""A run: its folder, and its stages one after the other."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from accelerate import PartialState
from huggingface_hub import constants
from transformers.trainer_utils import IntervalStrategy

from ..data.augmentation import build_augmentation
from ..data.batches import check_number_of_steps, check_streamed_draws
from ..data.encoder_cache import refuse_augmentation
from ..data.expansion import is_streamed
from ..data.loading import Rows, check_corpora, check_prompts, load_test_rows, main_process_first
from ..processing_part import PARTProcessor
from ..publishing.hub import open_hub
from ..recipes.arguments import Recipe
from ..recipes.stage_files import check_files
from ..recipes.stage_record import ancestry, read_stage_json
from ..recipes.stages import build_plan
from .checks import (
    check_languages_named,
    check_languages_of,
    check_optimizer,
    check_test_rows,
    warn_of_clips_trained_on,
)
from .lock import only_run_in
from .recorded_settings import base_models, hyperparameters
from .resuming import DEVICES, NOT_RECORDED, differences, in_words
from .set_aside import FORCED
from .sources import check_sources, check_weights, files_of_start
from .stage_run import StageRun, predict_and_score
from .trackers import check_trackers


logger = logging.getLogger(__name__)


class Run:
    """The stages of a recipe in one folder, each from the folder of the one before it.

    Args:
        recipe: the whole of it.

    Attributes:
        stages: of the plan, in order.
        unpublished: names of the finished stages that could not be sent to the Hub.
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
        self.unpublished: list[str] = []

    def check_settings(self) -> None:
        """What is wrong with the recipe whatever the data, before they are read.

        Raises:
            ValueError: the message names it.
        """
        args, names = self.recipe.training, [stage.plan.name for stage in self.stages]
        check_optimizer(args)
        check_trackers(args.report_to)
        if args.push_to_hub:
            open_hub(args.hub_model_id, args.hub_token)
            if constants.HF_HUB_OFFLINE:
                raise ValueError(
                    "`push_to_hub` cannot send anything with HF_HUB_OFFLINE set: unset it, or leave `push_to_hub` out and "
                    "publish later with `part publish`."
                )
        if not self.recipe.data.eval_data and (args.eval_strategy != IntervalStrategy.NO or args.eval_on_start):
            raise ValueError("`eval_strategy` and `eval_on_start` need `eval_data` in the recipe.")
        build_augmentation(self.recipe.data.augmentation)
        if args.stage is not None and args.stage not in names:
            raise ValueError(f"Unknown stage {args.stage!r}; the recipe's stages are {names}.")
        self._check_start()
        if args.cache_encoder_outputs:
            refuse_augmentation(self.recipe.data.augmentation)
        check_corpora(self.recipe)
        check_languages_named(self.recipe.data)
        if any(map(is_streamed, self.recipe.data.train_data or ())):
            check_streamed_draws(self.recipe.data)
            for stage in self.stages:
                check_number_of_steps(stage.plan)
        first = self.stages[0]
        starts = args.stage in (None, first.plan.name) and (args.force or not (first.folder / "stage.json").is_file())
        if starts and not args.dry_run:  # which loads the parts, if need be for the plan alone, and says so itself
            check_sources(self.recipe.model)

    def _check_start(self) -> None:
        """Raise ValueError where the recipe's `checkpoint` is what a stage of the run replaces: it could start but once."""
        start = Path(self.recipe.model.checkpoint or "").resolve()
        for stage in self.stages if self.recipe.model.checkpoint else ():
            if start.is_relative_to(stage.folder.resolve()):
                raise ValueError(
                    f"`checkpoint` is {self.recipe.model.checkpoint!r}, of the stage {stage.plan.name!r} that this run trains "
                    "itself and would replace: set another `output_dir`, or give the stages of the plan other names."
                )

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
        warn_of_clips_trained_on(rows)
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
                    self.publish(stage, only_missing=True)
                    continue
            if stage.parent is not None:
                if not (stage.parent / "stage.json").is_file():
                    raise FileNotFoundError(
                        f"Stage {stage.parent.name!r} is not finished (no {stage.parent / 'stage.json'}); run that stage "
                        "first (leave `--stage` out)."
                    )
                self._check_finished(stage.parent)
                if stage.folder.name in {Path(one["parent"] or "").name for one in ancestry(stage.parent).values()}:
                    raise ValueError(
                        f"Stage {stage.plan.name!r} would start from {stage.parent.name!r}, which was itself trained from an "
                        f"earlier {stage.plan.name!r}: train that one anew first (--stage {stage.parent.name} --force), or set "
                        "another `output_dir`."
                    )
            yield replace(stage, restarts=restarts)

    def publish(self, stage: StageRun, only_missing: bool = False) -> None:
        """Send a finished stage to the Hub where the recipe says so; the other ranks wait, however long it takes.

        Args:
            stage: one that is finished.
            only_missing: it was finished by an earlier launch, which may have sent it.
        """
        args = self.recipe.training
        if args.push_to_hub and not args.dry_run:
            with main_process_first():
                if PartialState().is_main_process and not stage.publish(args, only_missing):
                    self.unpublished.append(stage.plan.name)

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
        if (stage.folder / FORCED).is_file():
            if not self.recipe.training.resume:
                raise ValueError(
                    f"Stage {stage.plan.name!r} was to be trained again by --force, which was interrupted before its turn: "
                    f"--resume does that now, or remove {stage.folder / FORCED} to keep the stage as it is."
                )
            return True
        record = read_stage_json(stage.folder)
        now = {
            "parent": None if stage.parent is None else stage.parent.name,
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
        start = stage.start_of(self.recipe)
        if start is None or not record.get("parent_files"):
            return False
        if record["parent_files"] == (files_of_start(start) or record["parent_files"]):
            return False
        if not self.recipe.training.resume:
            raise ValueError(
                f"Stage {stage.plan.name!r} was trained from other weights of {start.name!r} than are there now: --resume "
                "trains it again (its files are set aside until then), and so does --force with every stage."
            )
        return True


def predict_checkpoint(recipe: Recipe) -> None:
    """`--do_predict`: score `test_data` with `--checkpoint` (or a stage's folder) into `output_dir`.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: there is nothing to predict, or a language that cannot be scored.
    """
    args, named = recipe.training, recipe.model.checkpoint if recipe.training.stage is None else None
    folder = Path(args.output_dir)
    checkpoint = Path(named) if named else folder / (args.stage or "joint")
    if not (checkpoint / "config.json").is_file():
        raise FileNotFoundError(f"{checkpoint} is no checkpoint (no config.json); give `--checkpoint` or `--stage`.")
    target = folder if named else checkpoint
    found = sorted(path.parent.name for path in folder.glob("*/stage.json")) if named else []
    if found or (named and (folder / "stage.json").is_file() and folder.resolve() != checkpoint.resolve()):
        fix = f"name one of its stages ({', '.join(found)}) with `--stage`, or give" if found else "give"
        raise ValueError(
            f"{folder} is the folder of a {'run' if found else 'stage'}, whose report would be replaced by that of {checkpoint}: "
            f"{fix} another `--output_dir`."
        )
    with only_run_in(folder):
        check_weights(checkpoint, "Put the file back, or give another `--checkpoint` or `--stage`.")
        rows = load_test_rows(recipe)
        check_languages_of(rows)
        check_prompts([rows], PARTProcessor.from_pretrained(checkpoint))
        check_test_rows(rows)
        predict_and_score(checkpoint, rows, target, args, args.device)
    logger.info("The report is in %s", target / "report.md")
