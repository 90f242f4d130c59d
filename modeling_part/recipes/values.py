# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""The one place where a setting of a recipe is checked: by the annotation of its field, and by the bounds stated here.

Entries of corpora have settings of their reader, which `data/corpus_spec.py` checks.

Text that stands for a number or a truth value becomes one: the command line has nothing but text, and YAML 1.1 reads
`1e-3` and `no` as text.
"""

import enum
import types
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError

from .suggestions import did_you_mean


# Bounds of fields, by name; those of transformers' arguments among them. A field without one may be all of its type.
AT_LEAST_0, AT_LEAST_1, ABOVE_0 = Field(ge=0), Field(ge=1), Field(gt=0)
SHARE, NAME = Field(ge=0, lt=1), Field(min_length=1)
DTYPES = Literal["float32", "bfloat16", "float16"]
# Lengths beyond which the plan of a stage would never be done.
MAX_EPOCHS, MAX_STEPS, MAX_ACCUMULATION, MAX_WEIGHT = 10_000, 10_000_000, 100_000, 1_000_000
BOUNDS = {
    # the model
    "audio_model": NAME,
    "language_model": NAME,
    "checkpoint": NAME,
    "attn_implementation": NAME,
    # the data
    "min_duration": AT_LEAST_0,
    "max_duration": ABOVE_0,
    "min_characters_per_second": AT_LEAST_0,
    "max_characters_per_second": ABOVE_0,
    "max_bad_fraction": Field(ge=0, le=1),
    "unnamed_share": Field(ge=0, le=1),
    "context_drop_rate": Field(ge=0, le=1),
    "temperature": Field(ge=1, le=10**6),
    "max_audio_seconds": Field(gt=0, le=10**5),
    "max_tokens": Field(ge=1, le=10**7),
    "max_rows": AT_LEAST_1,
    "pad_seconds_multiple": Field(ge=0.01, le=60),
    "pad_tokens_multiple": Field(ge=1, le=4096),
    # training
    "output_dir": NAME,
    "stage": NAME,
    "max_bad_steps": AT_LEAST_1,
    "max_eval_rows": AT_LEAST_1,
    "loss_chunk_size": AT_LEAST_1,
    "max_new_tokens": AT_LEAST_1,
    "generation_batch_seconds": ABOVE_0,
    "per_device_eval_batch_size": AT_LEAST_1,
    "gradient_accumulation_steps": Field(ge=1, le=MAX_ACCUMULATION),
    "weight_decay": Field(ge=0, le=1000),
    "max_grad_norm": AT_LEAST_0,
    "adam_beta1": SHARE,
    "adam_beta2": SHARE,
    "adam_epsilon": ABOVE_0,
    "logging_steps": ABOVE_0,
    "save_steps": ABOVE_0,
    "eval_steps": ABOVE_0,
    "eval_delay": AT_LEAST_0,
    "save_total_limit": AT_LEAST_1,
    "seed": AT_LEAST_0,
    "dataloader_num_workers": Field(ge=0, le=1024),
    "dataloader_prefetch_factor": Field(ge=1, le=1024),
    "torch_empty_cache_steps": AT_LEAST_1,
    "ddp_bucket_cap_mb": AT_LEAST_1,
    "ddp_timeout": Field(ge=1, le=10**8),
    "hub_model_id": NAME,
    "optim_args": Field(pattern=r"^\w+=[^,=]+(,\s*\w+=[^,=]+)*$"),
    # a stage
    "epochs": Field(gt=0, le=MAX_EPOCHS),
    "max_steps": Field(ge=1, le=MAX_STEPS),
    "encoder_layers": AT_LEAST_1,
    "warmup_ratio": SHARE,
    "lora_rank": AT_LEAST_1,
    "lora_alpha": AT_LEAST_1,
    "lora_dropout": SHARE,
    # augmentation
    "mel_masks": Field(ge=0, le=100),
    "time_masks": Field(ge=0, le=100),
    "max_mel_share": Field(ge=0, le=1),
    "max_time_share": Field(ge=0, le=1),
    "max_time_frames": Field(ge=0, le=10**6),
    "max_seconds": Field(ge=0.1, le=10**6),
    "noise_probability": Field(ge=0, le=1),
    "gain_probability": Field(ge=0, le=1),
    "codec_probability": Field(ge=0, le=1),
    "min_snr_db": Field(ge=-100, le=200),
    "max_snr_db": Field(ge=-100, le=200),
    "max_gain_db": Field(ge=0, le=100),
    "min_bitrate": Field(ge=8, le=320),
    "max_bitrate": Field(ge=8, le=320),
}


def _no_truth_value(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("it must be a number")
    return value


def _writable(value: str) -> str:
    if "\0" in value or (not value.isprintable() and any(0xD800 <= ord(one) <= 0xDFFF for one in value)):
        raise ValueError("it must be text without null characters and half surrogate pairs")
    return value


Whole = Annotated[int, BeforeValidator(_no_truth_value), Field(le=2**32 - 1)]
Number = Annotated[float, BeforeValidator(_no_truth_value), Field(allow_inf_nan=False)]
Text = Annotated[str, AfterValidator(_writable)]
Weight = Annotated[Number, Field(ge=0, le=MAX_WEIGHT)]
Code = Annotated[Text, Field(pattern=r"^[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*$")]
ATOMS = {int: Whole, float: Number, str: Text, list: list[Any], dict: dict[Text, Any], Mapping: dict[Text, Any]}

SECRETS = ("hub_token",)

# Of torch.utils.checkpoint, what text and numbers can say.
CHECKPOINTING = dict[Literal["use_reentrant", "preserve_rng_state", "determinism_check", "debug", "early_stop"], Any]

# What a field holds where its annotation, which also speaks to the command line, says it too loosely.
KINDS = {
    "output_dir": Text,
    "model_dtype": DTYPES,
    "frozen_dtype": DTYPES | Literal["auto"] | None,
    "language_names": dict[Code, Annotated[Text, Field(min_length=1, pattern=r"\S")]] | None,
    "direction_weights": dict[Code, Weight] | None,
    "stages": list[Text | dict[Text, Any]] | dict[Text, dict[Text, Any] | None] | None,
    "debug": Literal["", "underflow_overflow"],
    "torch_compile_mode": Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] | None,
    "gradient_checkpointing_kwargs": CHECKPOINTING | None,
    "activation_checkpointing_kwargs": CHECKPOINTING | None,
    "log_level": Literal["detail", "debug", "info", "warning", "error", "critical", "passive"],
    "log_level_replica": Literal["detail", "debug", "info", "warning", "error", "critical", "passive"],
    "ddp_backend": Literal["nccl", "mpi", "xccl", "gloo", "hccl"] | None,
    "tasks": dict[Text, Weight],
    "losses": dict[Text, Weight],
    "learning_rates": dict[Text, Annotated[Number, Field(le=1000)]],
    "speeds": list[Annotated[Number, Field(ge=0.5, le=2)]],
}


def checked_fields(values: Mapping[str, object], owner: type, where: str = "") -> dict:
    """The values of a dataclass's fields, each of its annotation's type and within its bounds.

    Args:
        values: by the name of the field.
        owner: the dataclass.
        where: what the error message begins with.

    Raises:
        ValueError: a field is unknown or a value is not as it must be; the message names both and what is due.
    """
    hints = get_type_hints(owner)
    for name in values:
        if name not in hints:
            raise ValueError(f"{where}Unknown field {name!r}.{did_you_mean(name, hints)}")
    return {name: checked(name, value, hints[name], where) for name, value in values.items()}


def checked(name: str, value: object, annotation: object, where: str = "") -> Any:
    """One value as its field takes it: the value itself where it is already of the type.

    Raises:
        ValueError: it is not as it must be; the message says what is due.
    """
    if value == "none" and name != "report_to" and may_be_none(name, annotation):  # as messages and help write it
        return None
    try:
        result = _adapter(name, annotation).validate_python(value)
    except (ValidationError, RecursionError, OverflowError) as error:
        shown = "not shown" if name in SECRETS else shortened(value)
        raise ValueError(f"{where}`{name}` is {shown}; {_due(error, may_be_none(name, annotation))}.") from None
    if isinstance(value, int) and not isinstance(result, bool) and result == value:
        return value  # 48 stays 48 where 48.0 would do; 48.0 becomes 48 where a whole number is due
    return result


def as_held(name: str, value: object, annotation: object) -> object:
    """A value as its field would hold it (`true` of the command line is True), or as it is where it cannot."""
    try:
        return checked(name, value, annotation)
    except ValueError:
        return value


def shortened(value: object) -> str:
    """A value as an error message shows it."""
    shown = repr(value)
    return shown if len(shown) <= 120 else f"{shown[:120]}..."


def may_be_none(name: str, annotation: object) -> bool:
    """Whether a field may be left empty."""
    return type(None) in get_args(KINDS.get(name) or annotation)


def is_structured(annotation: object) -> bool:
    """Whether a field holds a mapping, or a list of them: what the command line gives as JSON text."""
    return any(dict in (one, get_origin(one)) or one == list[dict] for one in get_args(annotation) or (annotation,))


@cache
def _adapter(name: str, annotation: object) -> TypeAdapter:
    kind = KINDS.get(name) or _kind(annotation)
    if name not in BOUNDS:
        return TypeAdapter(kind)
    members = (
        tuple(one for one in get_args(kind) if one is not type(None)) if may_be_none(name, annotation) else (kind,)
    )
    bounded = Annotated[Union[members], BOUNDS[name]]  # noqa: UP007
    return TypeAdapter(bounded | None if may_be_none(name, annotation) else bounded)


def _kind(annotation: object) -> Any:
    """An annotation as it is checked: no truth value is a number, no number is NaN, and an Enum's text is one of its own."""
    if get_origin(annotation) in (Union, types.UnionType):
        members = get_args(annotation)
        if any(isinstance(one, type) and issubclass(one, enum.Enum) for one in members):
            members = tuple(one for one in members if one is not str)
        # The command line gives a mapping as JSON text, which has been read by now.
        if is_structured(annotation):
            members = tuple(one for one in members if one is not str)
        return Union[tuple(map(_kind, members))]  # noqa: UP007
    if get_origin(annotation) in (list, dict, tuple):
        return get_origin(annotation)[tuple(one if one is ... else _kind(one) for one in get_args(annotation))]
    return ATOMS.get(annotation, annotation)


def _due(error: Exception, may_be_none: bool) -> str:
    """What a value must be, in the words of the validation; each thing once."""
    if not isinstance(error, ValidationError):
        return "it is nested too deeply, or too large"
    said = []
    for one in error.errors(include_url=False, include_context=False, include_input=False):
        place = ".".join(str(part) for part in one["loc"] if str(part).isidentifier() and part not in _MEMBERS)
        message = one["msg"].removeprefix("Value error, ")
        for found, wanted in _WORDS.items():
            message = message.replace(found, wanted)
        said.append(f"{message} (in {place})" if place else message)
    return " or ".join(dict.fromkeys(said)) + (" or none" if may_be_none else "")


# Members of a union, which are no place in a value; and the words of the validation in those of a recipe.
_MEMBERS = {"int", "float", "str", "bool", "key"}
_WORDS = {
    "Input should": "it must",
    "String should": "it must",
    "Dictionary should": "it must",
    "List should": "it must",
    "a valid string": "text (in quotes)",
    "a valid boolean": "true or false",
    "a valid dictionary": "a mapping",
    "a valid ": "a ",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "greater than": "above",
    "less than": "below",
}
