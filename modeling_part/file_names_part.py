# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""File names whose accents are written in another Unicode form than the disk has them."""

import os
import unicodedata


def composed(name: str) -> str:
    """A name of a file in one Unicode form: archives made on macOS hold accents as characters of their own."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def other_form(path: str) -> str | None:
    """The file or folder whose path is the same in another Unicode form; None if there is none."""
    folder, name = os.path.split(path)
    if path.isascii() or not name:
        return None
    folder = folder if not folder or os.path.isdir(folder) else other_form(folder)
    if folder is None or not os.path.isdir(folder or "."):
        return None
    names = (one for one in os.listdir(folder or ".") if composed(one) == composed(name))
    return next((os.path.join(folder, one) for one in names), None)
