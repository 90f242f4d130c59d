"""The Open ASR Leaderboard's own scripts, unchanged, on a tiny checkpoint; see README.md beside this file."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny


RUNNER = Path(os.environ.get("PART_LEADERBOARD", tiny.REPOSITORY.parent / "shared" / "leaderboard")) / "run.py"

pytestmark = pytest.mark.skipif(not RUNNER.is_file(), reason="set PART_LEADERBOARD to the folder of the scripts")
for package in ("kaldialign", "num2words"):
    pytest.importorskip(package, reason=f"the leaderboard's scripts need {package}")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("leaderboard")
    generator = np.random.default_rng(0)
    lines = []
    for number, words in enumerate([(0, 1), (2,), (3, 4, 5), (1,), (5, 2)]):
        sound = tiny.sentence_sound("en", words, generator)
        soundfile.write(folder / f"{number}.wav", sound, tiny.SAMPLING_RATE, subtype="FLOAT")
        text = " ".join(tiny.WORDS["en"][word] for word in words)
        lines.append(json.dumps({"audio": f"{number}.wav", "text": text}))
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    return folder / "manifest.jsonl"


def transcripts(checkpoint: Path, manifest: Path, folder: Path, script: str, *options: str) -> list[str]:
    """What a script writes down, in the order of the manifest."""
    folder.mkdir()
    command = [sys.executable, RUNNER, script, checkpoint, manifest, "--max_new_tokens", "12", *options]
    environment = {**os.environ, "PYTHONPATH": f"{tiny.REPOSITORY}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "WER" in done.stdout
    (results,) = (folder / "results").glob("*.jsonl")
    return [json.loads(line)["pred_text"] for line in results.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("script", [("english",), ("multilingual", "--language", "de")])
def test_every_batch_size_and_the_static_cache_say_the_same(tiny_checkpoint, manifest, tmp_path, script):
    name, *language = script
    runs = {
        "one": ("--batch_size", "1"),
        "four": ("--batch_size", "4"),
        "compiled": ("--batch_size", "2", "--torch_compile", "default"),
    }
    said = {
        run: transcripts(tiny_checkpoint, manifest, tmp_path / run, name, *language, *options)
        for run, options in runs.items()
    }
    assert len(said["one"]) == 5
    assert said["one"] == said["four"] == said["compiled"]


def test_bfloat16(tiny_checkpoint, manifest, tmp_path):
    said = transcripts(tiny_checkpoint, manifest, tmp_path / "half", "english", "--dtype", "bfloat16")
    assert len(said) == 5
