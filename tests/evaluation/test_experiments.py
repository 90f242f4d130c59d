# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Lists of recipes: what is run, in which order, and the table over the seeds. Training is replaced by a small script."""

import json
import subprocess
import sys

import pytest

from modeling_part.__main__ import main
from modeling_part.evaluation.experiments import run_experiment, run_recipes


# Stands for `accelerate launch`: notes how it was called and leaves what a run leaves.
STAND_IN = """
import json, sys
from pathlib import Path
from modeling_part.evaluation.reports import write_report
from modeling_part.evaluation.scoring import annotate, score, write_predictions

_, _, recipe, *options = sys.argv[1:]
options = options[not options[0].startswith("-") :]  # without the overlay
with open("calls.jsonl", "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
settings = dict(zip(options[::2], options[1::2]))
run, seed = Path(settings["--output_dir"]), int(settings["--seed"])
last = "encoder" if recipe == "baseline_2stage" else "joint"
wrong = {"baseline_2stage": 4, "part": 2}.get(recipe, 0) + seed % 2
if recipe == "broken":
    sys.exit(3)
rows = []
for number in range(40):
    words = [f"w{position}" for position in range(8)]
    heard = ["wrong" if position < wrong else word for position, word in enumerate(words)]
    row = {"id": str(number), "corpus": "made", "task": "asr", "source_lang": "en", "target_lang": "en"}
    rows.append({**row, "reference": " ".join(words), "hypothesis": " ".join(heard)})
(run / last).mkdir(parents=True)
stages = [{"name": "adapter", "dev_loss": {"asr": 9.0}}, {"name": last, "dev_loss": {"all": 8.0, "asr": 1.5 + seed / 10}}]
(run / "report.json").write_text(json.dumps({"stages": stages}))
if recipe != "no_test":
    write_predictions(rows, run / last / "predictions.jsonl")
    write_report(score(annotate(rows), bootstrap_samples=20), run / last)
"""


@pytest.fixture
def launch(tmp_path, monkeypatch):
    """The launch command of the stand-in, in a folder that has no `train_part.py`: an installed one is launched."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", ":".join(path for path in sys.path if path))
    monkeypatch.chdir(tmp_path)
    return f"{sys.executable} stand_in.py"


def test_runs_every_recipe_from_every_seed_and_compares(launch, tmp_path, capsys):
    rows = run_experiment(["baseline_2stage", "part"], [4, 5], launch=launch, options=["--bf16", "false"])
    calls = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    expected = []
    for seed in ("4", "5"):  # the second recipe may take over stages of the first
        for recipe, reused in (("baseline_2stage", []), ("part", ["--reuse_runs", f"runs/baseline_2stage-{seed}"])):
            folder = f"runs/{recipe}-{seed}"
            expected.append(
                ["-m", "train_part", recipe, "--seed", seed, "--output_dir", folder, *reused, "--bf16", "false"]
            )
    assert calls == expected
    # 4 of 8 and 5 of 8 words wrong; 2 of 8 and 3 of 8; the dev losses of the last stages
    losses = "1.950 (1.900 to 2.000)"
    assert rows == [["baseline_2stage", "56.2 (50.0 to 62.5)", losses], ["part", "31.2 (25.0 to 37.5)", losses]]
    printed = capsys.readouterr().out
    assert "Seed 4" in printed and "Seed 5" in printed
    assert "baseline_2stage-4/encoder" in printed.replace("\n", "")


@pytest.mark.parametrize(
    ("recipes", "seeds", "told"),
    [
        (["mine/part.yaml", "theirs/part.yaml"], [4], "recipes are 'part'"),
        (["part", "other"], [4, 5, 4], "seeds are 4"),
    ],
)
def test_two_runs_never_share_a_folder(launch, tmp_path, recipes, seeds, told):
    """The second would find the first one's stages finished, and be compared with itself."""
    with pytest.raises(ValueError, match=told):
        run_recipes(recipes, seeds, launch=launch)
    assert not (tmp_path / "calls.jsonl").exists()


def test_the_command_lays_overlays_over_each_recipe(launch, tmp_path):
    options = ["--overlays", "data/sentences", "--folder", "other", "--launch", launch]
    main(["experiment", "part", "llm_frozen", *options, "--", "--bf16", "false"])
    calls = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    assert [call[:6] for call in calls] == [
        ["-m", "train_part", recipe, "data/sentences", "--seed", "42"] for recipe in ("part", "llm_frozen")
    ]
    assert all(call[-2:] == ["--bf16", "false"] for call in calls)
    assert (tmp_path / "other" / "llm_frozen-42" / "report.json").is_file()


def test_one_recipe_needs_no_comparison(launch):
    assert run_experiment(["part"], [4], launch=launch) == [["part", "25.0", "1.900"]]


@pytest.mark.parametrize("options", [["--dry_run"], ["--dry_run", "true"], ["--bf16", "false", "--dry_run=True"]])
def test_after_a_dry_run_there_is_nothing_to_compare(launch, tmp_path, options):
    (tmp_path / "stand_in.py").write_text("open('calls', 'a').write('x')")
    assert run_experiment(["part", "llm_frozen"], [4], launch=launch, options=options) == []
    assert (tmp_path / "calls").read_text() == "xx"
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    assert run_experiment(["part"], [4], launch=launch, options=["--dry_run", "false", "--bf16", "false"])


def test_a_failed_run_stops_the_list(launch, tmp_path):
    with pytest.raises(subprocess.CalledProcessError):
        run_recipes(["broken", "part"], [1], launch=launch)
    assert not (tmp_path / "runs").exists()


def test_errors_say_what_is_missing(launch):
    with pytest.raises(FileNotFoundError, match="'no_test' needs `test_data`"):
        run_recipes(["no_test"], [1], launch=launch)
