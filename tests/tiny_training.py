"""Trainers and recipes of tiny models: what the training tests share."""

import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import tiny
import torch
import yaml
from datasets import Dataset, Features, Value
from tiny import REPOSITORY

from modeling_part import PARTForSpeechSeq2Seq, PARTProcessor
from modeling_part.data.batches import Batches, plan_eval_batches
from modeling_part.data.budget import Budget
from modeling_part.data.collator import PARTCollator
from modeling_part.data.loading import Rows
from modeling_part.data.mixture import Mixture, RowTable
from modeling_part.data.row_tokens import count_tokens
from modeling_part.data.sampling import TaskBatchSampler
from modeling_part.data.transcripts import count_transcript_tokens
from modeling_part.recipes.arguments import DataArguments, ModelArguments, PARTTrainingArguments, Recipe
from modeling_part.recipes.stages import BUILT_IN_STAGES, Stage
from modeling_part.training.setup import prepare_model
from modeling_part.training.trainer import PARTTrainer


CPU_CONFIG = REPOSITORY / "modeling_part" / "accelerate_configs" / "cpu.yaml"

# Every task trains everything that it may, with rates high enough to move every parameter visibly.
JOINT = {"adapter": 1e-3, "encoder": 1e-3, "language_model": 1e-3}


def joint_stage(**changes) -> Stage:
    """The joint stage with high learning rates and no warm-up."""
    settings = {"tasks": {"asr": 1.0, "s2tt": 1.0, "mt": 1.0}, "learning_rates": JOINT, "warmup_ratio": 0.0}
    return Stage("joint", **settings | changes)


def tiny_model(text_kind: str = "qwen2", seed: int = 0, audio_kind: str = "whisper", **adapter_settings):
    """A random tiny PART model with its processor, made without files."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        parts = tiny.tiny_parts(Path(folder), audio_kind, text_kind, seed)
        torch.manual_seed(seed)
        settings = {"adapter_hidden_size": 32, "adapter_num_attention_heads": 2} | adapter_settings
        return PARTForSpeechSeq2Seq.from_pretrained_parts(
            str(parts.audio_model), str(parts.language_model), system_prompt="", **settings
        )


def aligned_model(*args, adapter_conv_stride: int = 1, **settings):
    """[`tiny_model`] with an alignment head to which all tokens are alike."""
    model, processor = tiny_model(*args, adapter_conv_stride=adapter_conv_stride, **settings)
    model.add_alignment_head(torch.ones(model.config.text_config.vocab_size))
    return model.eval(), processor


def tiny_dataset(tasks=("asr", "s2tt", "mt"), count: int = 6, seed: int = 0, words=(1, 3)) -> Dataset:
    """Canonical rows with the sound inside, English and French."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        indices = generator.integers(0, 6, generator.integers(words[0], words[1] + 1))
        for language in ("en", "fr"):
            sound = tiny.sentence_sound(language, indices, generator)
            name = f"{number}-{language}"
            for row in tiny._rows(name, language, indices, ("en", "fr"), tasks, len(sound) / tiny.SAMPLING_RATE):
                audio = None if row["task"] == "mt" else {"path": None, "bytes": wav_bytes(sound)}
                rows.append({**row, "audio": audio})
    return Dataset.from_list(rows, features=FEATURES)


FEATURES = Features(
    {name: Value("string") for name in ("id", "corpus", "task", "source_lang", "target_lang", "text", "source_text")}
    | {name: Value("float64") for name in ("duration", "start", "end")}
    | {"audio": {"path": Value("string"), "bytes": Value("binary")}}
)


def wav_bytes(sound: np.ndarray) -> bytes:
    """16-bit WAV."""
    import io

    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, sound, tiny.SAMPLING_RATE, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def make_trainer(
    folder: Path,
    stage: Stage,
    dataset: Dataset | None = None,
    model=None,
    processor: PARTProcessor | None = None,
    eval_dataset: Dataset | None = None,
    steps: int = 6,
    accumulation: int = 1,
    max_rows: int = 4,
    max_bad_fraction: float = 0.01,
    callbacks=(),
    **arguments,
) -> PARTTrainer:
    """A [`PARTTrainer`] as train_part.py builds it, in this process."""
    if model is None:
        model, processor = tiny_model()
    dataset = tiny_dataset() if dataset is None else dataset
    settings = {
        "output_dir": str(folder),
        "use_cpu": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.1,
        "max_steps": steps,
        "learning_rate": 1e-3,
        "gradient_accumulation_steps": accumulation,
        "dataloader_pin_memory": False,
    }
    budget = Budget(60.0, 4000, max_rows)
    table = RowTable.from_dataset(dataset, count_tokens(dataset, processor))
    args = PARTTrainingArguments(**settings | arguments)
    ranks = {"world_size": args.world_size, "gradient_accumulation_steps": accumulation}
    sampler = TaskBatchSampler(table, Mixture(stage.tasks), budget, num_steps=steps, **ranks)
    collator = PARTCollator(processor, with_transcripts=bool(stage.losses.get("ctc")))
    batches = Batches(
        train_rows=dataset,
        sampler=sampler,
        collator=collator,
        eval_rows=eval_dataset,
        eval_batches=None if eval_dataset is None else plan_eval_batches(eval_dataset, processor, budget),
        eval_collator=collator,
        max_bad_fraction=max_bad_fraction,
    )
    torch.manual_seed(0)

    counts = partial(count_transcript_tokens, Rows(dataset), processor)
    trainable = prepare_model(model, stage, Recipe(ModelArguments(checkpoint="tiny"), DataArguments(), args), counts)
    return PARTTrainer(
        model=model,
        args=args,
        stage=stage,
        trainable=trainable,
        batches=batches,
        processing_class=processor,
        callbacks=list(callbacks),
    )


def snapshot(model) -> dict[str, torch.Tensor]:
    """A copy of every parameter, by name."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Names of the tensors that are not bit-identical."""
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def write_recipe(folder: Path, parts: tiny.TinyParts, corpus: dict[str, Path], **changes) -> Path:
    """A recipe of two steps per stage on a generated corpus; `changes` replace its keys (None removes one)."""
    recipe = {
        "output_dir": str(folder / "run"),
        "audio_model": str(parts.audio_model),
        "language_model": str(parts.language_model),
        "system_prompt": "",
        "adapter": {"adapter_hidden_size": 32, "adapter_num_attention_heads": 2},
        "train_data": [{"reader": "manifest", "path": str(corpus["train"])}],
        "eval_data": [{"reader": "manifest", "path": str(corpus["dev"])}],
        "test_data": [{"reader": "manifest", "path": str(corpus["test"]), "tasks": ["asr", "s2tt"]}],
        "max_rows": 4,
        "stages": [{"name": name, "max_steps": 2} for name in BUILT_IN_STAGES],
        "use_cpu": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "max_eval_rows": 6,
        "max_new_tokens": 4,
        "dataloader_pin_memory": False,
    }
    recipe = {key: value for key, value in (recipe | changes).items() if value is not None}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def environment(**variables: str) -> dict[str, str]:
    """The environment of a training process: one thread, the repository importable, nothing from the Hub."""
    paths = [str(REPOSITORY), str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH", "")]
    settings = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **settings, **variables}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def launch_command(recipe: Path, *overrides: str) -> list[str]:
    """What a user types, on one CPU process."""
    script = str(REPOSITORY / "train_part.py")
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CPU_CONFIG)]
    return [*launcher, script, str(recipe), *overrides]


def torchrun_command(processes: int, script: Path | str, *arguments: str) -> list[str]:
    """Several CPU processes, as cpu.yaml says."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    return [*launcher, "--master_port", str(free_port()), str(script), *arguments]


def execute(command: list[str], timeout: float = 280, **variables: str) -> subprocess.CompletedProcess:
    """Run to the end; output and errors as one text in `stdout`."""
    return subprocess.run(
        command,
        env=environment(**variables),
        timeout=timeout,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
