# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints whose files are damaged are named, whatever library stumbles over them."""

from collections.abc import Iterator
from contextlib import contextmanager
from json import JSONDecodeError

from transformers import GenerationConfig


TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def check_token_ids(settings: GenerationConfig, name: str) -> None:
    """Raise ValueError where a checkpoint's generation config holds a token that is no whole number."""
    for field in TOKENS:
        ids = getattr(settings, field, None)
        for one in ids if isinstance(ids, list) else [ids]:
            if one is not None and (isinstance(one, bool) or not isinstance(one, int)):
                raise ValueError(
                    f"`{field}` in generation_config.json of {str(name)!r} is {ids!r}; it must be the number of a token, or "
                    "a list of such. Fetch the checkpoint again."
                )


@contextmanager
def explain_damage(name: str) -> Iterator[None]:
    """Name the checkpoint where one of its files makes a library fail from inside."""
    try:
        yield
    except Exception as error:
        # The kinds that libraries do not mean: what they mean is ValueError or OSError, and a wrong argument TypeError.
        decoding = isinstance(error, (UnicodeDecodeError, JSONDecodeError))
        unmeant = type(error) is Exception or isinstance(
            error, (LookupError, AttributeError, ArithmeticError, TypeError)
        )
        if not decoding and (not unmeant or "unexpected keyword argument" in str(error)):
            raise
        raise ValueError(
            f"{str(name)!r} cannot be loaded; a file of it seems to be damaged, or of another kind: fetch it again. "
            f"({type(error).__name__}: {error})"
        ) from error
