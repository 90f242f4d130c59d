"""Precision follows the machine, and what is said goes before it."""

import pytest
import torch

from modeling_part.recipes import precision
from modeling_part.recipes.arguments import PARTTrainingArguments, parse_recipe
from modeling_part.recipes.precision import bf16_is_native, choose_frozen_dtype, choose_precision


@pytest.fixture(params=[True, False], ids=["native", "imitated"])
def native(request, monkeypatch):
    monkeypatch.setattr(precision, "bf16_is_native", lambda use_cpu: request.param)
    return request.param


def test_auto_takes_bfloat16_where_it_is_native(native):
    bf16, fp16, reason = choose_precision("auto", None, False, use_cpu=True)
    assert (bf16, fp16) == (native, False)
    assert ("natively" if native else "no instructions") in reason


@pytest.mark.parametrize(
    ("asked", "bf16", "fp16", "expected"),
    [
        (None, None, False, (False, False)),
        (None, True, False, (True, False)),
        (None, None, True, (False, True)),
        ("auto", False, False, (False, False)),
        ("auto", True, False, (True, False)),
        ("bf16", None, False, (True, False)),
        ("fp16", None, False, (False, True)),
        ("float32", None, False, (False, False)),
    ],
)
def test_what_is_said_is_done_whatever_the_machine(native, asked, bf16, fp16, expected):
    chosen = choose_precision(asked, bf16, fp16, use_cpu=True)
    assert chosen[:2] == expected
    assert ("slow" in chosen[2]) == (expected[0] and not native), "a forced slow choice is reported"


@pytest.mark.parametrize(("asked", "bf16"), [("half", None), ("float32", True), ("bf16", False)])
def test_contradictions_are_refused(native, asked, bf16):
    with pytest.raises(ValueError, match=f"`precision` is {asked!r}"):
        choose_precision(asked, bf16, False, use_cpu=True)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"precision": "float32"}, "no"),
        ({"bf16": False}, "no"),
        ({"precision": "fp16"}, "fp16"),
        ({"fp16": True}, "fp16"),
        ({}, "bf16"),
    ],
)
def test_the_recipe_goes_before_the_launcher(native, monkeypatch, tmp_path, said, expected):
    """What is recorded is what `Trainer` computes in."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    args = PARTTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **said)
    assert args.mixed_precision == expected
    assert (args.bf16, args.fp16) == (expected == "bf16", expected == "fp16")
    assert ("launcher" in args.precision_reason) == (not said)


def test_auto_goes_before_the_launcher(native, monkeypatch, tmp_path):
    """`precision: auto` under single_gpu.yaml on a card without bfloat16."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    args = PARTTrainingArguments(output_dir=str(tmp_path), use_cpu=True, precision="auto")
    assert args.mixed_precision == ("bf16" if native else "no")


def test_a_launcher_of_another_precision_is_refused_where_it_counts(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(ValueError, match=r"launcher is 'fp8'.*`precision` in the recipe"):
        choose_precision(None, None, False, use_cpu=True)
    assert choose_precision("float32", None, False, use_cpu=True)[2] == "float32"


def test_onednn_may_use_less_than_the_processor_has(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert not bf16_is_native(use_cpu=True)


@pytest.mark.parametrize("name", ["quickstart", "part", "new_language", "prompts"])
def test_frozen_parts_compute_in_what_is_computed_in(native, name):
    """A frozen half in bfloat16 is a hundred times slower on a processor that imitates it."""
    recipe = parse_recipe([name, "--use_cpu", "true"])
    assert recipe.model.frozen_dtype == ("bfloat16" if native else "float32")


@pytest.mark.parametrize(
    ("given", "bf16", "fp16", "expected"),
    [
        (None, False, False, None),
        ("auto", False, True, "float16"),
        ("float32", False, False, "float32"),
        ("bfloat16", False, True, "bfloat16"),
    ],
)
def test_frozen_dtype(given, bf16, fp16, expected):
    assert choose_frozen_dtype(given, "float32", bf16, fp16) == expected


def test_frozen_parts_that_nothing_casts_for_are_refused():
    with pytest.raises(ValueError, match="`frozen_dtype` is 'bfloat16' and this run computes in float32"):
        choose_frozen_dtype("bfloat16", "float32", False, False)


@pytest.mark.parametrize("attention", ["flash_attention_2", "kernels-community/flash-attn2"])
def test_flash_attention_in_float32_is_refused_before_anything_is_loaded(native, attention):
    words = ["part", "--use_cpu", "true", "--attn_implementation", attention, "--precision"]
    with pytest.raises(ValueError, match=f"`attn_implementation` is '{attention}'.*computes in float32. Write `prec"):
        parse_recipe([*words, "float32"])
    assert parse_recipe([*words, "bf16"]).model.attn_implementation == attention
    assert parse_recipe([*words, "float32", "--model_dtype", "bfloat16"]).model.attn_implementation == attention


def test_other_attentions_compute_in_any_precision(native):
    for attention in ("sdpa", "eager", "flex_attention"):
        parse_recipe(["part", "--use_cpu", "true", "--attn_implementation", attention, "--precision", "float32"])
