# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Taking a PART model's parts from pretrained checkpoints: safetensors only, and every tensor accounted for."""

from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from .configuration_part import PARTConfig


@contextmanager
def explain_missing_safetensors(name: str):
    """Say why a checkpoint of pickles is refused."""
    try:
        yield
    except OSError as error:
        if "safetensors" not in str(error):
            raise
        raise OSError(
            f"{str(name)!r} has no weights in safetensors, and PART reads no pickles (they can run code). Convert them "
            f"where they are trusted: load the model with transformers and `save_pretrained` it. ({error})"
        ) from error


def check_tensors(name: str, model_class: type, missing=(), surplus=(), reshaped=()) -> None:
    """Refuse a checkpoint that does not hold exactly the tensors of a model."""
    faults = {"missing": missing, "surplus": surplus, "of another shape": reshaped}
    if any(faults.values()):
        told = "; ".join(
            f"{len(keys)} {fault} ({', '.join(sorted(keys)[:5])}{', ...' if len(keys) > 5 else ''})"
            for fault, keys in faults.items()
            if keys
        )
        raise ValueError(f"The weights of {str(name)!r} are not those of {model_class.__name__}: tensors {told}.")


def load_part(auto_class: type, name: str, find: Callable | None = None, **loading) -> PreTrainedModel:
    """Load a checkpoint (or `find` its part that is wanted); weights that are missing in it are an error."""
    with explain_missing_safetensors(name):
        model, info = auto_class.from_pretrained(name, use_safetensors=True, output_loading_info=True, **loading)
    part = model if find is None else find(model)
    prefix = next(f"{path}." if path else "" for path, module in model.named_modules() if module is part)
    missing = [key for key in info["missing_keys"] if key.startswith(prefix)]
    # Only SpecAugment uses it, which PART switches off; older wav2vec2 checkpoints lack it.
    check_tensors(name, type(part), missing=[key for key in missing if not key.endswith("masked_spec_embed")])
    return part


@torch.no_grad()
def embedding_scale(causal_lm: PreTrainedModel) -> float:
    """Root mean square of the token embeddings, as the language model's layers see them (Gemma 3 scales them)."""
    embed = causal_lm.get_input_embeddings()
    total = sum(
        embed(ids).float().pow(2).mean(-1).sum()
        for ids in torch.arange(embed.num_embeddings, device=embed.weight.device).split(4096)
    )
    return (total / embed.num_embeddings).sqrt().item()


def find_encoder(model: PreTrainedModel) -> PreTrainedModel:
    """The part of a loaded checkpoint that turns features into frames."""
    if hasattr(model, "audio_tower"):
        return model.audio_tower
    if model.config.is_encoder_decoder:
        return model.get_encoder()
    return model


def copy_weights(source: nn.Module, target: nn.Module, name: str) -> None:
    """Copy a part's weights; a missing or surplus tensor is an error that names it."""
    missing, surplus = target.load_state_dict(source.state_dict(), strict=False)
    check_tensors(name, type(target), missing, surplus)


def greedy_generation_config(causal_lm: PreTrainedModel, tokenizer, config: PARTConfig) -> GenerationConfig:
    """Greedy decoding (the paper, section 3) with the tokenizer's ends; the placeholder is never generated."""
    ends = causal_lm.generation_config.eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends or ())
    if tokenizer.eos_token_id is not None:
        ends.add(tokenizer.eos_token_id)
    pad = tokenizer.pad_token_id
    return GenerationConfig(
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=sorted(ends) or None,
        pad_token_id=pad if pad is not None else tokenizer.eos_token_id,
        suppress_tokens=[config.audio_token_id],
        max_new_tokens=256,
    )
