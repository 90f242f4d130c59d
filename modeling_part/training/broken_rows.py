# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Rows whose audio cannot be used: named once, counted over all ranks, and limited."""

import logging
from pathlib import Path

from ..data.rows import EXAMPLES_PER_REASON, ROWS_BEFORE_JUDGEMENT, too_many_broken
from ..recipes.user_errors import UserError


logger = logging.getLogger(__name__)


class TooManyBrokenRowsError(UserError):
    """More rows could not be decoded than `max_bad_fraction` allows."""


class BrokenRows:
    """Counts the rows drawn and those of them that a batch left out of the loss.

    Args:
        max_fraction: share of the rows drawn that may be broken; judged after 1,000 rows.

    Attributes:
        drawn, broken: rows over all ranks since training began or was resumed.
    """

    def __init__(self, max_fraction: float) -> None:
        self.max_fraction = max_fraction
        self.reset()

    def reset(self) -> None:
        """Begin to count anew."""
        self.drawn = self.broken = 0
        self._faults: dict[str, None] = {}  # this rank's, in the order they were met

    def warn(self, info: dict) -> None:
        """Say once what is wrong with each row that the batch of this `batch_info` leaves out of the loss."""
        for fault in info["broken"]:
            if fault not in self._faults:
                logger.warning("%s Left out of the loss.", fault)
                self._faults[fault] = None

    def add(self, drawn: int, broken: int) -> None:
        """Count the rows of a step, those of all ranks."""
        self.drawn += drawn
        self.broken += broken

    @property
    def are_too_many(self) -> bool:
        """Whether training must stop; the same on every rank."""
        return too_many_broken(self.broken, self.drawn, self.max_fraction, ROWS_BEFORE_JUDGEMENT)

    def error(self, step: int, folder: str | Path) -> TooManyBrokenRowsError:
        """What to raise when training has stopped and saved at `step` in `folder`."""
        return TooManyBrokenRowsError(
            f"{self.broken} of {self.drawn} rows drawn are broken, more than max_bad_fraction = {self.max_fraction:g} "
            f"allows; step {step} is saved in {folder}. Fix the files or raise `max_bad_fraction`, then go on with "
            f"--resume. {' '.join(list(self._faults)[:EXAMPLES_PER_REASON])}"
        )
