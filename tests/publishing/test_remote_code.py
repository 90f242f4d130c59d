"""The code travels: a published checkpoint works in a fresh process where this package cannot be imported."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import soundfile
import torch
from clean_environment import installed_packages
from loopback_hub import LoopbackHub
from safetensors.torch import load_file, save_file
from test_publishing import REPO, TOKEN, stage_info
from tiny import tiny_tokenizer
from transformers import AutoModel, AutoModelForSpeechSeq2Seq, AutoProcessor, pipeline

from modeling_part import PARTForSpeechSeq2Seq, PARTProcessor
from modeling_part.fbank_part import PARTFbankFeatureExtractor
from modeling_part.publishing.hub import publish
from modeling_part.publishing.remote_code import (
    CODE_FILES,
    FEATURES_AUTO_MAP,
    MODEL_AUTO_MAP,
    add_remote_code,
    code_files,
)
from modeling_part.recipes.stage_record import write_stage_json


STAGES = ("encoder", "joint")

# Runs with `-I -S`: no repository, no environment, no .pth files (an editable install of this package is one).
SCRIPT = """
import importlib.util, json, sys
sys.path.append(sys.argv[1])
assert importlib.util.find_spec("modeling_part") is None
assert importlib.util.find_spec("train_part") is None

from huggingface_hub import hf_hub_download
from transformers import (
    AutoConfig, AutoModelForMultimodalLM, AutoModelForSpeechSeq2Seq, AutoProcessor, pipeline
)

repo, folder = sys.argv[2:]
result = {"tokens": {}}


def generate(auto_class, source, **options):
    processor = AutoProcessor.from_pretrained(source, trust_remote_code=True, **options)
    model = auto_class.from_pretrained(source, trust_remote_code=True, **options)
    inputs = processor("clip.wav", task="s2tt", source_lang="fr", target_lang="en")
    return model.generate(**inputs, max_new_tokens=8, min_new_tokens=8)[0].tolist()


for stage in ("encoder", "joint"):
    result["tokens"][stage] = generate(AutoModelForSpeechSeq2Seq, repo, revision=f"stage-{stage}")
result["tokens"]["main"] = generate(AutoModelForSpeechSeq2Seq, repo)
result["tokens"]["folder"] = generate(AutoModelForMultimodalLM, folder)

result["config"] = type(AutoConfig.from_pretrained(folder, trust_remote_code=True)).__name__
result["auto_map"] = sorted(AutoConfig.from_pretrained(folder, trust_remote_code=True).auto_map)

pipe = pipeline(model=repo, revision="stage-encoder", trust_remote_code=True)
result["pipeline"] = [type(pipe).__name__, pipe("clip.wav", generate_kwargs={"max_new_tokens": 4})]

card = open(hf_hub_download(repo, "README.md", revision="stage-joint"), encoding="utf-8").read()
exec(card.split("```python\\n")[1].split("```")[0])
result["still_not_importable"] = importlib.util.find_spec("modeling_part") is None
print("RESULT " + json.dumps(result))
"""


def test_only_hub_files_travel():
    assert sorted(path.name for path in code_files()) == sorted(CODE_FILES)


def test_adding_the_code_twice_changes_nothing(tiny_checkpoint, tmp_path):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    add_remote_code(folder)
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    add_remote_code(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    assert set(CODE_FILES) < set(first)


def test_the_installed_package_comes_before_the_code_in_the_folder(tiny_checkpoint, tmp_path):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    add_remote_code(folder)
    model = AutoModelForSpeechSeq2Seq.from_pretrained(folder)
    assert type(model) is PARTForSpeechSeq2Seq


def test_the_installed_package_saves_no_names_of_code_that_it_leaves_behind(tiny_checkpoint, tmp_path):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    add_remote_code(folder)
    AutoModelForSpeechSeq2Seq.from_pretrained(folder).save_pretrained(tmp_path / "model")
    AutoProcessor.from_pretrained(folder).save_pretrained(tmp_path / "model")
    pipeline("speech-to-text", model=str(folder), device="cpu").save_pretrained(tmp_path / "pipeline")
    for saved in (tmp_path / "model", tmp_path / "pipeline"):
        assert not set(CODE_FILES) & {path.name for path in saved.iterdir()}
        for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
            written = (saved / name).read_text()
            assert "auto_map" not in written and "custom_pipelines" not in written
        add_remote_code(saved)  # published again
        assert json.loads((saved / "config.json").read_text())["auto_map"] == MODEL_AUTO_MAP


def test_nor_does_a_feature_extractor_of_ours(tmp_path):
    tokenizer = tiny_tokenizer()
    audio_token = tokenizer.all_special_tokens[-1]
    processor = PARTProcessor(PARTFbankFeatureExtractor(), tokenizer, audio_token=audio_token)
    processor.feature_extractor.auto_map = FEATURES_AUTO_MAP  # as of a checkpoint that brings its code
    processor.save_pretrained(tmp_path)
    assert "auto_map" not in (tmp_path / "processor_config.json").read_text()


@pytest.fixture(scope="module")
def stages(tiny_checkpoint, tmp_path_factory) -> dict[str, Path]:
    """Two finished stages with different weights."""
    folders = {}
    for number, stage in enumerate(STAGES):
        folder = folders[stage] = tmp_path_factory.mktemp("run") / stage
        shutil.copytree(tiny_checkpoint, folder)
        weights = load_file(folder / "model.safetensors")
        generator = torch.Generator().manual_seed(number)
        weights["lm_head.weight"] = torch.randn(weights["lm_head.weight"].shape, generator=generator)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        write_stage_json(folder, stage_info(stage, parent=None))
        add_remote_code(folder)
    return folders


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    time = np.arange(16_000) / 16_000
    return (0.3 * np.sin(2 * np.pi * 330 * time) * (1 + np.sin(2 * np.pi * 3 * time)) / 2).astype(np.float32)


@pytest.fixture(scope="module")
def outcome(stages, clip, tmp_path_factory) -> dict:
    """What a process without this package makes of the stages published on a Hub."""
    work = tmp_path_factory.mktemp("elsewhere")
    soundfile.write(work / "clip.wav", clip, 16_000, subtype="FLOAT")
    with LoopbackHub(users={TOKEN: "ada"}) as hub, pytest.MonkeyPatch.context() as patch:
        constants = huggingface_hub.constants
        patch.setattr(constants, "ENDPOINT", hub.url)
        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_CACHE", str(work / "hub"))
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        for folder in stages.values():
            publish(folder, REPO, private=True, token=TOKEN)
        packages = installed_packages(work / "packages")
        command = [sys.executable, "-I", "-S", "-c", SCRIPT, packages, REPO, stages["encoder"]]
        environment = hub.environment(work / "home", TOKEN)
        result = subprocess.run(command, env=environment, cwd=work, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    *printed, last = result.stdout.splitlines()
    return json.loads(last.removeprefix("RESULT ")) | {"printed": printed}


@pytest.fixture(scope="module")
def expected(stages, clip) -> dict[str, list[int]]:
    """Tokens that the package itself generates from each stage's folder."""
    tokens = {}
    for stage, folder in stages.items():
        inputs = PARTProcessor.from_pretrained(folder)(clip, task="s2tt", source_lang="fr", target_lang="en")
        model = PARTForSpeechSeq2Seq.from_pretrained(folder)
        tokens[stage] = model.generate(**inputs, max_new_tokens=8, min_new_tokens=8)[0].tolist()
    return tokens


def test_each_revision_generates_the_tokens_of_its_stage(outcome, expected):
    tokens = outcome["tokens"]
    assert expected["encoder"] != expected["joint"]
    assert {stage: tokens[stage] for stage in STAGES} == expected
    assert tokens["main"] == expected["joint"]  # the last one published
    assert tokens["folder"] == expected["encoder"]
    assert outcome["still_not_importable"]


def test_the_configuration_names_every_auto_class(outcome):
    assert outcome["config"] == "PARTConfig"
    names = ["AutoConfig", "AutoModel", "AutoModelForMultimodalLM", "AutoModelForSpeechSeq2Seq"]
    assert outcome["auto_map"] == names


def test_the_model_without_head_loads_from_a_whole_checkpoint(stages):
    model = AutoModel.from_pretrained(stages["encoder"])
    whole = PARTForSpeechSeq2Seq.from_pretrained(stages["encoder"])
    assert torch.equal(model.adapter.projection.weight, whole.model.adapter.projection.weight)


def test_the_pipeline_of_the_repository_is_ours(outcome):
    name, result = outcome["pipeline"]
    assert name == "PARTPipeline" and isinstance(result["text"], str)


def test_the_snippet_of_the_card_runs(outcome):
    assert len(outcome["printed"]) >= 1
