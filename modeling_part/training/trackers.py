# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""TensorBoard, wandb, trackio and the like show the stages of a run as one run, whose steps go on.

A finished stage hands its test scores to all of them; these three also get some of its answers with their sound.
"""

import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from transformers import Trainer, TrainerCallback, TrainerControl
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

from ..data.rows import direction
from ..evaluation.scoring import PREDICTIONS_FILE, read_predictions
from ..evaluation.tables import markdown_table
from ..evaluation.utterances import CLIP_RATE, Clips, choose_utterances
from ..recipes.suggestions import did_you_mean
from .monitoring import report_metrics


WORST, RANDOM = 12, 12  # answers shown of a stage
COLUMNS = ["which", "task", "direction", "id", "errors %", "reference", "answer"]

EXTRAS = {"tensorboard": "'modeling-part[tensorboard]'"}  # those of setup.cfg, by the name in `report_to`
UNTOLD = ("flyte", "azure_ml")  # of which transformers does not tell whether they are installed, or not always

# The cells of `COLUMNS`, and the clip at `CLIP_RATE`; None without one.
Answer = tuple[list[str], np.ndarray | None]


class OfTheRun:
    """Hands a tracker's callback the steps of the run instead of the stage's, and its end when the answers are scored.

    Args:
        callback: the tracker's.
        steps: optimizer steps of the stages before.
    """

    def __init__(self, callback: TrainerCallback, steps: int) -> None:
        self.callback = callback
        self.steps = steps
        self.end: Callable[[], object] = lambda: None  # of the stage, after which the tracker takes nothing more

    def __getattr__(self, event: str) -> Callable:
        if not event.startswith("on_"):
            raise AttributeError(event)
        return partial(self._hand_on, event)

    def on_train_end(self, *args, **kwargs) -> None:
        """Wait for the scores: see [`end_trackers`]."""
        self.end = partial(self._hand_on, "on_train_end", *args, **kwargs)

    def _hand_on(self, event: str, args, state, control, **kwargs) -> TrainerControl | None:
        shown = copy.copy(state)
        shown.global_step += self.steps
        return getattr(self.callback, event)(args, shown, control, **kwargs)


def check_trackers(names: Sequence[str]) -> None:
    """Raise ValueError where a name in `report_to` is none of a tracker, or its package is not there."""
    installed = (*UNTOLD, *get_available_reporting_integrations())
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise ValueError(
                f"`report_to` names {name!r}, which is none of {', '.join(sorted(INTEGRATION_TO_CALLBACK))}, or none."
                f"{did_you_mean(name, INTEGRATION_TO_CALLBACK)}"
            )
        if name not in installed:
            raise ValueError(
                f"`report_to` names {name!r}, which is not installed, or switched off in the environment: "
                f"pip install {EXTRAS.get(name, name)}, or take it out."
            )


def continue_trackers(trainer: Trainer, steps: int, folder: Path) -> None:
    """Let the trackers of a stage go on where those of the stage before have stopped.

    Args:
        trainer: of the stage.
        steps: of the stages before.
        folder: of the run; TensorBoard writes to `tensorboard` in it, unless TENSORBOARD_LOGGING_DIR says otherwise.
    """
    kinds = tuple(INTEGRATION_TO_CALLBACK.values())
    callbacks = trainer.callback_handler.callbacks
    for place, callback in enumerate(callbacks):
        if isinstance(callback, kinds):
            if hasattr(callback, "tb_writer") and "TENSORBOARD_LOGGING_DIR" not in os.environ:
                callback.logging_dir = str(folder / "tensorboard")
            callbacks[place] = OfTheRun(callback, steps)


def end_trackers(trainer: Trainer) -> None:
    """The stage has nothing more to tell."""
    for tracker in _trackers(trainer):
        tracker.end()


def show_test(trainer: Trainer, report: Mapping, folder: Path, rows) -> None:
    """Hand what a finished stage scored on the test data to the trackers; every rank must make the call.

    Args:
        trainer: of the stage.
        report: of `scoring.score`.
        folder: of the stage, with its predictions.
        rows: canonical rows of the test data, a `datasets.Dataset`.
    """
    scores = {f"test_{name}": value for name, value in report_metrics(report).items()}
    trainer.callback_handler.on_log(trainer.args, trainer.state, trainer.control, scores)
    shown = [(show, tracker) for tracker in _trackers(trainer) for name, show in SHOW.items() if _has(tracker, name)]
    if shown and trainer.is_world_process_zero():
        answers = _some_answers(folder, rows)
        for show, tracker in shown:
            show(tracker.callback, folder.name, answers, tracker.steps + trainer.state.global_step)


def _trackers(trainer: Trainer) -> Iterator[OfTheRun]:
    return (one for one in trainer.callback_handler.callbacks if isinstance(one, OfTheRun))


def _has(tracker: OfTheRun, name: str) -> bool:
    return getattr(tracker.callback, name, None) is not None


def _some_answers(folder: Path, rows) -> list[Answer]:
    """The worst of every language and direction, and a sample, as in `report.html`."""
    clips, answers = Clips(rows), []
    for row, which in choose_utterances(read_predictions(folder / PREDICTIONS_FILE), WORST, RANDOM):
        languages, errors = direction(row["source_lang"], row["target_lang"]), f"{100 * row['error_rate']:.0f}"
        cells = [which, row["task"], languages, row["id"], errors, row["reference"], row["hypothesis"]]
        answers.append((cells, clips.waveform(row)))
    return answers


def _caption(cells: Sequence[str]) -> str:
    """Such as `2 asr fr x17`."""
    return " ".join(cells[1:4])


def _show_in_tensorboard(callback: TrainerCallback, stage: str, answers: Sequence[Answer], step: int) -> None:
    """A table of texts, and the clips under the same names: a table of TensorBoard holds no sound."""
    writer = callback.tb_writer
    writer.add_text(f"answers/{stage}", markdown_table(COLUMNS, [cells for cells, _ in answers]), step)
    for cells, waveform in answers:
        if waveform is not None:
            writer.add_audio(f"answers/{stage}/{_caption(cells)}", waveform, step, CLIP_RATE)
    writer.flush()


def _show_in_wandb(callback: TrainerCallback, stage: str, answers: Sequence[Answer], step: int) -> None:
    wandb = callback._wandb
    table = wandb.Table(columns=[*COLUMNS, "audio"])
    for cells, waveform in answers:
        table.add_data(*cells, None if waveform is None else wandb.Audio(waveform, sample_rate=CLIP_RATE))
    wandb.log({f"answers/{stage}": table, "train/global_step": step})


def _show_in_trackio(callback: TrainerCallback, stage: str, answers: Sequence[Answer], step: int) -> None:
    """A table of texts, and the clips: a table of trackio shows no sound."""
    trackio = callback._trackio
    shown = {f"answers/{stage}": trackio.Table(columns=COLUMNS, data=[cells for cells, _ in answers])}
    for cells, waveform in answers:
        if waveform is not None:
            name = _caption(cells)
            pcm = (32767 * waveform.clip(-1, 1)).astype(np.int16)
            shown[f"answers/{stage}/{name}"] = trackio.Audio(pcm, caption=cells[-1], sample_rate=CLIP_RATE)
    trackio.log(shown | {"train/global_step": step})


# By the attribute of transformers' callback that holds the tracker.
SHOW = {"tb_writer": _show_in_tensorboard, "_wandb": _show_in_wandb, "_trackio": _show_in_trackio}
