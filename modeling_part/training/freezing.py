# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""What of the model trains in a stage, and the task gate (paper, section 2.2)."""

import re
from collections.abc import Sequence

import torch
from torch import nn

from ..recipes.stages import PARTS, Stage, part_of


_ENCODER_LAYER = r"^model\.audio_tower\.(?:encoder\.)?layers\.(\d+)\."

# Encoders whose `layer_norm` runs before their layers, as that of wav2vec2's family without `do_stable_layer_norm` does.
_NORM_BEFORE_LAYERS = ("data2vec-audio",)

# Whisper's and Qwen2-Audio's positions are fixed sinusoids, not parameters to learn; the mask embedding is of wav2vec2's own
# SpecAugment, which PART switches off: it would never get a gradient.
NEVER_TRAINED = re.compile(r"^model\.audio_tower\.(?:embed_positions\.|masked_spec_embed$)")


def trainable_patterns(stage: Stage, model: nn.Module) -> dict[str, list[str]]:
    """Anchored regular expressions of the parameters that train, per part."""
    patterns = {}
    for part in stage.learning_rates:
        if part == "language_model" and not stage.trains_language_model:
            continue
        patterns[part] = [f"^{re.escape(prefix)}" for prefix in PARTS[part]]
        if part == "adapter" and not stage.losses.get("ctc"):
            patterns[part] = [r"^model\.adapter\."]  # nothing else reaches the alignment head
        if part == "encoder" and stage.encoder_layers is not None:
            patterns[part] = _top_encoder_patterns(model, stage.encoder_layers)
        if part == "language_model" and stage.tuning == "lora":
            patterns[part] = [r"^model\.language_model\..*\.lora_[AB]\."]
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
    patterns = [rf"^model\.audio_tower\.(?:encoder\.)?layers\.(?:{top})\."]
    config = model.config.audio_config
    if config.model_type not in _NORM_BEFORE_LAYERS and getattr(config, "do_stable_layer_norm", True):
        patterns.append(r"^model\.audio_tower\.(?:encoder\.)?layer_norm\.")
    return patterns


def set_trainable(stage: Stage, model: nn.Module) -> dict[str, list[str]]:
    """Freeze everything, then open what `stage` trains (with an open gate).

    Returns:
        Names of the trainable parameters of each part.

    Raises:
        ValueError: no parameter of a part matches.
    """
    names = {}
    model.requires_grad_(False)
    parameters = {
        name: one for name, one in model.named_parameters(remove_duplicate=False) if not NEVER_TRAINED.match(name)
    }
    for part, patterns in trainable_patterns(stage, model).items():
        names[part] = [name for pattern in patterns for name in parameters if re.match(pattern, name)]
        # `lm_head` may be the tied embeddings, a trailing norm may be absent: only a whole part may not be.
        if not names[part]:
            raise ValueError(
                f"Stage {stage.name!r}: no parameter of the model matches {patterns} ({part}); nothing would train."
            )
        for name in names[part]:
            parameters[name].requires_grad_(True)
    return names


def cast_frozen(model: nn.Module, dtype: torch.dtype) -> None:
    """Keep what never trains in this stage natively in `dtype`: half the memory, and no cast in every step.

    A part of which some weights train keeps its dtype, except the weights under LoRA.
    """
    for part in (model.model.audio_tower, model.model.adapter, model.model.language_model, model.lm_head):
        has_lora = any(".lora_" in name for name, _ in part.named_parameters())
        frozen = [parameter for parameter in part.parameters() if not parameter.requires_grad]
        if has_lora or len(frozen) == len(list(part.parameters())):
            for parameter in frozen:
                parameter.data = parameter.data.to(dtype)


def parameters_per_part(model: nn.Module) -> dict[str, int]:
    """Number of parameters of each part, LoRA included, tied weights once."""
    counts = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        counts[part_of(name)] += parameter.numel()
    return counts


def trainable_per_part(model: nn.Module, trainable: dict[str, list[str]]) -> dict[str, int]:
    """Number of parameters that train, of each part; 0 for one that is frozen."""
    parameters = dict(model.named_parameters())  # tied weights once
    counts = dict.fromkeys(PARTS, 0)
    for part, names in trainable.items():
        counts[part] = sum(parameters[name].numel() for name in names if name in parameters)
    return counts


def gradient_norms(model: nn.Module, trainable: dict[str, list[str]]) -> dict[str, torch.Tensor]:
    """Norm of the gradients of each part that trains, `()` float32 where they are: nothing waits for them."""
    parameters, norms = named_parameters(model), {}
    for part, names in trainable.items():
        # Tied weights have two names.
        gradients = {parameters[name]: parameters[name].grad for name in names}.values()
        gradients = [gradient for gradient in gradients if gradient is not None]
        if gradients:
            norm = nn.utils.get_total_norm(gradients)
            norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        else:
            norm = torch.zeros((), device=parameters[names[0]].device)
        norms[part] = norm.float()
    return norms


class LanguageModelGate:
    """Opens and closes the gradients of the language model's trainable parameters (the task gate).

    A closed parameter gets no gradient at all (`grad` stays None), so that the optimizer touches neither it nor its
    state; gradients still flow *through* the language model to the adapter. FSDP2 replaces a model's parameters when
    it wraps it: build the gate from the wrapped model.

    Args:
        stage: decides which tasks open the gate.
        model: whole, or wrapped by FSDP2.
        names: of the language model's trainable parameters in this stage (maybe none), as in an unwrapped model.
    """

    def __init__(self, stage: Stage, model: nn.Module, names: Sequence[str]) -> None:
        parameters = named_parameters(model)
        self.stage = stage
        self.parameters = [parameters[name] for name in names]
        self.is_open = True
        self._sharded_units = [module for module in model.modules() if hasattr(module, "reshard")]

    def set_task(self, task: str) -> bool:
        """Open or close for a batch of `task`; returns whether it is open."""
        opens = bool(self.parameters) and self.stage.opens_language_model(task)
        if opens != self.is_open:
            for parameter in self.parameters:
                parameter.requires_grad_(opens)
            # What an evaluation leaves gathered would keep the gate of then: FSDP2 asks the shards when it gathers.
            for unit in self._sharded_units:
                unit.reshard()
            self.is_open = opens
        return opens


def frozen_modules(model: nn.Module) -> list[nn.Module]:
    """The largest parts without a trainable parameter."""
    parts = (model.model.audio_tower, model.model.adapter, model.model.language_model)
    return [part for part in parts if not any(parameter.requires_grad for parameter in part.parameters())]


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by the names that they have in an unwrapped model, tied ones under each of their names."""
    return {plain_name(name): parameter for name, parameter in model.named_parameters(remove_duplicate=False)}


def plain_name(name: str) -> str:
    """The name of a parameter without those of the wrappers of its model and modules."""
    return name.removeprefix("module.").replace("_checkpoint_wrapped_module.", "").replace("_orig_mod.", "")
