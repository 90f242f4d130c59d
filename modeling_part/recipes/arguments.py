# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Arguments of `train_part.py`: YAML recipes fill the defaults, the command line wins, an unknown key is an error."""

import json
import os
import sys
from argparse import SUPPRESS
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from itertools import takewhile
from typing import NoReturn, get_type_hints

import torch
from accelerate.utils import parse_flag_from_env
from transformers import HfArgumentParser, TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig

from ..configuration_part import PARTConfig
from .help import leave_with_help
from .places import Places, located
from .precision import check_attention, choose_frozen_dtype, choose_precision
from .program import part_command
from .recipe_files import find_recipe, read_recipe, read_value, replace_settings
from .stages import Stage, build_plan, change_plan, change_setting
from .suggestions import did_you_mean
from .trainer_settings import refuse_without_effect, unknown_name
from .values import checked, is_structured, shortened


@dataclass
class ModelArguments:
    """Which pretrained parts, or which PART checkpoint, training starts from."""

    audio_model: str | None = field(
        default=None, metadata={"help": "Hub id or folder of the speech encoder, such as openai/whisper-large-v3."}
    )
    language_model: str | None = field(
        default=None, metadata={"help": "Hub id or folder of the causal language model, such as Qwen/Qwen2.5-1.5B."}
    )
    checkpoint: str | None = field(
        default=None, metadata={"help": "A PART checkpoint to start from instead of the two parts."}
    )
    adapter: None | str | dict = field(
        default=None, metadata={"help": "Adapter settings: fields of PARTConfig, such as adapter_conv_stride."}
    )
    system_prompt: str | None = field(
        default=None, metadata={"help": "System message of the prompts; '' for an empty one, none for the template's."}
    )
    language_names: None | str | dict = field(
        default=None, metadata={"help": "Names of languages that the prompts do not know, such as {ace: Acehnese}."}
    )
    model_dtype: str = field(
        default="float32", metadata={"help": "dtype of the weights that train: float32 or bfloat16."}
    )
    frozen_dtype: str | None = field(
        default=None,
        metadata={
            "help": "dtype of the parts that a stage freezes, such as bfloat16; auto: what is computed in; none: model_dtype."
        },
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "sdpa, eager, flash_attention_2, ...; transformers chooses if none."}
    )

    def __post_init__(self) -> None:
        for name in ("audio_model", "language_model", "checkpoint"):  # transformers would take ~ for a Hub id
            place = os.path.expanduser(getattr(self, name) or "")
            if os.path.exists(place):
                setattr(self, name, place)
        if self.adapter is not None:
            self.adapter = _checked_adapter(self.adapter)
        if self.checkpoint is None and (self.audio_model is None or self.language_model is None):
            raise ValueError("Name `audio_model` and `language_model`, or a PART `checkpoint`, in the recipe.")

    @property
    def starts_from(self) -> dict[str, str]:
        """What the first stage starts from, by the name of its setting: the checkpoint, or the two pretrained parts."""
        names = ("audio_model", "language_model") if self.checkpoint is None else ("checkpoint",)
        return {name: getattr(self, name) for name in names}


# What `adapter` may hold: fields of `PARTConfig`, and where the two parts come from.
_PARTS_OF_CONFIG = ("audio_config", "text_config", "audio_token_id", "alignment_scale")
ADAPTER_FIELDS = {name: kind for name, kind in PARTConfig.__annotations__.items() if name not in _PARTS_OF_CONFIG}
ADAPTER_FIELDS |= {"audio_token": str, "revision_audio": str | None, "revision_language": str | None}


def _checked_adapter(settings: Mapping[str, object]) -> dict:
    for name in settings:
        if name not in ADAPTER_FIELDS:
            raise ValueError(f"`adapter`: Unknown field {name!r}.{did_you_mean(name, ADAPTER_FIELDS)}")
    return {name: checked(name, value, ADAPTER_FIELDS[name], "`adapter`: ") for name, value in settings.items()}


@dataclass
class DataArguments:
    """What is trained, developed and tested on. A corpus is a mapping; see `modeling_part.data.corpora`."""

    train_data: None | str | list[dict] = field(default=None, metadata={"help": "Corpora to train on."})
    eval_data: None | str | list[dict] = field(default=None, metadata={"help": "Corpora for the dev loss."})
    test_data: None | str | list[dict] = field(
        default=None, metadata={"help": "Corpora that each finished stage predicts (see predict_last_stage_only)."}
    )
    min_duration: float = field(default=0.1, metadata={"help": "Shortest clip, seconds."})
    max_duration: float = field(default=30.0, metadata={"help": "Longest clip, seconds."})
    min_characters_per_second: float | None = field(
        default=None, metadata={"help": "Drop rows with less text per audio."}
    )
    max_characters_per_second: float | None = field(
        default=None, metadata={"help": "Drop rows with more text per audio."}
    )
    max_bad_fraction: float = field(
        default=0.01,
        metadata={"help": "Share of broken rows to leave out, reading and training, before the run stops."},
    )
    temperature: float = field(default=1.0, metadata={"help": "Languages are drawn by p ~ n^(1/temperature)."})
    direction_weights: None | str | dict = field(
        default=None, metadata={"help": "Hand-raised languages or directions, such as {sv: 2.0, en-sv: 3.0}."}
    )
    max_audio_seconds: float = field(default=120.0, metadata={"help": "Padded seconds of audio in a batch."})
    max_tokens: int = field(
        default=4096, metadata={"help": "Padded tokens of answers (source texts, own prompts, contexts) in a batch."}
    )
    max_rows: int | None = field(default=None, metadata={"help": "Rows in a batch; none: the budgets decide."})
    pad_seconds_multiple: float = field(
        default=0.2, metadata={"help": "Audio is padded to multiples of so many seconds: few distinct shapes."}
    )
    pad_tokens_multiple: int = field(default=8, metadata={"help": "Positions are padded to a multiple of this."})
    unnamed_share: float = field(
        default=0.15,
        metadata={
            "help": "Share of the training rows whose prompt does not name the source language, so that the model answers "
            "without it too."
        },
    )
    context_drop_rate: float = field(
        default=0.15,
        metadata={
            "help": "Share of the training rows with a `context` (words that may be said) whose prompt leaves it out, so that "
            "the model does not lean on it."
        },
    )
    augmentation: None | str | dict = field(
        default=None, metadata={"help": "Training only: fields of modeling_part.data.augmentation.Augmentation."}
    )

    def __post_init__(self) -> None:
        for what in ("duration", "characters_per_second"):
            least, most = (getattr(self, f"{end}_{what}") for end in ("min", "max"))
            if least is not None and most is not None and least > most:
                raise ValueError(f"`min_{what}` is {least} and `max_{what}` {most}, which leave no row; swap them.")


@dataclass
class PARTTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with PART's stages.

    Changed defaults: `output_dir` is needed, columns are kept (`remove_unused_columns=False`), logging every 10 steps,
    checkpoints by steps with the last two kept.
    """

    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator needs every column."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between two log lines."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep inside a stage."})
    report_to: None | str | list[str] = field(
        default="none", metadata={"help": "tensorboard, trackio, wandb, ... or none."}
    )

    bf16: bool | None = field(default=None, metadata={"help": "Compute in bfloat16; none: see precision."})
    precision: str | None = field(
        default=None,
        metadata={
            "help": "auto: bfloat16 where the device multiplies it natively, float32 elsewhere; or bf16, fp16, float32. "
            "None: what bf16 and fp16 say, or without them the launcher."
        },
    )
    stages: None | str | list[dict] | dict[str, dict] = field(
        default=None, metadata={"help": "The plan: fields of modeling_part.recipes.stages.Stage. None: the paper's."}
    )
    stage: str | None = field(default=None, metadata={"help": "Run only this stage, from the previous one's folder."})
    force: bool = field(
        default=False, metadata={"help": "Run finished stages again; their files are set aside until then."}
    )
    resume: bool = field(default=False, metadata={"help": "Continue inside a stage from its last checkpoint."})
    resume_with_changes: bool = field(
        default=False,
        metadata={"help": "With --resume: go on although data or settings have changed; stage.json tells of both."},
    )
    dry_run: bool = field(
        default=False, metadata={"help": "Load two batches, run one forward, print the plan, and exit."}
    )
    reuse_runs: list[str] | None = field(
        default=None,
        metadata={
            "help": "Other run folders: a stage that was trained there exactly alike (settings, data, seed, versions, "
            "parents) is copied instead of trained again. Not for streamed corpora, which have no fingerprint."
        },
    )
    max_bad_steps: int = field(
        default=5,
        metadata={
            "help": "Stop after so many steps in a row with a loss or gradient that is not finite; in fp16 those are not "
            "counted after which its scale is halved, down to 1."
        },
    )
    max_eval_rows: int | None = field(default=None, metadata={"help": "Rows of the dev data to use; none: all."})
    cache_encoder_outputs: bool = field(
        default=False,
        metadata={
            "help": "In stages that leave the encoder frozen, compute its frames of each clip once and read them from "
            "output_dir/data/encoder_outputs. Not with augmentation, streaming or FSDP2."
        },
    )
    padding_free: bool = field(
        default=False,
        metadata={
            "help": "The language model gets the rows of a batch as one, without padding: a gain with "
            "attn_implementation flash_attention_2."
        },
    )
    loss_chunk_size: int = field(
        default=1024,
        metadata={"help": "Targets whose logits are computed at a time: bounds the memory of a large vocabulary."},
    )
    predict_with_generate: bool = field(
        default=False,
        metadata={
            "help": "At each evaluation also answer the dev data: error rates and BLEU per language in the log, and "
            "warnings (see eval_strategy, eval_steps, max_eval_rows)."
        },
    )
    predict_last_stage_only: bool = field(
        default=False, metadata={"help": "Only the plan's last stage predicts `test_data`, not each finished stage."}
    )
    predict_unnamed: bool = field(
        default=True,
        metadata={
            "help": "Ask for the transcripts of `test_data` (and of `eval_data`, with predict_with_generate) a second time, the "
            "language not named, and score both."
        },
    )
    max_new_tokens: int = field(default=128, metadata={"help": "Longest answer when generating."})
    generation_batch_seconds: float = field(
        default=240.0, metadata={"help": "Padded seconds of audio in a batch when generating."}
    )

    def __post_init__(self) -> None:
        for name in ("output_dir", "logging_dir"):
            if "://" in str(getattr(self, name, None) or ""):
                raise ValueError(
                    f"`{name}` is {getattr(self, name)!r}: checkpoints and logs are written to this machine's disks alone. Give a "
                    "folder here (or one that is mounted), and copy it afterwards."
                )
        if self.reuse_runs is not None:
            self.reuse_runs = [os.path.expanduser(run) for run in self.reuse_runs]
        # What the launcher passes on (accelerate_configs/cpu.yaml); bf16 on a CPU is refused without it.
        self.use_cpu = self.use_cpu or parse_flag_from_env("ACCELERATE_USE_CPU")
        if self.precision == "auto":
            self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        self.bf16, self.fp16, self.precision_reason = choose_precision(
            self.precision, self.bf16, self.fp16, self.use_cpu
        )
        self.precision = None  # said by the flags now: the arguments may be made again of themselves
        self.accelerator_config = self._checked_accelerator_config()
        if self.do_predict and self.dry_run:
            raise ValueError("`do_predict` answers and writes, `dry_run` does neither; leave one of them out.")
        if self.dataloader_persistent_workers and not self.dataloader_num_workers:
            raise ValueError(
                "`dataloader_persistent_workers` keeps processes that `dataloader_num_workers: 0` does not start; set that, "
                "or leave it out."
            )
        if self.loss_chunk_size < 1:
            raise ValueError(f"`loss_chunk_size` is {self.loss_chunk_size}; it must be at least 1.")
        if self.push_to_hub and not self.hub_model_id:
            raise ValueError("`push_to_hub` needs `hub_model_id`, such as USER/NAME.")
        if self.remove_unused_columns:
            raise ValueError("`remove_unused_columns` must be false: the collator needs every canonical column.")
        super().__post_init__()
        # `Trainer` would take the launcher's where the recipe says float32, and nothing written would tell of it.
        self.mixed_precision = "bf16" if self.bf16 else "fp16" if self.fp16 else "no"

    def _checked_accelerator_config(self) -> dict:
        """What is given of it, and how batches are dealt and copied.

        One task per global step: batches are dealt as they come, and nothing may wrap a tail into another task.
        """
        given = self.accelerator_config or {}
        dealing = dict.fromkeys(("even_batches", "split_batches", "dispatch_batches"), False)
        known = {one.name for one in fields(AcceleratorConfig)}
        # `Trainer` would accumulate by itself what the batches are not planned for.
        unchanged = {**dealing, "gradient_accumulation_kwargs": None, "use_configured_state": False}
        for name, value in given.items():
            if name not in known or (name in unchanged and value is not unchanged[name]):
                raise ValueError(f"`accelerator_config`: {name!r} is no setting, or not one to change; leave it out.")
        # Pinned batches are copied while the device computes.
        return {"non_blocking": self.dataloader_pin_memory and not self.use_cpu, **given, **dealing}


ARGUMENTS = (ModelArguments, DataArguments, PARTTrainingArguments)


@dataclass(frozen=True)
class Recipe:
    """What a user decides: recipe and command line, as one."""

    model: ModelArguments
    data: DataArguments
    training: PARTTrainingArguments
    places: Places = field(default_factory=dict)  # where each setting stands

    def __post_init__(self) -> None:
        model, training = self.model, self.training
        computed = (model.model_dtype, training.bf16, training.fp16)
        check_attention(model.attn_implementation, *computed, training.precision_reason)
        model.frozen_dtype = choose_frozen_dtype(model.frozen_dtype, *computed)


def parse_recipe(argv: list[str] | None = None) -> Recipe:
    """`RECIPE.yaml [OVERLAY.yaml ...] [--overrides]` -> the recipe.

    The keys of a later recipe replace those of an earlier one, as a recipe's own replace its base's: `part
    data/sentences` is the plan of `part` on other data.

    Args:
        argv: the arguments of the command line; those of this process if none.

    Raises:
        ValueError: a key of a recipe is unknown, or given twice; the message names the file and the nearest known key. Or
            a value is not as it must be, or would have no effect; the message names it and what to write.
        FileNotFoundError: there is no such recipe.
    """
    values, places = _read_settings(sys.argv[1:] if argv is None else argv)
    with located(places):
        recipe = Recipe(*(group(**_checked(group, values)) for group in ARGUMENTS), places)
        build_plan(recipe.training.stages)
    return recipe


def check_recipe(argv: list[str]) -> tuple[DataArguments, list[Stage], bool]:
    """A recipe's data, its plan and whether it asks for a dry run, where another process will train it.

    That may be on other devices: none is looked for.

    Args:
        argv: see [`parse_recipe`].

    Raises:
        ValueError, FileNotFoundError: as [`parse_recipe`] does, but for what depends on the devices.
    """
    values, places = _read_settings(argv)
    with located(places):
        of_model, of_data, of_training = (_checked(group, values) for group in ARGUMENTS)
        ModelArguments(**of_model)
        return DataArguments(**of_data), build_plan(of_training.get("stages")), bool(of_training.get("dry_run"))


def _read_settings(argv: list[str]) -> tuple[dict, Places]:
    """What recipes and options say together, by name, and where."""
    leave_with_help(argv)
    names = list(takewhile(lambda argument: not argument.startswith("-"), argv))
    if not names:
        raise SystemExit(
            "usage: train_part.py RECIPE [OVERLAY ...] [--NAME VALUE ...]   "
            f"(`{part_command('recipes')}` lists those there are, --help the options)"
        )
    known = {one.name for group in ARGUMENTS for one in fields(group) if one.init}
    settings: dict = {}
    places: Places = {}
    for name in names:
        read = read_recipe(find_recipe(name), known, places=places)
        with located(places):
            settings = replace_settings(settings, read)
    argv, of_stages = _take_stage_options(argv[len(names) :])
    options = _read_options(argv, known)
    places |= {(name,): f"--{name}" for name in options}
    if isinstance(options.get("stages"), dict):  # --stages '{"joint": {"max_steps": 9}}'
        options["stages"] = change_plan(settings.get("stages"), options["stages"])
    values = settings | options
    for path, text in of_stages.items():
        stages = values.get("stages")
        stages = change_plan(None, stages) if isinstance(stages, dict) else stages
        places[("stages", *path)] = f"--stages.{'.'.join(path)}"
        values["stages"] = change_setting(stages, path[0], path[1:], read_value(text))
    if "output_dir" not in values:
        raise ValueError(f"{names[0]}: Name the folder of the run, such as `output_dir: runs/mine`.")
    with located(places):
        refuse_without_effect(values)
    return values, places


def _take_stage_options(argv: list[str]) -> tuple[list[str], dict[tuple[str, ...], str]]:
    """The words that are not `--stages.STAGE.FIELD VALUE`, and of those that are, the text by the path."""
    rest, found = [], {}
    words = iter(argv)
    for word in words:
        if not word.startswith("--stages."):
            rest.append(word)
            continue
        name, equals, text = word.partition("=")
        path = tuple(name.removeprefix("--stages.").split("."))
        text = text if equals else next(words, None)
        if len(path) < 2 or not all(path) or text is None:
            raise ValueError(f"{word!r}: Write a stage, a field and a value, such as `--stages.joint.max_steps 100`.")
        found[path] = text
    return rest, found


class _Options(HfArgumentParser):
    """The options of the command line as text, which is checked like what YAML gives; a wrong one is a ValueError."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print below all options there are."""
        raise ValueError(f"{message[0].upper()}{message[1:]}.")


def _read_options(argv: list[str], known: Collection[str]) -> dict:
    """The options that are given, by the name of the field; those that YAML gives as mappings are JSON text."""
    parser = _Options(ARGUMENTS, allow_abbrev=False)
    for action in parser._actions:
        action.type, action.choices, action.default = None, None, SUPPRESS
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        name = unknown[0].lstrip("-").split("=")[0].replace("-", "_")
        raise ValueError(f"Unknown option {unknown[0].split('=')[0]!r}.{unknown_name(name, known)}")
    hints = {name: hint for group in ARGUMENTS for name, hint in get_type_hints(group).items()}
    return {
        name: _read_json(name, value) if isinstance(value, str) and is_structured(hints[name]) else value
        for name, value in vars(options).items()
    }


def _read_json(name: str, value: str) -> object:
    if value == "none":  # as everywhere else
        return None
    try:
        return json.loads(value, object_pairs_hook=_unique)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"--{name} is not JSON: {error}. Got {shortened(value)}.") from error


def _unique(pairs: list[tuple[str, object]]) -> dict:
    """A mapping of JSON text; one that gives a key twice is refused, as it is in YAML."""
    for name, count in Counter(name for name, _ in pairs).items():
        if count > 1:
            raise ValueError(f"Key {name!r} is given {count} times in the JSON text of an option; give it once.")
    return dict(pairs)


def _checked(group: type, values: Mapping[str, object]) -> dict:
    """The values that are of one group, each checked."""
    hints = get_type_hints(group)
    own = {one.name for one in fields(group) if one.init}
    return {name: checked(name, value, hints[name]) for name, value in values.items() if name in own}
