"""What the READMEs show runs: Python blocks in order, on a tiny checkpoint and a generated clip; commands exist."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from tiny import REPOSITORY

from modeling_part.__main__ import build_parser
from modeling_part.evaluation.run_files import LAUNCHES_FILE, read_launches
from modeling_part.publishing.remote_code import add_remote_code
from modeling_part.quickstart.speech import draw_strings
from modeling_part.recipes.arguments import parse_recipe
from modeling_part.recipes.files import write_json
from modeling_part.recipes.stages import BUILT_IN_STAGES, build_plan


PACKAGE = REPOSITORY / "modeling_part"
README = REPOSITORY / "README.md"
CLIP = "data/asterisk/digits/audio/it/742.wav"
PAGES = [README, PACKAGE / "recipes/README.md"]
BENCHMARKS = REPOSITORY / "tests/benchmarks/README.md"
CONFORMANCE = REPOSITORY / "tests/conformance/README.md"


def blocks(language: str, page: Path = README) -> list[str]:
    """A page's code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The names under which the Hub and GitHub link to the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.fixture
def workplace(tmp_path, monkeypatch, tiny_checkpoint):
    """A folder with a clip and a checkpoint under the names that the README uses."""
    (tmp_path / "runs/quickstart").mkdir(parents=True)
    folder = tmp_path / "runs/quickstart/joint"
    folder.mkdir()
    for path in tiny_checkpoint.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    add_remote_code(folder)
    (tmp_path / CLIP).parent.mkdir(parents=True)
    soundfile.write(tmp_path / CLIP, np.sin(np.arange(16_000) / 20).astype("float32"), 16_000)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python_blocks_run_in_order(workplace, capsys):
    code = blocks("python")
    assert len(code) >= 3
    namespace: dict = {}
    for block in code:
        # The Hub's repository is a folder here; tests/publishing/test_remote_code.py and test_publishing.py use a Hub server.
        block = block.replace('"USER/NAME"', '"runs/quickstart/joint"').replace("stage-joint", "main")
        exec(compile(block, str(README), "exec"), namespace)
    assert capsys.readouterr().out.count("\n") >= 4


def test_the_clip_is_one_that_the_quickstart_makes():
    """Of the test data: `make quickstart` writes `audio/LANGUAGE/DIGITS.wav` for every string of digits."""
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    options = re.search(r"quickstart digits data/asterisk (.*)", makefile)[1].split()
    sizes = {name.removeprefix("--"): int(size) for name, size in zip(options[::2], options[1::2], strict=True)}
    assert Path(CLIP).stem in draw_strings(sizes, seed=0)["test"]
    for text in (makefile, README.read_text(encoding="utf-8")):
        assert CLIP in text and "clip.wav" not in text


FROM_PYPI = ["--audio_model", "models/whisper-base", "--language_model", "models/SmolLM2-135M-Instruct"]


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("hub", [True, False], ids=["hub", "no hub"])
@pytest.mark.parametrize("began_with", [None, [], FROM_PYPI], ids=["new", "began with the Hub's", "began with PyPI's"])
def test_the_quickstart_goes_on_with_the_parts_that_it_began_with(tmp_path, hub, began_with):
    """Whether or not the Hub can be reached now; programs of the virtual environment are stand-ins."""
    for name in (".ci/constraints.txt", "setup.cfg", "pyproject.toml", "data/asterisk/digits/train.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "venv/bin").mkdir(parents=True)
    (tmp_path / "venv/installed").touch()
    for name, line in (("python", f"exit {int(not hub)}"), ("part", 'echo "$@" >> calls')):
        (tmp_path / "venv/bin" / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / "venv/bin" / name).chmod(0o755)
    if began_with is not None:
        (tmp_path / "runs/quickstart").mkdir(parents=True)
        before = ["--audio_model", "another/model"]  # of a launch before the last one
        for words in (before, began_with):
            launch = {"command": shlex.join(["part", "train", "quickstart", *words, "--resume", "true"])}
            launches = [*read_launches(tmp_path / "runs/quickstart"), launch | {"machine": "", "started": ""}]
            write_json(tmp_path / "runs/quickstart" / LAUNCHES_FILE, launches)
    subprocess.run(["make", "-f", REPOSITORY / "Makefile", "quickstart", "VENV=venv"], cwd=tmp_path, check=True)
    *others, training = map(str.split, (tmp_path / "calls").read_text().splitlines())
    parts = began_with if began_with is not None else [] if hub else FROM_PYPI
    assert training == ["train", "quickstart", *parts, "--resume", "true"]
    assert others == ([["quickstart", "models", "models"]] if began_with is None and not hub else [])


def test_the_inference_snippet_is_six_lines():
    snippet = next(block for block in blocks("python") if "generate" in block)
    assert len([line for line in snippet.splitlines() if line and not line.startswith(("from", "import"))]) <= 6


def test_the_recipe_parses(workplace):
    text = next(block for block in blocks("yaml") if "audio_model" in block)
    path = workplace / "mine.yaml"
    path.write_text(text)
    recipe = parse_recipe([str(path), "--bf16", "false"])
    assert (recipe.model.audio_model, recipe.data.train_data[0]["reader"]) == ("openai/whisper-large-v3", "manifest")
    plan = build_plan(recipe.training.stages)
    assert [stage.name for stage in plan] == list(BUILT_IN_STAGES) and plan[0].losses == {"ctc": 1.0}
    assert set(yaml.safe_load(text)) <= {"base", *vars(recipe.model), *vars(recipe.data), *vars(recipe.training)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_every_yaml_block_is_a_recipe(page, workplace):
    for number, text in enumerate(blocks("yaml", page)):
        path = workplace / f"{number}.yaml"
        path.write_text(text)
        parse_recipe([str(path), "--bf16", "false"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_commands_name_what_exists(page):
    for command in (line for block in blocks("bash", page) for line in block.splitlines() if line):
        words = shlex.split(command, comments=True)
        for word in words:
            if word.endswith((".yaml", ".py")) and "/" in word:
                assert (REPOSITORY / word).is_file(), word
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE), words[1]
        elif words[0] == "part":
            _, passed_on = build_parser().parse_known_args(words[1:])
            assert not passed_on or words[1] == "train", command
        elif words[:2] == ["accelerate", "launch"]:
            assert "train_part.py" in words
        elif words[0] == "python":
            assert "-m" not in words, "the verbs of `part` stand for modules"
        else:
            assert words[:2] == ["pip", "install"], command


@pytest.mark.parametrize("page", [*PAGES, BENCHMARKS, CONFORMANCE], ids=lambda page: page.parent.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", [*PAGES, BENCHMARKS], ids=lambda page: page.parent.name)
def test_programs_that_the_text_names_are_there(page):
    folders = [REPOSITORY, page.parent, *(path for path in PACKAGE.rglob("*") if path.is_dir()), PACKAGE]
    for name in set(re.findall(r"(?<![*\w/])[\w/]+\.(?:py|ipynb|yaml)\b", page.read_text(encoding="utf-8"))) - {
        "mine.yaml"
    }:
        assert any((folder / name).is_file() for folder in folders), name


def test_the_benchmarks_that_the_text_runs_have_their_options():
    text = " ".join(BENCHMARKS.read_text(encoding="utf-8").split())
    commands = re.findall(r"`python (tests/benchmarks/[^`]+)`", text)
    assert commands
    for program, *words in map(str.split, commands):
        source = (REPOSITORY / program).read_text(encoding="utf-8")
        options = [word for word in words if word.startswith("--") and word != "--help"]
        assert all(f'"{option}"' in source for option in options), (program, options)


def test_every_folder_of_the_package_is_in_the_tree():
    (tree,) = blocks("text")
    listed = {line.split()[0] for line in tree.splitlines()}
    folders = {path.parent for path in PACKAGE.rglob("*.*") if path.suffix in (".py", ".yaml")} - {
        PACKAGE / "recipes/data"
    }
    assert {f"{path.name}/" for path in folders} <= listed


def test_the_page_is_read_in_ten_minutes():
    assert README.stat().st_size <= 10_240
