# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Stages of PART (paper, section 2.2): what trains, on which tasks, with which learning rates. A stage is data."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

from ..prompts_part import TASKS, TEXT_TASKS
from .suggestions import did_you_mean
from .values import checked_fields, shortened


# What a stage may train -> how the names of its parameters begin.
PARTS = {
    "adapter": ("model.adapter.", "alignment_head."),
    "encoder": ("model.audio_tower.",),
    "language_model": ("model.language_model.", "lm_head."),
}
FOLDERS_OF_A_RUN = ("data", "analyses", "tensorboard")  # beside those of its stages
GATES = ("task_gated", "frozen", "always")
TUNINGS = ("lora", "full")
# Of the answer given audio and prompt (the paper's only one), of the transcript given audio (see alignment_part.py), and of
# what the language model answered to text before the stage.
LOSSES = ("nll", "ctc", "kl")

# Tasks whose answer is in another language than the input: the ones that may train the language model.
CROSS_LANGUAGE_TASKS = ("s2tt", "mt")
OPENING_TASKS = (*CROSS_LANGUAGE_TASKS, "text")  # and other text tasks, which reach nothing but the language model


def _check_known(where: str, what: str, values: Iterable[str], known: Sequence[str]) -> None:
    for value in values:
        if value not in known:
            raise ValueError(
                f"{where}: Unknown {what} {value!r}.{did_you_mean(value, known)} Known: {', '.join(known)}."
            )


def part_of(name: str) -> str:
    """The part of [`PARTForSpeechSeq2Seq`] that a parameter belongs to, by its name."""
    return next(part for part, prefixes in PARTS.items() if name.startswith(prefixes))


@dataclass(frozen=True)
class Stage:
    """One stage of a training plan.

    Attributes:
        name: also the name of its checkpoint folder.
        tasks: weight of each task, 1.0 = every row once per epoch. Tasks not named are not trained.
        learning_rates: peak learning rate of each part that trains: `adapter`, `encoder`, `language_model`.
        encoder_layers: train only so many of the encoder's last layers; None means the whole encoder.
        epochs: length in passes over the data, also a fraction of one, unless `max_steps` is given.
        max_steps: length in optimizer steps.
        warmup_ratio: share of the steps over which the learning rates rise.
        gate: when the language model gets gradients, if it trains at all. `task_gated` (the method): on cross-language
            batches and those of the task `text` only; `always`: on every batch; `frozen`: never.
        tuning: how the language model trains, `lora` (Interspeech version) or `full` (arXiv v1).
        lora_rank, lora_alpha, lora_dropout: LoRA of all linear layers of the language model, see `peft.LoraConfig`.
            The paper names no values.
        losses: weight of each loss. `nll`: the answer's negative log-likelihood, the paper's only loss. `ctc`: alignment
            of the audio with the transcript's tokens in the language model's embedding space (ours, see
            `alignment_part.py`). Without `nll` the language model does not run in the stage. `kl`: in batches of text tasks,
            the divergence of the language model's answers from those that it would have given at the stage's start,
            `KL(start || now)` for each token of the answer, as InstructGPT (arXiv 2203.02155) holds a policy to its start, and
            in the direction and on the tokens that ultravox takes. It costs one more forward pass of the language model.
            The start is the language model without the stage's LoRA, which takes no memory.
    """

    name: str
    tasks: dict[str, float]
    learning_rates: dict[str, float]
    encoder_layers: int | None = None
    epochs: float | None = 1
    max_steps: int | None = None
    warmup_ratio: float = 0.05
    gate: str = "task_gated"
    tuning: str = "lora"
    lora_rank: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    losses: dict[str, float] = field(default_factory=lambda: {"nll": 1.0})

    def __post_init__(self) -> None:
        where = f"Stage {self.name!r}"
        _check_known(where, "task", self.tasks, TASKS)
        _check_known(where, "part in `learning_rates`", self.learning_rates, PARTS)
        _check_known(where, "gate", [self.gate], GATES)
        _check_known(where, "tuning", [self.tuning], TUNINGS)
        _check_known(where, "loss in `losses`", self.losses, LOSSES)
        if not re.fullmatch(r"[a-z0-9_]{1,100}", self.name):
            raise ValueError(
                f"Stage name {shortened(self.name)}: use lower-case letters, digits and underscores, at most 100 (a folder)."
            )
        if self.name in FOLDERS_OF_A_RUN:
            raise ValueError(
                f"Stage name {self.name!r}: a run has a folder of that name for other things; choose another."
            )
        if not any(self.tasks.values()) or not self.learning_rates:
            raise ValueError(f"{where} trains nothing: give it `tasks` and `learning_rates`.")
        if self.epochs is None and self.max_steps is None:
            raise ValueError(f"{where} has no length: give `epochs` or `max_steps`.")
        if not 0.0 <= self.warmup_ratio < 1.0:
            raise ValueError(f"{where}: `warmup_ratio` is {self.warmup_ratio}; it must be in [0, 1).")
        if self.encoder_layers is not None and self.encoder_layers < 1:
            raise ValueError(
                f"{where}: `encoder_layers` is {self.encoder_layers}; give at least 1, or leave `encoder` out of "
                "`learning_rates`."
            )
        if self.encoder_layers is not None and "encoder" not in self.learning_rates:
            raise ValueError(f"{where}: `encoder_layers` needs a learning rate for `encoder`.")
        for part, rate in self.learning_rates.items():
            if not rate > 0.0:
                raise ValueError(f"{where}: the learning rate of {part} is {rate}; leave the part out.")
        if not any(self.losses.values()) or any(weight < 0 for weight in self.losses.values()):
            raise ValueError(f"{where}: `losses` is {self.losses}; give {' or '.join(LOSSES)} a positive weight.")
        self._check_kl()
        of_text = [task for task in TEXT_TASKS if task in self.active_tasks]
        if not self.losses.get("nll") and (of_text or "language_model" in self.learning_rates):
            raise ValueError(
                f"{where}: without `nll` in `losses` the language model does not run; leave it out of "
                f"`learning_rates`, and `{of_text[0] if of_text else 'mt'}` out of `tasks`."
            )
        for task in of_text:
            if not self.opens_language_model(task):
                raise ValueError(
                    f"{where}: `{task}` can only train the language model, which stays frozen; leave `{task}` out "
                    "of `tasks`."
                )

    def _check_kl(self) -> None:
        """Raise ValueError where `kl` has no start to hold the language model to, or nothing to hold it by."""
        if not self.losses.get("kl"):
            return
        if not self.trains_language_model or self.tuning != "lora":
            raise ValueError(
                f"Stage {self.name!r}: `kl` in `losses` holds the language model to its start, which is there beside it only "
                "with LoRA (a frozen copy would take the language model's memory twice): set `tuning: lora` and a learning "
                "rate for `language_model`, or leave `kl` out."
            )
        if not set(TEXT_TASKS) & set(self.active_tasks):
            raise ValueError(
                f"Stage {self.name!r}: `kl` in `losses` is of text tasks: add {' or '.join(TEXT_TASKS)} to `tasks`, or leave "
                "`kl` out."
            )

    @property
    def trains_language_model(self) -> bool:
        """Whether any batch of the stage may change the language model."""
        return "language_model" in self.learning_rates and any(map(self.opens_language_model, self.active_tasks))

    @property
    def active_tasks(self) -> tuple[str, ...]:
        """Tasks with a positive weight."""
        return tuple(task for task, weight in self.tasks.items() if weight)

    def opens_language_model(self, task: str) -> bool:
        """Whether a batch of `task` gives gradients to the language model: the task gate."""
        if "language_model" not in self.learning_rates or self.gate == "frozen":
            return False
        return self.gate == "always" or task in OPENING_TASKS


# The paper's plan. Learning rates, batch sizes and ratios are not given there; these are ours.
BUILT_IN_STAGES = {
    stage.name: stage
    for stage in (
        Stage("adapter", tasks={"asr": 1.0}, learning_rates={"adapter": 1e-3}),
        Stage(
            "encoder_top",
            tasks={"asr": 1.0},
            learning_rates={"adapter": 5e-4, "encoder": 1e-4},
            encoder_layers=8,
        ),
        Stage("encoder", tasks={"asr": 1.0}, learning_rates={"adapter": 5e-4, "encoder": 1e-4}),
        Stage(
            "joint",
            tasks={"asr": 1.0, "s2tt": 1.0, "mt": 1.0},
            learning_rates={"adapter": 2e-4, "encoder": 5e-5, "language_model": 2e-4},
        ),
    )
}


def build_plan(stages: Sequence[Mapping | str] | Mapping[str, Mapping | None] | None) -> list[Stage]:
    """A recipe's `stages` -> the stages to run, in order.

    Args:
        stages: mappings with the fields of [`Stage`], or names. A stage with a built-in name states only what it
            changes. None gives the paper's plan, a mapping changes it (see [`change_plan`]).

    Raises:
        ValueError: an unknown field or name, two stages with one name; the message names it and what is known.
    """
    if isinstance(stages, Mapping):
        stages = change_plan(None, stages)
    if not stages:
        return list(BUILT_IN_STAGES.values())
    plan = []
    for entry in _entries(stages):
        _check_known(f"Stage {entry['name']!r}", "field", entry, [one.name for one in fields(Stage)])
        entry = checked_fields(entry, Stage, f"Stage {entry['name']!r}: ")
        base = BUILT_IN_STAGES.get(entry["name"])
        if base is None and not {"tasks", "learning_rates"} <= set(entry):
            raise ValueError(
                f"`stages`: {entry['name']!r} is not built in ({', '.join(BUILT_IN_STAGES)}): give its `tasks` and "
                "`learning_rates`."
            )
        plan.append(Stage(**entry) if base is None else replace(base, **entry))
    return plan


def change_plan(stages: Sequence[Mapping | str] | None, changes: Mapping[str, Mapping | None]) -> list[dict]:
    """A plan with some of its stages changed.

    Args:
        stages: the plan, as in a recipe; None is the paper's.
        changes: by the name of a stage, the fields that replace its own, whole; None leaves the stage out.

    Raises:
        ValueError: the plan has no such stage, or none is left.
    """
    entries = {entry["name"]: entry for entry in _entries(stages or list(BUILT_IN_STAGES))}
    _check_known("`stages`", "stage to change", changes, list(entries))
    for name, change in changes.items():
        if change is None:
            del entries[name]
        elif isinstance(change, Mapping):
            entries[name] |= change
        else:
            raise ValueError(
                f"Stage {name!r}: The change is {change!r}; give a mapping of fields, or null to leave it out."
            )
    if not entries:
        raise ValueError("The recipe leaves all stages out.")
    return list(entries.values())


def change_setting(
    stages: Sequence[Mapping | str] | None, stage: str, path: Sequence[str], value: object
) -> list[dict]:
    """A plan with one setting of one stage changed.

    Args:
        stages: the plan, as in a recipe; None is the paper's.
        stage: its name.
        path: the field, such as `["max_steps"]`, and in a field that is a mapping the key: `["tasks", "asr"]`.
        value: what it shall be.

    Raises:
        ValueError: the plan has no such stage, or a path leads nowhere.
    """
    name, *keys = path
    if keys:
        known = {one.name: one for one in build_plan(stages)}
        _check_known("`stages`", "stage to change", [stage], list(known))
        whole = getattr(known[stage], name, None)
        if not isinstance(whole, Mapping) or len(keys) > 1:
            raise ValueError(f"--stages.{stage}.{'.'.join(path)}: `{name}` of a stage has no such setting.")
        value = {**whole, keys[0]: value}
    return change_plan(stages, {stage: {name: value}})


def _entries(stages: Sequence[Mapping | str]) -> list[dict]:
    """The stages of a recipe as mappings with a `name`."""
    if isinstance(stages, str) or not isinstance(stages, Sequence):
        raise ValueError(f"`stages` is {stages!r}; give a list of stages, or a mapping of changes.")
    entries = []
    for entry in stages:
        if not isinstance(entry, Mapping | str):
            raise ValueError(
                f"`stages`: A stage of the recipe is {entry!r}; give its name, or a mapping of its fields."
            )
        entries.append({"name": entry} if isinstance(entry, str) else dict(entry))
        if not isinstance(entries[-1].get("name"), str):
            raise ValueError(f"`stages`: A stage of the recipe has no `name`, or one that is no text: {entry}.")
    names = [entry["name"] for entry in entries]
    if len(set(names)) != len(names):
        raise ValueError(f"`stages`: The recipe names a stage twice: {names}.")
    return entries
