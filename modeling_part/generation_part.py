# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Generation with audio: the encoder runs once, whatever the number of beams, sequences and steps."""

import torch
from transformers import GenerationConfig, GenerationMixin

from .outputs_part import PARTAudioOutput


class AudioGenerationMixin(GenerationMixin):
    """`GenerationMixin` that encodes audio before the first step where that step would not be the only one to do so.

    transformers does this for images; it leaves audio to the first step, which beams, chunks of a prompt and generation
    without a cache would make run more than once.
    """

    def _maybe_prepare_encoder_kwargs_for_generation(
        self,
        inputs_tensor: torch.Tensor,
        model_kwargs: dict,
        model_input_name: str | None,
        generation_config: GenerationConfig,
    ) -> dict:
        """Encode now what would be encoded more than once."""
        expands = max(generation_config.num_beams, generation_config.num_return_sequences) > 1
        again = expands or generation_config.prefill_chunk_size is not None or generation_config.use_cache is False
        if again and (features := model_kwargs.pop("input_features", None)) is not None:
            mask = model_kwargs.pop("input_features_mask", None)
            features, mask = (None if value is None else value.to(self.device) for value in (features, mask))
            model_kwargs["mm_encoder_outputs"] = {"audio": self.get_audio_features(features, mask)}
        return model_kwargs

    def _expand_multimodal_outputs(
        self, input_ids: torch.Tensor, mm_encoder_output: dict, expand_size: int = 1, inputs_embeds=None
    ) -> dict:
        """Give every beam or returned sequence of a row the same audio embeddings."""
        embeds = mm_encoder_output["audio"].pooler_output
        rows = embeds.split(self.model.find_placeholders(input_ids, inputs_embeds, embeds).sum(-1).tolist())
        return {"audio": PARTAudioOutput(pooler_output=torch.cat([row for row in rows for _ in range(expand_size)]))}
