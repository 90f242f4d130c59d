# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""What of a finished stage's folder goes to the Hub: [`prepare`] completes it with code and card, and cleans it.

A finished stage holds `config.json`, `model.safetensors` (or shards), `generation_config.json`, the processor's files
and `stage.json`.
"""

import json
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..configuration_part import PARTConfig
from ..evaluation.pictures import picture_bytes, plot_losses
from ..evaluation.report_file import LISTS, read_report
from ..evaluation.run_files import is_number, read_log_history, read_stage
from ..modeling_part import PARTForSpeechSeq2Seq
from ..processing_part import PARTProcessor
from ..recipes.files import CheckpointError, read_json, to_json
from ..recipes.stage_files import INDEX, check_files, is_finite, shards_of
from ..recipes.stage_record import read_stage_json
from ..saved_prompt_part import edited_settings
from .cards import check_record, render_card, stage_tag
from .privacy import check_nothing_private, check_vocabulary, without_local_paths
from .remote_code import CODE_FILES, add_remote_code, check_links, matches


logger = logging.getLogger(__name__)

# What is published: nothing else leaves the machine.
WEIGHT_FILES = ("model.safetensors", "model-*-of-*.safetensors")
JSON_FILES = (
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    INDEX,
    "stage.json",
    "report.json",
)

# Vocabularies are data: words such as "/home" in them are not cleaned. Secrets are looked for in them, too.
VOCABULARY_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model")
TEXT_FILES = ("chat_template.jinja", "LICENSE", "NOTICE")
PUBLISHED_FILES = (*WEIGHT_FILES, *CODE_FILES, *JSON_FILES, *VOCABULARY_FILES, *TEXT_FILES)

# Made for the card: no picture of the folder is sent.
CURVE_FILE = "loss.png"

# What training and evaluation leave beside a finished model; it stays here, as all folders do: checkpoints, answers of
# `predict_with_generate`, what loggers write (runs, wandb, trackio, mlruns, ...). Predictions quote their corpora, and
# LoRA (the folder lora, once lora.safetensors) is in the published weights already, merged.
LEFT_FILES = (
    "*/",
    ".*",
    "*.log",
    "*.tfevents.*",
    "emissions*.csv",
    "wandb-*",
    "*.db",
    "*.sqlite*",
    "lora.safetensors",
    "log_history.json",
    "predictions.jsonl*",
    "predictions_unnamed.jsonl*",
    "report.md",
    "report.html",
    "alignments.json",
    "*.png",
    "README.md",
)
WHY_REFUSED = {
    "adapter_model.safetensors": "LoRA weights: merge them with `merge_and_unload` and save the whole model",
    "adapter_config.json": "LoRA settings: merge the adapter with `merge_and_unload` and save the whole model",
    "optimizer*": "optimizer state: publish the finished stage, not a training checkpoint",
    "scheduler*": "optimizer state: publish the finished stage, not a training checkpoint",
    "rng_state*": "optimizer state: publish the finished stage, not a training checkpoint",
    "trainer_state.json": "state of a training run: publish the finished stage, not a training checkpoint",
    **dict.fromkeys(
        ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.joblib", "*.npy"),
        "a pickle, or a file that may hold one: save weights as safetensors and delete it",
    ),
}


def prepare(
    folder: str | Path,
    repo_id: str,
    *,
    license: str | None = None,
    tags: Mapping[str, str] | None = None,
    samples: bool = False,
) -> dict[str, Path | bytes]:
    """Everything that a stage's commit holds, by name: weights as paths, the rest as cleaned bytes.

    The folder gains the code that travels with it, see [`add_remote_code`]. What is uploaded is cleaned of local paths,
    and of keys that only say where files lay; `README.md` is rendered anew, and the picture of the loss that it shows.

    Args:
        folder: of a finished stage; `report.json`, where it is there, gives the card's evaluation.
        repo_id: the repository on the Hub, which the card names.
        license: identifier for the card's metadata.
        tags: what the repository has published before, commits by tag; they give the revision of the parent.
        samples: show a few answers in the card beside their references, and leave those in the report that the two heads
            disagree on: these quote the test data.

    Raises:
        CheckpointError: a file that is neither published nor known to stay, a pickle, optimizer state, unmerged LoRA, a
            missing shard, weights that are not safetensors, not finite, not the model's or not those that were saved, a
            link out of the folder, a `stage.json` or `report.json` that is not what it must be, or text with a secret or a
            local path left in it.
    """
    folder = Path(folder)
    check_links(folder, PUBLISHED_FILES)
    add_remote_code(folder)
    record = published_record(folder, tags or {})
    contents: dict[str, Path | bytes] = {}
    for name in _published_names(folder):
        path = folder / name
        if matches(name, WEIGHT_FILES):
            _check_weights(path)
        contents[name] = path if matches(name, WEIGHT_FILES) else _cleaned(path, samples)
    _check_shards(contents, folder)
    check_files(folder, record, "Put the file back, or train the stage again.")
    _check_tensors([folder / name for name in contents if matches(name, WEIGHT_FILES)], folder)
    report = read_report(folder / "report.json") if "report.json" in contents else None
    contents["stage.json"] = to_json(record).encode()
    examples = read_stage(folder)["examples"] if samples else []
    if (curve := _loss_picture(folder)) is not None:
        contents[CURVE_FILE] = curve
    contents["README.md"] = render_card(
        record, report, repo_id=repo_id, license=license, samples=examples, has_curve=curve is not None
    ).encode()
    _check_private(contents, folder)
    _check_processor(folder, json.loads(contents["processor_config.json"]))
    return contents


def check_processor(config: PARTConfig, processor: PARTProcessor) -> None:
    """Of a model that is to be trained: whether its configuration, processor and tokenizer may be published.

    Raises:
        CheckpointError: as [`prepare`] would, after the training.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config.save_pretrained(folder)
        processor.save_pretrained(folder)
        contents = {path.name: _cleaned(path) for path in sorted(folder.iterdir()) if is_published(path.name)}
        _check_private(contents, folder)
        _check_processor(folder, json.loads(contents["processor_config.json"]))


def _cleaned(path: Path, samples: bool = False) -> bytes:
    """What a file that holds no weights is published as."""
    if path.name not in JSON_FILES:
        return path.read_bytes()
    content = without_local_paths(read_json(path), path.parent)
    if path.name == "report.json" and not samples and isinstance(content, dict):
        for name in LISTS:
            content.pop(name, None)
    return to_json(content).encode()


def _check_private(contents: Mapping[str, Path | bytes], folder: Path) -> None:
    """Nothing private is left in what is to be published."""
    for name, content in contents.items():
        if name in VOCABULARY_FILES:
            check_vocabulary(name, content, folder)
        elif isinstance(content, bytes) and name != CURVE_FILE:
            check_nothing_private(name, _decoded(content, folder / name), folder)


def _check_processor(folder: Path, cleaned: dict) -> None:
    """The processor asks as the model was trained, also where local paths were taken out of its settings."""
    try:
        PARTProcessor.from_pretrained(folder)
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{folder} is not published: {error}") from error
    if edited := edited_settings(cleaned):
        raise CheckpointError(
            f"{folder / 'processor_config.json'} holds a local path in {', '.join(edited)}, and the model was trained with it, "
            "so that it cannot be taken out. Train with another wording."
        )


def _loss_picture(folder: Path) -> bytes | None:
    """The loss over the steps of a stage as PNG; None where its log has none."""
    history = [entry for entry in read_log_history(folder) if is_number(entry.get("step"))]
    steps = history[-1]["step"] if history else 0
    figure = plot_losses([{"name": folder.resolve().name, "log_history": history, "steps": steps}])
    return None if figure is None else picture_bytes(figure)


def _decoded(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 ({error}). Save it as UTF-8.") from error


def published_record(folder: Path, tags: Mapping[str, str]) -> dict:
    """`stage.json` for the world: the parent and local base models by name, without the folders they lay in."""
    record = read_stage_json(folder)
    check_record(record, folder / "stage.json")
    record = without_local_paths(record, folder)
    if record["parent"] is not None:
        record["parent"] = Path(record["parent"]).name.removeprefix("stage-")
        if revision := tags.get(stage_tag(record["parent"])):
            record["parent_revision"] = revision
    record["base_models"] = {
        part: Path(model).name if os.path.exists(model) else model for part, model in record["base_models"].items()
    }
    return record


def is_published(name: str) -> bool:
    """Whether a file of a repository has the name of one of a checkpoint's."""
    return name in ("README.md", CURVE_FILE) or matches(name, PUBLISHED_FILES)


def _published_names(folder: Path) -> list[str]:
    """Names of the files to publish; one that is neither published nor known to stay is an error."""
    published, left, refused = [], [], []
    for path in sorted(folder.iterdir()):
        name = f"{path.name}/" if path.is_dir() else path.name
        if path.is_file() and matches(name, PUBLISHED_FILES):
            published.append(name)
        elif matches(name, PUBLISHED_FILES):
            refused.append(f"{name} (no file that can be read)")
        elif matches(name, LEFT_FILES):
            left.append(name)
        else:
            reason = next((why for pattern, why in WHY_REFUSED.items() if matches(name, [pattern])), None)
            refused.append(f"{name} ({reason or 'not a part of a PART checkpoint: move it away'})")
    if refused:
        raise CheckpointError(f"{folder} is not published because of {'; '.join(refused)}.")
    if left:
        logger.info("Not published: %s", ", ".join(left))
    return published


def _check_weights(path: Path) -> None:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is not a safetensors file ({error}). Save the weights with `save_pretrained`."
        ) from error
    check_nothing_private(path.name, json.dumps(metadata), path.parent)


def _check_shards(contents: Mapping[str, Path | bytes], folder: Path) -> None:
    """One file of weights, or all the shards that the index names and no other."""
    weights = {name for name in contents if matches(name, WEIGHT_FILES)}
    wanted = set(shards_of(folder).values()) if INDEX in contents else {"model.safetensors"}
    if weights != wanted:
        raise CheckpointError(
            f"{folder}: missing weights {sorted(wanted - weights)}, unexpected weights {sorted(weights - wanted)}. "
            "Save the model again into an empty folder."
        )


def _check_tensors(files: list[Path], folder: Path) -> None:
    """The names and shapes in the files are those of the model that `config.json` describes, and all values finite."""
    found = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                found[name] = list(file.get_slice(name).get_shape())
                if not is_finite(file.get_tensor(name)):
                    raise CheckpointError(
                        f"{path}: {name!r} holds values that are not finite (NaN or infinite), so that the model answers "
                        "nothing. Train the stage again with a lower learning rate."
                    )
    try:
        with torch.device("meta"):
            model = PARTForSpeechSeq2Seq(PARTConfig.from_pretrained(folder))
    except Exception as error:  # whatever a value that was changed makes of the parts' configurations
        raise CheckpointError(
            f"{folder / 'config.json'} describes no PART model ({type(error).__name__}: {error}). Save the model again."
        ) from error
    wanted = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    missing = sorted(set(wanted) - set(found) - set(model.all_tied_weights_keys))
    unexpected = sorted(set(found) - set(wanted))
    mismatched = sorted(name for name in set(wanted) & set(found) if wanted[name] != found[name])
    if missing or unexpected or mismatched:
        raise CheckpointError(
            f"{folder}: the weights do not fit config.json: missing {missing[:5]}, unexpected "
            f"{unexpected[:5]}, of another shape {mismatched[:5]}. Save model and config together, adapters merged."
        )
