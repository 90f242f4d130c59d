# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""The command `part`: help of every verb, errors in one line, and what goes on to the launcher."""

import argparse
import configparser
import subprocess
import sys

import pytest
import soundfile
import tiny_training
import torch
from tiny import REPOSITORY

from modeling_part.__main__ import build_parser, main
from modeling_part.data.where_to_get import how_to_get
from modeling_part.recipes.program import part_command


def verbs(parser: argparse.ArgumentParser, words: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The words of every verb below a parser, and the parser's own."""
    found = [words]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                found += verbs(below, (*words, name))
    return found


def test_the_verbs():
    assert {" ".join(words) for words in verbs(build_parser())} == {
        "",
        "train",
        "recipes",
        "env",
        "transcribe",
        "score",
        "compare",
        "report",
        "experiment",
        "analyze",
        *(f"analyze {name}" for name in ("gradients", "probes", "drift", "text-loss")),
        "publish",
        "demo",
        "convert-encoder",
        "quickstart",
        *(f"quickstart {name}" for name in ("speech", "digits", "models")),
    }


@pytest.mark.parametrize("words", verbs(build_parser()), ids=" ".join)
def test_help(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--help"])
    printed = capsys.readouterr().out
    assert stopped.value.code == 0
    assert printed.startswith(" ".join(["usage: part", *words]))
    assert max(map(len, printed.splitlines())) <= 120


def test_help_imports_no_room():
    rooms = ["torch", "transformers", "numpy", "datasets", "evaluate", "peft", "sacrebleu", "gradio", "matplotlib"]
    code = "import sys; from modeling_part.__main__ import build_parser; build_parser().format_help(); "
    code += f"print([name for name in {rooms} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_installed_command_is_this_one():
    settings = configparser.ConfigParser()
    settings.read(REPOSITORY / "setup.cfg", encoding="utf-8")
    assert settings["options.entry_points"]["console_scripts"].strip() == "part = modeling_part.__main__:main"


@pytest.mark.parametrize("arguments", [[], ["drift"], ["report"], ["report", "runs", "--fast"], ["publish", "runs"]])
def test_wrong_usage_is_said_by_the_parser(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("usage: part")


def whole_numbers(parser, words=()):
    """Each verb with an option that is a whole number, and the option; ports are checked with their host."""
    found = [
        one for one in parser._actions if isinstance(one.default, (int, list)) and one.option_strings and one.type
    ]
    yield from ((words, one) for one in found if one.dest != "port")
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, verb in action.choices.items():
                yield from whole_numbers(verb, (*words, name))


def test_numbers_that_are_none_are_refused_by_name(capsys):
    found = list(whole_numbers(build_parser()))
    assert {option.dest for _, option in found} >= {"batch_size", "seed", "seeds", "train", "rows_per_group"}
    for _, option in found:
        for odd in ("-1", "1.5", "nan", ""):
            with pytest.raises(argparse.ArgumentTypeError, match=f"'{odd}' is no whole number of [01] or more"):
                option.type(odd)
    with pytest.raises(SystemExit):
        main(["score", "predictions.jsonl", "--seed", "-1"])
    assert "argument --seed: '-1' is no whole number of 0 or more" in capsys.readouterr().err


def test_an_error_is_one_line(tmp_path, capsys):
    checkpoint = str(tmp_path / "joint")
    with pytest.raises(SystemExit) as stopped:
        main(["analyze", "drift", checkpoint, "--since", checkpoint, "--output", str(tmp_path)])
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2
    assert line.startswith(f"part analyze drift: {checkpoint} holds no model.safetensors")


def test_shipped_recipes_are_listed_and_copied(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["recipes"])
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {"quickstart", "part_aligned", "data/sentences"} <= set(listed)
    main(["recipes", "part_aligned"])
    shipped = REPOSITORY / "modeling_part" / "recipes" / "part_aligned.yaml"
    assert (tmp_path / "part_aligned.yaml").read_text(encoding="utf-8") == shipped.read_text(encoding="utf-8")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["recipes", "part_aligned"])
    assert capsys.readouterr().err.startswith("part recipes: part_aligned.yaml is there already; name another file")


def test_the_environment_is_printed(capsys):
    main(["env"])
    printed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert printed["torch"] == torch.__version__ and {"python", "modeling-part", "devices", "precision"} <= set(
        printed
    )


def test_a_file_is_transcribed(tmp_path, tiny_checkpoint, capsys):
    clips = [str(tmp_path / name) for name in ("clip.wav", "other.wav")]
    for clip in clips:
        soundfile.write(clip, [0.1, -0.1] * 8000, 16000)
    words = [
        "transcribe",
        str(tiny_checkpoint),
        *clips,
        "--language",
        "French",
        "--device",
        "cpu",
    ]
    main(words)
    lines = [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()]
    assert [line for line in lines if line in clips] == clips


def test_an_error_of_ours_keeps_its_traceback(monkeypatch):
    def fail(run):
        raise TypeError("not expected")

    monkeypatch.setattr("modeling_part.evaluation.run_report.run_report", fail)
    with pytest.raises(TypeError, match="not expected"):
        main(["report", "runs"])


def test_debug_shows_the_traceback(tmp_path):
    checkpoint = str(tmp_path / "joint")
    with pytest.raises(OSError, match="holds no model"):
        main(["analyze", "drift", checkpoint, "--since", checkpoint, "--output", str(tmp_path), "--debug"])


def test_a_device_that_is_not_there(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["demo", "runs/mine", "--device", "cuda:77"])
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert "argument --device: 'cuda:77' cannot be used here" in error and "Traceback" not in error


@pytest.fixture
def called_as_part(monkeypatch, tmp_path):
    """This process is the `part` that PATH finds."""
    script = tmp_path / "bin" / "part"
    script.parent.mkdir()
    script.touch(0o755)
    monkeypatch.setenv("PATH", str(script.parent))
    monkeypatch.setattr(sys, "argv", [str(script)])
    return script


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (
            ["transcribe", "runs/mine", "a.wav", "--output_dir", "out"],
            "--output_dir has no effect without --output_format",
        ),
        (["transcribe", "runs/mine", "a.wav", "--overwrite"], "--overwrite has no effect without --output_format"),
        (
            ["transcribe", "runs/mine", "a.wav", "--language", "en", "--languages", "fr", "de"],
            "--languages has no effect beside --language",
        ),
        (["report", "runs/mine", "--device", "cpu"], "--device has no effect without --analyses"),
        (
            ["demo", "runs/mine", "--revision", "stage-joint"],
            "--revision is of a repository on the Hub, and 'runs/mine' is",
        ),
        (
            ["convert-encoder", "runs/mine", "new", "--revision", "x"],
            "--revision is of a repository on the Hub, and 'runs",
        ),
    ],
    ids=lambda one: None if isinstance(one, str) else one[0],
)
def test_an_option_without_effect_is_refused(words, option, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    with pytest.raises(SystemExit) as stopped:
        main(words)
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and line.startswith(f"part {words[0]}: {option}")
    assert [path.name for path in tmp_path.rglob("*")] == ["runs", "mine"]


@pytest.mark.parametrize(
    ("words", "callee", "said"),
    [
        (
            ["publish", "runs/mine", "--repo_id", "ada/part"],
            "publishing.hub.finished_stages",
            "the same command goes on.",
        ),
        (["experiment", "part"], "evaluation.experiments.run_experiment", "the same command goes on."),
        (
            ["experiment", "part", "--", "--force", "--bf16", "false"],
            "evaluation.experiments.run_experiment",
            "the same command without --force goes on.",
        ),
        (
            ["transcribe", "x", "y", "--output_format", "srt"],
            "evaluation.transcription.find_files",
            "the same command goes",
        ),
        (["transcribe", "x", "y"], "evaluation.transcription.find_files", "Interrupted."),
        (["report", "runs/mine", "--analyses"], "analysis.run_pictures.analyze_run", "Interrupted."),
        (["quickstart", "models"], "quickstart.models.make_checkpoints", "Interrupted."),
    ],
    ids=lambda one: None if isinstance(one, str) else one[0],
)
def test_ctrl_c_is_one_line(words, callee, said, monkeypatch, capsys):
    def interrupt(*arguments, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"modeling_part.{callee}", interrupt)
    with pytest.raises(SystemExit) as stopped:
        main(words)
    empty, line = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 130 and not empty
    assert line.startswith("part ") and ": Interrupted" in line and said in line


class TestCommandsThatAreShown:
    """Each can be typed as it stands."""

    def test_by_its_name_where_path_finds_this_program(self, called_as_part):
        assert part_command("train", "my recipe.yaml") == "part train 'my recipe.yaml'"

    @pytest.mark.parametrize("other", [False, True], ids=["nothing on PATH", "another part on PATH"])
    def test_by_its_path_where_it_was_called_so(self, called_as_part, other, tmp_path, monkeypatch, capsys):
        (tmp_path / ".venv" / "bin").mkdir(parents=True)
        (tmp_path / ".venv" / "bin" / "part").touch(0o755)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [".venv/bin/part"])
        if not other:
            monkeypatch.setenv("PATH", "")
        assert part_command("report", "runs/mine") == ".venv/bin/part report runs/mine"
        main(["recipes", "part_aligned", "mine.yaml"])
        assert capsys.readouterr().out.endswith("then: .venv/bin/part train mine.yaml --dry_run true\n")
        assert "with `.venv/bin/part quickstart speech data/asterisk`" in how_to_get("asterisk")

    @pytest.mark.parametrize("is_installed", [True, False])
    def test_in_a_process_that_was_launched(self, is_installed, called_as_part, monkeypatch):
        """The trainer's own is train_part.py: the interpreter tells which `part` it belongs to."""
        monkeypatch.setattr(sys, "argv", ["train_part.py", "quickstart"])
        monkeypatch.setattr(sys, "executable", str(called_as_part.with_name("python")))
        assert part_command("env") == "part env"
        if not is_installed:
            called_as_part.unlink()
            assert part_command("env") == f"{sys.executable} -m modeling_part env"


def test_one_process_takes_the_place_of_the_launcher(monkeypatch, tmp_path, called_as_part):
    """Signals reach the trainer alone, and its exit status is the command's."""
    calls = []
    monkeypatch.setattr("os.execvpe", lambda *call: calls.append(call))
    monkeypatch.setattr("accelerate.commands.config.config_args.default_config_file", str(tmp_path / "none.yaml"))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr("accelerate.commands.launch.simple_launcher", None)
    monkeypatch.delenv("PART_COMMAND", raising=False)
    main(["train", "part", "--seed", "7"])
    ((file, command, environment),) = calls
    assert file == command[0] and command[-5:] == ["-m", "train_part", "part", "--seed", "7"]
    assert (
        environment["PART_COMMAND"] == "part train part --seed 7"
        and environment["ACCELERATE_USE_CPU"].lower() == "true"
    )


class TestTrain:
    @pytest.fixture
    def launched(self, monkeypatch, tmp_path):
        """What accelerate's launcher was given."""
        calls = []
        monkeypatch.setattr("accelerate.commands.launch.launch_command", calls.append)
        monkeypatch.setattr("accelerate.commands.config.config_args.default_config_file", str(tmp_path / "none.yaml"))
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
        return calls

    def test_the_recipe_and_its_options_go_to_train_part(self, launched):
        main(["train", "part", "data/sentences", "--seed", "7", "--stages=[]"])
        (call,) = launched
        assert (call.module, call.training_script) == (True, "train_part")
        assert call.training_script_args == ["part", "data/sentences", "--seed", "7", "--stages=[]"]
        assert call.config_file == str(REPOSITORY / "modeling_part" / "accelerate_configs" / "cpu.yaml")

    def test_options_before_the_recipe_are_the_launchers(self, launched):
        main(["train", "--num_processes", "2", "--multi_gpu", "part", "--num_processes", "3"])
        (call,) = launched
        assert (call.num_processes, call.multi_gpu) == (2, True)
        assert call.training_script_args == ["part", "--num_processes", "3"]

    def test_an_accelerator_or_a_config_of_ones_own_is_left_alone(self, launched, monkeypatch):
        main(["train", "--config_file", "my.yaml", "part"])
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
        main(["train", "part"])
        assert [call.config_file for call in launched] == ["my.yaml", None]

    @pytest.mark.parametrize("option", ["--gradient_accumulation_steps", "--gradient-clipping"])
    def test_an_option_of_deepspeed_is_not_taken_for_the_recipes(self, option, launched, capsys):
        with pytest.raises(SystemExit):
            main(["train", option, "4", "part"])
        assert "behind the recipe" in capsys.readouterr().err and not launched
        main(["train", "part", "--gradient_accumulation_steps", "4"])
        assert launched[0].training_script_args == ["part", "--gradient_accumulation_steps", "4"]

    @pytest.mark.parametrize("words", [[], ["--seed", "7"], ["--num_processes", "2"]], ids=" ".join)
    def test_without_a_recipe_our_usage_is_printed(self, words, launched, capsys):
        with pytest.raises(SystemExit) as stopped:
            main(["train", *words])
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and not launched
        assert (
            error.startswith("usage: part train [options of accelerate launch] RECIPE") and "`part recipes`" in error
        )
        assert error.count("\n") < 5

    def test_a_launched_recipe_runs(self, tmp_path, tiny_parts, tiny_corpus):
        recipe = tiny_training.write_recipe(tmp_path, tiny_parts, tiny_corpus)
        command = [sys.executable, "-m", "modeling_part", "train", str(recipe), "--dry_run", "true"]
        result = tiny_training.execute(command)
        assert result.returncode == 0, result.stdout
        assert "dry run: loss" in result.stdout
