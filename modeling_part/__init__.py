# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""PART: progressive alignment of speech encoders and language models, for transcription and translation.

`import modeling_part` makes the Auto classes know PART and needs torch and transformers only. What is done with the
model lives in the folders: `recipes`, `data`, `evaluation`, `publishing`, `training`, `analysis`, `quickstart`.
"""

from transformers import AutoConfig, AutoModel, AutoModelForMultimodalLM, AutoModelForSpeechSeq2Seq, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .audio_part import load_audio
from .configuration_part import PARTConfig
from .modeling_part import PARTForSpeechSeq2Seq, PARTModel, PARTPreTrainedModel
from .pipeline_part import PARTPipeline, SpeechRecognitionPipeline
from .processing_part import PARTProcessor


__version__ = "0.1.0"

AutoConfig.register("part", PARTConfig)
AutoModel.register(PARTConfig, PARTModel)
AutoModelForSpeechSeq2Seq.register(PARTConfig, PARTForSpeechSeq2Seq)
AutoModelForMultimodalLM.register(PARTConfig, PARTForSpeechSeq2Seq)
AutoProcessor.register(PARTConfig, PARTProcessor)
PIPELINE_REGISTRY.register_pipeline("speech-to-text", PARTPipeline, AutoModelForSpeechSeq2Seq)
# transformers takes its pipeline for speech by the model's class name, and would take PART for a CTC model.
PIPELINE_REGISTRY.supported_tasks["automatic-speech-recognition"]["impl"] = SpeechRecognitionPipeline

__all__ = [
    "PARTConfig",
    "PARTForSpeechSeq2Seq",
    "PARTModel",
    "PARTPipeline",
    "PARTPreTrainedModel",
    "PARTProcessor",
    "load_audio",
]
