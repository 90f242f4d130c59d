# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""What goes wrong, as visitors of the web page read it."""

import html
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gradio

from .audio_part import AudioError
from .publishing.privacy import without_local_paths


logger = logging.getLogger(__name__)


@contextmanager
def errors_shown() -> Iterator[None]:
    """What goes wrong becomes a message on the page, without paths of this machine.

    A visitor's mistake is at most one line on the terminal; an error of ours leaves its traceback there.
    """
    try:
        yield
    except AudioError as error:
        logger.warning("A recording could not be read: %s", error)
        raise shown(f"This file cannot be used: {error.reason}. WAV, FLAC, MP3 and Ogg always can.") from None
    except ValueError as error:
        raise shown(without_local_paths(str(error), Path.cwd())) from None
    except Exception as error:
        logger.exception("A recording could not be answered")
        message = without_local_paths(str(error), Path.cwd())
        raise shown(f"{type(error).__name__}: {message}" if message else type(error).__name__) from error


def shown(message: str) -> gradio.Error:
    """A message as the page shows it: gradio takes it for HTML. The terminal gets none of it."""
    return gradio.Error(html.escape(message, quote=False), print_exception=False)
