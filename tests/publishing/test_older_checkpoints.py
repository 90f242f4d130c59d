"""A checkpoint that the first version published loads in this one, as a class of ours and by the code that it carries.

Nothing binary is kept: the first version's own code, taken from the repository's history, writes it.
"""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_remote_code import installed_packages
from tiny import REPOSITORY

from modeling_part import PARTForSpeechSeq2Seq, PARTProcessor


FIRST_VERSION = "4b38e26"

WRITE = """
import sys
from pathlib import Path

import tiny
import torch
from modeling_part import PARTForSpeechSeq2Seq
from modeling_part.checkpoints import add_remote_code
from safetensors.torch import save_file

folder = Path(sys.argv[1])
(folder / "parts").mkdir()
parts = tiny.tiny_parts(folder / "parts")
torch.manual_seed(0)
model, processor = PARTForSpeechSeq2Seq.from_pretrained_parts(
    str(parts.audio_model), str(parts.language_model), adapter_hidden_size=32, adapter_num_attention_heads=2
)
model.save_pretrained(folder / "joint")
processor.save_pretrained(folder / "joint")
add_remote_code(folder / "joint")
sound = tiny.sentence_sound("fr", [0, 1], __import__("numpy").random.default_rng(0))
inputs = processor(sound, task="s2tt", source_lang="fr", target_lang="en")
with torch.no_grad():
    logits = model(**inputs).logits
save_file({"sound": torch.tensor(sound), "logits": logits, "input_ids": inputs["input_ids"]}, folder / "seen")
"""

LOAD = """
import importlib.util, sys
sys.path.append(sys.argv[1])
assert importlib.util.find_spec("modeling_part") is None
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

folder, seen = sys.argv[2], load_file(sys.argv[3])
model = AutoModelForSpeechSeq2Seq.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
inputs = processor(seen["sound"].numpy(), task="s2tt", source_lang="fr", target_lang="en")
assert torch.equal(inputs["input_ids"], seen["input_ids"])
with torch.no_grad():
    torch.testing.assert_close(model(**inputs).logits, seen["logits"])
print("the same")
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A folder with the checkpoint `joint` and what its writer saw, `seen`."""
    folder = tmp_path_factory.mktemp("first_version")
    command = ["git", "archive", FIRST_VERSION, "modeling_part", "model_cards", "tests/tiny.py"]
    archive = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=False)
    if archive.returncode != 0:
        pytest.skip(f"the history does not reach back to {FIRST_VERSION}, whose code writes the checkpoint")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder / "code", filter="data")
    paths = os.pathsep.join([str(folder / "code"), str(folder / "code" / "tests")])
    result = subprocess.run(
        [sys.executable, "-c", WRITE, folder],
        env={**os.environ, "PYTHONPATH": paths},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


def test_it_loads_as_a_class_of_ours(published):
    seen = load_file(published / "seen")
    model = PARTForSpeechSeq2Seq.from_pretrained(published / "joint").eval()
    processor = PARTProcessor.from_pretrained(published / "joint")
    inputs = processor(seen["sound"].numpy(), task="s2tt", source_lang="fr", target_lang="en")
    assert torch.equal(inputs["input_ids"], seen["input_ids"])
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, seen["logits"])
    assert model.alignment_head is None


def test_it_loads_by_the_code_that_it_carries(published, tmp_path):
    assert "PARTForSpeechSeq2Seq" in json.loads((published / "joint/config.json").read_text())["architectures"]
    packages = installed_packages(tmp_path / "packages")
    command = [sys.executable, "-I", "-S", "-c", LOAD, packages, published / "joint", published / "seen"]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0 and "the same" in result.stdout, result.stderr[-3000:]
