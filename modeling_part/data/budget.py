# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""How large a batch may be."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Budget:
    """What a batch may hold, counted as padded, and the multiples that lengths are padded to.

    Args:
        max_audio_seconds: limit of rows * longest padded audio of a batch, seconds.
        max_tokens: limit of rows * longest padded count of target tokens of a batch.
        max_rows: limit of rows in a batch, none by default.
        pad_seconds_multiple: audio is padded to a multiple of this many seconds: few distinct shapes.
        pad_tokens_multiple: positions are padded to a multiple of this many.

    Raises:
        ValueError: a limit or multiple is not positive.
    """

    max_audio_seconds: float
    max_tokens: int
    max_rows: int | None = None
    pad_seconds_multiple: float = 0.2
    pad_tokens_multiple: int = 8

    def __post_init__(self) -> None:
        for one in fields(self):
            refuse_not_positive(one.name, getattr(self, one.name))


def refuse_not_positive(name: str, value: float | None) -> None:
    """Raise ValueError for a number that is not above 0; None is no number."""
    if value is not None and not value > 0:
        raise ValueError(f"`{name}` is {value}; it must be positive.")
