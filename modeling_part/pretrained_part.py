# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""What PART's model classes share: how they are initialised and loaded, and what transformers may do with them."""

import os
from typing import ClassVar

from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from .adapter_part import PARTOutputNorm
from .alignment_part import PARTAlignmentHead
from .configuration_part import PARTConfig
from .damage_part import check_token_ids, explain_damage
from .loading_part import check_tensors, explain_missing_safetensors


class PARTPreTrainedModel(PreTrainedModel):
    """Initialisation and the capabilities that transformers asks for."""

    config: PARTConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("audio", "text")
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar = ["PARTAdapterLayer"]
    _skip_keys_device_placement: ClassVar = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    strict_loading: ClassVar[bool] = True
    keys_of_heads: ClassVar[tuple[str, ...]] = ()  # tensors of a whole checkpoint that a class has no use for

    @classmethod
    def is_custom_code(cls) -> bool:
        """False: all is initialised by `transformers.initialization`, which leaves alone what was loaded.

        In other custom code transformers does not ask modules without weights of their own to initialise anything, and the
        buffers that Falcon-H1's model gives to its layers, which no checkpoint holds, would be what the memory held.
        """
        return False

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PARTOutputNorm):
            init.constant_(module.weight, self.config.adapter_output_scale)
        elif isinstance(module, PARTAlignmentHead):
            init.zeros_(module.blank)
            init.zeros_(module.token_bias)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs) -> None:
        """See `PreTrainedModel.save_pretrained`, which copies the code of a model that came with its own.

        That is this file and what it imports: the import below takes the pipeline along, which `config.json` names.
        """
        if self.config.is_remote_code():
            from .pipeline_part import CUSTOM_PIPELINES

            self.config.custom_pipelines = CUSTOM_PIPELINES  # in whose place transformers may have put classes
        super().save_pretrained(save_directory, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str,
        *args,
        output_loading_info: bool = False,
        ignore_mismatched_sizes: bool = False,
        use_safetensors: bool = True,
        strict: bool | None = None,
        **kwargs,
    ):
        """See `PreTrainedModel.from_pretrained`, which is less strict.

        Only safetensors are read, and a checkpoint that does not hold exactly this model's tensors is an error, while
        transformers initialises what is missing and leaves out what is unexpected.

        Args:
            strict: False allows that, to build on a checkpoint that holds a part of the model. None: what the class
                attribute `strict_loading` says, which is True.

        Raises:
            OSError: there are no weights in safetensors.
            ValueError: tensors are missing, unexpected or of another shape; the message names them.
        """
        strict = cls.strict_loading if strict is None else strict
        with explain_damage(pretrained_model_name_or_path), explain_missing_safetensors(pretrained_model_name_or_path):
            model, info = super().from_pretrained(
                pretrained_model_name_or_path,
                *args,
                output_loading_info=True,
                ignore_mismatched_sizes=ignore_mismatched_sizes or strict,  # reported below, by name
                use_safetensors=use_safetensors,
                **kwargs,
            )
        if getattr(model, "generation_config", None) is not None:
            check_token_ids(model.generation_config, pretrained_model_name_or_path)
        if strict:
            mismatched = [] if ignore_mismatched_sizes else [key for key, *_ in info["mismatched_keys"]]
            unexpected = [key for key in info["unexpected_keys"] if not key.startswith(cls.keys_of_heads)]
            check_tensors(pretrained_model_name_or_path, cls, info["missing_keys"], unexpected, mismatched)
        return (model, info) if output_loading_info else model


__all__ = ["PARTPreTrainedModel"]
