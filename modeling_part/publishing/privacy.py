# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Local paths are taken out of what is published; secrets are refused.

Secrets are looked for by the patterns here and by those of detect-secrets, which knows the tokens of many services. Its
guesses by entropy and by words such as "password" are left out: they would take hashes and prompts for secrets.
"""

import functools
import json
import os
import re
import tempfile
from pathlib import Path
from typing import TypeVar

from huggingface_hub import constants, get_token

from ..recipes.files import CheckpointError


T = TypeVar("T")  # a JSON value

# Keys that only say where the files lay.
LOCAL_KEYS = {"_name_or_path", "name_or_path", "is_local", "local_files_only", "_commit_hash"}

# Keys whose texts the model was trained with: nothing in them is changed, a path in them is refused.
PROMPT_KEYS = {"chat_template", "system_prompt"}

# A text that is a path as a whole: absolute with two parts or more, or from the home, this or the parent folder. Single
# spaces may stand within its parts.
_PART = r"[^/\s{}<>|\\]+(?: [^/\s{}<>|\\]+)*"
WHOLE_PATH = re.compile(
    rf"(?:file:/{{0,2}})?(?:/{_PART}){{2,}}/?|(?:~[\w.-]*|\.\.?)(?:/{_PART})+/?"
    r"|(?:file:/{0,3})?[A-Za-z]:[/\\][^<>|{}\n]+|\\\\[^\\\s<>|{}]+\\[^<>|{}\n]+"
)

# A path within a text: of a folder that machines keep people's files in, or that this machine has.
PATH_WITHIN = re.compile(r"(?:\bfile:/{0,2})?(?<![\w/:.<>~\\-])(/[\w.+@%=,-]+(?:/[\w.+@%=,-]+)+/?)")
FILE_ADDRESS = re.compile(r"\bfile:/{1,3}[\w.+@%=,:/-]*")
REMOTE_PATH = re.compile(
    r"(?<![\w/@.-])[\w.-]+@[\w.-]+:[~/][\w.+@%=,/-]*|\b(?:ssh|sftp|scp|smb|nfs|hdfs)://[\w.+@%=,:/-]+"
)
WINDOWS_PATH_WITHIN = re.compile(r"(?<![\w\\])(?:[A-Za-z]:\\|\\\\[\w.-]+\\)[^\\\s\"'<>|{}]+(?:\\[^\\\s\"'<>|{}]+)*\\?")
FOLDERS_OF_PEOPLE = frozenset(
    "Users Volumes cluster data datasets export fs fsx gpfs home lustre media mnt net nfs opt private projects root scratch "
    "shared srv storage tmp var vol work workspace".split()
)
SECRETS = {
    "a Hugging Face token": re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{20,}"),
    "a GitHub token": re.compile(r"\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{30,}"),
    "a GitLab token": re.compile(r"\bgl(?:pat|dt|ft|soat|rt|cbt|imt|ptt|agent|oas)-[\w-]{18,}"),
    "a Slack token": re.compile(r"\bxox[abeoprs]-[\w-]{10,}|hooks\.slack\.com/services/\w+"),
    "a Google key": re.compile(r"\bAIza[\w-]{30,}|\bya29\.[\w-]{20,}"),
    "an AWS key": re.compile(r"\b(?:A3T[A-Z0-9]|AKIA|ASIA|ABIA|ACCA)[0-9A-Z]{16}\b"),
    "an AWS secret": re.compile(
        r"aws.{0,20}(?:key|token|secret)\W{1,5}[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+])", re.IGNORECASE
    ),
    "an API key": re.compile(r"\bsk-[A-Za-z0-9_-]{20,}"),
    "a Stripe key": re.compile(r"\b[rs]k_(?:live|test)_[0-9A-Za-z]{16,}"),
    "an npm token": re.compile(r"\bnpm_[A-Za-z0-9]{30,}"),
    "a PyPI token": re.compile(r"\bpypi-[A-Za-z0-9_-]{50,}"),
    "a JSON web token": re.compile(r"\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}"),
    "a private key": re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----"),
    "a token of a service": re.compile(
        r"\b(?:dapi[0-9a-f]{32}|r8_[A-Za-z0-9]{30,}|dckr_[a-z]+_[\w-]{20,}|gsk_[A-Za-z0-9]{40,}|xai-[A-Za-z0-9]{60,}"
        r"|pplx-[A-Za-z0-9]{40,}|do[opr]_v1_[0-9a-f]{60,}|shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}|lin_api_[A-Za-z0-9]{30,}"
        r"|ntn_[A-Za-z0-9]{40,}|wandb_v\d_\w{30,})"
    ),
    # By the name before it: letters and digits, so that no prompt and no setting is meant. Quotes may be escaped ones.
    "a key with its name": re.compile(
        r"(?:api_?key|access_?token|auth_?token|secret_?key|client_?secret|(?:hub|hf|wandb|github|gitlab)_?token"
        r"|passw(?:or)?d)[\\\"']{0,4}(?:\s*[:=]\s*|\s+)[\\\"']{0,4}(?=[a-z+/_.=-]*\d)(?=[0-9+/_.=-]*[a-z])[\w+/.=-]{16,}",
        re.IGNORECASE,
    ),
    "a key of Kaggle": re.compile(r"key[\\\"']{1,4}\s*:\s*[\\\"']{1,4}[0-9a-f]{32}\b"),
    "a header that signs in": re.compile(r"\bAuthorization\W{1,8}(?:Basic|Bearer)\s+[\w+/=.-]{16,}", re.IGNORECASE),
    "a password in an address": re.compile(r"\w+://[^\s/:@]+:[^\s/@]+@"),
}

SHORTEST_TOKEN = 8  # HF_TOKEN=1 or =token, set for a mirror that asks for none, is no secret

# Plugins of detect-secrets that guess: by entropy, by words, and addresses of the Internet.
GUESSES = {"Base64HighEntropyString", "HexHighEntropyString", "IPPublicDetector", "KeywordDetector"}


def without_local_paths(value: T, folder: Path) -> T:
    """A copy of a JSON value without keys that say where files lay, and with local paths cut to their last part."""
    if isinstance(value, dict):
        return {
            key: item if key in PROMPT_KEYS and isinstance(item, str) else without_local_paths(item, folder)
            for key, item in value.items()
            if key not in LOCAL_KEYS
        }
    if isinstance(value, list):
        return [without_local_paths(item, folder) for item in value]
    if not isinstance(value, str):
        return value
    if WHOLE_PATH.fullmatch(value):
        return _last_part(value)
    for root in _local_roots(folder):
        value = re.sub(rf"{root}[/\\]?", "", value)
    for pattern in (FILE_ADDRESS, REMOTE_PATH):
        value = pattern.sub(lambda found: _last_part(found[0]), value)
    value = PATH_WITHIN.sub(lambda found: _last_part(found[1]) if _is_local(found[1]) else found[0], value)
    return WINDOWS_PATH_WITHIN.sub(lambda found: _last_part(found[0]), value)


def check_nothing_private(name: str, text: str, folder: Path) -> None:
    """Raise where a text that is to be published holds a secret, or names a local folder.

    Raises:
        CheckpointError: names file and finding, never the secret.
    """
    found = secrets_in(text)
    found += [f"the local path {path[0]}" for root in _local_roots(folder) if (path := re.search(root, text))]
    found += [f"the local path {path}" for path in PATH_WITHIN.findall(text) if _is_local(path)][:3]
    # In JSON and in templates a backslash of a path is written twice, and one alone begins "\n".
    slash = r"(?:\\\\|/)" if name.endswith((".json", ".jinja")) else r"[\\/]"
    own = re.compile(rf"(?<![\w\\/:])(?:[A-Za-z]:{slash}[\w .-]+{slash}[\w.-]+|~/[\w.-]+/[\w.-]+)")
    found += [f"the local path {path}" for path in (() if name.endswith(".py") else own.findall(text))][:3]
    found += [f"the address {address}" for one in (FILE_ADDRESS, REMOTE_PATH) for address in one.findall(text)][:3]
    if found:
        found = list(dict.fromkeys(found))
        raise CheckpointError(f"{name} holds {', '.join(found)}, which must not be published. Take it out.")


def check_vocabulary(name: str, content: bytes, folder: Path) -> None:
    """Like [`check_nothing_private`] for a file of a tokenizer.

    Words of a vocabulary, such as "/home", are data, so that secrets only are looked for in them; in the other parts of
    a `tokenizer.json` paths as well.

    Raises:
        CheckpointError: names file and finding, never the secret.
    """
    text = content.decode("utf-8", errors="replace")
    if found := secrets_in(text):
        raise CheckpointError(f"{name} holds {', '.join(found)}, which must not be published. Take it out.")
    if name == "tokenizer.json":
        try:
            tokenizer = json.loads(text)
        except ValueError as error:
            raise CheckpointError(f"{folder / name} is not JSON ({error}). Save the tokenizer again.") from error
        if isinstance(tokenizer, dict):
            model = tokenizer.get("model")
            rest = {**tokenizer, "model": None}
            if isinstance(model, dict):
                rest["model"] = {key: value for key, value in model.items() if key not in ("vocab", "merges")}
            check_nothing_private(name, json.dumps(rest, ensure_ascii=False), folder)


def secrets_in(text: str) -> list[str]:
    """What kinds of secrets a text holds, such as "a GitHub token"; the user's own token of the Hub among them."""
    found = [what for what, pattern in SECRETS.items() if pattern.search(text)]
    token = own_token() or ""
    if len(token) >= SHORTEST_TOKEN and token in text:
        found.append("your Hugging Face token")
    if found:
        return found
    return [f"a secret ({one.secret_type})" for one in _detectors() if any(one.analyze_string(text))]


def own_token() -> str | None:
    """The user's token of the Hub, from HF_TOKEN or where `hf auth login` keeps it; None where there is none."""
    try:
        return get_token()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"The token of the Hub in {constants.HF_TOKEN_PATH} cannot be read ({error}). Run `hf auth login` again, or set "
            "HF_TOKEN."
        ) from None


def without_secrets(text: str, token: str | None = None) -> str:
    """A message with tokens blotted out, for errors that quote what was sent."""
    if token and token.strip():
        text = text.replace(token, "***").replace(token.strip(), "***")
    for pattern in SECRETS.values():
        text = pattern.sub("***", text)
    return text


@functools.cache
def _detectors() -> list:
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class

    plugins = get_mapping_from_secret_type_to_class().values()
    return [plugin() for plugin in plugins if plugin.__name__ not in GUESSES]


def _is_local(path: str) -> bool:
    top = path.split("/")[1]
    return top.rstrip("0123456789") in FOLDERS_OF_PEOPLE or Path("/", top).is_dir()


def _last_part(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def _local_roots(folder: Path) -> list[str]:
    """Patterns of folders of this machine that no published text may name, the longest first; never one as short as `/`."""
    roots = {
        Path(os.path.expanduser("~")),
        Path.cwd(),
        folder.resolve(),
        folder.resolve().parent,
        Path(tempfile.gettempdir()),
    }
    longest_first = sorted((root for root in roots if len(root.parts) > 1), key=lambda root: -len(str(root)))
    # After a word a short one is not that folder: `/whisper` within "openai/whisper-base".
    return [
        ("" if len(root.parts) > 2 else r"(?<![\w.-])") + re.escape(str(root)) + r"(?!\w)" for root in longest_first
    ]
