# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""The folder of a finished stage: its `stage.json`, the code that travels with it, and what of it may leave the machine.

A finished stage holds `config.json`, `model.safetensors` (or shards), `generation_config.json`, the processor's files
and `stage.json`. [`upload_contents`] decides which of its files are published, and cleans them.
"""

import json
import logging
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path

import torch
from huggingface_hub import get_token
from safetensors import SafetensorError, safe_open
from transformers.dynamic_module_utils import get_relative_import_files

from .configuration_part import PARTConfig
from .modeling_part import PARTForSpeechSeq2Seq
from .pipeline_part import CUSTOM_PIPELINES


logger = logging.getLogger(__name__)

# Keys of stage.json and the type of each. `parent` is None for a stage that starts from the base models; `base_models`
# maps a part ("audio_model", "language_model") to the checkpoint it came from.
STAGE_KEYS = {
    "stage": str,
    "parent": (str, type(None)),
    "seed": int,
    "base_models": dict,
    "data": dict,
    "hyperparameters": dict,
    "trainable_parameters": dict,
    "versions": dict,
    "metrics": dict,
}
DATA_KEYS = {"fingerprint": str, "rows": dict, "hours": dict}
# Keys that may be there: `datasets`, Hub ids of the training data, and `parent_revision`, which publishing fills in.
OPTIONAL_STAGE_KEYS = {"datasets": list, "parent_revision": str}

# Auto classes in a checkpoint's config.json -> class in the module that travels with it.
MODEL_AUTO_MAP = {
    "AutoConfig": "configuration_part.PARTConfig",
    "AutoModel": "modeling_part.PARTModel",
    "AutoModelForSpeechSeq2Seq": "modeling_part.PARTForSpeechSeq2Seq",
    "AutoModelForMultimodalLM": "modeling_part.PARTForSpeechSeq2Seq",
}
PROCESSOR_AUTO_MAP = {"AutoProcessor": "processing_part.PARTProcessor"}
ARCHITECTURE = "PARTForSpeechSeq2Seq"

# What is published: nothing else leaves the machine.
WEIGHT_FILES = ("model.safetensors", "model-*-of-*.safetensors")
CODE_FILES = tuple(
    f"{name}_part.py"
    for name in ("configuration", "encoder", "adapter", "loading", "modeling", "processing", "pipeline")
)
JSON_FILES = (
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "model.safetensors.index.json",
    "stage.json",
    "report.json",
)
# Vocabularies are data: words such as "/home" in them are neither cleaned nor searched.
VOCABULARY_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model")
TEXT_FILES = ("chat_template.jinja", "LICENSE", "NOTICE")
PUBLISHED_FILES = (*WEIGHT_FILES, *CODE_FILES, *JSON_FILES, *VOCABULARY_FILES, *TEXT_FILES)

# What training and evaluation leave beside a finished model; it stays here. Predictions quote their corpora, and
# lora.safetensors (to continue training) is in the published weights already, merged.
LEFT_FILES = (
    "checkpoint-*/",
    "dev/",  # answers of `predict_with_generate`
    "incomplete/",
    "lora.safetensors",
    "log_history.json",
    "predictions.jsonl*",
    "report.md",
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

# Keys that only say where the files lay.
LOCAL_KEYS = {"_name_or_path", "name_or_path", "is_local", "local_files_only", "_commit_hash"}
# A text that is a path as a whole: absolute with two parts or more, or from the home, this or the parent folder.
WHOLE_PATH = re.compile(r"(?:/[^/\s{}<>|()\\]+){2,}/?|(?:~|\.\.?)/[^\s{}<>|()\\]+|[A-Za-z]:[/\\][^\s{}<>|]+")
SECRETS = {
    "a Hugging Face token": re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{20,}"),
    "a GitHub token": re.compile(r"\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{30,}"),
    "an AWS key": re.compile(r"\bAKIA[0-9A-Z]{16}\b"),
    "an API key": re.compile(r"\bsk-[A-Za-z0-9_-]{20,}"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "a password in an address": re.compile(r"\w+://[^\s/:@]+:[^\s/@]+@"),
}


class CheckpointError(ValueError):
    """A stage folder is not what it must be; the message names the file, the reason and the fix."""


# ----------------------------------------------------------------------------------------------------------------------
# stage.json
# ----------------------------------------------------------------------------------------------------------------------


def write_stage_json(folder: str | Path, info: Mapping) -> Path:
    """Check a stage's record and write it as `stage.json`; the file appears whole or not at all.

    Args:
        folder: the stage's folder, which exists.
        info: `STAGE_KEYS`, with `data` holding `DATA_KEYS`; `rows` and `hours` are by group, such as `"asr/fr"` and
            `"s2tt/en-fr"`, `trainable_parameters` by part (0: frozen). `OPTIONAL_STAGE_KEYS` may be there.

    Returns:
        The path of the file.

    Raises:
        CheckpointError: a key is missing, unknown or of the wrong type.
    """
    path = Path(folder) / "stage.json"
    check_stage_info(info, path)
    write_json(path, info)
    return path


def read_stage_json(folder: str | Path) -> dict:
    """The checked content of a folder's `stage.json`.

    Raises:
        CheckpointError: the file is missing, is not JSON, or a key is missing, unknown or of the wrong type.
    """
    path = Path(folder) / "stage.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no stage.json: it is not a finished stage. Give the folder of a stage.")
    info = read_json(path)
    check_stage_info(info, path)
    return info


def find_alike(record: Mapping, run: Path, others: Iterable[str | Path]) -> Path | None:
    """
    The finished stage, among other runs, that was trained exactly as a stage is about to be.

    Args:
        record: the stage's `stage.json` to be, without `metrics`.
        run: its run folder, with the finished parents.
        others: run folders to look in.

    Returns:
        A stage folder whose record says the same (settings, data, seed, base models, versions), and whose parents' do;
        None where there is none.
    """
    for other in map(Path, others):
        if (other / record["stage"] / "stage.json").is_file() and other.resolve() != run.resolve():
            if _is_alike(record, run, read_stage_json(other / record["stage"]), other):
                return other / record["stage"]
    return None


def _is_alike(record: Mapping, run: Path, other_record: Mapping, other_run: Path) -> bool:
    ours, theirs = ({key: value for key, value in one.items() if key != "metrics"} for one in (record, other_record))
    if json.loads(json.dumps(ours)) != theirs:  # tuples become lists in the file
        return False
    parent = record["parent"]
    if parent is None:
        return True
    return _is_alike(read_stage_json(run / parent), run, read_stage_json(other_run / parent), other_run)


def check_stage_info(info: Mapping, name: str | Path = "stage_info") -> None:
    """Raise `CheckpointError` where a stage's record is not as [`write_stage_json`] describes it."""
    _check_keys(info, STAGE_KEYS, OPTIONAL_STAGE_KEYS, name)
    _check_keys(info["data"], DATA_KEYS, None, f"{name}: data")
    if not re.fullmatch(r"[a-z0-9_]+", info["stage"]):
        raise CheckpointError(
            f"{name}: stage {info['stage']!r} cannot be a tag; use lower-case letters, digits and _."
        )


def _check_keys(mapping: Mapping, required: dict, optional: dict | None, name: str | Path) -> None:
    """Every required key of its type; others only where `optional` is None, or when it lists them."""
    missing = sorted(set(required) - set(mapping))
    unknown = sorted(set(mapping) - set(required) - set(optional or {})) if optional is not None else []
    if missing or unknown:
        raise CheckpointError(f"{name}: missing keys {missing}, unknown keys {unknown}; give {sorted(required)}.")
    for key, kind in {**required, **(optional or {})}.items():
        if key in mapping and (not isinstance(mapping[key], kind) or isinstance(mapping[key], bool)):
            raise CheckpointError(
                f"{name}: {key!r} is a {type(mapping[key]).__name__}, but must be {_type_name(kind)}."
            )


def _type_name(kind) -> str:
    return " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))


def read_json(path: Path) -> dict:
    """Content of a JSON file; an unreadable one is a `CheckpointError`."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are its subclasses
        raise CheckpointError(f"{path} is not JSON ({error}). Save the checkpoint again.") from error


def write_json(path: Path, content: Mapping | list) -> None:
    """Write JSON through a temporary file beside it, so that an interruption leaves no half file."""
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        temporary = Path(file.name)
        try:
            file.write(to_json(content))
        except BaseException:
            temporary.unlink()
            raise
    temporary.chmod(0o644)  # temporary files are made readable to their owner only
    temporary.replace(path)


def to_json(content: Mapping | list) -> str:
    """JSON as transformers writes it: two spaces, a last line break."""
    return json.dumps(content, ensure_ascii=False, indent=2) + "\n"


# ----------------------------------------------------------------------------------------------------------------------
# Code that travels
# ----------------------------------------------------------------------------------------------------------------------


def code_files() -> list[Path]:
    """The modules that a checkpoint carries: the model, the processor, the pipeline, and what they import of ours."""
    package = Path(__file__).resolve().parent
    entries = [package / name for name in CODE_FILES]
    needed = {Path(file).resolve() for entry in entries for file in [entry, *get_relative_import_files(entry)]}
    strangers = sorted(file.name for file in needed if file.name not in CODE_FILES)
    if strangers:
        raise CheckpointError(
            f"The code of a checkpoint imports {strangers}, which would not travel with it; import only {CODE_FILES}."
        )
    return sorted(needed)


def add_remote_code(folder: str | Path) -> list[Path]:
    """Make a checkpoint folder load with `trust_remote_code=True` where this package is not installed.

    Writes `auto_map` and `custom_pipelines` into `config.json`, `auto_map` into `processor_config.json`, and copies the
    modules beside them. transformers' own `register_for_auto_class` keeps one auto class per class, and the model has
    two, so that the maps are written here. Calling it again changes nothing.

    Args:
        folder: what `model.save_pretrained` and `processor.save_pretrained` wrote.

    Returns:
        The copied modules.

    Raises:
        CheckpointError: a config is missing, or the folder holds another architecture.
    """
    folder = Path(folder)
    configs = {}
    for name in ("config.json", "processor_config.json"):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} has no {name}; save the model and its processor there first.")
        configs[name] = read_json(folder / name)
    check_architecture(configs["config.json"], folder)
    configs["config.json"] |= {"auto_map": MODEL_AUTO_MAP, "custom_pipelines": CUSTOM_PIPELINES}
    configs["processor_config.json"]["auto_map"] = PROCESSOR_AUTO_MAP
    for name, content in configs.items():
        write_json(folder / name, content)
    return [Path(shutil.copyfile(module, folder / module.name)) for module in code_files()]


def check_architecture(config: Mapping, folder: str | Path) -> None:
    """Refuse a `config.json` of another model."""
    architectures = config.get("architectures")
    if architectures != [ARCHITECTURE]:
        raise CheckpointError(f"{folder} holds {architectures}, not {ARCHITECTURE}. Give the folder of a PART stage.")


# ----------------------------------------------------------------------------------------------------------------------
# What may leave the machine
# ----------------------------------------------------------------------------------------------------------------------


def upload_contents(folder: str | Path) -> dict[str, Path | bytes]:
    """Everything of a stage folder that is published, by name: weights as paths, the rest as cleaned bytes.

    Local paths, and keys that only say where files lay, are taken out of the JSON files; the folder itself stays as it
    is. README.md is not among them: the card is rendered anew.

    Raises:
        CheckpointError: a file that is neither published nor known to stay, a pickle, optimizer state, unmerged LoRA, a
            missing shard, weights that are not safetensors or not the model's, or text with a token or a local path
            left in it.
    """
    folder = Path(folder)
    names = _published_names(folder)
    contents: dict[str, Path | bytes] = {}
    for name in names:
        path = folder / name
        if matches(name, WEIGHT_FILES):
            _check_weights(path)
            contents[name] = path
        elif name in JSON_FILES:
            contents[name] = to_json(without_local_paths(read_json(path), folder)).encode()
        else:
            contents[name] = path.read_bytes()
    _check_shards(contents, folder)
    _check_tensors([folder / name for name in contents if matches(name, WEIGHT_FILES)], folder)
    for name, content in contents.items():
        if isinstance(content, bytes) and name not in VOCABULARY_FILES:
            check_nothing_private(name, content.decode("utf-8"), folder)
    return contents


def matches(name: str, patterns) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _published_names(folder: Path) -> list[str]:
    """Names of the files to publish; one that is neither published nor known to stay is an error."""
    published, left, refused = [], [], []
    for path in sorted(folder.iterdir()):
        name = f"{path.name}/" if path.is_dir() else path.name
        if path.is_file() and matches(name, PUBLISHED_FILES):
            published.append(name)
        elif matches(name, LEFT_FILES):
            left.append(name)
        else:
            reason = next((why for pattern, why in WHY_REFUSED.items() if fnmatch(name, pattern)), None)
            refused.append(f"{name} ({reason or 'not a part of a PART checkpoint: move it away'})")
    if refused:
        raise CheckpointError(f"{folder} is not published because of {'; '.join(refused)}.")
    if left:
        logger.info("not published: %s", ", ".join(left))
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
    wanted = {"model.safetensors"}
    if "model.safetensors.index.json" in contents:
        wanted = set(json.loads(contents["model.safetensors.index.json"])["weight_map"].values())
    if weights != wanted:
        raise CheckpointError(
            f"{folder}: missing weights {sorted(wanted - weights)}, surplus weights {sorted(weights - wanted)}. "
            "Save the model again into an empty folder."
        )


def _check_tensors(files: list[Path], folder: Path) -> None:
    """The names and shapes in the files are those of the model that `config.json` describes."""
    found = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            found |= {name: list(file.get_slice(name).get_shape()) for name in file.keys()}
    with torch.device("meta"):
        model = PARTForSpeechSeq2Seq(PARTConfig.from_pretrained(folder))
    wanted = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    missing = sorted(set(wanted) - set(found) - set(model.all_tied_weights_keys))
    surplus = sorted(set(found) - set(wanted))
    misshapen = sorted(name for name in set(wanted) & set(found) if wanted[name] != found[name])
    if missing or surplus or misshapen:
        raise CheckpointError(
            f"{folder}: the weights do not fit config.json: missing {missing[:5]}, surplus {surplus[:5]}, of another "
            f"shape {misshapen[:5]}. Save model and config together, adapters merged."
        )


def without_local_paths(value, folder: Path):
    """A copy of a JSON value without keys that say where files lay, and with local paths cut to their last part."""
    if isinstance(value, dict):
        return {key: without_local_paths(item, folder) for key, item in value.items() if key not in LOCAL_KEYS}
    if isinstance(value, list):
        return [without_local_paths(item, folder) for item in value]
    if not isinstance(value, str):
        return value
    if WHOLE_PATH.fullmatch(value):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    for root in _local_roots(folder):
        value = re.sub(re.escape(root) + r"(?=[/\\]|\b)[/\\]?", "", value)
    return value


def check_nothing_private(name: str, text: str, folder: Path) -> None:
    """Raise where a text that is to be published holds a secret, or names a local folder."""
    found = [what for what, pattern in SECRETS.items() if pattern.search(text)]
    token = get_token()
    if token is not None and token in text:
        found.append("your Hugging Face token")
    found += [f"the local path {root}" for root in _local_roots(folder) if re.search(re.escape(root) + r"\b", text)]
    if found:
        raise CheckpointError(f"{name} holds {', '.join(found)}, which must not be published. Take it out.")


def _local_roots(folder: Path) -> list[str]:
    """Folders of this machine that no published text may name, the longest first; never one as short as `/`."""
    roots = {Path.home(), Path.cwd(), folder.resolve(), folder.resolve().parent, Path(tempfile.gettempdir())}
    return sorted({str(root) for root in roots if len(root.parts) > 1}, key=len, reverse=True)
