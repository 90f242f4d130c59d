# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Train PART, stage by stage.

    accelerate launch train_part.py RECIPE.yaml [--overrides]

A recipe is a file, or the name of one in modeling_part/recipes. Each stage starts from the previous stage's folder
and ends as a folder that `from_pretrained` loads; a finished stage is not run again unless `--force`.

    --stage NAME     only this stage           --resume       continue inside a stage
    --dry_run        check, print the plan     --do_predict   only predict and score `test_data`
"""

import copy
import hashlib
import logging
import math
import shutil
import signal
import sys
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import set_seed

from modeling_part import PARTForSpeechSeq2Seq, PARTProcessor
from modeling_part.configuration_part import convolved_length
from modeling_part.data.augmentation import build_augmentation
from modeling_part.data.collator import PARTCollator, count_row_tokens, count_tokens
from modeling_part.data.corpora import open_corpora, read_corpora
from modeling_part.data.encoder_cache import refuse_augmentation, write_encoder_outputs
from modeling_part.data.mixture import Mixture, RowTable
from modeling_part.data.sampling import TaskBatchSampler
from modeling_part.data.stored_corpora import fingerprint
from modeling_part.data.streaming import StreamingTaskBatches
from modeling_part.evaluation.prediction import predict_and_report, weights_fingerprint
from modeling_part.evaluation.run_report import run_report
from modeling_part.evaluation.scoring import check_scorable
from modeling_part.prompts_part import TASKS
from modeling_part.recipes.arguments import DataArguments, ModelArguments, PARTTrainingArguments, parse_recipe
from modeling_part.recipes.files import write_json
from modeling_part.recipes.stage_record import find_alike, write_stage_json
from modeling_part.recipes.stages import Stage, build_plan
from modeling_part.training.checkpoints import last_checkpoint, read_history, remove_checkpoints
from modeling_part.training.freezing import cast_frozen, parameters_per_part
from modeling_part.training.lora import add_lora
from modeling_part.training.memory import estimate_memory
from modeling_part.training.monitoring import GenerationMonitor
from modeling_part.training.trainer import PARTTrainer


logger = logging.getLogger("train_part")

VERSIONED = ("torch", "transformers", "accelerate", "peft", "datasets", "tokenizers", "safetensors")


def main(argv: list[str] | None = None):
    """Parse, read the data, then per stage: load, train, evaluate, save, predict; at the end one report."""
    recipe = parse_recipe(argv)
    model_args, data_args, args = recipe.model, recipe.data, recipe.training
    set_up_logging(args)
    plan = build_plan(args.stages)
    if args.do_predict:
        return predict_checkpoint(model_args, data_args, args)
    data = read_data(data_args, args)
    check_before_training(plan, data, data_args, args)
    run_folder = Path(args.output_dir)
    unpublished: list[str] = []
    if args.force and not args.dry_run:
        start_again([run_folder / stage.name for stage in plan if args.stage in (None, stage.name)])
    for position, stage in enumerate(plan):
        folder, parent = run_folder / stage.name, run_folder / plan[position - 1].name if position else None
        if args.stage is not None and stage.name != args.stage:
            continue
        if (folder / "stage.json").is_file() and not args.dry_run:
            logger.info("Stage %s is finished (%s); --force runs it again.", stage.name, folder)
            continue
        if args.dry_run and parent is not None and not (parent / "config.json").is_file():
            parent = None  # the plan can be shown before any stage has run
        predicts = stage is plan[-1] or not args.predict_last_stage_only
        stage_data = data if predicts else {**data, "test": None}
        run_stage(stage, parent, folder, model_args, data_args, args, stage_data)
        # After the ranks' last meeting of the stage: no time-out runs while the main process uploads.
        if args.push_to_hub and not args.dry_run and PartialState().is_main_process and not push_stage(folder, args):
            unpublished.append(stage.name)
    if not args.dry_run and PartialState().is_main_process:
        run_report(run_folder)
        logger.info("The report is in %s", run_folder / "report.md")
    if unpublished:
        sys.exit(f"Trained, but not published: {', '.join(unpublished)}; the messages above say how to publish them.")


def run_stage(
    stage: Stage,
    parent: Path | None,
    folder: Path,
    model_args: ModelArguments,
    data_args: DataArguments,
    args: PARTTrainingArguments,
    data: dict,
):
    """One stage, from its parent's folder to its own."""
    set_seed(args.seed)
    model, processor = load_model(parent, model_args, args)
    processor.language_names |= model_args.language_names or {}
    check_prompts([data[split] for split in ("train", "eval", "test")], processor)
    if stage.trains_language_model and stage.tuning == "lora":
        add_lora(stage, model)
    checkpoint, history = find_checkpoint(folder, args)
    sampler, report = plan_batches(stage, data, processor, data_args, args, checkpoint, history)
    record = stage_record(stage, parent, data, report, sampler.num_steps, model_args, data_args, args)
    trainer = build_trainer(stage, folder, parent, model, processor, sampler, record, history, data, data_args, args)
    if model_args.frozen_dtype is not None:
        if trainer.is_fsdp_enabled:
            raise ValueError(
                "`frozen_dtype` mixes dtypes within what FSDP2 shards as one; leave it out of the recipe."
            )
        cast_frozen(model, getattr(torch, model_args.frozen_dtype))
    check_disk(folder, model, stage, args)
    record["trainable_parameters"] = trainable_parameters(trainer)
    log_plan(stage, trainer, sampler.num_steps, report)
    if args.dry_run:
        return dry_run(stage, trainer, sampler)
    if checkpoint is None and not isinstance(data["train"], dict):  # nothing tells two streams apart
        source = find_alike(record, folder.parent, args.reuse_runs or ())
        if source is not None:
            return copy_stage(source, folder, data["test"], args)

    if checkpoint is not None:
        logger.info("Stage %s continues from %s", stage.name, checkpoint)
    if args.cache_encoder_outputs:
        cache_encoder_outputs(stage, trainer, processor, sampler, data_args, args)
    with stopping(trainer):
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if trainer.was_stopped:
        logger.warning("Stopped. Continue with: --resume (stage %s, step %d)", stage.name, trainer.state.global_step)
        sys.exit(128 + signal.SIGTERM)
    metrics = trainer.evaluate() if trainer.eval_batches else {}
    trainer.save_model(str(folder))
    history = trainer.state.log_history
    finish_stage(folder, {**record, "metrics": metrics}, history, data["test"], args, trainer)


def stage_record(
    stage: Stage,
    parent: Path | None,
    data: dict,
    report: dict,
    num_steps: int,
    model_args: ModelArguments,
    data_args: DataArguments,
    args: PARTTrainingArguments,
) -> dict:
    """What `stage.json` will say of where the stage's weights come from."""
    return {
        "stage": stage.name,
        "parent": None if parent is None else parent.name,
        "seed": args.seed,
        "base_models": {"audio_model": model_args.audio_model, "language_model": model_args.language_model},
        "data": {
            "fingerprint": "streamed" if isinstance(data["train"], dict) else fingerprint(data["train"]),
            **{key: report[key] for key in ("rows", "hours")},
        },
        "hyperparameters": hyperparameters(stage, num_steps, model_args, data_args, args),
        "versions": {package: version(package) for package in VERSIONED},
    }


def build_trainer(
    stage: Stage,
    folder: Path,
    parent: Path | None,
    model: PARTForSpeechSeq2Seq,
    processor: PARTProcessor,
    sampler: TaskBatchSampler | StreamingTaskBatches,
    record: dict,
    history: list[tuple[int, int]],
    data: dict,
    data_args: DataArguments,
    args: PARTTrainingArguments,
) -> PARTTrainer:
    """The stage's trainer; the training rows may be augmented, the dev rows never are."""
    streaming = isinstance(data["train"], dict)
    multiples = (data_args.pad_seconds_multiple, data_args.pad_tokens_multiple)
    augmentation = build_augmentation(data_args.augmentation)
    return PARTTrainer(
        model=model,
        args=stage_arguments(stage, folder, sampler.num_steps, args, streaming),
        stage=stage,
        train_dataset=sampler if streaming else data["train"],
        eval_dataset=data["eval"],
        batch_sampler=sampler,
        eval_batches=eval_batches(data["eval"], processor, data_args),
        data_collator=PARTCollator(processor, *multiples, augmentation, args.seed, skip_broken=True),
        eval_collator=PARTCollator(processor, *multiples, skip_broken=True),
        max_bad_fraction=data_args.max_bad_fraction,
        generation_monitor=make_monitor(folder, parent, data["eval"], processor, record["data"]["rows"], args),
        processing_class=processor,
        history=history,
        on_save=lambda checkpoint: write_stage_json(checkpoint, {**record, "metrics": {}}),
    )


def make_monitor(
    folder: Path, parent: Path | None, dataset, processor: PARTProcessor, rows: dict, args: PARTTrainingArguments
) -> GenerationMonitor | None:
    """`predict_with_generate`: the dev data's answers, scored at each evaluation."""
    if not args.predict_with_generate:
        return None
    if dataset is None:
        raise ValueError("`predict_with_generate` needs `eval_data` in the recipe.")
    check_languages_of(dataset)
    return GenerationMonitor(dataset, processor, folder, parent, rows or None, args.seed, **generation_settings(args))


def generation_settings(args: PARTTrainingArguments) -> dict:
    return {
        "batch_size": args.per_device_eval_batch_size,
        "max_audio_seconds": args.generation_batch_seconds,
        "max_new_tokens": args.max_new_tokens,
    }


def cache_encoder_outputs(
    stage: Stage, trainer: PARTTrainer, processor: PARTProcessor, sampler, data_args: DataArguments, args
) -> None:
    """`cache_encoder_outputs`: compute what the frozen encoder gives for the stage's clips, and train on that."""
    if "encoder" in stage.learning_rates:
        logger.info("Stage %s trains the encoder: no encoder outputs are kept", stage.name)
        return
    if not isinstance(sampler, TaskBatchSampler):
        raise ValueError(
            "`cache_encoder_outputs` needs clips that can be met again; leave it out for streamed corpora."
        )
    if trainer.is_fsdp_enabled:
        raise ValueError("`cache_encoder_outputs` needs the whole encoder on every process, which FSDP2 shards.")
    encoder, config = trainer.model.model.audio_tower, trainer.model.config
    made_by = f"{weights_fingerprint(encoder)} {config.variable_length} {processor.feature_extractor.to_json_string()}"
    name = hashlib.sha256(f"{made_by} {args.bf16} {args.fp16}".encode()).hexdigest()[:16]
    outputs = write_encoder_outputs(
        trainer.model,
        processor,
        trainer.train_dataset,
        list(chain.from_iterable(sampler)),
        Path(args.output_dir) / "data" / "encoder_outputs" / name,
        max_audio_seconds=data_args.max_audio_seconds,
        max_bad_fraction=data_args.max_bad_fraction,
        autocast=trainer.compute_loss_context_manager,
    )
    trainer.data_collator = PARTCollator(
        processor, data_args.pad_seconds_multiple, data_args.pad_tokens_multiple, encoder_outputs=outputs
    )


def start_again(folders: list[Path]) -> None:
    """`--force`: forget that these stages are finished, and their checkpoints for resuming."""
    if PartialState().is_main_process:
        for folder in folders:
            remove_checkpoints(folder)
    PartialState().wait_for_everyone()


def find_checkpoint(folder: Path, args: PARTTrainingArguments) -> tuple[Path | None, list[tuple[int, int]]]:
    """Where an interrupted stage continues, and the steps that it made with another number of batches."""
    checkpoint = None if args.dry_run else last_checkpoint(folder)
    if checkpoint is None:
        return None, []
    if not args.resume:
        raise ValueError(
            f"{folder} holds checkpoints of an interrupted run: continue it with --resume, or start again with --force "
            "(which removes them)."
        )
    batches_per_step = args.world_size * args.gradient_accumulation_steps
    history = read_history(checkpoint, batches_per_step)
    if history:
        logger.info(
            "%s was made with %d batches per optimizer step (ranks times accumulation), now there are %d: the rows that "
            "the stage has not yet seen are dealt anew",
            checkpoint,
            history[-1][0],
            batches_per_step,
        )
    return checkpoint, history


def finish_stage(
    folder: Path, record: dict, history: list[dict], test_data, args: PARTTrainingArguments, trainer: PARTTrainer
) -> None:
    """Predict with what was saved, and write `stage.json` last: it says that the stage is finished."""
    state = PartialState()
    accelerator = trainer.accelerator
    if state.is_main_process:
        write_json(folder / "log_history.json", history)
    state.wait_for_everyone()
    if test_data is not None and len(test_data):
        device = trainer.args.device
        trainer.model.to("cpu")
        del trainer
        predict_and_score(folder, test_data, folder, args, device, accelerator)
    if state.is_main_process:
        write_stage_json(folder, record)
        logger.info("Stage %s is finished: %s", record["stage"], folder)
    state.wait_for_everyone()


def copy_stage(source: Path, folder: Path, test_data, args: PARTTrainingArguments) -> None:
    """`--reuse_runs`: take a stage of another run; rows of the test data that it has not predicted are."""
    state = PartialState()
    if state.is_main_process:
        logger.info("Stage %s was trained alike in %s: copied", folder.name, source)
        partial = folder.with_name(f"{folder.name}.copying")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(source, partial, ignore=shutil.ignore_patterns("stage.json", "checkpoint-*"))
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    state.wait_for_everyone()
    if test_data is not None and len(test_data):
        predict_and_score(folder, test_data, folder, args, args.device)
    if state.is_main_process:
        shutil.copy2(source / "stage.json", folder / "stage.json")  # last: it says that the stage is finished
    state.wait_for_everyone()


def push_stage(folder: Path, args: PARTTrainingArguments) -> bool:
    """One commit and one tag on the Hub; training goes on if the Hub cannot be reached. Returns whether it worked."""
    from modeling_part.publishing.hub import PublishingError, publish

    try:
        publish(folder, args.hub_model_id, private=bool(args.hub_private_repo), token=args.hub_token)
    except PublishingError as error:
        command = f"python -m modeling_part.publishing {folder} --repo_id {args.hub_model_id}"
        logger.error("%s is trained but not published: %s Publish it later with: %s", folder, error, command)
        return False
    return True


def predict_and_score(
    checkpoint: Path, dataset, folder: Path, args: PARTTrainingArguments, device, accelerator=None
) -> None:
    """`predictions.jsonl` and `report.json` of a saved checkpoint, loaded as users load it."""
    dtype = torch.bfloat16 if args.bf16 else "auto"
    model = PARTForSpeechSeq2Seq.from_pretrained(checkpoint, dtype=dtype).to(device).eval()
    processor = PARTProcessor.from_pretrained(checkpoint)
    predict_and_report(
        model, processor, dataset, folder, seed=args.seed, accelerator=accelerator, **generation_settings(args)
    )


def predict_checkpoint(model_args: ModelArguments, data_args: DataArguments, args: PARTTrainingArguments) -> None:
    """`--do_predict`: score `test_data` with `--checkpoint` (or a stage's folder) into `output_dir`."""
    folder = Path(args.output_dir)
    checkpoint = Path(model_args.checkpoint) if model_args.checkpoint else folder / (args.stage or "joint")
    if not (checkpoint / "config.json").is_file():
        raise FileNotFoundError(f"{checkpoint} is no checkpoint (no config.json); give `--checkpoint` or `--stage`.")
    target = folder if model_args.checkpoint else checkpoint
    dataset, _ = read_split("test", data_args, args)
    if dataset is None:
        raise ValueError("There is nothing to predict: name `test_data` in the recipe.")
    check_languages_of(dataset)
    check_prompts([dataset], PARTProcessor.from_pretrained(checkpoint))
    predict_and_score(checkpoint, dataset, target, args, args.device)
    logger.info("The report is in %s", target / "report.md")


def set_up_logging(args: PARTTrainingArguments) -> None:
    """Messages of the main process on the screen; warnings of the others."""
    level = logging.INFO if args.process_index == 0 else logging.WARNING
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S", level=level)
    for noisy in ("httpx", "datasets", "torch", "numexpr", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def read_data(data_args: DataArguments, args: PARTTrainingArguments) -> dict:
    """`train`, `eval` and `test` rows (None where the recipe names none) and the training corpora's `weights`."""
    if any(spec.get("streaming") for spec in data_args.train_data or []):
        data = {"train": read_streams(data_args), "weights": {}}
    else:
        data = dict(zip(("train", "weights"), read_split("train", data_args, args), strict=True))
    return data | {name: read_split(name, data_args, args)[0] for name in ("eval", "test")}


def filters(data_args: DataArguments) -> dict:
    names = ("min_duration", "max_duration", "min_characters_per_second", "max_characters_per_second")
    return {name: getattr(data_args, name) for name in (*names, "max_bad_fraction")}


def read_streams(data_args: DataArguments) -> dict:
    """One stream of canonical rows per task: a global step takes its rows from one of them."""
    streams = {}
    for task in TASKS:
        specs = [
            {**spec, "tasks": [task], "streaming": True}
            for spec in data_args.train_data
            if task in spec.get("tasks", TASKS)
        ]
        if specs:
            streams[task], _ = read_corpora(specs, **filters(data_args))
    return streams


def read_split(name: str, data_args: DataArguments, args: PARTTrainingArguments) -> tuple:
    """The canonical rows of `train_data`, `eval_data` or `test_data` and the corpora's weights; None, {} without."""
    specs = getattr(data_args, f"{name}_data")
    if not specs:
        return None, {}
    cache = Path(args.output_dir) / "data" / name
    if PartialState().is_main_process:
        report_path = Path(args.output_dir) / f"data_report_{name}.json"
        read_corpora(specs, **filters(data_args), report_path=report_path, cache_dir=cache)
    PartialState().wait_for_everyone()
    dataset, report = open_corpora(cache)
    if name == "eval" and args.max_eval_rows is not None and len(dataset) > args.max_eval_rows:
        dataset = dataset.shuffle(seed=0).select(range(args.max_eval_rows))
    return dataset, report["weights"]


def check_before_training(
    plan: list[Stage], data: dict, data_args: DataArguments, args: PARTTrainingArguments
) -> None:
    """What would otherwise fail after hours: no data, an unknown stage, a language without normaliser, a full disk."""
    if args.stage is not None and args.stage not in [stage.name for stage in plan]:
        raise ValueError(f"Unknown stage {args.stage!r}; the recipe's stages are {[stage.name for stage in plan]}.")
    if args.cache_encoder_outputs:
        refuse_augmentation(data_args.augmentation)
    if data["train"] is None or len(data["train"]) == 0:
        raise ValueError("There are no training rows: check `train_data` and data_report_train.json.")
    for name in ("train", "eval", "test"):
        if data[name] is not None and not isinstance(data[name], dict):
            check_languages_of(data[name])
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)


def check_languages_of(dataset) -> None:
    """Every language has a text normaliser, every translation a BLEU tokenizer."""
    tasks, targets = dataset["task"], dataset["target_lang"]
    check_scorable(
        dataset.unique("source_lang"), {target for task, target in zip(tasks, targets, strict=True) if task != "asr"}
    )


def check_prompts(datasets: list, processor: PARTProcessor) -> None:
    """The prompts know a name for every language (nothing is known of streams)."""
    for dataset in datasets:
        if dataset is not None and not isinstance(dataset, dict):
            for code in chain(dataset.unique("source_lang"), dataset.unique("target_lang")):
                processor.language_name(code)


def check_disk(folder: Path, model, stage: Stage, args: PARTTrainingArguments) -> None:
    """The stage's folder and its checkpoints (weights, gradients' averages) fit on the disk."""
    weights = sum(parameter.numel() * 4 for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    checkpoints = 0 if args.save_strategy == "no" else 1 + (args.save_total_limit or 1)
    needed = weights * (1 + checkpoints) + 8 * trained * checkpoints
    free = shutil.disk_usage(folder.parent).free
    if free < needed:
        raise OSError(
            f"Stage {stage.name!r} writes up to {needed / 2**30:.1f} GiB into {folder}, and {free / 2**30:.1f} GiB are free: "
            "make room, set another `output_dir`, or lower `save_total_limit`."
        )


def load_model(parent: Path | None, model_args: ModelArguments, args: PARTTrainingArguments):
    """The parent stage's model, the recipe's checkpoint, or the two pretrained parts with a new adapter."""
    dtype = getattr(torch, model_args.model_dtype)
    checkpoint = parent or model_args.checkpoint
    if checkpoint is None:
        return PARTForSpeechSeq2Seq.from_pretrained_parts(
            model_args.audio_model,
            model_args.language_model,
            dtype=dtype,
            attn_implementation=model_args.attn_implementation,
            system_prompt=model_args.system_prompt,
            **(model_args.adapter or {}),
        )
    if not (Path(checkpoint) / "config.json").is_file() and parent is not None:
        raise FileNotFoundError(f"Stage folder {parent} is not there; run that stage first (leave `--stage` out).")
    model = PARTForSpeechSeq2Seq.from_pretrained(
        checkpoint, dtype=dtype, attn_implementation=model_args.attn_implementation
    )
    return model, PARTProcessor.from_pretrained(checkpoint)


def plan_batches(
    stage: Stage,
    data: dict,
    processor: PARTProcessor,
    data_args: DataArguments,
    args: PARTTrainingArguments,
    checkpoint: Path | None,
    history: list[tuple[int, int]],
) -> tuple[TaskBatchSampler | StreamingTaskBatches, dict]:
    """The batches of a whole stage, and what its first epoch draws (nothing is known of streams)."""
    if isinstance(data["train"], dict):
        stream = make_stream(stage, data["train"], processor, data_args, args, checkpoint)
        return stream, {"steps": stage.max_steps, "rows": {}, "hours": {}, "padding_share": 0.0}
    table = RowTable.from_dataset(data["train"], count_tokens(data["train"], processor), data["weights"])
    sampler = make_sampler(stage, table, data_args, args, history)
    # Of a stage's own epochs, not of what is left of them when it is resumed with another number of ranks.
    return sampler, (make_sampler(stage, table, data_args, args) if history else sampler).epoch_report(0)


def make_stream(
    stage: Stage, streams: dict, processor, data_args: DataArguments, args: PARTTrainingArguments, checkpoint
) -> StreamingTaskBatches:
    """Batches of streamed corpora: their number is given, not counted."""
    if stage.max_steps is None:
        raise ValueError(f"Stage {stage.name!r} streams its corpora, whose size is not known: give it `max_steps`.")
    done = 0 if checkpoint is None else int(checkpoint.name.removeprefix("checkpoint-"))
    return StreamingTaskBatches(
        {task: streams[task] for task in stage.active_tasks if task in streams},
        {task: weight for task, weight in stage.tasks.items() if task in streams},
        lambda row: count_row_tokens(row, processor),
        max_audio_seconds=data_args.max_audio_seconds,
        max_tokens=data_args.max_tokens,
        max_rows=data_args.max_rows,
        num_steps=stage.max_steps,
        rank=args.process_index,
        world_size=args.world_size,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        seed=args.seed,
        first_step=done,
        pad_seconds_multiple=data_args.pad_seconds_multiple,
        pad_tokens_multiple=data_args.pad_tokens_multiple,
    )


def make_sampler(
    stage: Stage, table: RowTable, data_args: DataArguments, args: PARTTrainingArguments, history=()
) -> TaskBatchSampler:
    """Batches of a whole stage."""
    return TaskBatchSampler(
        table,
        Mixture(stage.tasks, data_args.temperature, data_args.direction_weights or {}),
        max_audio_seconds=data_args.max_audio_seconds,
        max_tokens=data_args.max_tokens,
        max_rows=data_args.max_rows,
        world_size=args.world_size,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        epochs=None if stage.max_steps else stage.epochs,
        num_steps=stage.max_steps,
        seed=args.seed,
        pad_seconds_multiple=data_args.pad_seconds_multiple,
        pad_tokens_multiple=data_args.pad_tokens_multiple,
        history=history,
    )


def eval_batches(dataset, processor, data_args: DataArguments) -> list[list[int]] | None:
    """Batches for the dev loss: every row once, one task per batch."""
    if dataset is None:
        return None
    table = RowTable.from_dataset(dataset, count_tokens(dataset, processor))
    tasks = {group[0]: 1.0 for group in table.groups}
    budgets = {"max_audio_seconds": data_args.max_audio_seconds, "max_tokens": data_args.max_tokens}
    return list(TaskBatchSampler(table, Mixture(tasks), max_rows=data_args.max_rows, epochs=1, **budgets))


def stage_arguments(stage: Stage, folder: Path, num_steps: int, args: PARTTrainingArguments, streaming: bool):
    """The run's arguments with what the stage sets."""
    stage_args = copy.copy(args)
    stage_args.output_dir = str(folder)
    stage_args.max_steps = num_steps
    stage_args.warmup_steps = math.ceil(stage.warmup_ratio * num_steps)
    stage_args.learning_rate = max(stage.learning_rates.values())
    stage_args.run_name = f"{args.run_name or Path(args.output_dir).name}-{stage.name}"
    stage_args.ignore_data_skip = streaming  # a stream begins at the step where training stopped
    stage_args.push_to_hub = False  # publishing is per finished stage, not Trainer's
    return stage_args


def hyperparameters(
    stage: Stage, num_steps: int, model_args: ModelArguments, data_args: DataArguments, args: PARTTrainingArguments
) -> dict:
    """What the model card states; all that the stage's result depends on, besides data, seed and versions."""
    model_names = ("checkpoint", "adapter", "system_prompt", "language_names", "model_dtype", "frozen_dtype")
    model_names += ("attn_implementation",)
    names = ("max_audio_seconds", "max_tokens", "max_rows", "temperature", "direction_weights", "augmentation")
    names += ("pad_seconds_multiple", "pad_tokens_multiple")
    training = ("gradient_accumulation_steps", "weight_decay", "max_grad_norm", "bf16", "fp16", "world_size")
    training += ("adam_beta1", "adam_beta2", "adam_epsilon", "lr_scheduler_kwargs", "padding_free")
    training += ("cache_encoder_outputs",)
    return {
        **asdict(stage),
        "num_steps": num_steps,
        **{name: getattr(model_args, name) for name in model_names},
        **{name: getattr(data_args, name) for name in names},
        **{name: getattr(args, name) for name in training},
        "lr_scheduler_type": str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
        "optim": str(getattr(args.optim, "value", args.optim)),
    }


def trainable_parameters(trainer: PARTTrainer) -> dict[str, int]:
    parameters = dict(trainer.model.named_parameters())
    counts = dict.fromkeys(parameters_per_part(trainer.model), 0)
    for part, names in trainer.trainable_names.items():
        counts[part] = sum(parameters[name].numel() for name in names if name in parameters)
    return counts


def log_plan(stage: Stage, trainer: PARTTrainer, num_steps: int, report: dict) -> None:
    """What is about to happen, in a few lines."""
    logger.info("Stage %s: %d steps, %d per epoch, gate %s", stage.name, num_steps, report["steps"], stage.gate)
    trainable = trainable_parameters(trainer)
    for part, total in parameters_per_part(trainer.model).items():
        rate = stage.learning_rates.get(part)
        share = f"{trainable[part]:,} of {total:,} parameters train"
        logger.info("  %-15s %s%s", part, share, f", learning rate {rate:g}" if trainable[part] else "")
    if stage.encoder_layers is not None and stage.encoder_layers > trainer.model.config.encoder_num_hidden_layers:
        layers = trainer.model.config.encoder_num_hidden_layers
        logger.info("  the encoder has %d layers, fewer than %d: all of them train", layers, stage.encoder_layers)
    for group, rows in report["rows"].items():
        logger.info("  %-15s %d rows, %.2f h per epoch", group, rows, report["hours"][group])
    logger.info("  %.1f %% of the padded audio is padding", 100 * report["padding_share"])


def dry_run(stage: Stage, trainer: PARTTrainer, sampler) -> None:
    """Two batches, one forward."""
    rows = islice(sampler, 2)
    if isinstance(sampler, TaskBatchSampler):
        rows = [[trainer.train_dataset[index] for index in batch] for batch in rows]
    batches = [trainer.eval_collator(batch) for batch in rows]
    inputs = trainer._prepare_inputs(dict(batches[0]))
    info = inputs.pop("batch_info")
    trainer.warn_of_broken(info)
    with torch.no_grad(), trainer.compute_loss_context_manager():
        loss = trainer.model(**inputs).loss
    logger.info("  dry run: loss %.3f on %d %s rows", float(loss), len(info["ids"]), info["task"])
    config, args = trainer.model.config, trainer.args
    steps = max(batch["input_features_mask"].numel() if "input_features_mask" in batch else 0 for batch in batches)
    gibibytes = estimate_memory(
        trainer.model,
        trainable_parameters(trainer),
        {
            "frames": convolved_length(steps, config.encoder_convolutions),
            "positions": max(batch["input_ids"].numel() for batch in batches),
            "targets": max(int((batch["labels"] != -100).sum()) for batch in batches),
        },
        world_size=args.world_size,
        sharded=trainer.is_fsdp_enabled,
        gradient_checkpointing=args.gradient_checkpointing,
        autocast=args.bf16,
    )
    logger.info("  memory per device, GiB: %s", ", ".join(f"{name} {size:.2f}" for name, size in gibibytes.items()))


@contextmanager
def stopping(trainer: PARTTrainer):
    """SIGTERM and SIGINT save and stop at the next step; a second SIGINT stops at once."""

    def interrupt(number, frame) -> None:
        if trainer.stop_requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        trainer.request_stop(number, frame)

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def launch(argv: list[str] | None = None) -> None:
    """[`main`] in a process of its own, which leaves the group of ranks before it exits: else the threads of the group can
    end a rank with an error after all is done. A rank that failed does not wait for the others.
    """
    try:
        main(argv)
    except SystemExit:  # stopped, or not published: the ranks are together
        PartialState().destroy_process_group()
        raise
    PartialState().destroy_process_group()


if __name__ == "__main__":
    launch()
