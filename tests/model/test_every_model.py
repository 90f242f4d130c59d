"""Every encoder and language model that the documentation names, from the bytes of a sound file to text.

With the package's own dependencies, tiny and random. The table of `modeling_part/recipes/README.md` is what these tests
show.
"""

import json
import subprocess
import sys

import pytest
import sense_voice
import tiny
import torch
from architectures import AUDIO_CONFIGS, TEXT_CONFIGS
from clean_environment import installed_packages
from named_models import (
    COLUMNS,
    ENCODERS,
    LANGUAGE_MODELS,
    LOOPS,
    NOT_BY_VLLM,
    WITHOUT_POSITIONS,
    feature_extractor,
    make,
    text_config,
)
from tiny_training import wav_bytes
from transformers import pipeline

from modeling_part import PARTForSpeechSeq2Seq
from modeling_part.layout_part import batch_layout
from modeling_part.publishing.remote_code import add_remote_code


SOUND = sense_voice.sound(1.5)


@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoder_from_sound_to_text(kind, tmp_path):
    model, processor, folder = make(tmp_path, kind)
    pipe = pipeline("speech-to-text", model=str(folder), max_new_tokens=4, device="cpu")
    assert isinstance(pipe(wav_bytes(SOUND))["text"], str)
    assert len(pipe(wav_bytes(SOUND), chunk_length_s=0.9)["chunks"]) == 2  # long audio

    inputs = processor([wav_bytes(SOUND), wav_bytes(SOUND[:12_000])], text=["one two", "one"])
    loss = model(**inputs).loss
    loss.backward()  # trained
    optimizer = torch.optim.AdamW(model.model.audio_tower.parameters(), lr=1e-3)
    assert all(layer.grad is not None and layer.grad.any() for layer in first_and_last_layer(model))
    optimizer.step()
    assert model(**inputs).loss < loss

    audio = {name: inputs[name] for name in ("input_features", "input_features_mask")}
    torch.compiler.reset()  # the models before this one count against the limit of recompilations
    hear = torch.compile(model.get_audio_features, fullgraph=True, backend="eager")
    with torch.no_grad():
        if kind in LOOPS:
            with pytest.raises(torch._dynamo.exc.TorchDynamoException):
                hear(**audio)
        else:
            expected = model.get_audio_features(**audio).pooler_output
            torch.testing.assert_close(hear(**audio).pooler_output, expected, rtol=1e-5, atol=1e-5)


def first_and_last_layer(model) -> list[torch.nn.Parameter]:
    """A weight of the encoder's first layer and one of its last."""
    weights = [weight for name, weight in model.model.audio_tower.named_parameters() if "layers." in name]
    matrices = [weight for weight in weights if weight.ndim == 2]
    return [matrices[0], matrices[-1]]


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
def test_a_language_model_from_sound_to_text(kind, tmp_path):
    model, processor, folder = make(tmp_path, text=text_config(kind))
    pipe = pipeline("speech-to-text", model=str(folder), max_new_tokens=4, device="cpu")
    assert isinstance(pipe(wav_bytes(SOUND))["text"], str)
    inputs = processor([wav_bytes(SOUND), wav_bytes(SOUND[:12_000])], text=["one two", "one"])
    loss = model(**inputs).loss
    loaded = PARTForSpeechSeq2Seq.from_pretrained(folder)
    for (name, buffer), (_, other) in zip(model.named_buffers(), loaded.named_buffers(), strict=True):
        assert torch.equal(other, buffer), name  # also those that no checkpoint holds
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    layout = batch_layout(inputs, processor.audio_token_id)  # as in training: the mask of some is made from it
    torch.testing.assert_close(model(**inputs, layout=layout).loss, loss, rtol=1e-6, atol=1e-6)
    loss.backward()
    torch.optim.AdamW(model.parameters(), lr=1e-3).step()
    assert model(**inputs).loss < loss


# Runs with `-I -S`: no repository, no environment, no .pth files (an editable install of this package is one).
SCRIPT = """
import importlib.util, json, sys
sys.path.append(sys.argv[1])
assert importlib.util.find_spec("modeling_part") is None
from transformers import AutoFeatureExtractor, pipeline
heard = {}
for folder in sys.argv[2:]:
    AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)
    pipe = pipeline(model=folder, trust_remote_code=True, device="cpu")
    heard[folder] = pipe("clip.wav", generate_kwargs={"max_new_tokens": 4})["text"]
print("RESULT " + json.dumps(heard))
"""


def test_published_they_hear_the_same(tmp_path):
    """In a process where this package is not installed: the same text as here."""
    (tmp_path / "clip.wav").write_bytes(wav_bytes(SOUND))
    expected = {}
    for kind in ENCODERS:
        (tmp_path / kind).mkdir()
        *_, folder = make(tmp_path / kind, kind)
        add_remote_code(folder)
        pipe = pipeline("speech-to-text", model=str(folder), device="cpu")
        expected[str(folder)] = pipe(wav_bytes(SOUND), max_new_tokens=4)["text"]
    packages = installed_packages(tmp_path / "packages")
    environment = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", "-S", "-c", SCRIPT, packages, *expected]
    result = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert json.loads(result.stdout.splitlines()[-1].removeprefix("RESULT ")) == expected


def table() -> str:
    """What the tests above show, and of vLLM test_vllm.py."""
    lines = [" | ".join(["| encoder", "features by", *COLUMNS]) + " |", "|---" * (2 + len(COLUMNS)) + "|"]
    for kind, name in ENCODERS.items():
        cells = dict.fromkeys(COLUMNS, "yes")
        if kind in LOOPS:
            cells["one graph"] = "clip by clip"
        if kind in WITHOUT_POSITIONS:
            cells["vLLM"] = "no" if kind in NOT_BY_VLLM else "with `hf_overrides`"
        extractor = type(feature_extractor(kind)).__name__
        lines.append(" | ".join([f"| {name}", f"`{extractor}`", *cells.values()]) + " |")
    return "\n".join(lines)


def test_the_table_of_the_documentation():
    page = (tiny.REPOSITORY / "modeling_part" / "recipes" / "README.md").read_text(encoding="utf-8")
    assert set(ENCODERS) == set(AUDIO_CONFIGS) and set(TEXT_CONFIGS) == set(LANGUAGE_MODELS) - {"falcon_h1", "qwen3"}
    assert table() in page, f"write into {page[:40]!r}...:\n{table()}"
    assert ", ".join(LANGUAGE_MODELS.values()) in " ".join(page.split())
