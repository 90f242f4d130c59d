# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Generation with audio: the encoder runs once, whatever the number of beams, sequences and steps."""

import torch
from transformers import GenerationConfig, GenerationMixin
from transformers.generation import GenerationMode
from transformers.generation.candidate_generator import CandidateGenerator
from transformers.generation.utils import GenerateOutput
from transformers.utils import logging

from .alignment_part import collapse
from .drafts_part import Draft
from .outputs_part import PARTAudioOutput


logger = logging.get_logger(__name__)
# So many rows decoded together gain more from each step than from drafts, unless the alignment head is as sure as this of its tokens.
MANY_ROWS, SURE_OF_TOKENS = 4, 0.9


class AudioGenerationMixin(GenerationMixin):
    """`GenerationMixin` that encodes audio before the first step where that step would not be the only one to do so.

    transformers does this for images; it leaves audio to the first step, which beams, chunks of a prompt and generation
    without a cache would make run more than once.

    Drafts come in beside it: `generate` takes a batch apart (`_generate_apart`, which calls `generate` again for each row)
    or asks for the draft of one clip (`_draft`), and transformers' assisted generation then reads it. The class that has
    this mixin is [`PARTForSpeechSeq2Seq`]: of it are `model`, `alignment_head`, `loaded_alignment_head` and
    `get_audio_features`.
    """

    @torch.no_grad()
    def generate(self, *args, ctc_draft: bool = False, **kwargs) -> GenerateOutput | torch.LongTensor:
        """See `GenerationMixin.generate`.

        Args:
            ctc_draft: let the alignment head write a draft of a transcript, whose tokens the language model accepts as far
                as it would have written them: the same text in fewer steps (up to ties in half precision, where a
                forward pass over several tokens rounds otherwise than one over each). For greedy decoding of clips with
                a cache of its own; everything else is decoded as without, and so is a model without the head. A batch is
                taken apart on a CPU, one of four rows or more where the head is sure of its tokens, and left as it is on
                accelerators. There a draft must be mostly right to gain anything; alone it costs next to nothing. A
                translation gains nothing.
                With `assistant_ensemble_weight` w, transformers' own, a token of the draft is accepted as well where its
                probability is less than (1 - w) / w below the best one's: fewer steps, and another text.
        """
        given = [*args[:1], *map(kwargs.get, ("inputs", "input_ids", "inputs_embeds"))]
        has_prompt = any(one is not None for one in given)
        is_audio = any(isinstance(one, torch.Tensor) and one.is_floating_point() for one in given[:-1])
        if is_audio or (kwargs.get("input_features") is not None and not has_prompt):
            raise ValueError(
                "`generate` got audio features, but no prompt that says where they are and what is asked: give all that "
                "the processor gives, `model.generate(**processor(audio))`."
            )
        if ctc_draft:
            if (rows := self._generate_apart(*args, **kwargs)) is not None:
                return rows
            if (draft := self._draft(*args, **kwargs)) is not None:
                kwargs |= draft
                for name in ("input_features", "input_features_mask"):  # the draft holds what they were encoded to
                    kwargs.pop(name, None)
        return super().generate(*args, **kwargs)

    def _generate_apart(
        self, inputs: torch.Tensor | None = None, generation_config=None, *others, **kwargs
    ) -> torch.Tensor | None:
        """The rows of a batch of clips one by one, each with a draft of its own; None where drafts are not to be used.

        Many rows of whose drafts the head is not sure are decoded together, from audio that is encoded then.

        Not on accelerators, nor of one row (where the calls for each row end), nor where an argument is of the whole batch.
        """
        input_ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        names = ("attention_mask", "input_features", "input_features_mask", "mm_encoder_outputs")
        mask, features, features_mask, encoded = (kwargs.pop(name, None) for name in names)
        is_batch = isinstance(input_ids, torch.Tensor) and len(input_ids) > 1 and (features is not None or encoded)
        if self.device.type != "cpu" or self.alignment_head is None or not is_batch or others:
            return None
        counts = (input_ids == self.config.audio_token_id).sum(-1).tolist()
        is_of_batch = any(isinstance(one, torch.Tensor) for one in kwargs.values())
        is_of_batch |= kwargs.get("streamer") is not None
        if is_of_batch or not all(counts) or not self._can_use_drafts(generation_config, kwargs):
            return None
        settings, _ = self._prepare_generation_config(generation_config, **kwargs)
        if settings.return_dict_in_generate:
            return None
        encoded = encoded or self._encoded(features, features_mask)
        audio = encoded["audio"]
        if len(counts) >= MANY_ROWS:
            with self.loaded_alignment_head() as (head, embeddings):
                is_sure = head.sureness(audio.pooler_output, embeddings) >= SURE_OF_TOKENS
            if not is_sure:
                whole = {"input_ids": input_ids, "mm_encoder_outputs": encoded}
                whole |= {} if mask is None else {"attention_mask": mask}
                return super().generate(generation_config=generation_config, **whole, **kwargs)
        rows = []
        for number, embeds in enumerate(audio.pooler_output.split(counts)):
            row = {
                "input_ids": input_ids[number, None],
                "mm_encoder_outputs": {"audio": PARTAudioOutput(pooler_output=embeds)},
            }
            if mask is not None:
                row["attention_mask"] = mask[number, None]
            rows.append(self.generate(generation_config=generation_config, ctc_draft=True, **row, **kwargs)[0])
        end = settings.eos_token_id[0] if isinstance(settings.eos_token_id, list) else settings.eos_token_id
        padding = end if settings.pad_token_id is None else settings.pad_token_id
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding or 0)

    def _draft(self, inputs: torch.Tensor | None = None, generation_config=None, *others, **kwargs) -> dict | None:
        """What a draft adds to the arguments of `generate`; None where there is none to be used."""
        input_ids = kwargs.get("input_ids") if inputs is None else inputs
        encoded, features = kwargs.get("mm_encoder_outputs"), kwargs.get("input_features")
        is_one_clip = input_ids is not None and len(input_ids) == 1 and (encoded or features is not None)
        if self.alignment_head is None or not is_one_clip or others:
            return None
        if not self._can_use_drafts(generation_config, kwargs):
            return None
        encoded = encoded or self._encoded(features, kwargs.get("input_features_mask"))
        with self.loaded_alignment_head() as (head, embeddings):
            best = head.best_tokens(encoded["audio"].pooler_output, embeddings, head.known_tokens())
        tokens = [token for token in collapse(best.tolist()) if token != self.config.audio_token_id]
        return {"mm_encoder_outputs": encoded, "assistant_model": Draft(tokens, self.config)}

    def _encoded(self, features: torch.Tensor, mask: torch.Tensor | None) -> dict[str, PARTAudioOutput]:
        """Features as `mm_encoder_outputs`."""
        features, mask = (None if value is None else value.to(self.device) for value in (features, mask))
        return {"audio": self.get_audio_features(features, mask)}

    def _can_use_drafts(self, generation_config: GenerationConfig | None, kwargs: dict) -> bool:
        """Whether assisted generation writes what `generate` would write without it."""
        # What is called once per step may count steps or rows.
        of_steps = ("stopping_criteria", "logits_processor", "prefix_allowed_tokens_fn")
        if any(kwargs.get(name) is not None for name in ("past_key_values", "custom_generate", *of_steps)):
            return False
        settings, _ = self._prepare_generation_config(generation_config, **kwargs)
        stops = settings.stop_strings is not None or settings.max_time is not None
        # transformers splits the states of a pass over several tokens wrongly, or fails to.
        wants_states = settings.return_dict_in_generate and (
            settings.output_hidden_states or settings.output_attentions
        )
        return (
            settings.get_generation_mode(kwargs.get("assistant_model")) == GenerationMode.GREEDY_SEARCH
            and (settings.num_return_sequences or 1) == 1
            and settings.use_cache is not False
            and settings.cache_implementation in (None, "dynamic")
            and settings.prefill_chunk_size is None
            and settings.guidance_scale in (None, 1)  # it keeps a cache of its own, which nothing takes back
            and settings.watermarking_config is None  # SynthID's counts steps
            and not stops
            and not wants_states
            and not self._is_stateful
        )

    def _get_candidate_generator(
        self,
        generation_config: GenerationConfig,
        input_ids: torch.LongTensor,
        *args,
        assistant_model=None,
        **kwargs,
    ) -> CandidateGenerator:
        if not isinstance(assistant_model, Draft):
            return super()._get_candidate_generator(
                generation_config, input_ids, *args, assistant_model=assistant_model, **kwargs
            )
        limit = min(generation_config.max_length, self.model.position_limit or generation_config.max_length)
        # Older transformers have no such setting, and refuse it in `generate`.
        relaxed = getattr(generation_config, "assistant_ensemble_weight", None) is not None
        return assistant_model.candidate_generator(input_ids.shape[1], limit, relaxed)

    def _prepare_generated_length(self, *args, input_ids_length: int, **kwargs) -> GenerationConfig:
        """Where the language model has learned its positions, an answer ends with the last of them."""
        config = super()._prepare_generated_length(*args, input_ids_length=input_ids_length, **kwargs)
        if (limit := self.model.position_limit) is not None and config.max_length > limit:
            if input_ids_length >= limit:
                raise ValueError(
                    f"The prompt has {input_ids_length} positions, and the language model has learned {limit}, so that none "
                    "is left for an answer: give shorter audio (`chunk_length_s` in a pipeline) or text."
                )
            logger.warning_once(
                f"Answers end at {limit} positions, prompt included: the language model has learned no more."
            )
            config.max_length = limit
        return config

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
            model_kwargs["mm_encoder_outputs"] = self._encoded(features, model_kwargs.pop("input_features_mask", None))
        return model_kwargs

    def _expand_multimodal_outputs(
        self, input_ids: torch.Tensor, mm_encoder_output: dict, expand_size: int = 1, inputs_embeds=None
    ) -> dict:
        """Give every beam or returned sequence of a row the same audio embeddings."""
        embeds = mm_encoder_output["audio"].pooler_output
        rows = embeds.split(self.model.find_placeholders(input_ids, inputs_embeds, embeds).sum(-1).tolist())
        return {"audio": PARTAudioOutput(pooler_output=torch.cat([row for row in rows for _ in range(expand_size)]))}
