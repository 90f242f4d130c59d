# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Lists of recipes: what is run, in which order, and the table over the seeds. Training is replaced by a small script."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_training

from modeling_part.__main__ import main
from modeling_part.evaluation import experiments
from modeling_part.evaluation.experiments import run_experiment, run_recipes


# Stands for `accelerate launch`: notes how it was called and leaves what a run leaves.
STAND_IN = """
import json, sys
from pathlib import Path
from modeling_part.evaluation.reports import write_report
from modeling_part.evaluation.scoring import annotate, score, write_predictions

_, _, recipe, *options = sys.argv[1:]
recipe = Path(recipe).stem
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
if recipe != "no_report":
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
            settings = ["--seed", seed, "--output_dir", folder, "--resume", "true", *reused, "--bf16", "false"]
            expected.append(["-m", "train_part", recipe, *settings])
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


@pytest.mark.parametrize(
    "options",
    [
        ["--dry_run"],
        ["--dry_run", "true"],
        ["--dry-run", "true"],
        ["--bf16", "false", "--dry_run=True"],
        ["--dry_run", "--debug"],
    ],
)
def test_after_a_dry_run_there_is_nothing_to_compare(launch, tmp_path, options):
    (tmp_path / "stand_in.py").write_text("open('calls', 'a').write('x')")
    assert run_experiment(["part", "llm_frozen"], [4], launch=launch, options=options) == []
    assert (tmp_path / "calls").read_text() == "xx"
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    assert run_experiment(["part"], [4], launch=launch, options=["--dry_run", "false", "--bf16", "false"])


def test_a_dry_run_may_be_said_by_the_recipes(launch, tmp_path):
    (tmp_path / "stand_in.py").write_text("open('calls', 'a').write('x')")
    for name in ("one", "two"):
        Path(f"{name}.yaml").write_text("base: part\ndry_run: true\n")
    assert run_experiment(["one.yaml", "two.yaml"], [4], launch=launch) == []
    assert (tmp_path / "calls").read_text() == "xx"
    with pytest.raises(ValueError, match=r"'two\.yaml' says `dry_run: true` and 'part' does not"):
        run_experiment(["part", "two.yaml"], [4], launch=launch)
    assert (tmp_path / "calls").read_text() == "xx"


def test_debug_is_passed_on_to_every_run(launch, tmp_path):
    main(["experiment", "part", "--launch", launch, "--", "--bf16", "false", "--debug"])
    (call,) = (json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines())
    assert call[-3:] == ["--bf16", "false", "--debug"]


def test_a_failed_run_stops_the_list(launch, tmp_path):
    Path("broken.yaml").write_text("base: part")
    with pytest.raises(subprocess.CalledProcessError, match="train_part broken"):
        run_recipes(["broken.yaml", "part"], [1], launch=launch)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("status", [130, 143])
def test_a_run_that_was_told_to_stop_has_not_failed(launch, tmp_path, status, capsys):
    (tmp_path / "stand_in.py").write_text(f"raise SystemExit({status})")
    with pytest.raises(SystemExit) as stopped:
        main(["experiment", "part", "--launch", launch])
    assert stopped.value.code == 130 and "the same command goes on" in capsys.readouterr().err


def test_errors_say_what_is_missing(launch):
    Path("no_report.yaml").write_text("base: part")
    with pytest.raises(FileNotFoundError, match=r"'no_report\.yaml' has trained predicted no `test_data`"):
        run_recipes(["no_report.yaml"], [1], launch=launch)


@pytest.mark.parametrize(
    ("second", "options", "told"),
    [
        ("nosuch", [], "There is no recipe 'nosuch'"),
        ("max_row: 4", [], "line 1: Unknown key 'max_row'. Did you mean 'max_rows'?"),
        ("seed: x", [], "line 1: `seed` is 'x'"),
        ("stages: {joint: {max_steps: 0}}", [], "Stage 'joint': `max_steps` is 0"),
        ("test_data: none", [], "has no `test_data` to compare the runs on"),
        ("stages: [{name: ctc_only, tasks: {asr: 1.0}, learning_rates: {adapter: 1.0e-3}, losses: {ctc: 1.0}}]", [],
         "ends in stage 'ctc_only', whose `losses` have no nll"),
        ("test_data: [{reader: manifest, path: mine/test.jsonl}]", [], "'second.yaml' shares no entry of `test_data`"),
        ("test_data: [{reader: manifest, path: data/asterisk/digits/test.jsonl, tasks: [mt]}]", [],
         "'second.yaml' shares no entry of `test_data`"),
        ("test_data: [{reader: manifests, path: mine/test.jsonl}]", [], "Unknown reader 'manifests'"),
        ("seed: 1", ["--max_row", "4"], "Unknown option '--max_row'"),
        ("seed: 1", ["--seed", "7"], "--seed would be the same for every run; give --seeds"),
        ("seed: 1", ["--output-dir=x"], "--output_dir would be the same for every run; give --folder"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_any_recipe_is_said_before_the_first_trains(launch, tmp_path, second, options, told):
    if ":" in second:
        Path("second.yaml").write_text(f"{second}\nbase: part\n")
        second = "second.yaml"
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(told)):
        run_recipes(["part", second], [1], launch=launch, options=options)
    assert not (tmp_path / "calls.jsonl").exists()


def test_recipes_that_share_some_test_data_are_compared_on_it(launch, tmp_path, capsys):
    entries = [
        f"{{reader: manifest, path: {tmp_path}/{name}.jsonl}}" for name in ("data/asterisk/digits/test", "other")
    ]
    Path("second.yaml").write_text(f"base: part\ntest_data: [{', '.join(entries)}]\n")
    run_experiment(["part", "second.yaml"], [4], launch=launch)
    printed = capsys.readouterr().out
    assert "Other `test_data` than 'part' has: 'second.yaml'." in printed
    run_experiment(["part", "llm_frozen"], [4], launch=launch, folder="more")
    assert "Other `test_data`" not in capsys.readouterr().out


def test_the_table_is_printed_although_the_runs_cannot_be_compared(launch, monkeypatch, capsys):
    def refuse(reports):
        raise ValueError("no row in common")

    monkeypatch.setattr(experiments, "compare", refuse)
    with pytest.raises(ValueError, match="no row in common"):
        run_experiment(["part", "llm_frozen"], [4], launch=launch)
    assert "Averages over languages" in capsys.readouterr().out


def test_without_a_launcher_a_recipe_is_trained_by_part_train(monkeypatch, tmp_path):
    commands = []
    monkeypatch.setattr(experiments, "_finish", lambda command: commands.append(command) or 1)
    with pytest.raises(subprocess.CalledProcessError):
        run_recipes(["part"], [1], folder=tmp_path)
    assert commands[0][:5] == [sys.executable, "-m", "modeling_part", "train", "part"]


# A launcher that Ctrl-C ends at once, and a trainer that it lets save first.
LAUNCHER = """
import subprocess, sys
try:
    sys.exit(subprocess.Popen([sys.executable, "trainer.py"]).wait())
except KeyboardInterrupt:
    sys.exit(1)
"""
TRAINER = """
import signal, sys, time
from pathlib import Path

def save(number, frame):
    time.sleep(2)
    Path("saved").touch()
    sys.exit(143)

for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, save)
Path("training").touch()
time.sleep(60)
"""


def interrupt(process: subprocess.Popen, number: int) -> None:
    """Ctrl-C reaches the whole group; what a scheduler or a shell sends, maybe this process alone."""
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_after_ctrl_c_or_sigterm_the_run_has_saved_before_the_command_ends(tmp_path, number):
    (tmp_path / "launcher.py").write_text(LAUNCHER)
    (tmp_path / "trainer.py").write_text(TRAINER)
    command = [
        sys.executable,
        "-m",
        "modeling_part",
        "experiment",
        "part",
        "--launch",
        f"{sys.executable} launcher.py",
    ]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=tiny_training.environment(),
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "training").is_file():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    time.sleep(2 * experiments.SECONDS)
    interrupt(process, number)
    _, error = process.communicate(timeout=60)
    assert (tmp_path / "saved").is_file()
    assert process.returncode == 130
    assert error.strip() == "part experiment: Interrupted; the same command goes on."
