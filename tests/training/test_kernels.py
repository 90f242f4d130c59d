"""Flex attention under autocast, as far as a CPU shows it."""

import pytest
import tiny
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from modeling_part import PARTConfig, PARTForSpeechSeq2Seq
from modeling_part.training import kernels


@pytest.mark.parametrize("autocast", [True, False])
def test_flex_attention_gets_one_dtype(monkeypatch, autocast):
    """Rotations leave float32 beside bfloat16, which torch's kernel refuses."""
    met = []

    def flex_attention(module, query, key, value, *args, **kwargs):
        met.append((query.dtype, key.dtype, value.dtype))
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, *args, **kwargs)

    monkeypatch.setattr(kernels, "flex_attention_forward", flex_attention)
    monkeypatch.setitem(AttentionInterface._global_mapping, "flex_attention", None)  # put back afterwards
    monkeypatch.setitem(AttentionMaskInterface._global_mapping, "flex_attention", sdpa_mask)
    kernels.let_flex_attention_autocast()
    config = PARTConfig(
        audio_config=tiny.tiny_audio_config(),
        text_config=tiny.tiny_text_config(),
        audio_token_id=258,
        adapter_hidden_size=32,
        adapter_num_attention_heads=2,
    )
    model = PARTForSpeechSeq2Seq(config).eval()
    model.set_attn_implementation("flex_attention")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        model(input_ids=torch.arange(10)[None], use_cache=False)
    assert set(met) == {(torch.bfloat16 if autocast else torch.float32,) * 3}
