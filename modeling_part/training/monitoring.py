# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Answers on the dev data while a stage trains: error rates and BLEU, and a warning when the paper's failure signs show."""

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from torch import nn

from ..evaluation.failure_signs import failure_signs, same_normalization
from ..evaluation.prediction import predict_and_report
from ..evaluation.report_file import NO_FIGURES
from ..evaluation.run_files import read_json_if_there


logger = logging.getLogger(__name__)
DEV_FOLDER = "dev"  # inside a stage's folder: a folder `step-N` per evaluation


class GenerationMonitor:
    """Generates on the dev data and scores it; `PARTTrainer` calls it at each evaluation (`predict_with_generate`).

    Each call writes `dev/step-N/predictions.jsonl`, `report.json` and `report.md` in the stage's folder. Warned of, by
    [`failure_signs.failure_signs`]: a language whose transcripts got worse than at the end of the parent stage, one far from
    the average, a direction that lost BLEU.

    Args:
        dataset: dev rows, canonical.
        processor: the model's.
        folder: the stage's.
        parent: the parent stage's folder, whose dev report is what "worse" means; None: nothing to compare with.
        training_rows: rows per group that the stage trains on, see [`failure_signs.failure_signs`].
        seed: of the bootstrap behind the intervals.
        ask_unnamed: score the transcripts a second time, asked for without the name of their language.
        **generation: `batch_size`, `max_audio_seconds` and `max_new_tokens` of [`evaluation.predict`].
    """

    def __init__(
        self,
        dataset,
        processor,
        folder: Path,
        parent: Path | None = None,
        training_rows: Mapping[str, int] | None = None,
        seed: int = 0,
        ask_unnamed: bool = False,
        **generation,
    ) -> None:
        self.dataset = dataset
        self.processor = processor
        self.folder = Path(folder) / DEV_FOLDER
        self.before = None if parent is None else last_dev_report(Path(parent))
        self.training_rows = training_rows
        self.seed = seed
        self.ask_unnamed = ask_unnamed
        self.generation = generation

    def __call__(
        self,
        model: nn.Module,
        accelerator,
        step: int,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ) -> dict[str, float]:
        """Every process takes its share of the rows and must make the call.

        Args:
            model: the unwrapped model, whole on every process.
            accelerator: tells the processes apart.
            step: optimizer steps so far.
            autocast: gives the context that the model's forward runs in.

        Returns:
            `asr/fr_wer`, `s2tt/fr-en_bleu`, `s2tt/fr-en_chrf`, ... and the averages over languages `asr_error_rate`,
            `s2tt_bleu`, ...; error rates as fractions, BLEU and chrF from 0 to 100. With `ask_unnamed` also
            `asr/fr_unnamed_wer`, ... and `asr_unnamed_error_rate`.
        """
        with autocast():
            report = predict_and_report(
                model,
                self.processor,
                self.dataset,
                self.folder / f"step-{step}",
                seed=self.seed,
                ask_unnamed=self.ask_unnamed,
                accelerator=accelerator,
                **self.generation,
            )
        if accelerator.is_main_process:
            if self.before is not None and not same_normalization(report, self.before):
                logger.warning(
                    "The dev report of the parent stage was made by other rules of normalisation, so that its figures are "
                    "not compared with; run `part score` on its predictions to have them"
                )
                self.before = None
            for sign in failure_signs(report, self.before, training_rows=self.training_rows):
                logger.warning("Step %d, dev data: %s", step, sign)
        return report_metrics(report)


def last_dev_report(stage_folder: Path) -> dict | None:
    """The dev report of a stage's last evaluation; None where it generated none."""
    reports = (stage_folder / DEV_FOLDER).glob("step-*/report.json")
    numbers = {path: path.parent.name.removeprefix("step-") for path in reports}
    steps = {int(number): path for path, number in numbers.items() if number.isdecimal()}  # no step-5.bak
    return read_json_if_there(steps[max(steps)]) if steps else None


def report_metrics(report: Mapping) -> dict[str, float]:
    """The figures of a report ([`scoring.score`]) under flat names for a log, see [`GenerationMonitor.__call__`]."""
    metrics = {}
    for name, group in report["groups"].items():
        metrics[f"{name}_{group['error_metric'].lower()}"] = group["error_rate"]
        metrics |= {f"{name}_{measure}": group.get(measure) for measure in ("bleu", "chrf")}
    unnamed = report.get("unnamed", NO_FIGURES)
    for name, group in unnamed["groups"].items():
        metrics[f"{name}_unnamed_{group['error_metric'].lower()}"] = group["error_rate"]
    for task, average in unnamed["macro"].items():
        metrics[f"{task}_unnamed_error_rate"] = average.get("error_rate")
    for task, average in report["macro"].items():
        metrics |= {f"{task}_{measure}": average.get(measure) for measure in ("error_rate", "bleu", "chrf")}
    return {name: float(value) for name, value in metrics.items() if value is not None}
