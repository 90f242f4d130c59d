# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""One run at a time in a folder. The lock belongs to the process: it is gone when the process is, however it ends."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import PartialState

from ..recipes.user_errors import UserError


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"


class FolderInUseError(UserError):
    """Another process trains or predicts in the folder."""


@contextmanager
def only_run_in(folder: str | Path) -> Iterator[None]:
    """Keep other runs out of a folder while this is open; the main process does it for all ranks.

    Raises:
        FolderInUseError: another run is in the folder.
    """
    if fcntl is None and PartialState().is_main_process:
        logger.warning("This system has no locks of files: see to it that no other run uses %s", folder)
    if fcntl is None or not PartialState().is_main_process:
        yield
        return
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("a", encoding="utf-8") as file:
        try:
            # A record lock: unlike that of flock, the workers of a data loader do not inherit it.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise FolderInUseError(
                f"Another run is in {folder}: two would overwrite each other's files. Wait until it has ended, or set "
                "another `output_dir`."
            ) from None
        except OSError as error:
            logger.warning("%s cannot be locked (%s): see to it that no other run uses it", folder, error)
        yield
