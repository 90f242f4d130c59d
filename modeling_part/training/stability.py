# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Unstable training: a warning where losses spike or gradients keep growing, an error where they are not finite."""

import logging
from collections.abc import Sequence

from transformers import TrainerCallback

from ..evaluation.failure_signs import instability
from ..recipes.stages import Stage
from ..recipes.user_errors import UserError


logger = logging.getLogger(__name__)


class NonFiniteTrainingError(UserError):
    """Too many steps in a row had a loss or a gradient that is not finite.

    Args:
        steps: how many.
        rows: ids of those in the last one whose loss is not finite.
        checkpoint: where the weights are saved, which these steps did not move.
    """

    def __init__(self, steps: int, rows: Sequence[str], checkpoint: str) -> None:
        super().__init__(
            f"{steps} steps in a row had a loss or gradient that is not finite (rows of the last one: {list(rows[:5])}). The "
            f"weights, which these did not move, are in {checkpoint}; lower the learning rate or remove these rows, then go "
            "on with --resume --resume_with_changes."
        )


class StabilityCallback(TrainerCallback):
    """Looks at what is logged, and says once for each sign which learning rates to lower.

    Args:
        stage: that trains.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self._said: set[str] = set()

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        """After each logging step of training."""
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        warm = self.stage.warmup_ratio * state.max_steps
        of_training = [entry for entry in state.log_history if "loss" in entry and "step" in entry]
        for name, sign in instability(of_training, warm_up=warm).items():
            if name not in self._said:
                self._said.add(name)
                logger.warning("Step %d: %s. %s", state.global_step, sign, self._advice())

    def _advice(self) -> str:
        rates = ", ".join(f"{part} {rate:g}" for part, rate in self.stage.learning_rates.items())
        return (
            f"Training is unstable: lower the learning rates of stage {self.stage.name!r} ({rates}), or raise its "
            f"`warmup_ratio` ({self.stage.warmup_ratio:g})"
        )
