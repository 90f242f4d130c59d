# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""`--resume`: what has changed since the checkpoint, whether it may, and what `stage.json` then says of it.

`stretches` of a stage's record are `{"first_step": 1, "values": {...}}`, one for each part of the stage that ran with
other values than another: by the dotted name of what differs, its value in that part. A part ends where the next begins.
"""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from accelerate.utils import parse_flag_from_env
from transformers import TrainerCallback

from ..recipes.arguments import PARTTrainingArguments
from ..recipes.files import CheckpointError
from ..recipes.stage_files import check_files
from ..recipes.stage_record import read_stage_json
from ..recipes.stages import Stage
from ..recipes.values import shortened
from ..saved_prompt_part import by_dotted_names
from .checkpoints import checkpoint_step
from .freezing import plain_name


logger = logging.getLogger(__name__)

NOT_RECORDED = "not recorded"
UNCOMPARED = ("metrics", "files", "stretches")

# What a stage may go on with without a word: the devices it runs on, ...
DEVICES = ("hyperparameters.world_size", "hyperparameters.gradient_accumulation_steps")
# ... and what follows from them: the last batches of a task are split to fill a step.
STEPS = "hyperparameters.num_steps"
OF_DEVICES = (STEPS, "data.rows.", "data.hours.")

LEARNING_RATES = "hyperparameters.learning_rates."  # and the name of the part
SCHEDULE = "hyperparameters.lr_scheduler_type"

# What no flag allows: the checkpoint's tensors and optimizer states are of another model.
OF_THE_MODEL = (
    "stage",
    "trainable_parameters.",
    "hyperparameters.tuning",
    "hyperparameters.lora_",
    "hyperparameters.encoder_layers",
    "hyperparameters.adapter",
)


def differences(before: Mapping, now: Mapping) -> dict[str, tuple]:
    """What two records of a stage say differently: by dotted name, the value of each."""
    old, new = _flat(before), _flat(now)
    pairs = {name: (old.get(name, NOT_RECORDED), new.get(name, NOT_RECORDED)) for name in [*new, *old]}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def in_words(changes: Mapping[str, tuple]) -> str:
    """Differences for a message."""
    short = {name: name.removeprefix("hyperparameters.") for name in changes}
    return "; ".join(
        f"{short[name]} was {shortened(old)}, now {shortened(new)}" for name, (old, new) in changes.items()
    )


def why_none_is_alike(record: Mapping, runs: Iterable[str]) -> str:
    """Of a stage that is to be trained, in what the nearest of the same name among other runs differs, in words."""
    folders = [Path(run) / record["stage"] for run in runs]
    finished = [folder for folder in folders if (folder / "stage.json").is_file()]
    found = {folder: differences(read_stage_json(folder), record) for folder in finished}
    if not found:
        return "is in none of the runs to reuse"
    nearest = min(found, key=lambda folder: len(found[folder]))
    words = in_words(found[nearest]) or "a stage before it was trained otherwise"
    return f"was trained alike in no other run; in {nearest}: {words}"


def continued(record: Mapping, checkpoint: Path | None, args: PARTTrainingArguments) -> tuple[dict, bool]:
    """The record of a stage that goes on from a checkpoint, and whether it goes on with changes.

    Args:
        record: what it would be without the checkpoint.
        checkpoint: inside the stage's folder; None where it begins.
        args: `resume_with_changes`.

    Raises:
        CheckpointError: a file of the checkpoint is missing or damaged.
        ValueError: the checkpoint was made with other data or settings; the message lists what has changed.
    """
    if checkpoint is None:
        return dict(record), False
    before = read_stage_json(checkpoint)
    check_checkpoint(checkpoint, before)
    done, steps = checkpoint_step(checkpoint), record["hyperparameters"]["num_steps"]
    anew = from_the_beginning(record)
    if done > steps:
        raise ValueError(
            f"{checkpoint} has done {done} steps, but the stage now has {steps}: give it more, or start again with "
            f"{anew}."
        )
    changes = differences(before, record)
    hardware = any(name in changes for name in DEVICES)
    told = {
        name: pair
        for name, pair in changes.items()
        if name not in DEVICES and not (hardware and name.startswith(OF_DEVICES))
    }
    fixed = {
        name: pair
        for name, pair in told.items()
        if NOT_RECORDED not in pair and (name == "hyperparameters.optim" or name.startswith(OF_THE_MODEL))
    }
    if fixed:
        raise ValueError(
            f"{checkpoint} is of another model: {in_words(fixed)}. Change it back, or start again with {anew}."
        )
    if told and not args.resume_with_changes:
        raise ValueError(
            f"What is trained has changed since {checkpoint}: {in_words(told)}. Change it back, start again with "
            f"{anew}, or go on with the changes from here with --resume_with_changes (stage.json will tell)."
        )
    if told:
        logger.warning("Stage %s goes on with changes from step %d: %s", record["stage"], done + 1, in_words(told))
    stretches = _stretches(before, record, changes, done)
    return {**record, **({"stretches": stretches} if stretches else {})}, bool(told)


def from_the_beginning(record: Mapping) -> str:
    """The options that train a stage anew, and no other."""
    return f"--stage {record['stage']} --force"


def check_checkpoint(checkpoint: Path, record: Mapping) -> None:
    """Raise `CheckpointError` where a checkpoint inside a stage lacks what resuming needs, or is damaged."""
    fix = f"Remove this checkpoint to go on from an earlier one, or start again with {from_the_beginning(record)}."
    check_files(checkpoint, record, fix)
    sharded, whole = ([*checkpoint.glob(pattern)] for pattern in ("optimizer.bin", "*optimizer.pt"))
    optimizer, others = (sharded, whole) if is_sharded() else (whole, sharded)
    if others and not optimizer:
        with_it, without = ("without", "with") if is_sharded() else ("with", "without")
        raise CheckpointError(
            f"{checkpoint} was made {with_it} FSDP2 and cannot go on {without} it: launch as before. {fix}"
        )
    for name, found in (("optimizer.pt", optimizer), ("scheduler.pt", [*checkpoint.glob("scheduler.pt")])):
        if not found:
            raise CheckpointError(f"{checkpoint} has no {name}: training would not go on where it stood. {fix}")


def _stretches(before: Mapping, record: Mapping, changes: Mapping[str, tuple], done: int) -> list[dict]:
    """Those of the checkpoint, and the one that begins after it where something has changed."""
    earlier = [dict(one) for one in before.get("stretches") or ()]
    if not changes:
        return earlier
    if not earlier:
        earlier = [{"first_step": 1, "values": {}}]
    new = {"first_step": done + 1, "values": {}}
    names = [*dict.fromkeys([*earlier[0]["values"], *changes])]
    old, now = _flat(before), _flat(record)
    for one in earlier:
        one["values"] = {name: one["values"].get(name, old.get(name, NOT_RECORDED)) for name in names}
    new["values"] = {name: now.get(name, NOT_RECORDED) for name in names}
    return [*(one for one in earlier if one["first_step"] <= done), new]


def _flat(record: Mapping) -> dict:
    """What is compared of a record, by dotted names, as JSON would hold it."""
    held = json.loads(json.dumps(record))
    return by_dotted_names({key: value for key, value in held.items() if key not in UNCOMPARED})


class NewSettings(TrainerCallback):
    """After a resume with changes: the optimizer's and the schedule's settings are those of now, not the checkpoint's.

    A schedule by plateaus has lowered the rates and does not know from where: it goes on with as much of the new ones.

    Args:
        stage: whose learning rates.
        record: of the stage; what has changed is in the last two of its stretches.
        decayed: names of the parameters with weight decay.
    """

    def __init__(self, stage: Stage, record: Mapping, decayed: set[str]) -> None:
        self.stage = stage
        self.decayed = decayed
        before, now = (one["values"] for one in record["stretches"][-2:])
        self.is_other_schedule = before.get(SCHEDULE) != now.get(SCHEDULE)
        recorded = {part: before.get(f"{LEARNING_RATES}{part}") for part in stage.learning_rates}
        known = {part: rate for part, rate in recorded.items() if isinstance(rate, int | float)}
        self.rates_before = {**stage.learning_rates, **known}

    def on_train_begin(self, args, state, control, model=None, optimizer=None, lr_scheduler=None, **kwargs) -> None:
        """When the checkpoint has been loaded, before the first step."""
        decayed = {id(one) for name, one in model.named_parameters() if plain_name(name) in self.decayed}
        schedule = getattr(lr_scheduler, "scheduler", lr_scheduler)
        starts = self.is_other_schedule or hasattr(schedule, "lr_lambdas")
        for group in optimizer.param_groups:
            rate = self.stage.learning_rates[group["part"]]
            group["lr"] = rate if starts else group["lr"] * rate / self.rates_before[group["part"]]
            group["initial_lr"] = rate
            group["weight_decay"] = args.weight_decay if id(group["params"][0]) in decayed else 0.0
            if "betas" in group:
                group["betas"] = (args.adam_beta1, args.adam_beta2)
            if "eps" in group:
                group["eps"] = args.adam_epsilon
        if hasattr(schedule, "base_lrs"):
            schedule.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
        if hasattr(schedule, "lr_lambdas"):
            use_schedule(schedule)


class SteadySchedule(TrainerCallback):
    """After a resume on other devices, the learning rate goes on where it stood.

    The same epochs have another number of steps then: at the step that was reached, a schedule of that number stands
    elsewhere, or in its warm-up again.

    Args:
        record: of the stage.
    """

    def __init__(self, record: Mapping) -> None:
        self.stretches = record.get("stretches") or ()
        self.num_steps = record["hyperparameters"]["num_steps"]

    def on_train_begin(self, args, state, control, lr_scheduler=None, **kwargs) -> None:
        """When the checkpoint has been loaded, before the first step."""
        place = partial(place_in_schedule, stretches=self.stretches, num_steps=self.num_steps)
        schedule = getattr(lr_scheduler, "scheduler", lr_scheduler)
        if place(state.global_step) == state.global_step or not hasattr(schedule, "lr_lambdas"):
            return
        schedule.lr_lambdas = [lambda step, factor=one: factor(place(step)) for one in schedule.lr_lambdas]
        use_schedule(schedule)


def place_in_schedule(step: int, stretches: Sequence[Mapping], num_steps: int) -> float:
    """The step of a stage as one of a schedule of `num_steps` that was never interrupted: as much of it is done.

    Args:
        step: of the stage, none before the last stretch.
        stretches: of its record; the number of steps in them where it has changed.
        num_steps: of the stage as it is now.
    """
    begin, share = 0, 0.0
    for one, following in pairwise(stretches):
        steps, changed = one["values"].get(STEPS), {*one["values"], *following["values"]}
        steps = steps if isinstance(steps, int) else num_steps
        done = following["first_step"] - 1
        share += (1 - share) * (done - begin) / max(1, steps - begin)
        if all(one["values"].get(name) == following["values"].get(name) for name in changed & {*DEVICES}):
            share = done / max(1, following["values"].get(STEPS) or num_steps)  # its length was changed by will
        begin = done
    if begin == share * num_steps:
        return step
    return num_steps * (share + (1 - share) * (step - begin) / max(1, num_steps - begin))


def use_schedule(schedule: torch.optim.lr_scheduler.LambdaLR) -> None:
    """Give the optimizer the learning rates of the schedule at the step where it stands."""
    groups = schedule.optimizer.param_groups
    for group, factor in zip(groups, schedule.lr_lambdas, strict=True):
        group["lr"] = group["initial_lr"] * factor(schedule.last_epoch)
    schedule._last_lr = [group["lr"] for group in groups]


def is_sharded() -> bool:
    """Whether this process was launched with FSDP2."""
    return parse_flag_from_env("ACCELERATE_USE_FSDP")
