"""transformers' ProcessorTesterMixin on PARTProcessor with the feature extractors of several encoders."""

import tempfile
import unittest
from pathlib import Path

import numpy as np
import soundfile
import suites
import tiny

from modeling_part import PARTConfig, PARTProcessor


processing = suites.load("test_processing_common")
AUDIO = "<|audio|>"
SOUNDS = tempfile.TemporaryDirectory(prefix="part-conformance-")


def sound_file(words: tuple[int, ...]) -> str:
    path = Path(SOUNDS.name) / f"{'-'.join(map(str, words))}.wav"
    soundfile.write(path, tiny.sentence_sound("en", words, np.random.default_rng(0)), tiny.SAMPLING_RATE)
    return str(path)


# The Hub's clips are longer than a tiny encoder's window, and not to be had without a network.
processing.MODALITY_INPUT_DATA["audio"] = [sound_file((0, 3)), sound_file((5,))]


def case(kind: str) -> type:
    """The suite for the feature extractor of one kind of encoder."""

    class ProcessorSuite(processing.ProcessorTesterMixin, unittest.TestCase):
        processor_class = PARTProcessor

        @classmethod
        def _setup_feature_extractor(cls):
            return tiny.tiny_feature_extractor(kind)

        @classmethod
        def _setup_tokenizer(cls):
            return tiny.tiny_tokenizer(extra_tokens=[AUDIO])

        @staticmethod
        def prepare_processor_dict() -> dict:
            config = PARTConfig(audio_config=tiny.tiny_audio_config(kind), text_config=tiny.tiny_text_config())
            return {"audio_token_convolutions": config.audio_token_convolutions, "system_prompt": "Listen."}

    ProcessorSuite.__name__ = ProcessorSuite.__qualname__ = f"Test_{kind}"
    return suites.leave_out(ProcessorSuite, kind)


for kind in ("whisper", "qwen2_audio", "wav2vec2"):
    new = case(kind)
    globals()[new.__name__] = new
del new
