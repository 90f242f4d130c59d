# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""`eval_strategy`, `save_strategy` and `logging_strategy` `epoch`: after each epoch of a stage.

To `Trainer` a stage is one pass over its batches, all epochs one after the other.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import count

from transformers import TrainerCallback, TrainerControl
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ..data.batches import Batches
from ..data.sampling import TaskBatchSampler
from ..recipes.arguments import PARTTrainingArguments
from ..recipes.stages import Stage


STRATEGIES = ("eval_strategy", "save_strategy", "logging_strategy")


def with_fractions(stage: Stage, plan: Callable[[Stage], Batches]) -> Batches:
    """The batches of a stage whose `epochs` may be a fraction: the last epoch then ends early.

    Args:
        stage: what trains.
        plan: a stage's batches, for a whole number of epochs or `max_steps`.
    """
    if stage.max_steps is not None or stage.epochs is None:
        return plan(stage)
    whole = plan(replace(stage, epochs=math.ceil(stage.epochs)))
    left_out = math.floor((math.ceil(stage.epochs) - stage.epochs) * whole.report["steps"])
    if not left_out:
        return whole
    return plan(replace(stage, max_steps=max(1, whole.sampler.num_steps - left_out)))


def epoch_callbacks(batches: Batches, args: PARTTrainingArguments) -> list[TrainerCallback]:
    """What a trainer needs for these strategies: nothing where none is `epoch`.

    Raises:
        ValueError: the corpora are streamed, which have no epochs.
    """
    asked = [name for name in STRATEGIES if getattr(args, name) == IntervalStrategy.EPOCH]
    if not asked:
        return []
    if batches.is_streamed:
        raise ValueError(
            f"`{asked[0]}: epoch` needs corpora with an end, but these are streamed; give `steps` instead."
        )
    return [EpochEnds(epoch_ends(batches.sampler), batches.sampler._first_epoch)]


def epoch_ends(sampler: TaskBatchSampler) -> list[int]:
    """The optimizer steps that are the last of an epoch, the stage's last step included; those to come after a resume."""
    ends, steps = [], sampler._steps_before
    for epoch in count(sampler._first_epoch):
        if steps >= sampler.num_steps:
            return [*ends[:-1], sampler.num_steps]
        steps += len(sampler.plan(epoch).step_order)
        ends.append(steps)


class EpochEnds(TrainerCallback):
    """Evaluates, saves and logs at the end of each epoch, as far as the strategies say so.

    Args:
        ends: the steps that are the last of an epoch, the stage's last step among them.
        epochs_before: how many epochs were whole before the first of them began.
    """

    def __init__(self, ends: list[int], epochs_before: int = 0) -> None:
        self.ends = ends
        self.epochs_before = epochs_before

    def on_step_end(self, args, state, control, **kwargs) -> TrainerControl:
        """Inside the stage; at its last step [`on_epoch_end`] follows."""
        if state.global_step in self.ends[:-1]:
            self._ask(args, control, self.epochs_before + self.ends.index(state.global_step) + 1)
        return control

    def on_epoch_end(self, args, state, control, **kwargs) -> TrainerControl:
        """After the last step, or that of an early stop: `Trainer` has asked already, but counts the stage as one epoch."""
        if state.global_step in self.ends[:-1]:  # an early stop: all was done when the step ended
            control.should_log = control.should_evaluate = control.should_save = False
            return control
        if args.eval_strategy == IntervalStrategy.EPOCH:
            control.should_evaluate = False
        self._ask(args, control, self.epochs_before + len(self.ends))
        return control

    @staticmethod
    def _ask(args, control: TrainerControl, epoch: int) -> None:
        control.should_log |= args.logging_strategy == IntervalStrategy.EPOCH
        control.should_save |= args.save_strategy == SaveStrategy.EPOCH
        control.should_evaluate |= args.eval_strategy == IntervalStrategy.EPOCH and args.eval_delay <= epoch
