"""What the README shows runs: its Python blocks in order, on a tiny checkpoint and a generated clip."""

import re
import shlex
import sys

import numpy as np
import pytest
import soundfile
import yaml
from tiny import REPOSITORY

from modeling_part.publishing.remote_code import add_remote_code
from modeling_part.recipes.arguments import parse_recipe
from modeling_part.recipes.stages import build_plan


README = REPOSITORY / "README.md"


def blocks(language: str) -> list[str]:
    """The README's code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def workplace(tmp_path, monkeypatch, tiny_checkpoint):
    """A folder with `clip.wav` and a checkpoint under the names that the README uses."""
    (tmp_path / "runs/quickstart").mkdir(parents=True)
    folder = tmp_path / "runs/quickstart/joint"
    folder.mkdir()
    for path in tiny_checkpoint.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    add_remote_code(folder)
    soundfile.write(tmp_path / "clip.wav", np.sin(np.arange(16_000) / 20).astype("float32"), 16_000)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python_blocks_run_in_order(workplace, capsys):
    code = blocks("python")
    assert len(code) >= 4
    namespace: dict = {}
    for block in code:
        # The Hub's repository is a folder here; tests/test_remote_code.py and test_publishing.py use a Hub server.
        block = block.replace('"USER/NAME"', '"runs/quickstart/joint"').replace("stage-joint", "main")
        exec(compile(block, str(README), "exec"), namespace)
    assert capsys.readouterr().out.count("\n") >= 4


def test_the_inference_snippet_is_six_lines():
    snippet = next(block for block in blocks("python") if "generate" in block)
    assert len([line for line in snippet.splitlines() if line and not line.startswith(("from", "import"))]) <= 6


def test_the_recipe_parses(workplace):
    text = next(block for block in blocks("yaml") if "audio_model" in block)
    path = workplace / "mine.yaml"
    path.write_text(text.replace("bf16: true", ""))  # a machine of the tests may have no bf16
    recipe = parse_recipe([str(path)])
    assert (recipe.model.audio_model, recipe.data.train_data[0]["reader"]) == ("openai/whisper-large-v3", "manifest")
    assert [stage.name for stage in build_plan(recipe.training.stages)] == [
        "adapter",
        "encoder_top",
        "encoder",
        "joint",
    ]
    assert set(yaml.safe_load(text)) <= {*vars(recipe.model), *vars(recipe.data), *vars(recipe.training)}


def test_commands_name_what_exists():
    commands = [line for block in blocks("bash") for line in block.splitlines() if line]
    root = README.parent
    for command in commands:
        words = shlex.split(command, comments=True)
        for word in words:
            if word.endswith((".yaml", ".py")) and "/" in word:
                assert (root / word).is_file(), word
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (root / "Makefile").read_text(), re.MULTILINE), words[1]
        if words[:2] == ["python", "-m"]:
            assert (root / f"{words[2].replace('.', '/')}.py").is_file(), words[2]
    assert sys.version_info >= (3, 10)


def test_every_file_is_on_the_map():
    text = README.read_text(encoding="utf-8")
    missing = [path.name for path in (README.parent / "modeling_part").glob("[!_]*.py") if f"{path.name}`" not in text]
    assert not missing, "give each module its line in the README"
