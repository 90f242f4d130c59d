# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""The code that travels with a published checkpoint."""

import shutil
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files

from ..pipeline_part import CUSTOM_PIPELINES
from ..recipes.files import CheckpointError, read_json, write_json


# Auto classes in a checkpoint's config.json -> class in the module that travels with it.
MODEL_AUTO_MAP = {
    "AutoConfig": "configuration_part.PARTConfig",
    "AutoModel": "modeling_part.PARTModel",
    "AutoModelForSpeechSeq2Seq": "modeling_part.PARTForSpeechSeq2Seq",
    "AutoModelForMultimodalLM": "modeling_part.PARTForSpeechSeq2Seq",
}
PROCESSOR_AUTO_MAP = {"AutoProcessor": "processing_part.PARTProcessor"}
FEATURES_AUTO_MAP = {"AutoFeatureExtractor": "fbank_part.PARTFbankFeatureExtractor"}
ARCHITECTURE = "PARTForSpeechSeq2Seq"
# The files at the root of the package that are named so are the code of a checkpoint.
CODE_FILES = tuple(sorted(path.name for path in Path(__file__).resolve().parents[1].glob("*_part.py")))


def code_files() -> list[Path]:
    """The modules that a checkpoint carries: the model, the processor, the pipeline, and what they import of ours."""
    package = Path(__file__).resolve().parents[1]
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
        CheckpointError: a config is missing or a link out of the folder, or the folder holds another architecture.
    """
    folder = Path(folder)
    configs = {}
    for name in ("config.json", "processor_config.json"):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} has no {name}; save the model and its processor there first.")
        configs[name] = read_json(folder / name)
        if not isinstance(configs[name], dict):
            raise CheckpointError(f"{folder / name} is no object. Save the model and its processor again.")
    check_links(folder, ["config.json", "processor_config.json", *CODE_FILES])
    check_architecture(configs["config.json"], folder)
    configs["config.json"] |= {"auto_map": MODEL_AUTO_MAP, "custom_pipelines": CUSTOM_PIPELINES}
    configs["processor_config.json"]["auto_map"] = PROCESSOR_AUTO_MAP
    features = configs["processor_config.json"].get("feature_extractor", {})
    if not isinstance(features, dict):
        raise CheckpointError(
            f"{folder / 'processor_config.json'}: 'feature_extractor' is no object. Save the processor again."
        )
    if features.get("feature_extractor_type") == FEATURES_AUTO_MAP["AutoFeatureExtractor"].split(".")[1]:
        features["auto_map"] = FEATURES_AUTO_MAP  # others are transformers' own
    for name, content in configs.items():
        write_json(folder / name, content)
    return [_copy(module, folder) for module in code_files()]


def check_links(folder: Path, patterns: Iterable[str]) -> None:
    """Refuse links out of a folder among the files with these names: they would be read, or written, at their target.

    Raises:
        CheckpointError: names the links.
    """
    patterns = list(patterns)
    links = [
        f"{path.name} -> {path.readlink()}"
        for path in sorted(folder.iterdir())
        if path.is_symlink()
        and matches(path.name, patterns)
        and not (path.exists() and path.resolve().is_relative_to(folder.resolve()))
    ]
    if links:
        raise CheckpointError(
            f"{folder} holds links out of the folder, {', '.join(links)}. Put the files themselves there, or take the "
            "links away."
        )


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a file name fits one of the patterns."""
    return any(fnmatch(name, pattern) for pattern in patterns)


def _copy(module: Path, folder: Path) -> Path:
    """Copy aside and rename, so that a link is replaced and not followed."""
    aside = Path(shutil.copyfile(module, folder / f".{module.name}.new"))
    return aside.replace(folder / module.name)


def check_architecture(config: Mapping, folder: str | Path) -> None:
    """Refuse a `config.json` of another model."""
    architectures = config.get("architectures")
    if architectures != [ARCHITECTURE]:
        raise CheckpointError(f"{folder} holds {architectures}, not {ARCHITECTURE}. Give the folder of a PART stage.")
