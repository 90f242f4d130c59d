"""The notebooks run from the first to the last cell on a tiny generated run, and are committed with outputs of a real one."""

import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import nbformat
import pytest
import tiny
import tiny_training
from tiny import REPOSITORY


NOTEBOOKS = REPOSITORY / "notebooks"
NAMES = ["transcribe_and_translate", "train_three_stages", "what_alignment_does"]
STAGES = ["adapter", "encoder_top", "encoder", "joint"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_parts):
    """A finished tiny run, which begins with alignment, and its recipe."""
    folder = tmp_path_factory.mktemp("notebooks")
    corpus = tiny.tiny_corpus(folder / "corpus", sentences={"train": 6, "dev": 2, "test": 6}, words=(2, 3))
    stages = [{"name": name, "max_steps": 2} for name in STAGES]
    stages[0] |= {"losses": {"ctc": 1.0}}
    stages[-1] |= {"max_steps": 6}
    adapter = {"adapter_hidden_size": 32, "adapter_num_attention_heads": 2, "adapter_conv_stride": 1}
    recipe = tiny_training.write_recipe(folder, tiny_parts, corpus, stages=stages, adapter=adapter)
    result = tiny_training.execute(tiny_training.launch_command(recipe))
    assert result.returncode == 0, result.stdout[-5000:]
    return SimpleNamespace(recipe=recipe, run=folder / "run")


def cells(name: str) -> list:
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4).cells


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", NAMES)
def test_runs_with_nbmake(name, finished):
    environment = {
        **os.environ,
        "PART_RUN": str(finished.run),
        "PART_RECIPE": str(finished.recipe),
        "HF_HUB_OFFLINE": "1",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    command = [sys.executable, "-m", "pytest", "-q", "--nbmake", "-p", "no:cacheprovider", "-p", "no:xdist"]
    result = subprocess.run(
        [*command, "--nbmake-timeout=300", "--rootdir", str(NOTEBOOKS), str(NOTEBOOKS / f"{name}.ipynb")],
        cwd=NOTEBOOKS,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]


@pytest.mark.parametrize("name", NAMES)
class TestCommitted:
    def test_is_a_valid_notebook_with_a_title(self, name):
        book = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
        nbformat.validate(book)
        assert book.cells[0].cell_type == "markdown" and book.cells[0].source.startswith("# ")

    def test_every_cell_was_run_in_order_without_an_error(self, name):
        code = [cell for cell in cells(name) if cell.cell_type == "code"]
        assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
        assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
        assert any(cell.outputs for cell in code)

    def test_tells_nothing_of_the_machine(self, name):
        text = json.dumps([cell.get("outputs", []) for cell in cells(name)])
        assert not re.findall(r"(?<![\w.])/(?:home|root|tmp|work|opt|usr|Users)/[\w./-]*", text)

    def test_is_small(self, name):
        assert (NOTEBOOKS / f"{name}.ipynb").stat().st_size < 1_000_000
        assert all(len(cell.source.splitlines()) <= 60 for cell in cells(name))
