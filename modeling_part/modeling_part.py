# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""PART: speech encoder -> adapter -> causal language model (arXiv 2509.19745, section 2.1).

Shapes are written with B clips, T input steps (mel frames or samples), F encoder frames, A audio tokens,
L positions of the language model's sequence, H its width, V its vocabulary.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import ClassVar

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import can_return_tuple, torch_compilable_check

from .adapter_part import PARTAdapter
from .alignment_part import AlignmentMixin, PARTAlignmentHead
from .configuration_part import FIXED_WINDOW_ENCODERS, PADDING_HEARING_ENCODERS, PARTConfig, convolved_length
from .encoder_part import VariableLengthEncoderMixin, build_audio_tower, join_clips
from .generation_part import AudioGenerationMixin
from .layout_part import (
    BatchLayout,
    answer_positions,
    check_labels,
    prepared_mask,
    put_positions,
    row_bounds,
    take_positions,
    true_positions,
)
from .loading_part import has_learned_positions, load_parts, tied_weights_keys
from .logits_part import answer_loss, chunked_divergences, keep_positions, scale_logits
from .outputs_part import PARTAudioOutput, PARTCausalLMOutputWithPast, PARTModelOutputWithPast
from .pretrained_part import PARTPreTrainedModel
from .processing_part import PARTProcessor
from .san_m_part import PARTFunAsrNanoEncoder


class PARTModel(PARTPreTrainedModel):
    """Encoder, adapter and the language model without its head."""

    # Of a whole checkpoint, which `AutoModel` may load too. vLLM, which has its own head, loads none of the first.
    _keys_to_ignore_on_load_unexpected = (r"^alignment_head\.",)
    keys_of_heads = ("lm_head.",)

    def __init__(self, config: PARTConfig, language_model: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self.audio_tower = build_audio_tower(config)
        self.adapter = PARTAdapter(config)
        if language_model is None:
            language_model = AutoModelForCausalLM.from_config(config.text_config).base_model
        self.language_model = language_model
        # Where positions are looked up in a table, it ends.
        learned = has_learned_positions(language_model)
        self.position_limit = config.text_config.max_position_embeddings if learned else None
        self.post_init()

    @property
    def multi_modal_projector(self) -> nn.Module:
        """The adapter, by the name that transformers' exporters look for."""
        return self.adapter

    def get_input_embeddings(self) -> nn.Module:
        """The language model's token embeddings."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's token embeddings."""
        self.language_model.set_input_embeddings(value)

    def encode(
        self,
        input_features: torch.Tensor,
        input_features_mask: torch.Tensor | None = None,
        feature_lengths: np.ndarray | None = None,
        **kwargs,
    ) -> BaseModelOutput:
        """`(B, mel, T)` (or the encoder's own layout) features and `(B, T)` mask -> `(B, F, encoder hidden)` frames.

        `feature_lengths` `(B,)` are the sums of the mask, where they are known on the CPU.
        """
        audio_config = self.config.audio_config
        if not torch.is_autocast_enabled(input_features.device.type):  # wav2vec2 and its like do not cast
            input_features = input_features.to(self.audio_tower.dtype)
        if audio_config.model_type in FIXED_WINDOW_ENCODERS and not self.config.variable_length:
            input_features_mask = None  # the original attends to the padding of its 30 s window
        hears_padding = audio_config.model_type in PADDING_HEARING_ENCODERS
        hears_padding |= getattr(audio_config, "feat_extract_norm", None) == "group"
        if hears_padding and input_features_mask is not None:
            lengths = input_features_mask.sum(-1) if feature_lengths is None else feature_lengths
            return self._encode_one_by_one(input_features, lengths.tolist(), **kwargs)
        features = {self.audio_tower.main_input_name: input_features}
        return self.audio_tower(**features, attention_mask=input_features_mask, **kwargs)

    def _encode_one_by_one(self, input_features: torch.Tensor, lengths: list[int], **kwargs) -> BaseModelOutput:
        """Encoders with a group norm over time (wav2vec2-base) and the like would mix a clip with its padding: no batching."""
        outputs = [
            self.audio_tower(clip[None, :length], **kwargs)
            for clip, length in zip(input_features, lengths, strict=True)
        ]
        return join_clips(outputs)

    @can_return_tuple
    def get_audio_features(
        self,
        input_features: torch.Tensor | None,
        input_features_mask: torch.Tensor | None = None,
        encoder_frames: torch.Tensor | None = None,
        padding_free: bool = False,
        layout: BatchLayout | None = None,
        **kwargs,
    ) -> PARTAudioOutput:
        """Encoder and adapter.

        Args:
            input_features: what the feature extractor gives: `(B, mel, T)` for Whisper and Qwen2-Audio, `(B, T, mel)`
                for SAN-M and w2v-BERT, `(B, T)` samples for wav2vec2.
            input_features_mask: `(B, T)`, 1 for valid steps. None: every step is valid.
            encoder_frames: `(B, F, encoder hidden)`, what the encoder gives for the features (see `encode`), which are
                then not needed, but their mask is: the encoder does not run.
            padding_free: the adapter's layers, and those of Whisper's and Qwen2-Audio's encoders, get the clips packed into
                one row. Other encoders are padded: they mix neighbouring frames by more than attention.
            layout: see [`PARTForSpeechSeq2Seq.forward`].

        Returns:
            [`PARTAudioOutput`]; `pooler_output` holds the audio embeddings `(sum of A, H)`.
        """
        if isinstance(input_features_mask, list):  # vLLM gives the masks of unequal clips one by one
            input_features_mask = torch.stack(input_features_mask)
        layout = layout or {}
        if encoder_frames is None:
            if layout.get("has_padded_clips") is False:
                input_features_mask = None
            if isinstance(self.audio_tower, VariableLengthEncoderMixin):
                kwargs |= {"padding_free": padding_free, "packed_frames": layout.get("packed_frames")}
            if isinstance(self.audio_tower, (VariableLengthEncoderMixin, PARTFunAsrNanoEncoder)):
                kwargs["is_padded"] = layout.get("has_padded_clips", False)
            output = self.encode(input_features, input_features_mask, layout.get("feature_lengths"), **kwargs)
        else:
            output = BaseModelOutput(last_hidden_state=encoder_frames)
        frames, frame_lengths = output.last_hidden_state, None
        if input_features_mask is not None:
            frame_lengths = convolved_length(input_features_mask.sum(-1), self.config.encoder_convolutions)
        audio_tokens = len(layout["placeholders"]) if "placeholders" in layout else None
        embeds = self.adapter(frames, frame_lengths, padding_free, audio_tokens)
        return PARTAudioOutput(
            last_hidden_state=frames,
            pooler_output=embeds,
            hidden_states=getattr(output, "hidden_states", None),
            attentions=getattr(output, "attentions", None),
        )

    def find_placeholders(
        self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None, audio_embeds: torch.Tensor
    ) -> torch.Tensor:
        """Where the audio goes, `(B, L)`: at the placeholder's id, or at its embedding when there are no ids.

        Raises:
            ValueError: there is not one placeholder per audio embedding.
        """
        token = self.config.audio_token_id
        if input_ids is None or input_ids.numel() == 0:
            placeholder = self.get_input_embeddings()(torch.full((), token, device=inputs_embeds.device))
            mask = (inputs_embeds == placeholder).all(-1)
        else:
            mask = input_ids == token
        torch_compilable_check(
            mask[mask].numel() == len(audio_embeds),
            lambda: (
                f"The prompts hold {int(mask.sum())} audio placeholders (token {token}) but the features give "
                f"{len(audio_embeds)} audio embeddings. Build both with the model's own PARTProcessor; its "
                "`audio_token_convolutions` must be those of the model's config."
            ),
        )
        return mask

    def place_audio(self, mask: torch.Tensor, inputs_embeds: torch.Tensor, audio_embeds: torch.Tensor) -> torch.Tensor:
        """Put the audio embeddings `(sum of A, H)` where the mask `(B, L)` says, in order."""
        audio_embeds = audio_embeds.to(inputs_embeds.device, inputs_embeds.dtype)
        return inputs_embeds.masked_scatter(mask[..., None].to(inputs_embeds.device), audio_embeds)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, PARTAudioOutput] | None = None,
        encoder_frames: torch.Tensor | None = None,
        use_cache: bool | None = None,
        padding_free: bool = False,
        layout: BatchLayout | None = None,
        **kwargs,
    ) -> PARTModelOutputWithPast:
        """See [`PARTForSpeechSeq2Seq.forward`], of which this is all but the head.

        Returns:
            The language model's last hidden state `(B, L, H)`, or with `padding_free` that of the valid positions
            alone, `(1, valid positions, H)`.
        """
        audio_embeds = None
        if inputs_embeds is None and input_ids is None:
            raise ValueError(
                "There are neither `input_ids` nor `inputs_embeds`, the prompt that says where the audio is and what is asked: "
                "give all that the processor gives, `model(**processor(audio))`."
            )
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if input_features is not None or encoder_frames is not None:
            audio = self.get_audio_features(
                input_features, input_features_mask, encoder_frames, padding_free=padding_free, layout=layout
            )
            mm_encoder_outputs = {"audio": audio}
        if mm_encoder_outputs:
            audio_embeds = mm_encoder_outputs["audio"].pooler_output.flatten(0, -2)
            if layout is None:
                mask = self.find_placeholders(input_ids, inputs_embeds, audio_embeds)
                inputs_embeds = self.place_audio(mask, inputs_embeds, audio_embeds)
            else:
                inputs_embeds = put_positions(
                    inputs_embeds, layout["placeholders"], audio_embeds.to(inputs_embeds.dtype)
                )
        if self.position_limit is not None and inputs_embeds.shape[1] > self.position_limit:
            raise ValueError(
                f"The rows have {inputs_embeds.shape[1]} positions, and the language model has learned "
                f"{self.position_limit}: shorten the audio or the text, or raise the adapter's `adapter_conv_stride`."
            )
        if padding_free:
            # transformers knows rows packed into one by their positions, which begin again (no mask, no cache).
            valid = true_positions(attention_mask != 0) if layout is None else layout["positions"]
            position_ids = take_positions(attention_mask.cumsum(-1) - 1, valid)[None]
            if self.language_model.config._attn_implementation not in ("eager", "sdpa", "flex_attention"):
                # Flash attention's kernels know them by their bounds.
                kwargs |= row_bounds(attention_mask.sum(-1), attention_mask.shape[1])
            inputs_embeds, attention_mask, use_cache = take_positions(inputs_embeds, valid)[None], None, False
        elif layout is not None and attention_mask is not None and past_key_values is None:
            attention_mask = prepared_mask(self.language_model.config, inputs_embeds, attention_mask, layout)
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        return PARTModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            audio_hidden_states=audio_embeds,
        )


class PARTForSpeechSeq2Seq(AlignmentMixin, PARTPreTrainedModel, AudioGenerationMixin):
    """PART with the language model's head: transcribes and translates speech, and translates text.

    ```python
    >>> from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor
    >>> import modeling_part

    >>> model = AutoModelForSpeechSeq2Seq.from_pretrained("runs/quickstart/joint")
    >>> processor = AutoProcessor.from_pretrained("runs/quickstart/joint")
    >>> inputs = processor("clip.wav", task="s2tt", source_lang="fr", target_lang="en")
    >>> ids = model.generate(**inputs)
    >>> processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    ```
    """

    _tp_plan: ClassVar = {"lm_head": "colwise_gather_output"}
    _pp_plan: ClassVar = {"lm_head": (["hidden_states"], ["logits"])}

    def __init__(self, config: PARTConfig) -> None:
        super().__init__(config)
        # The whole causal LM is built once, so that its own head (a bias, a tied matrix) is kept as it is.
        causal_lm = AutoModelForCausalLM.from_config(config.text_config)
        self.model = PARTModel(config, causal_lm.base_model)
        self.lm_head = causal_lm.get_output_embeddings()
        self.alignment_head = None if config.alignment_scale is None else PARTAlignmentHead(config)
        self._tied_weights_keys = tied_weights_keys(causal_lm)
        self._is_stateful = causal_lm._is_stateful  # `generate` takes nothing back of its cache then
        # transformers finds the loss by class name, and ours is not in its table.
        self.loss_type = "ForCausalLM"
        self.post_init()  # takes over what the part ignores
        self._keys_to_ignore_on_load_unexpected -= set(PARTModel._keys_to_ignore_on_load_unexpected)
        self.generation_config.suppress_tokens = [config.audio_token_id]

    def get_output_embeddings(self) -> nn.Module:
        """The language model's head."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the language model's head."""
        self.lm_head = new_embeddings

    def get_audio_features(
        self, input_features: torch.Tensor, input_features_mask: torch.Tensor | None = None, **kwargs
    ) -> PARTAudioOutput:
        """See [`PARTModel.get_audio_features`]."""
        return self.model.get_audio_features(input_features, input_features_mask, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, PARTAudioOutput] | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor | None = None,
        loss_chunk_size: int | None = None,
        padding_free: bool = False,
        transcript_ids: torch.LongTensor | None = None,
        nll_weight: float = 1.0,
        ctc_weight: float = 0.0,
        kl_weight: float = 0.0,
        at_start: Callable[[], AbstractContextManager] | None = None,
        layout: BatchLayout | None = None,
        **kwargs,
    ) -> PARTCausalLMOutputWithPast:
        """Audio and prompts -> logits, and the loss when `labels` are given.

        Args:
            input_ids: `(B, L)` prompt (and answer) tokens with audio placeholders.
            attention_mask: `(B, L)`, 1 for valid positions; padding may be left or right.
            input_features: see [`PARTModel.get_audio_features`]; None for text-only batches, which skip the encoder.
            input_features_mask: `(B, T)`, 1 for valid steps.
            labels: `(B, L)`, the answer and its end token, -100 elsewhere.
            mm_encoder_outputs: `{"audio": output of get_audio_features}` instead of `input_features`; `generate` gives
                it, so that the encoder runs once whatever the number of beams.
            logits_to_keep: as in transformers: the last so many positions (0: all), an index, or a mask. None: all;
                with `labels` only those that predict one, so that no others reach the vocabulary matrix.
            loss_chunk_size: with `labels`, the logits of so many targets at a time: at a vocabulary of 152k those of
                1,024 targets take 0.6 GB in float32. The backward pass computes them again. None: all at once.
            padding_free: with `labels`, encoder (see `get_audio_features`), adapter and language model get the valid positions
                of all rows as one row: no padding is computed. A gain with flash attention, whose kernels keep the rows
                apart; sdpa and eager attention mask one large square instead. The language model must mix positions by
                attention alone.
            transcript_ids: `(B, U)` tokens of what is said, -100 elsewhere: with `ctc_weight`, the audio tokens are
                aligned with them (see [`PARTAlignmentHead`]; batches without audio are not).
            nll_weight: of the answer's negative log-likelihood in the loss. With 0 the language model does not run.
            ctc_weight: of the alignment in the loss; all are divided by the same number of answer tokens.
            kl_weight: with `labels` and `at_start`, of the divergence of the answer's predictions from those of the language
                model at its start, `KL(start || now)`: it runs a second time, without gradient.
            at_start: opens a context in which the language model is what it was at its start.
            layout: where audio and labels are in the batch, made on the CPU with it ([`batch_layout`]; the collator does):
                nothing has to wait until a GPU has counted them. None: it is asked, with the same result.
            kwargs: `num_items_in_batch` reaches the loss, `encoder_frames` [`PARTModel.get_audio_features`]; the rest
                reaches the language model.

        Returns:
            [`PARTCausalLMOutputWithPast`].
        """
        num_items_in_batch = kwargs.pop("num_items_in_batch", None)
        prompt = input_ids if inputs_embeds is None else inputs_embeds
        if labels is not None and prompt is not None:
            check_labels(labels, prompt)
        alignment = {}
        if ctc_weight and (input_features is not None or kwargs.get("encoder_frames") is not None):
            frames = kwargs.pop("encoder_frames", None)
            audio = self.get_audio_features(
                input_features, input_features_mask, encoder_frames=frames, padding_free=padding_free, layout=layout
            )
            mm_encoder_outputs, input_features = {"audio": audio}, None
            alignment = self._align(audio.pooler_output, input_ids, transcript_ids, layout)
        if not nll_weight:
            return self._alignment_only(alignment, labels, ctc_weight, num_items_in_batch)
        inputs = {
            "input_ids": input_ids,
            "input_features": input_features,
            "input_features_mask": input_features_mask,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "inputs_embeds": inputs_embeds,
            "mm_encoder_outputs": mm_encoder_outputs,
            "use_cache": use_cache,
            "padding_free": padding_free,
            "layout": layout,
            **kwargs,
        }
        outputs = self.model(**inputs)
        loss = logits = token_losses = divergences = None
        if labels is not None:
            predicting, targets = answer_positions(labels, layout, attention_mask if padding_free else None)
            # `device_map` may have put the last layer on another device than the batch.
            predicting, targets = (places.to(outputs.last_hidden_state.device) for places in (predicting, targets))
            hidden_states = take_positions(outputs.last_hidden_state, predicting)
            items = len(targets) if num_items_in_batch is None else num_items_in_batch  # None: the mean
            nll, logits, token_losses = answer_loss(
                self._logits, self.loss_function, hidden_states, targets, loss_chunk_size, items
            )
            loss = nll_weight * nll
            if alignment:
                loss = loss + ctc_weight * alignment["ctc_losses"].sum() / items
            if kl_weight and at_start is not None:
                # After the pass with gradients: what autocast keeps of the weights would otherwise have none.
                with torch.no_grad(), at_start():
                    start_states = take_positions(self.model(**inputs).last_hidden_state, predicting)
                size = loss_chunk_size or max(1, len(targets))
                divergences = chunked_divergences(self._logits, hidden_states, start_states, size)
                loss, divergences = loss + kl_weight * divergences.sum() / items, divergences.detach()
        if labels is None or logits_to_keep is not None:
            logits = self._logits(
                keep_positions(outputs.last_hidden_state, 0 if logits_to_keep is None else logits_to_keep)
            )
        return PARTCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            token_losses=token_losses,
            kl_divergences=divergences,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            audio_hidden_states=outputs.audio_hidden_states,
            **alignment,
        )

    def _logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return scale_logits(self.config.text_config, self.lm_head(hidden_states))

    @classmethod
    def from_pretrained_parts(
        cls,
        audio_model: str,
        language_model: str,
        *,
        audio_token: str = "<|audio|>",
        dtype: torch.dtype | str = torch.float32,
        attn_implementation: str | None = None,
        revision_audio: str | None = None,
        revision_language: str | None = None,
        system_prompt: str | None = None,
        **adapter_settings,
    ) -> tuple["PARTForSpeechSeq2Seq", PARTProcessor]:
        """Build the model and its processor from two checkpoints, with a freshly initialised adapter.

        Args:
            audio_model: Hub id or folder of the speech encoder, or of a model that contains one (Whisper, Qwen2-Audio).
            language_model: Hub id or folder of a causal language model with its tokenizer.
            audio_token: placeholder. Added to the vocabulary when it is not there; the embeddings grow only when the
                language model has no spare rows.
            dtype: of all weights, float32 by default (`"auto"` keeps the language model's own).
            attn_implementation: `"sdpa"`, `"eager"`, `"flash_attention_2"`, ... for all parts.
            revision_audio, revision_language: revisions on the Hub.
            system_prompt: see [`PARTProcessor`].
            **adapter_settings: fields of [`PARTConfig`], such as `adapter_hidden_size` or `variable_length`.

        Returns:
            The model, in evaluation mode, and its [`PARTProcessor`].
        """
        return load_parts(
            cls,
            audio_model,
            language_model,
            audio_token=audio_token,
            dtype=dtype,
            attn_implementation=attn_implementation,
            revision_audio=revision_audio,
            revision_language=revision_language,
            system_prompt=system_prompt,
            **adapter_settings,
        )


__all__ = ["PARTForSpeechSeq2Seq", "PARTModel", "PARTPreTrainedModel"]
