"""The benchmark of training steps runs on tiny models and writes what it says."""

import json
import math
import os
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest


REPOSITORY = Path(__file__).resolve().parent.parent
BENCHMARK = REPOSITORY / "tests" / "benchmarks" / "training.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[str, dict]:
    """What one run with tiny models prints, and its JSON."""
    output = tmp_path_factory.mktemp("benchmark") / "figures.json"
    command = [sys.executable, BENCHMARK, "--tiny", "--rounds", "1", "--threads", "1"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(
        [*command, "--output", output], capture_output=True, text=True, timeout=300, check=False, env=environment
    )
    assert result.returncode == 0, result.stderr
    return result.stdout, json.loads(output.read_text())


def test_tables(run):
    printed, figures = run
    classes, classes_large, gate, logits = figures["tables"].values()
    models = [row["model"] for row in classes]
    assert models[0] == "fun_asr_nano" and {"qwen2_audio", "voxtral", "part_sanm", "part_whisper"} < set(models)
    assert len(classes_large) == len(classes) - 2  # the padded classes run once
    assert [(row["training"], row["gated"]) for row in gate] == [
        ("full", False),
        ("full", True),
        ("lora", False),
        ("lora", True),
    ]
    assert [row["all_logits"] for row in logits] == [True, False]
    for title, rows in figures["tables"].items():
        assert title.split(",")[0] in printed
        for row in rows:
            assert row["label"] in printed
            assert row["clips_per_s"] > 0 and row["peak_gib"] > 0 and math.isfinite(row["loss"])
            low, high = row["speed_range"]
            assert low <= row["speed"] <= high
        assert rows[0]["speed"] == rows[0]["memory"] == 1


def test_flops_tell_what_a_step_saves(run):
    """Counted, hence exact whatever the machine does meanwhile."""
    classes, _, gate, logits = run[1]["tables"].values()
    flops = {row["label"]: row["gflop_per_clip"] for row in gate}
    assert flops["full, gated"] < flops["full, not gated"]
    assert flops["LoRA, gated"] < flops["LoRA, not gated"]
    everywhere, targets = logits
    assert targets["gflop_per_clip"] < everywhere["gflop_per_clip"]
    assert targets["loss"] == pytest.approx(everywhere["loss"], rel=1e-4)
    padded = min(row["gflop_per_clip"] for row in classes if row["model"] in ("qwen2_audio", "voxtral"))
    assert all(row["gflop_per_clip"] < padded for row in classes if row["model"].startswith("part"))


def test_same_clips_by_duration(run):
    """Batches by duration hold the same clips."""
    classes, *_ = run[1]["tables"].values()
    random, grouped = (row["batches"] for row in classes if row["model"] == "part_sanm")
    assert random != grouped
    assert sorted(chain.from_iterable(random)) == list(chain.from_iterable(grouped))


def test_inference(tmp_path):
    """Every class generates as many tokens as asked for; ratios are relative to the first."""
    program = BENCHMARK.with_name("inference.py")
    output = tmp_path / "figures.json"
    command = [sys.executable, program, "--tiny", "--rounds", "1", "--threads", "1", "--rows", "2", "--seconds", "2"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(
        [*command, "--output", output], capture_output=True, text=True, timeout=300, check=False, env=environment
    )
    assert result.returncode == 0, result.stderr
    (rows,) = json.loads(output.read_text())["tables"].values()
    assert len(rows) == 6 and rows[0]["speed"] == 1
    for row in rows:
        assert row["label"] in result.stdout
        assert row["clips_per_s"] > 0 and row["first_token_ms"] > 0
        assert math.isclose(row["real_time_factor"] * row["clips_per_s"] * 2, 1)
