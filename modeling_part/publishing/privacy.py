# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Local paths are taken out of what is published; secrets are refused."""

import re
import tempfile
from pathlib import Path
from typing import TypeVar

from huggingface_hub import get_token

from ..recipes.files import CheckpointError


T = TypeVar("T")  # a JSON value

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


def without_local_paths(value: T, folder: Path) -> T:
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
