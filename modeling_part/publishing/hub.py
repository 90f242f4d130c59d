# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Publish finished stages on the Hub: one repository, each stage a commit on `main` and a tag.

    hf auth login
    part publish runs/quickstart/encoder --repo_id USER/NAME --private
    part publish runs/quickstart --repo_id USER/NAME              # all finished stages
    part publish runs/quickstart --repo_id USER/NAME --preview    # nothing is sent

Then `from_pretrained("USER/NAME", revision="stage-encoder", trust_remote_code=True)` loads a stage. What of a folder
goes up is for `contents.py` to say.
"""

import graphlib
import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.hf_api import ModelInfo, RepoFile
from huggingface_hub.utils import validate_repo_id

from ..recipes.files import CheckpointError
from ..recipes.stage_record import read_stage_json
from .cards import stage_tag
from .contents import is_published, prepare


logger = logging.getLogger(__name__)


class PublishingError(OSError):
    """Publishing did not succeed; the message says why and what to do. Nothing local was lost: call it again."""


class PublishedStage(NamedTuple):
    """Where a stage is now."""

    repo_id: str
    tag: str
    commit: str
    url: str


def publish(
    checkpoint: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    license: str | None = None,
) -> PublishedStage:
    """Publish the folder of a finished stage: a commit on `main` of a repository and the tag `stage-<name>`.

    The repository is created when it is not there. What it already holds is not sent again, so that calling this after
    an interruption continues, and calling it twice changes nothing. Files of an earlier stage that this one does not
    have (shards of a larger model) are deleted in the same commit; files that are not a checkpoint's are left alone. A tag moves
    when the same stage is published with other content.

    Args:
        checkpoint: folder with the model, its processor and `stage.json`; `report.json`, where it is there, gives the
            card's evaluation.
        repo_id: `USER/NAME` or `ORGANIZATION/NAME`.
        private: create the repository private. One that is there already and public is an error.
        token: with write access; None takes HF_TOKEN or that of `hf auth login`.
        license: identifier for the card's metadata, such as "apache-2.0"; none by default.

    Returns:
        [`PublishedStage`].

    Raises:
        CheckpointError: the folder is not fit to be published; nothing was sent.
        PublishingError: no or a wrong token, no rights, no network, or a repository that holds something else.
    """
    checkpoint = Path(checkpoint)
    stage = read_stage_json(checkpoint)["stage"]
    tag = stage_tag(stage)
    api = HfApi(token=token)
    with _explained(repo_id, api.endpoint):
        validate_repo_id(repo_id)
        tags = _read_tags(api, repo_id)
        contents = prepare(checkpoint, repo_id, license=license, tags=tags)
        head = _open_repository(api, repo_id, private).sha
        if tag in tags and _holds(api, repo_id, tag, contents):
            logger.info("%s already holds this checkpoint at %s", repo_id, tag)
            commit = tags[tag]
        else:
            commit = _commit(api, repo_id, head, contents, stage)
            if tag in tags:
                logger.warning("%s: the tag %s moves from %s to %s", repo_id, tag, tags[tag], commit)
                api.delete_tag(repo_id, tag=tag)
            api.create_tag(repo_id, tag=tag, revision=commit)
    return PublishedStage(repo_id, tag, commit, f"{api.endpoint}/{repo_id}/tree/{tag}")


def preview(checkpoint: str | Path, repo_id: str, *, license: str | None = None) -> str:
    """The names of the files that [`publish`] would send, and the card; nothing is sent or asked."""
    contents = prepare(checkpoint, repo_id, license=license)
    return f"# {checkpoint} -> {repo_id}: {', '.join(sorted(contents))}\n\n{contents['README.md'].decode()}"


def _read_tags(api: HfApi, repo_id: str) -> dict[str, str]:
    """Commits by tag; none of a repository that is still to be created."""
    try:
        return {ref.name: ref.target_commit for ref in api.list_repo_refs(repo_id).tags}
    except RepositoryNotFoundError:
        return {}


def _open_repository(api: HfApi, repo_id: str, private: bool) -> ModelInfo:
    """Create the repository, or check that the one that is there may be written over."""
    # None leaves it to the account's or organization's default, which may be private.
    api.create_repo(repo_id, private=private or None, exist_ok=True)
    info = api.model_info(repo_id)
    if private and not info.private:
        raise PublishingError(
            f"{repo_id} is already there and public, but --private was asked for. Make it private in its settings, "
            "or choose another name."
        )
    files = {file.rfilename for file in info.siblings or []}
    if "config.json" in files and "stage.json" not in files:
        raise PublishingError(
            f"{repo_id} holds another model (a config.json, no stage.json), which would be overwritten. "
            "Choose another name."
        )
    return info


def _holds(api: HfApi, repo_id: str, revision: str, local: Mapping[str, Path | bytes]) -> bool:
    """Whether a revision's checkpoint is exactly this one."""
    remote = {
        file.path: file
        for file in api.list_repo_tree(repo_id, revision=revision)
        if isinstance(file, RepoFile) and is_published(file.path)
    }
    return set(remote) == set(local) and all(_same(remote[name], content) for name, content in local.items())


def _same(remote: RepoFile, content: Path | bytes) -> bool:
    """Compare without downloading: by size, then by the hash that the Hub keeps of large or of small files."""
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    if size != remote.size:
        return False
    if remote.lfs is None:
        data = content if isinstance(content, bytes) else content.read_bytes()
        return hashlib.sha1(b"blob %d\0" % size + data, usedforsecurity=False).hexdigest() == remote.blob_id
    digest = hashlib.sha256()
    if isinstance(content, bytes):
        digest.update(content)
    else:
        with content.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest() == remote.lfs.sha256


def _commit(api: HfApi, repo_id: str, head: str, local: Mapping[str, Path | bytes], stage: str) -> str:
    """One commit on `main` with the whole checkpoint; its hash. huggingface_hub leaves out what has not changed."""
    remote = [file.path for file in api.list_repo_tree(repo_id) if isinstance(file, RepoFile)]
    operations = [CommitOperationAdd(name, content) for name, content in local.items()]
    operations += [CommitOperationDelete(name) for name in remote if is_published(name) and name not in local]
    return api.create_commit(
        repo_id,
        operations,
        commit_message=f"Stage {stage}",
        parent_commit=head,  # fails, and is called again, where somebody else has committed meanwhile
    ).oid


@contextmanager
def _explained(repo_id: str, endpoint: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into one sentence with the fix."""
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise PublishingError("No token for the Hub. Run `hf auth login`, or set HF_TOKEN.") from error
    except HFValidationError as error:
        raise PublishingError(f"{repo_id!r} is no name of a repository ({error}). Give USER/NAME.") from error
    except OfflineModeIsEnabled as error:
        raise PublishingError("HF_HUB_OFFLINE is set. Unset it to publish.") from error
    except HfHubHTTPError as error:
        raise PublishingError(_http_message(error, repo_id)) from error
    except (HTTPError, ConnectionError) as error:  # the latter from hf_xet
        raise PublishingError(_network_message(error, endpoint)) from error
    except RuntimeError as error:  # huggingface_hub wraps what stops the upload of a large file
        if not isinstance(error.__cause__, HTTPError):
            raise
        raise PublishingError(f"{error} {_network_message(error.__cause__, endpoint)}") from error


def _network_message(error: Exception, endpoint: str) -> str:
    return (
        f"The connection to {endpoint} failed ({type(error).__name__}: {error}). Check the network (HF_ENDPOINT, "
        "HTTPS_PROXY) and run the same command again: it continues, finished files are not sent twice."
    )


def _http_message(error: HfHubHTTPError, repo_id: str) -> str:
    status = error.response.status_code
    said = error.server_message or type(error).__name__
    if status == 401:
        return (
            f"The Hub does not accept the token ({said}). Make one with write access at "
            "https://huggingface.co/settings/tokens, then run `hf auth login`, or set HF_TOKEN (which goes first)."
        )
    if status == 403 or isinstance(error, RepositoryNotFoundError):
        return (
            f"The token may not write to {repo_id} ({said}). Use a repository under your own name or organization, "
            "or a token with write access to it."
        )
    if status in (409, 412):
        return f"Somebody else has changed {repo_id} meanwhile ({said}). Run the same command again."
    return f"The Hub answered {status} for {repo_id} ({said}). If it lasts, see https://status.huggingface.co."


def finished_stages(folder: str | Path, names: Sequence[str] | None = None) -> list[Path]:
    """The folder itself where it is a stage; otherwise its finished stages, each after its parent.

    Args:
        names: only these stages.

    Raises:
        CheckpointError: there is none, or one of `names` is not among them.
    """
    folder = Path(folder)
    if (folder / "stage.json").is_file():
        folders = [folder]
    else:
        folders = sorted(path.parent for path in folder.glob("*/stage.json"))
    records = {path: read_stage_json(path) for path in folders}
    by_name = {record["stage"]: path for path, record in records.items()}
    missing = sorted(set(names or ()) - set(by_name))
    if not by_name or missing:
        raise CheckpointError(f"{folder} holds the finished stages {sorted(by_name)}, not {missing or 'any'}.")
    parents = {name: {Path(records[path]["parent"] or "").name} & set(by_name) for name, path in by_name.items()}
    try:
        ordered = graphlib.TopologicalSorter(parents).static_order()
        return [by_name[name] for name in ordered if names is None or name in names]
    except graphlib.CycleError as error:
        raise CheckpointError(f"{folder}: the stages {error.args[1]} are each other's parents.") from error
