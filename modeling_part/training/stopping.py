# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Stopping a stage so that it can go on later: on a signal, or because too many rows are broken."""

import logging
import signal
from contextlib import AbstractContextManager

import torch
from accelerate import PartialState
from accelerate.utils import gather
from transformers import TrainerCallback, TrainerControl
from transformers.trainer_utils import SaveStrategy

from ..recipes.signals import STOPPING, handling
from .broken_rows import BrokenRows


logger = logging.getLogger(__name__)


class StopCallback(TrainerCallback):
    """Saves and stops after a step when any rank was asked to, or when too many rows are broken.

    Args:
        broken_rows: of the trainer.

    Attributes:
        is_requested: whether this rank got a signal.
        is_agreed: whether any rank had got one when the step began.
        was_stopped: whether a signal ended training, at the latest after its last step.
        failure: what is raised when the step is saved.
        saves_last_step: whether the last step is saved without a `save_strategy` too: long answers follow it.
    """

    def __init__(self, broken_rows: BrokenRows) -> None:
        self.broken_rows = broken_rows
        self.saves_last_step = False
        self.reset()

    def reset(self) -> None:
        """Forget what stopped an earlier training."""
        self.is_requested = self.is_agreed = self.was_stopped = False
        self.failure: Exception | None = None

    def request(self, number: int, frame=None) -> None:
        """Signal handler: all ranks agree with the next step, save after it and stop. A second SIGINT stops at once."""
        if self.is_requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.is_requested = True
        again = " Ctrl-C again stops at once, without saving." if number == signal.SIGINT else ""
        name = signal.Signals(number).name
        if PartialState().is_main_process:  # a launcher hands the signal to all; of one to another rank the end tells
            logger.warning("Received %s: saving after this step, or the next with several ranks.%s", name, again)

    def handling_signals(self) -> AbstractContextManager[None]:
        """The signals are requests to stop while this is open."""
        return handling(self.request, [signal.SIGINT, *STOPPING])

    def on_step_end(self, args, state, control, **kwargs) -> TrainerControl:
        """After the default callback, which has decided whether to log, evaluate and save."""
        stops = self.broken_rows.are_too_many or self.failure is not None
        if not self.was_stopped and self._is_stopped(args, state):
            stops = self.was_stopped = True
        if stops:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False
        if self.saves_last_step and state.global_step >= state.max_steps and args.save_strategy == SaveStrategy.NO:
            control.should_save = True
        return control

    def on_epoch_end(self, args, state, control, **kwargs) -> TrainerControl:
        """`Trainer` ends its epoch when it stops, where [`EpochEnds`] asks once more: all has been saved."""
        if self.was_stopped or self.broken_rows.are_too_many or self.failure is not None:
            control.should_evaluate = control.should_save = False
        return control

    def hear_the_last(self, args) -> None:
        """After the last step is evaluated and saved: a signal that came meanwhile ends the run here."""
        self.was_stopped = self.was_stopped or self._any_rank_was_asked(args)

    def _is_stopped(self, args, state) -> bool:
        """The same on every rank: what they agreed on when the step began, so that no step waits for it alone."""
        if args.world_size > 1 and state.global_step < state.max_steps:
            return self.is_agreed
        # There is no next step to tell the other ranks with, but the run may have later stages.
        return self._any_rank_was_asked(args)

    def _any_rank_was_asked(self, args) -> bool:
        """Every rank must make the call."""
        if args.world_size == 1:
            return self.is_requested
        return bool(gather(torch.tensor([int(self.is_requested)], device=args.device)).any())
