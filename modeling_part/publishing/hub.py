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
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.hf_api import ModelInfo, RepoFile
from huggingface_hub.utils import validate_repo_id

from ..recipes.files import CheckpointError, to_json
from ..recipes.stage_record import read_stage_json
from .cards import stage_tag
from .contents import is_published, prepare
from .privacy import own_token, without_secrets
from .remote_code import code_files


logger = logging.getLogger(__name__)

# A file of each commit that says what publishing wrote, by name and hash: nothing else is replaced or deleted.
RECORD = "published_files.json"

# Owners write these by hand: they are sent, but never deleted.
NEVER_DELETED = ("LICENSE", "NOTICE")


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
    overwrite_card: bool = False,
    samples: bool = False,
) -> PublishedStage:
    """Publish the folder of a finished stage: a commit on `main` of a repository and the tag `stage-<name>`.

    The repository is created when it is not there. What it already holds is not sent again, so that calling this after
    an interruption continues, and calling it twice changes nothing. Files that publishing wrote for an earlier stage and
    that this one does not have (shards of a larger model) are deleted in the same commit. A file that somebody else wrote
    or changed since is left alone; where this stage has one of its name, nothing is sent and an error names it. A tag
    moves when the same stage is published with other content.

    Args:
        checkpoint: folder with the model, its processor and `stage.json`; `report.json`, where it is there, gives the
            card's evaluation.
        repo_id: `USER/NAME` or `ORGANIZATION/NAME`.
        private: create the repository private. One that is there already and public is an error.
        token: with write access; None takes HF_TOKEN or that of `hf auth login`.
        license: identifier for the card's metadata, such as "apache-2.0"; none by default.
        overwrite_card: replace a `README.md` that was written or edited by hand.
        samples: show a few answers in the card beside their references: these quote the test data.

    Returns:
        [`PublishedStage`].

    Raises:
        CheckpointError: the folder is not fit to be published; nothing was sent.
        PublishingError: no or a wrong token, no rights, no network, or a repository that holds something else, such as a
            card that was edited there.
    """
    checkpoint, api = Path(checkpoint), open_hub(repo_id, token)
    stage = read_stage_json(checkpoint)["stage"]
    tag = stage_tag(stage)
    with _explained(repo_id, api):
        tags = _read_tags(api, repo_id)
        contents = prepare(checkpoint, repo_id, license=license, tags=tags, samples=samples)
        contents[RECORD] = _record(contents)
        head = _open_repository(api, repo_id, private).sha
        if tag in tags and _holds(api, repo_id, tag, contents):
            logger.info("%s already holds this checkpoint at %s", repo_id, tag)
            commit = tags[tag]
        else:
            replaced = _check_replaced(api, repo_id, head, contents, tags, overwrite_card)
            commit = _commit(api, repo_id, head, contents, replaced, stage)
            if tag in tags:
                logger.warning("%s: the tag %s moves from %s to %s", repo_id, tag, tags[tag], commit)
                api.delete_tag(repo_id, tag=tag)
            api.create_tag(repo_id, tag=tag, revision=commit)
    return PublishedStage(repo_id, tag, commit, f"{api.endpoint}/{repo_id}/tree/{tag}")


def read_tags(repo_id: str, token: str | None = None) -> dict[str, str]:
    """Commits by tag of a repository, none of one that is still to be created; errors as of [`publish`]."""
    api = open_hub(repo_id, token)
    with _explained(repo_id, api):
        return _read_tags(api, repo_id)


def open_hub(repo_id: str, token: str | None = None) -> HfApi:
    """The Hub, for a repository; nothing is sent yet.

    Raises:
        PublishingError: `repo_id` is no name of a repository, or `token` cannot be one.
        CheckpointError: there is no `token`, and the user's own cannot be read.
    """
    token = _checked_token(token)
    _check_repo_id(repo_id)
    return HfApi(token=token)


def preview(checkpoint: str | Path, repo_id: str, *, license: str | None = None, samples: bool = False) -> str:
    """The names of the files that [`publish`] would send, and the card; nothing is sent, asked or changed."""
    _check_repo_id(repo_id)
    with _unchanged(Path(checkpoint)):
        contents = prepare(checkpoint, repo_id, license=license, samples=samples)
    return f"# {checkpoint} -> {repo_id}: {', '.join(sorted(contents))}\n\n{contents['README.md'].decode()}"


@contextmanager
def _unchanged(folder: Path) -> Iterator[None]:
    """Leave a stage's configs and code as they were: they gain what travels with a checkpoint."""
    names = ["config.json", "processor_config.json", *(path.name for path in code_files())]
    with tempfile.TemporaryDirectory() as copies:
        before = [name for name in names if (folder / name).is_file()]
        for name in before:
            shutil.copy2(folder / name, copies)
        try:
            yield
        finally:
            for name in names:
                if name in before:
                    shutil.copy2(Path(copies, name), folder / name)
                else:
                    (folder / name).unlink(missing_ok=True)


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


def _hashes(content: Path | bytes) -> dict[str, str]:
    """What the Hub names a content by: `git` of a small file, `sha256` of a large one."""
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    git, sha256 = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False), hashlib.sha256()
    with BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
        while chunk := file.read(1 << 20):
            git.update(chunk)
            sha256.update(chunk)
    return {"git": git.hexdigest(), "sha256": sha256.hexdigest()}


def _record(contents: Mapping[str, Path | bytes]) -> bytes:
    """The file that says what publishing wrote."""
    return to_json({"files": {name: _hashes(content) for name, content in sorted(contents.items())}}).encode()


def _read_record(api: HfApi, repo_id: str, revision: str) -> dict[str, dict]:
    """Hashes by name of what publishing wrote; none where somebody changed the form of its record."""
    try:
        path = api.hf_hub_download(repo_id, RECORD, revision=revision)
    except LocalEntryNotFoundError as error:  # the connection broke, and no earlier call has left a copy
        raise ConnectionError(error) from error
    try:
        files = json.loads(Path(path).read_text(encoding="utf-8"))["files"]
        return {name: dict(hashes) for name, hashes in files.items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}


def _files(api: HfApi, repo_id: str, revision: str) -> dict[str, RepoFile]:
    entries = api.list_repo_tree(repo_id, revision=revision)
    return {file.path: file for file in entries if isinstance(file, RepoFile)}


def _is_same(remote: RepoFile, hashes: Mapping[str, str]) -> bool:
    """Compare without downloading, by the hash that the Hub keeps of large or of small files."""
    if remote.lfs is None:
        return remote.blob_id == hashes.get("git")
    return remote.lfs.sha256 == hashes.get("sha256")


def _holds(api: HfApi, repo_id: str, revision: str, local: Mapping[str, Path | bytes]) -> bool:
    """Whether a revision is the commit of exactly this checkpoint; its record says the same of it."""
    remote = _files(api, repo_id, revision)
    hashes = json.loads(local[RECORD])["files"] | {RECORD: _hashes(local[RECORD])}
    return all(name in remote and _is_same(remote[name], hashes[name]) for name in local)


def _check_replaced(
    api: HfApi,
    repo_id: str,
    head: str,
    local: Mapping[str, Path | bytes],
    tags: Mapping[str, str],
    overwrite_card: bool,
) -> list[str]:
    """Refuse to replace what publishing did not write.

    Returns:
        The files of the repository that it did write and that are still as it wrote them.
    """
    remote = _files(api, repo_id, head)
    record = _read_record(api, repo_id, head) if RECORD in remote else {}
    record = record or _unrecorded(api, repo_id, remote, tags)
    hashes = json.loads(local[RECORD])["files"]
    ours = [name for name, file in remote.items() if name == RECORD or _is_same(file, record.get(name, {}))]
    others = [
        name for name in remote if name in local and name not in ours and not _is_same(remote[name], hashes[name])
    ]
    if "README.md" in others and not overwrite_card:
        raise PublishingError(
            f"README.md of {repo_id} was written or edited by hand, and would be lost. Save what you need of it, then publish "
            "with `--overwrite_card` (`overwrite_card=True`)."
        )
    if others := [name for name in others if name != "README.md"]:
        raise PublishingError(
            f"{repo_id} holds files that PART did not write, or that were changed there: {', '.join(others)}. They would be "
            "overwritten. Move them away on the Hub, or choose another name."
        )
    return ours


def _unrecorded(
    api: HfApi, repo_id: str, remote: Mapping[str, RepoFile], tags: Mapping[str, str]
) -> dict[str, dict[str, str]]:
    """Hashes by name of what an earlier version published, which kept no record: what is as at a stage's tag is its work."""
    record = {}
    for commit in (commit for tag, commit in tags.items() if tag.startswith(stage_tag(""))):
        for name, file in _files(api, repo_id, commit).items():
            if name in remote and file.blob_id == remote[name].blob_id and is_published(name):
                record[name] = {"git": file.blob_id, "sha256": file.lfs.sha256 if file.lfs else ""}
    return record


def _commit(
    api: HfApi, repo_id: str, head: str, local: Mapping[str, Path | bytes], ours: Sequence[str], stage: str
) -> str:
    """One commit on `main` with the whole checkpoint; its hash. huggingface_hub leaves out what has not changed."""
    operations = [CommitOperationAdd(name, content) for name, content in local.items()]
    operations += [CommitOperationDelete(name) for name in ours if name not in local and name not in NEVER_DELETED]
    return api.create_commit(
        repo_id,
        operations,
        commit_message=f"Stage {stage}",
        parent_commit=head,  # fails, and is called again, where somebody else has committed meanwhile
    ).oid


def _check_repo_id(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
        is_name = isinstance(repo_id, str) and "/" in repo_id
    except HFValidationError:
        is_name = False
    if not is_name:
        raise PublishingError(
            f"{repo_id!r} is no name of a repository: an owner, '/', and at most 96 letters, digits, '-', '_' and '.'. "
            "Give USER/NAME."
        )


def _checked_token(token: str | None) -> str | None:
    """A token without spaces or line breaks around it; what cannot be one is refused, and never printed."""
    if token is None:
        own_token()  # which says what it cannot read
        return None
    if not isinstance(token, str):
        raise PublishingError(f"The token is a {type(token).__name__}, but must be text such as hf_***.")
    stripped = token.strip()
    if not stripped or not stripped.isascii() or not stripped.isprintable() or " " in stripped:
        what = "empty" if not stripped else "not one word of ASCII letters and digits"
        raise PublishingError(
            f"The token is {what}. Copy it again from https://huggingface.co/settings/tokens, or leave it out to take "
            "HF_TOKEN or that of `hf auth login`."
        )
    return stripped


@contextmanager
def _explained(repo_id: str, api: HfApi) -> Iterator[None]:
    """Turn what huggingface_hub raises into one sentence with the fix, without the token."""
    endpoint, token = api.endpoint, api.token
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise PublishingError("No token for the Hub. Run `hf auth login`, or set HF_TOKEN.") from error
    except OfflineModeIsEnabled as error:
        raise PublishingError("HF_HUB_OFFLINE is set. Unset it to publish.") from error
    except HfHubHTTPError as error:
        raise PublishingError(without_secrets(_http_message(error, repo_id), token)) from error
    except UnicodeEncodeError:  # a token from HF_TOKEN or a file
        raise PublishingError("The token is not ASCII. Copy it again, then run `hf auth login`.") from None
    except (HTTPError, ConnectionError) as error:  # the latter from hf_xet
        raise _network_error(error, endpoint, token) from None
    except RuntimeError as error:  # huggingface_hub wraps what stops the upload of a large file
        if not isinstance(error.__cause__, HTTPError):
            raise
        raise _network_error(error.__cause__, endpoint, token, f"{error} ") from None


def _network_error(error: Exception, endpoint: str, token: str | None, before: str = "") -> PublishingError:
    if "header value" in str(error):  # httpx quotes the header, token and all
        return PublishingError(
            "The token holds a line break or another character that no token has. Set HF_TOKEN anew, or run `hf auth login`."
        )
    message = (
        f"{before}The connection to {endpoint} failed ({type(error).__name__}: {error}). Check the network (HF_ENDPOINT, "
        "HTTPS_PROXY) and run the same command again: it continues, finished files are not sent twice."
    )
    return PublishingError(without_secrets(message, token))


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
        CheckpointError: there is none, one of `names` is not among them, or two have one name.
    """
    folder = Path(folder)
    is_stage = (folder / "stage.json").is_file()
    folders = [folder] if is_stage else sorted(path.parent for path in folder.glob("*/stage.json"))
    records = {path: read_stage_json(path) for path in folders}
    by_name: dict[str, Path] = {}
    for path, record in records.items():
        if (other := by_name.setdefault(record["stage"], path)) != path:
            raise CheckpointError(
                f"{other} and {path} are both stage {record['stage']!r}. Give the folder of one of them."
            )
    missing = sorted(set(names or ()) - set(by_name))
    if not by_name:
        raise CheckpointError(
            f"{folder} holds no finished stage (no stage.json). Give the folder of a run or of a stage."
        )
    if missing:
        raise CheckpointError(f"{folder} holds the finished stages {sorted(by_name)}, not {missing}.")
    parents = {name: {Path(records[path]["parent"] or "").name} & set(by_name) for name, path in by_name.items()}
    try:
        ordered = graphlib.TopologicalSorter(parents).static_order()
        return [by_name[name] for name in ordered if names is None or name in names]
    except graphlib.CycleError as error:
        raise CheckpointError(f"{folder}: the stages {error.args[1]} are each other's parents.") from error
