# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""The transformers that this code needs: where it travels with a checkpoint, no installer has seen to it."""

import transformers


OLDEST_TRANSFORMERS = "5.20"  # as setup.cfg has it: the first with `SubConfigSpec`

try:
    from transformers.configuration_utils import SubConfigSpec
except ImportError as error:
    raise ImportError(
        f"PART needs transformers {OLDEST_TRANSFORMERS} or newer, and this is {transformers.__version__}: "
        f"`pip install -U 'transformers>={OLDEST_TRANSFORMERS}'`."
    ) from error


__all__ = ["OLDEST_TRANSFORMERS", "SubConfigSpec"]
