# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""What somebody who mistyped a name probably meant."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(value: object, known: Iterable[str]) -> str:
    """The end of an error message: ` Did you mean 'x'?` with the nearest known name, or nothing where none is near."""
    close = get_close_matches(str(value), list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
