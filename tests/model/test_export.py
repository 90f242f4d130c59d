"""One graph of the whole model, and transformers' exporters: the audio parts come along."""

import copy

import pytest
import torch
from architectures import AUDIO_TOKEN, LENGTHS, build, inputs_of, random_clips


ENCODERS = ["whisper", "qwen2_audio", "fun_asr_nano", "sense_voice", "wav2vec2"]


def slow_except_first(kinds: list[str]) -> list:
    return [kinds[0], *(pytest.param(kind, marks=pytest.mark.slow) for kind in kinds[1:])]


@pytest.mark.parametrize("kind", slow_except_first(ENCODERS))
@torch.no_grad()
def test_the_model_with_audio_is_one_graph(kind):
    model = build(kind)
    inputs = inputs_of(model, kind, random_clips(kind, LENGTHS))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", slow_except_first(ENCODERS))
@torch.no_grad()
def test_the_export_hears(kind):
    """The exported parts, run one after the other as their user does, give the model's own logits."""
    pytest.importorskip("transformers.exporters.runners", reason="newer transformers run what they export")
    from transformers.exporters import exporter_dynamo as exporters
    from transformers.exporters.utils import decompose_for_generation

    model = build(kind)
    inputs = inputs_of(model, kind, random_clips(kind, LENGTHS))
    exported = exporters.DynamoExporter().export_for_generation(model, inputs, exporters.DynamoConfig())
    assert set(exported.components) == {
        "audio_encoder",
        "multi_modal_projector",
        "language_model",
        "lm_head",
        "decode",
    }
    called = {name: arguments for name, (_, arguments) in decompose_for_generation(model, inputs).items()}
    run = exported.runners

    encoder = {"input_features": inputs["input_features"], "input_values": inputs["input_features"]}
    called["audio_encoder"] |= {name: encoder[name] for name in encoder if name in called["audio_encoder"]}
    frames = run["audio_encoder"](**called["audio_encoder"]).last_hidden_state
    audio = run["multi_modal_projector"](**called["multi_modal_projector"] | {"frames": frames})
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    embeds = embeds.masked_scatter((inputs["input_ids"] == AUDIO_TOKEN)[..., None], audio)
    prompt = copy.deepcopy(called["language_model"])
    del prompt["use_cache"]  # a setting, which the exported part has taken up
    hidden = run["language_model"](**prompt | {"inputs_embeds": embeds})
    (name,) = called["lm_head"]
    logits = run["lm_head"](**{name: hidden.last_hidden_state})
    torch.testing.assert_close(logits, model(**inputs).logits, atol=1e-5, rtol=1e-5)
