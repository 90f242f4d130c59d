# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""How `part` is typed here: in a virtual environment that is not activated its name alone is not found, or another's."""

import os
import shlex
import shutil
import sys
from pathlib import Path


NAME = "part"
COMMAND = "PART_COMMAND"  # environment variable: how `part train` was called, whose process the trainer may replace


def part_command(*words: str) -> str:
    """A line of `part` that can be typed as it stands.

    Args:
        words: after `part`.
    """
    return shlex.join([*_program(), *words])


def _program() -> list[str]:
    """`part` where that is this program, else the path of its script, else the module."""
    called = sys.argv[0] if Path(sys.argv[0]).stem == NAME else None
    script = called or shutil.which(NAME, path=os.path.dirname(sys.executable))
    if script is None:
        return [sys.executable, "-m", "modeling_part"]
    found = shutil.which(NAME)
    is_found = found is not None and os.path.exists(script) and os.path.samefile(found, script)
    return [NAME] if is_found else [script]
