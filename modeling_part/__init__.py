# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""PART: progressive alignment of speech encoders and language models, for transcription and translation.

`import modeling_part` makes the Auto classes know PART and needs torch and transformers only; both are loaded when the
first class is asked for. What is done with the model lives in the folders: `recipes`, `data`, `evaluation`, `publishing`,
`training`, `analysis`, `quickstart`; `commands` holds the command `part`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .registration import register


if TYPE_CHECKING:
    from .audio_part import load_audio
    from .configuration_part import PARTConfig
    from .modeling_part import PARTForSpeechSeq2Seq, PARTModel, PARTPreTrainedModel
    from .pipeline_part import PARTPipeline
    from .processing_part import PARTProcessor


__version__ = "0.1.0"

_FILES = {
    "PARTConfig": "configuration_part",
    "PARTForSpeechSeq2Seq": "modeling_part",
    "PARTModel": "modeling_part",
    "PARTPipeline": "pipeline_part",
    "PARTPreTrainedModel": "modeling_part",
    "PARTProcessor": "processing_part",
    "load_audio": "audio_part",
}

__all__ = [
    "PARTConfig",
    "PARTForSpeechSeq2Seq",
    "PARTModel",
    "PARTPipeline",
    "PARTPreTrainedModel",
    "PARTProcessor",
    "load_audio",
]


def __getattr__(name: str) -> object:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(f".{_FILES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register()
