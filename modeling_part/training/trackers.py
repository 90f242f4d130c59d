# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""TensorBoard, wandb, trackio and the like show the stages of a run as one run, whose steps go on."""

import copy
import os
from collections.abc import Callable
from pathlib import Path

from transformers import Trainer, TrainerCallback, TrainerControl
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK


class OfTheRun:
    """Hands a tracker's callback the steps of the run instead of the stage's.

    Args:
        callback: the tracker's.
        steps: optimizer steps of the stages before.
    """

    def __init__(self, callback: TrainerCallback, steps: int) -> None:
        self.callback = callback
        self.steps = steps

    def __getattr__(self, event: str) -> Callable:
        if not event.startswith("on_"):
            raise AttributeError(event)

        def hand_on(args, state, control, **kwargs) -> TrainerControl | None:
            shown = copy.copy(state)
            shown.global_step += self.steps
            return getattr(self.callback, event)(args, shown, control, **kwargs)

        return hand_on


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
