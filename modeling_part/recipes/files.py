# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""JSON files that appear whole or not at all."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path


class CheckpointError(ValueError):
    """A stage folder is not what it must be; the message names the file, the reason and the fix."""


def read_json(path: Path) -> dict:
    """Content of a JSON file; an unreadable one is a `CheckpointError`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        to_json(content).encode()  # half of a surrogate pair is no text
        return content
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
