# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""How large a batch may be, and in which units that is counted."""

from dataclasses import dataclass, fields

import numpy as np


FORGIVEN = 1e-4  # of a multiple, when lengths are rounded


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

    @property
    def limits(self) -> tuple[int, int, int | None]:
        """What rows times the longest may be, in multiples of seconds and of tokens (see [`round_up`]); rows."""
        # The same hair is forgiven as there.
        seconds = int(self.max_audio_seconds / self.pad_seconds_multiple + FORGIVEN)
        return seconds, self.max_tokens // self.pad_tokens_multiple, self.max_rows


def round_up(values: np.ndarray | float, multiple: float) -> np.ndarray:
    """Lengths in whole multiples of `multiple`, rounded up: the unit in which budgets and shapes are counted.

    A ten-thousandth of a multiple is forgiven, because 0.6 s in float32 is a hair more than three times 0.2 s.
    """
    return np.ceil(np.asarray(values, dtype=np.float64) / multiple - FORGIVEN).astype(np.int32)


def refuse_not_positive(name: str, value: float | None) -> None:
    """Raise ValueError for a number that is not above 0; None is no number."""
    if value is not None and not value > 0:
        raise ValueError(f"`{name}` is {value}; it must be positive.")
