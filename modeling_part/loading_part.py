# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Taking a PART model's parts from pretrained checkpoints: safetensors only, and every tensor accounted for."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from .configuration_part import PARTConfig
from .fbank_part import PARTFbankFeatureExtractor
from .processing_part import PARTProcessor
from .san_m_part import SAN_M_ENCODERS
from .templates_part import without_thinking


logger = logging.getLogger(__name__)


@contextmanager
def explain_missing_safetensors(name: str) -> Iterator[None]:
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


def check_tensors(name: str, model_class: type, missing=(), unexpected=(), mismatched=()) -> None:
    """Refuse a checkpoint that does not hold exactly the tensors of a model."""
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": mismatched}
    if any(problems.values()):
        reported = "; ".join(
            f"{len(keys)} {problem} ({', '.join(sorted(keys)[:5])}{', ...' if len(keys) > 5 else ''})"
            for problem, keys in problems.items()
            if keys
        )
        raise ValueError(f"The weights of {str(name)!r} are not those of {model_class.__name__}: tensors {reported}.")


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


def has_learned_positions(language_model: nn.Module) -> bool:
    """Whether a language model looks its positions up in a table, which ends (GPT-2, OPT)."""
    return any(
        isinstance(module, nn.Embedding) and ("pos" in name or name.endswith("wpe"))
        for name, module in language_model.named_modules()
    )


def find_encoder(model: PreTrainedModel) -> PreTrainedModel:
    """The part of a loaded checkpoint that turns features into frames."""
    if hasattr(model, "audio_tower"):
        return model.audio_tower
    if model.config.is_encoder_decoder:
        return model.get_encoder()
    return model


def copy_weights(source: nn.Module, target: nn.Module, name: str) -> None:
    """Copy a part's weights; a missing or unexpected tensor is an error that names it."""
    missing, unexpected = target.load_state_dict(source.state_dict(), strict=False)
    check_tensors(name, type(target), missing, unexpected)


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


def tied_weights_keys(causal_lm: PreTrainedModel) -> dict[str, str]:
    """The causal LM's tied weights under the names that they have in [`PARTForSpeechSeq2Seq`]."""
    prefix = f"{causal_lm.base_model_prefix}."
    of_head = causal_lm.get_output_embeddings()  # BioGPT's is its `output_projection`
    head = next((f"{path}." for path, module in causal_lm.named_modules() if module is of_head), "lm_head.")

    def rename(name: str) -> str:
        if name.startswith(head):
            return f"lm_head.{name.removeprefix(head)}"
        return f"model.language_model.{name.removeprefix(prefix)}" if name.startswith(prefix) else name

    return {rename(target): rename(source) for target, source in (causal_lm._tied_weights_keys or {}).items()}


def check_kind(config: PreTrainedConfig, name: str) -> None:
    """Refuse, before its weights are fetched, what is no language model or more than one."""
    model_class = AutoModelForCausalLM._model_mapping.get(type(config), None)
    # Of some, transformers takes the language model out of the whole, whose configuration is another.
    is_whole = model_class is None or model_class.config_class is type(config)
    if is_whole and getattr(config, "text_config", None) is not None:
        refuse_language_model(name, config.model_type, "it is more than a language model (it sees images, or hears)")
    if model_class is None and not hasattr(config, "auto_map"):
        refuse_language_model(name, config.model_type, "transformers has no causal language model of its type")


def refuse_language_model(name: str, kind: str, problem: str) -> NoReturn:
    """Raise ValueError with what is wrong with a language model, and others to take."""
    raise ValueError(
        f"{name!r} ({kind}) cannot be PART's language model: {problem}. Use one of text alone, such as Qwen2.5, Qwen3, "
        "Llama or Gemma 3 1B."
    )


@contextmanager
def eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """A model with eager attention, whatever it is set to: it is on the CPU, and flash attention's kernels need a GPU.

    A few language models cannot change their attention (Falcon, GPT-J, GPT-Neo) and keep it.
    """
    if not model._can_set_attn_implementation():
        yield
        return
    attention = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(attention)


@torch.no_grad()
def check_layers(causal_lm: PreTrainedModel, name: str) -> None:
    """Refuse a language model whose layers give no hidden states or cache of embeddings that are no token's (audio)."""
    try:
        embeds = causal_lm.get_input_embeddings()(torch.arange(1, 5, device=causal_lm.device)[None]) + 1
        outputs = causal_lm.base_model(inputs_embeds=embeds)
    except (RuntimeError, TypeError, ValueError) as error:
        problem = f"its layers do not take embeddings that are no token's ({error})"
    else:
        lost = [one for one in ("last_hidden_state", "past_key_values") if not hasattr(outputs, one)]
        problem = f"its layers give no {' and no '.join(lost)}" if lost else None
    if problem:
        refuse_language_model(name, type(causal_lm).__name__, problem)


@torch.no_grad()
def check_same_logits(causal_lm: PreTrainedModel, model: PreTrainedModel, name: str) -> None:
    """Refuse a language model that does more between its layers and its logits than PART knows."""
    ids = torch.arange(1, 5, device=causal_lm.device)[None]
    expected, given = causal_lm(input_ids=ids).logits, model.eval()(input_ids=ids).logits
    if not torch.allclose(expected, given, rtol=1e-2, atol=1e-2 * expected.abs().max().item()):
        raise ValueError(
            f"{name!r} ({type(causal_lm).__name__}) gives other logits inside PART: it changes them in a way that "
            "`logits_part.scale_logits` does not know. Use another language model, or add the change there."
        )


def load_parts(
    model_class: type[PreTrainedModel],
    audio_model: str,
    language_model: str,
    *,
    audio_token: str,
    dtype: torch.dtype | str,
    attn_implementation: str | None,
    revision_audio: str | None,
    revision_language: str | None,
    system_prompt: str | None,
    **adapter_settings,
) -> tuple[PreTrainedModel, PARTProcessor]:
    """The body of `PARTForSpeechSeq2Seq.from_pretrained_parts`, which describes the arguments."""
    unknown = set(adapter_settings) - set(PARTConfig.__annotations__)
    if unknown:
        raise TypeError(f"`from_pretrained_parts` got unknown settings {sorted(unknown)}; see PARTConfig.")
    check_kind(AutoConfig.from_pretrained(language_model, revision=revision_language), language_model)
    tokenizer = AutoTokenizer.from_pretrained(language_model, revision=revision_language)
    tokenizer.chat_template = without_thinking(tokenizer.chat_template)
    attention = {"attn_implementation": attn_implementation}
    causal_lm = load_part(AutoModelForCausalLM, language_model, revision=revision_language, dtype=dtype, **attention)
    runs_here = "flash" not in (attn_implementation or "") or causal_lm._can_set_attn_implementation()
    if runs_here:
        with eager_attention(causal_lm):
            check_layers(causal_lm, language_model)
    else:
        message = "%s cannot leave its %s, which needs a GPU: whether it can be PART's language model is not checked"
        logger.warning(message, type(causal_lm).__name__, attn_implementation)
    encoder = load_part(
        AutoModel, audio_model, find=find_encoder, revision=revision_audio, dtype=causal_lm.dtype, **attention
    )
    extractors = dict.fromkeys(SAN_M_ENCODERS, PARTFbankFeatureExtractor)  # transformers' own needs torchaudio
    extractor_class = extractors.get(encoder.config.model_type, AutoFeatureExtractor)
    feature_extractor = extractor_class.from_pretrained(audio_model, revision=revision_audio)
    if tokenizer.convert_tokens_to_ids(audio_token) in (None, tokenizer.unk_token_id):
        tokenizer.add_special_tokens({"additional_special_tokens": [audio_token]})
    adapter_settings.setdefault("adapter_output_scale", embedding_scale(causal_lm))
    size = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values()))  # the numbers of some have holes
    if size > causal_lm.get_input_embeddings().num_embeddings:
        causal_lm.resize_token_embeddings(size, pad_to_multiple_of=64)

    config = PARTConfig(
        audio_config=encoder.config,
        text_config=causal_lm.config,
        audio_token_id=tokenizer.convert_tokens_to_ids(audio_token),
        **adapter_settings,
    )
    model = model_class._from_config(config, dtype=causal_lm.dtype, **attention)
    copy_weights(encoder, model.model.audio_tower, audio_model)
    copy_weights(causal_lm.base_model, model.model.language_model, language_model)
    model.lm_head.load_state_dict(causal_lm.get_output_embeddings().state_dict())
    model.tie_weights()
    if runs_here:
        with eager_attention(causal_lm), eager_attention(model.model.language_model):
            check_same_logits(causal_lm, model, language_model)
    model.generation_config = greedy_generation_config(causal_lm, tokenizer, config)
    processor = PARTProcessor(
        feature_extractor,
        tokenizer,
        audio_token=audio_token,
        audio_token_convolutions=config.audio_token_convolutions,
        variable_length=config.variable_length,
        system_prompt=system_prompt,
    )
    return model.eval(), processor
