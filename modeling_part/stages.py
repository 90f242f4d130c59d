# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Stages of PART (paper, section 2.2): what trains, on which tasks, with which learning rates. A stage is data."""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches

import torch
from torch import nn


TASKS = ("asr", "s2tt", "mt")  # those of processing_part.py; this file imports nothing of ours
PARTS = ("adapter", "encoder", "language_model")
GATES = ("task_gated", "frozen", "always")
TUNINGS = ("lora", "full")

# Tasks whose answer is in another language than the input: the ones that may train the language model.
CROSS_LANGUAGE_TASKS = ("s2tt", "mt")

_ENCODER_LAYER = r"^model\.audio_tower\.(?:encoder\.)?layers\.(\d+)\."
# Whisper's and Qwen2-Audio's positions are fixed sinusoids, not parameters to learn.
_NEVER_TRAINED = re.compile(r"^model\.audio_tower\.embed_positions\.")


def _check_known(what: str, values: Iterable[str], known: Iterable[str]):
    for value in values:
        if value not in known:
            close = get_close_matches(str(value), list(known), n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"Unknown {what} {value!r}.{hint} Known: {', '.join(known)}.")


def _number(what: str, value) -> float:
    """YAML 1.1 reads 1e-3 (without a point) as text."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"`{what}` of a stage is {value!r}; it must be a number.") from None


@dataclass(frozen=True)
class Stage:
    """
    One stage of a training plan.

    Attributes:
        name: also the name of its checkpoint folder.
        tasks: weight of each task, 1.0 = every row once per epoch. Tasks not named are not trained.
        learning_rates: peak learning rate of each part that trains: `adapter`, `encoder`, `language_model`.
        encoder_layers: train only so many of the encoder's last layers; None means the whole encoder.
        epochs: length in passes over the data, unless `max_steps` is given.
        max_steps: length in optimizer steps.
        warmup_ratio: share of the steps over which the learning rates rise.
        gate: when the language model gets gradients, if it trains at all. `task_gated` (the method): on cross-language
            batches only; `always`: on every batch; `frozen`: never.
        tuning: how the language model trains, `lora` (Interspeech version) or `full` (arXiv v1).
        lora_rank, lora_alpha, lora_dropout: LoRA of all linear layers of the language model, see `peft.LoraConfig`.
            The paper names no values.
    """

    name: str
    tasks: dict[str, float]
    learning_rates: dict[str, float]
    encoder_layers: int | None = None
    epochs: int | None = 1
    max_steps: int | None = None
    warmup_ratio: float = 0.05
    gate: str = "task_gated"
    tuning: str = "lora"
    lora_rank: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0

    def __post_init__(self):
        _check_known(f"stage {self.name!r}: task", self.tasks, TASKS)
        _check_known(f"stage {self.name!r}: part in learning_rates", self.learning_rates, PARTS)
        _check_known(f"stage {self.name!r}: gate", [self.gate], GATES)
        _check_known(f"stage {self.name!r}: tuning", [self.tuning], TUNINGS)
        if not re.fullmatch(r"[a-z0-9_]+", self.name):
            raise ValueError(f"Stage name {self.name!r}: use lower-case letters, digits and underscores (a folder).")
        if not any(self.tasks.values()) or not self.learning_rates:
            raise ValueError(f"Stage {self.name!r} trains nothing: give it `tasks` and `learning_rates`.")
        if self.epochs is None and self.max_steps is None:
            raise ValueError(f"Stage {self.name!r} has no length: give `epochs` or `max_steps`.")
        if not 0.0 <= self.warmup_ratio < 1.0:
            raise ValueError(f"Stage {self.name!r}: `warmup_ratio` is {self.warmup_ratio}; it must be in [0, 1).")
        if self.encoder_layers is not None and "encoder" not in self.learning_rates:
            raise ValueError(f"Stage {self.name!r}: `encoder_layers` needs a learning rate for `encoder`.")
        if self.encoder_layers is not None and self.encoder_layers < 1:
            raise ValueError(
                f"Stage {self.name!r}: `encoder_layers` is {self.encoder_layers}; give at least 1, or leave `encoder` out "
                "of `learning_rates`."
            )
        for part, rate in self.learning_rates.items():
            if not rate > 0.0:
                raise ValueError(f"Stage {self.name!r}: the learning rate of {part} is {rate}; leave the part out.")
        if "mt" in self.active_tasks and not self.opens_language_model("mt"):
            raise ValueError(
                f"Stage {self.name!r}: `mt` batches hold no audio and can only train the language model, which this stage "
                "keeps frozen. Leave `mt` out of `tasks`."
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
        return self.gate == "always" or task in CROSS_LANGUAGE_TASKS


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


def build_plan(stages: list[dict | str] | None) -> list[Stage]:
    """
    A recipe's `stages` -> the stages to run, in order.

    Args:
        stages: mappings with the fields of [`Stage`], or names. A stage with a built-in name states only what it
            changes. None gives the paper's plan.

    Raises:
        ValueError: an unknown field or name, two stages with one name; the message names it and what is known.
    """
    if not stages:
        return list(BUILT_IN_STAGES.values())
    plan = []
    for entry in stages:
        entry = {"name": entry} if isinstance(entry, str) else dict(entry)
        known = [one.name for one in fields(Stage)]
        _check_known("field of a stage", entry, known)
        if "name" not in entry:
            raise ValueError(f"A stage of the recipe has no `name`: {entry}.")
        for key in ("learning_rates", "tasks"):
            if isinstance(entry.get(key), dict):
                entry[key] = {name: _number(f"{key}: {name}", value) for name, value in entry[key].items()}
        if "warmup_ratio" in entry:
            entry["warmup_ratio"] = _number("warmup_ratio", entry["warmup_ratio"])
        base = BUILT_IN_STAGES.get(entry["name"])
        if base is None and not {"tasks", "learning_rates"} <= set(entry):
            raise ValueError(
                f"Stage {entry['name']!r} is not built in ({', '.join(BUILT_IN_STAGES)}): give its `tasks` and "
                "`learning_rates`."
            )
        plan.append(Stage(**entry) if base is None else replace(base, **entry))
    names = [stage.name for stage in plan]
    if len(set(names)) != len(names):
        raise ValueError(f"The recipe names a stage twice: {names}.")
    return plan


def trainable_patterns(stage: Stage, model: nn.Module) -> dict[str, list[str]]:
    """Anchored regular expressions of the parameters that train, per part."""
    patterns = {}
    for part in stage.learning_rates:
        if part == "adapter":
            patterns[part] = [r"^model\.adapter\."]
        elif part == "encoder":
            patterns[part] = [r"^model\.audio_tower\."]
            if stage.encoder_layers is not None:
                patterns[part] = _top_encoder_patterns(model, stage.encoder_layers)
        elif stage.trains_language_model:
            language_model = r"^model\.language_model\..*\.lora_[AB]\." if stage.tuning == "lora" else None
            patterns[part] = [language_model] if language_model else [r"^model\.language_model\.", r"^lm_head\."]
    return patterns


def _top_encoder_patterns(model: nn.Module, layers: int) -> list[str]:
    """The encoder's last layers and what follows them; fewer where it has fewer."""
    indices = {
        int(match[1]) for name, _ in model.named_parameters() if (match := re.match(_ENCODER_LAYER, name)) is not None
    }
    if not indices:
        raise ValueError(
            f"{type(model).__name__}'s audio tower has no parameters `layers.N.` to take the last {layers} of; train "
            "the whole encoder (`encoder_layers: null`)."
        )
    top = "|".join(str(index) for index in sorted(indices)[-layers:])
    return [
        rf"^model\.audio_tower\.(?:encoder\.)?layers\.(?:{top})\.",
        r"^model\.audio_tower\.(?:encoder\.)?layer_norm\.",
    ]


def set_trainable(stage: Stage, model: nn.Module) -> dict[str, list[str]]:
    """
    Freeze everything, then open what `stage` trains (with an open gate).

    Returns:
        Names of the trainable parameters of each part.

    Raises:
        ValueError: a pattern matches no parameter.
    """
    names = {}
    model.requires_grad_(False)
    for part, patterns in trainable_patterns(stage, model).items():
        names[part] = []
        for pattern in patterns:
            matched = [
                name
                for name, _ in model.named_parameters(remove_duplicate=False)
                if re.match(pattern, name) and not _NEVER_TRAINED.match(name)
            ]
            # `lm_head` may be the tied embeddings, a trailing norm may be absent: only a whole part may not be.
            names[part] += matched
        if not names[part]:
            raise ValueError(
                f"Stage {stage.name!r}: no parameter of the model matches {patterns} ({part}); nothing would train."
            )
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for part_names in names.values():
        for name in part_names:
            parameters[name].requires_grad_(True)
    return names


def cast_frozen(model: nn.Module, dtype: torch.dtype):
    """
    Keep what never trains in this stage natively in `dtype`: half the memory, and no cast in every step.

    A part of which some weights train keeps its dtype, but for the weights under LoRA.
    """
    for part in (model.model.audio_tower, model.model.adapter, model.model.language_model, model.lm_head):
        has_lora = any(".lora_" in name for name, _ in part.named_parameters())
        if has_lora or not any(parameter.requires_grad for parameter in part.parameters()):
            for parameter in part.parameters():
                if not parameter.requires_grad:
                    parameter.data = parameter.data.to(dtype)


def parameters_per_part(model: nn.Module) -> dict[str, int]:
    """Number of parameters of each part, LoRA included, tied weights once."""
    prefixes = {"adapter": ("model.adapter.",), "encoder": ("model.audio_tower.",)}
    counts = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        part = next((part for part, prefix in prefixes.items() if name.startswith(prefix)), "language_model")
        counts[part] += parameter.numel()
    return counts


class LanguageModelGate:
    """
    Opens and closes the gradients of the language model's trainable parameters (the task gate).

    A closed parameter gets no gradient at all (`grad` stays None), so that the optimizer touches neither it nor its
    state; gradients still flow *through* the language model to the adapter. FSDP2 replaces a model's parameters when
    it wraps it: build the gate from those of the wrapped model.

    Args:
        stage: decides which tasks open the gate.
        parameters: the language model's trainable parameters in this stage (maybe none).
    """

    def __init__(self, stage: Stage, parameters: list[nn.Parameter]):
        self.stage = stage
        self.parameters = parameters
        self.is_open = True

    def set_task(self, task: str) -> bool:
        """Open or close for a batch of `task`; returns whether it is open."""
        opens = bool(self.parameters) and self.stage.opens_language_model(task)
        if opens != self.is_open:
            for parameter in self.parameters:
                parameter.requires_grad_(opens)
            self.is_open = opens
        return opens


def add_lora(stage: Stage, model: nn.Module):
    """Inject LoRA (peft) into every linear layer of the language model's blocks, and only there."""
    from peft import LoraConfig, inject_adapter_in_model
    from transformers.pytorch_utils import Conv1D

    linear = {
        name: module
        for name, module in model.model.language_model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
    }
    # Explicit names: a pattern such as `q_proj` would also match the encoder and the adapter.
    targets = [f"model.language_model.{name}" for name in linear]
    if not targets:
        raise ValueError(f"{type(model.model.language_model).__name__} has no linear layers for LoRA; use `full`.")
    config = LoraConfig(
        r=stage.lora_rank,
        lora_alpha=stage.lora_alpha,
        lora_dropout=stage.lora_dropout,
        target_modules=targets,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in linear.values()),
    )
    inject_adapter_in_model(config, model)


def transposed_lora(model: nn.Module) -> set[str]:
    """Names of the layers under LoRA that keep their weight as `(in, out)`: GPT-2's `Conv1D`."""
    from transformers.pytorch_utils import Conv1D

    return {name.removesuffix(".base_layer") for name, module in model.named_modules() if isinstance(module, Conv1D)}


def split_lora(
    state_dict: dict[str, torch.Tensor], scaling: float, transposed: Collection[str] = ()
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """
    A state dict with LoRA -> (plain weights with LoRA merged, the LoRA tensors alone).

    W + scaling * B A, as `peft`'s own merge, but on a state dict: the live model stays as it is, and a gathered
    FSDP state dict works too.

    Args:
        state_dict: may hold `X.base_layer.weight`, `X.lora_A.default.weight` `(r, in)` and
            `X.lora_B.default.weight` `(out, r)`.
        scaling: alpha / rank.
        transposed: prefixes X whose weight is `(in, out)`, see [`transposed_lora`].

    Returns:
        Both dicts; what was merged is in float32, whatever the dtype of the weight under LoRA.
    """
    lora = {name: tensor for name, tensor in state_dict.items() if ".lora_" in name}
    merged = {}
    for name, tensor in state_dict.items():
        if name in lora:
            continue
        prefix = name.removesuffix(".base_layer.weight")
        if prefix != name:
            down, up = lora[f"{prefix}.lora_A.default.weight"], lora[f"{prefix}.lora_B.default.weight"]
            delta = (up.float() @ down.float()) * scaling
            tensor = tensor.float() + (delta.T if prefix in transposed else delta)
        merged[name.replace(".base_layer.", ".")] = tensor
    return merged, lora
