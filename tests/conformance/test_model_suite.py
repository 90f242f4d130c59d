"""transformers' ModelTesterMixin on tiny PARTs of several encoders and language models."""

import itertools
import os
import unittest
from unittest import mock

import suites
import torch
from architectures import AUDIO_CONFIGS, TEXT_CONFIGS, VOCABULARY, batch_clips, random_clips, tokens_of
from transformers import set_seed
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

from modeling_part import PARTConfig, PARTForSpeechSeq2Seq, PARTModel, PARTPreTrainedModel


common = suites.load("test_modeling_common")
generation = suites.load("generation.test_utils")
# The harness finds the kind of a model by its name in transformers' tables, which registration leaves as they are.
MODEL_MAPPING_NAMES["part"] = "PARTModel"
MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES["part"] = "PARTForSpeechSeq2Seq"

ENCODERS = ("whisper", "fun_asr_nano", "qwen2_audio", "wav2vec2")
LANGUAGE_MODELS = ("qwen2", "llama_tied", "gemma3", "gpt2")
# Each encoder with the first language model and each language model with the first encoder, or with PART_ALL_PAIRS all.
PAIRS = [
    pair
    for pair in itertools.product(ENCODERS, LANGUAGE_MODELS)
    if "PART_ALL_PAIRS" in os.environ or ENCODERS[0] in pair or LANGUAGE_MODELS[0] in pair
]
LENGTHS = [80, 64, 24, 80]  # input steps of the clips
AUDIO_TOKEN = 3  # small, since the tests shrink the vocabulary


class Tester:
    """What transformers' tests ask of a model's tester: a configuration, inputs, and the sizes of both."""

    __test__ = False
    is_training = True

    def __init__(self, parent: unittest.TestCase, audio: str, text: str) -> None:
        self.parent, self.audio, self.text = parent, audio, text
        config = self.get_config()
        self.batch_size = len(LENGTHS)
        self.vocab_size = VOCABULARY
        self.hidden_size = config.text_config.hidden_size
        self.num_hidden_layers = config.text_config.num_hidden_layers
        self.num_attention_heads = config.text_config.num_attention_heads
        self.audio_tokens = [tokens_of(PARTForSpeechSeq2Seq(config), clip) for clip in self.clips()]
        self.seq_length = self.encoder_seq_length = 5 + max(self.audio_tokens)

    def clips(self) -> list[torch.Tensor]:
        return random_clips(self.audio, LENGTHS)

    def get_config(self) -> PARTConfig:
        text_config = TEXT_CONFIGS[self.text]()
        text_config.max_position_embeddings = 256  # one test fills half as many again
        if self.text == "gemma3":
            text_config.layer_types = ["sliding_attention", "full_attention"]  # of both kinds, for two layers
        return PARTConfig(
            audio_config=AUDIO_CONFIGS[self.audio](),
            text_config=text_config,
            adapter_hidden_size=16,
            adapter_num_attention_heads=2,
            adapter_output_scale=1.0,
            audio_token_id=AUDIO_TOKEN,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[PARTConfig, dict]:
        set_seed(0)
        features, features_mask = batch_clips(self.audio, self.clips())
        ids = torch.randint(5, 250, (self.batch_size, self.seq_length))
        for row, count in enumerate(self.audio_tokens):
            ids[row, 1 : 1 + count] = AUDIO_TOKEN
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "input_features": features,
            "input_features_mask": features_mask,
        }
        return self.get_config(), inputs


def case(audio: str, text: str) -> type:
    """The suite for one pair of encoder and language model."""

    class ModelSuite(common.ModelTesterMixin, generation.GenerationTesterMixin, unittest.TestCase):
        all_model_classes = (PARTModel, PARTForSpeechSeq2Seq)
        _is_composite = True
        # wav2vec2's embedding of masked frames: SpecAugment, its only use, is switched off in PART.
        test_all_params_have_gradient = audio != "wav2vec2"

        def setUp(self) -> None:
            self.model_tester = Tester(self, audio, text)
            # PART refuses a checkpoint that does not hold exactly its tensors; the tests build on parts of one.
            change = mock.patch.object(PARTPreTrainedModel, "strict_loading", False)
            change.start()
            self.addCleanup(change.stop)

        def _audio_features_get_expected_num_attentions(self, model_tester=None) -> int:
            return self.model_tester.get_config().encoder_num_hidden_layers

        def _audio_features_get_expected_num_hidden_states(self, model_tester=None) -> int:
            return self.model_tester.get_config().encoder_num_hidden_layers + 1

    ModelSuite.__name__ = ModelSuite.__qualname__ = f"Test_{audio}_{text}"
    return suites.leave_out(ModelSuite, audio, text)


for pair in PAIRS:
    new = case(*pair)
    globals()[new.__name__] = new
del new


def test_few_tests_cannot_apply():
    assert len(suites.CANNOT_APPLY) <= 8 and all(reason for _, reason in suites.CANNOT_APPLY.values())
