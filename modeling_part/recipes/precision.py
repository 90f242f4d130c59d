# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Which precision to compute in.

bfloat16 halves the time where a device multiplies it natively, and costs three times as much where it must be imitated.
"""

import os

import torch


PRECISIONS = ("auto", "bf16", "fp16", "float32")

# accelerate's names of what it casts to, and ours: it tells the processes that it launches.
LAUNCHERS_VARIABLE = "ACCELERATE_MIXED_PRECISION"
LAUNCHERS_PRECISIONS = {"bf16": "bf16", "fp16": "fp16", "no": "float32"}


def bf16_is_native(use_cpu: bool) -> bool:
    """Whether the device that trains multiplies bfloat16 itself.

    Args:
        use_cpu: train on the CPU, whatever else there is.
    """
    if not use_cpu and torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if not use_cpu and torch.accelerator.is_available():
        return False  # of other accelerators nothing is known
    # What the processor has, and what oneDNN uses of it (ONEDNN_MAX_CPU_ISA may say less).
    has = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return has and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def choose_precision(precision: str | None, bf16: bool | None, fp16: bool, use_cpu: bool) -> tuple[bool, bool, str]:
    """What a recipe asks for -> `bf16`, `fp16`, and why, in a sentence.

    Args:
        precision: one of `PRECISIONS`; None leaves it to the two flags of `TrainingArguments`, and where a recipe has
            neither to the launcher.
        bf16, fp16: as given; a `bf16` that is given (not None), true or false, goes before `auto`.
        use_cpu: train on the CPU.

    Raises:
        ValueError: `precision` is unknown, or contradicts a flag; or that of the launcher, where it counts, is unknown.
    """
    if precision is not None and precision not in PRECISIONS:
        raise ValueError(f"`precision` is {precision!r}; give one of {', '.join(PRECISIONS)}.")
    if precision == "auto" and (bf16 is not None or fp16):
        precision = None
    if precision is not None and (bf16 is not None or fp16):
        raise ValueError(f"`precision` is {precision!r} and `bf16` or `fp16` is set too; leave one of them out.")
    asker = ""
    if precision is None and bf16 is None and not fp16 and (launchers := launchers_precision()) != "float32":
        precision, asker = launchers, " (`mixed_precision` of the launcher; the recipe says nothing of it)"
    native = bf16_is_native(use_cpu)
    device = "processor" if use_cpu or not torch.accelerator.is_available() else "device"
    if precision == "auto":
        if native:
            return True, False, f"bfloat16, which this {device} multiplies natively"
        return False, False, f"float32: this {device} has no instructions for bfloat16"
    if precision is not None:
        bf16, fp16 = precision == "bf16", precision == "fp16"
    bf16 = bool(bf16)
    if bf16 and not native:
        return (
            True,
            False,
            f"bfloat16 as asked for{asker}, which this {device} can only imitate: slow; `precision: auto` is not",
        )
    return bf16, fp16, f"{'bfloat16' if bf16 else 'float16' if fp16 else 'float32'}{asker}"


def launchers_precision() -> str:
    """What `accelerate launch` was told to compute in, as one of `PRECISIONS`; float32 where nothing was launched by it.

    Raises:
        ValueError: it is one that the model does not train in.
    """
    told = os.environ.get(LAUNCHERS_VARIABLE, "no").lower()
    if told not in LAUNCHERS_PRECISIONS:
        raise ValueError(
            f"`mixed_precision` of the launcher is {told!r}, which the model does not train in: set it to one of "
            f"{', '.join(LAUNCHERS_PRECISIONS)}, or give `precision` in the recipe, which goes before it."
        )
    return LAUNCHERS_PRECISIONS[told]


def choose_frozen_dtype(frozen_dtype: str | None, model_dtype: str, bf16: bool, fp16: bool) -> str | None:
    """The dtype that frozen parts are kept in; `auto` is what is computed in, so that nothing is cast in every step.

    Args:
        frozen_dtype: as a recipe gives it; None keeps what the weights have.
        model_dtype: of the weights that train.
        bf16, fp16: what autocast computes in, if anything.

    Raises:
        ValueError: nothing is cast while computing, so that frozen parts would compute in a precision of their own.
    """
    computed = "bfloat16" if bf16 else "float16" if fp16 else model_dtype
    if frozen_dtype == "auto":
        return computed
    if frozen_dtype not in (None, computed) and not (bf16 or fp16):
        raise ValueError(
            f"`frozen_dtype` is {frozen_dtype!r} and this run computes in {computed}: frozen parts would compute in another "
            "precision, which many processors only imitate. Write `frozen_dtype: auto`, or choose the `precision`."
        )
    return frozen_dtype


def check_attention(attn_implementation: str | None, model_dtype: str, bf16: bool, fp16: bool, reason: str) -> None:
    """Raise ValueError where the kernels of an attention would be given float32, which they do not take.

    Args:
        attn_implementation: as a recipe gives it; also a repository of kernels, such as kernels-community/flash-attn2.
        model_dtype: of the weights that train.
        bf16, fp16: what autocast computes in, if anything.
        reason: of that choice, in words.
    """
    if "flash" in (attn_implementation or "") and model_dtype == "float32" and not (bf16 or fp16):
        raise ValueError(
            f"`attn_implementation` is {attn_implementation!r}, whose kernels take bfloat16 and float16 alone, and this run "
            f"computes in {reason}. Write `precision: auto` (or bf16, or fp16), or leave `attn_implementation` out."
        )
