"""The benchmarks run on tiny models and write what they say."""

import importlib
import json
import math
import os
import random
import subprocess
import sys
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import REPOSITORY

from modeling_part.recipes.arguments import parse_recipe
from modeling_part.recipes.stages import build_plan


BENCHMARKS = REPOSITORY / "tests" / "benchmarks"
IN_TREE = ("fun_asr_nano", "qwen3_asr", "granite_speech", "qwen2_audio", "voxtral")
PADDED = ("qwen2_audio", "voxtral")


def execute(output: Path, program: str, *options: str, tiny: bool = True) -> tuple[str, dict]:
    """What a run prints, and its JSON."""
    options = (*options, "--tiny") if tiny else options
    command = [sys.executable, BENCHMARKS / program, "--rounds", "1", "--threads", "1", "--output", output, *options]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout, json.loads(output.read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[str, dict]:
    # A limit that does not depend on what else the machine does.
    return execute(tmp_path_factory.mktemp("benchmark") / "figures.json", "training.py", "--memory_gib", "16")


@pytest.fixture(scope="module")
def load():
    """Imports a file of tests/benchmarks, on the path only meanwhile: tests/ holds a `training` too."""

    def imported(name: str):
        sys.path.insert(0, str(BENCHMARKS))
        try:
            return importlib.import_module(name)
        finally:
            sys.path.remove(str(BENCHMARKS))

    return imported


def check_rows(rows: list[dict], printed: str):
    for row in rows:
        assert row["label"] in printed
        assert row["clips_per_s"] > 0 and row["peak_gib"] > 0 and math.isfinite(row["loss"])
        low, high = row["speed_range"]
        assert low <= row["speed"] <= high
    assert rows[0]["speed"] == rows[0]["memory"] == 1


def test_tables(run):
    printed, figures = run
    classes, classes_large, tasks, memory, gate, logits = figures["tables"].values()
    models = [row["model"] for row in classes]
    assert models[0] == "fun_asr_nano" and {*IN_TREE, "part_sanm", "part_whisper"} < set(models)
    # The padded classes cost the same at any vocabulary; all rows of a table take memory together.
    assert [row["model"] for row in classes_large] == ["fun_asr_nano", "qwen3_asr", "part_sanm", "part_whisper"]
    assert [(row["model"], row["gated"]) for row in tasks] == [
        ("part_sanm", False),
        ("part_sanm", True),
        ("part_whisper", False),
        ("part_whisper", True),
    ]
    assert [(row["training"], row["gated"]) for row in gate] == [
        ("full", False),
        ("full", True),
        ("lora", False),
        ("lora", True),
    ]
    assert [row["all_logits"] for row in logits] == [True, False]
    for title, rows in figures["tables"].items():
        assert title.split(",")[0] in printed
        if rows is not memory:
            check_rows(rows, printed)


def test_memory_is_measured_alone(run):
    """One batch each, of more rows; a process reports whether it fitted."""
    _, _, _, memory, *_ = run[1]["tables"].values()
    assert [row["model"] for row in memory] == [*IN_TREE[:3], "part_sanm", "part_whisper"]
    assert memory[0]["memory"] == 1
    for row in memory:
        assert row["fits"] and row["peak_gib"] > 0 and math.isfinite(row["loss"])
        assert [len(batch) for batch in row["batches"]] == [run[1]["settings"]["memory_rows"]]


def test_a_batch_that_does_not_fit(tmp_path):
    """At full size, whose embeddings alone are larger than the limit."""
    printed, figures = execute(
        tmp_path / "figures.json", "training.py", "--parts", "memory", "--memory_gib", "0.5", tiny=False
    )
    (rows,) = figures["tables"].values()
    assert not any(row["fits"] for row in rows)
    assert {row["memory"] for row in rows} == {None}
    assert "no, not into" in printed
    assert all(one["measured"] is None and one["met"] is None for one in figures["targets"])


def test_a_batch_that_does_not_fit_a_gpu_names_the_memory_of_the_gpu(load, monkeypatch):
    training, sent = load("training"), []

    def too_large(case):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(training, "make_step", too_large)
    monkeypatch.setattr(training, "peak_gib", lambda device: 23.0)
    card = SimpleNamespace(total_memory=24 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    case = training.Case("PART", "part_sanm", 512, ((1.0,),), device="cuda")
    training.run_alone(SimpleNamespace(send=sent.append), case, torch.get_num_threads(), 900.0)
    assert sent == [{"loss": None, "fits": False, "peak_gib": 23.0, "limit_gib": 24.0}]


def test_flops_tell_what_a_step_saves(run):
    """Counted, hence exact whatever the machine does meanwhile."""
    classes, _, tasks, _, gate, logits = run[1]["tables"].values()
    flops = {row["label"]: row["gflop_per_clip"] for row in gate}
    assert flops["full, gated"] < flops["full, not gated"]
    assert flops["LoRA, gated"] < flops["LoRA, not gated"]
    everywhere, targets = logits
    assert targets["gflop_per_clip"] < everywhere["gflop_per_clip"]
    assert targets["loss"] == pytest.approx(everywhere["loss"], rel=1e-4)
    padded = min(row["gflop_per_clip"] for row in classes if row["model"] in PADDED)
    assert all(row["gflop_per_clip"] < padded for row in classes if row["model"].startswith("part"))
    for translation, recognition in (tasks[:2], tasks[2:]):
        assert recognition["gflop_per_clip"] < translation["gflop_per_clip"]


def test_same_clips_by_duration(run):
    """Batches by duration hold the same clips."""
    classes, *_ = run[1]["tables"].values()
    random, grouped = (row["batches"] for row in classes if row["model"] == "part_sanm")
    assert random != grouped
    assert sorted(chain.from_iterable(random)) == list(chain.from_iterable(grouped))


def test_a_run_ends_with_its_targets(run):
    printed, figures = run
    assert len(figures["targets"]) == 9
    for one in figures["targets"]:
        assert one["measured"] > 0 and one["met"] in (True, False)
        assert one["name"] in printed


def test_scaling(tmp_path):
    printed, figures = execute(tmp_path / "figures.json", "training.py", "--parts", "scaling")
    assert [rows[0]["model"] for rows in figures["tables"].values()] == ["fun_asr_nano", "part_sanm", "part_whisper"]
    for rows in figures["tables"].values():
        check_rows(rows, printed)
        middle, short, long, *_ = rows
        assert short["gflop_per_clip"] < middle["gflop_per_clip"] < long["gflop_per_clip"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_compile(tmp_path):
    printed, figures = execute(tmp_path / "figures.json", "training.py", "--parts", "compile")
    for rows in figures["tables"].values():
        check_rows(rows, printed)
        eager, compiled = rows
        assert (eager["compiled"], compiled["compiled"]) == (False, True)
        assert compiled["loss"] == pytest.approx(eager["loss"], rel=1e-4)


# --------------------------------------------------------------------------------------------------------------------
# Targets and sizes
# --------------------------------------------------------------------------------------------------------------------


def a_row(part: str, label: str, model: str, seconds: list[float], **others) -> dict:
    row = {"part": part, "label": label, "model": model, "seconds": seconds, "clip_count": 8, "clips": "mix"}
    row |= {"vocabulary": 49_152, "training": "full", "gated": False, "peak_gib": 4.0, "fits": True}
    return row | {"clips_per_s": 8 / sorted(seconds)[len(seconds) // 2] if seconds else None} | others


@pytest.fixture
def rows() -> list[dict]:
    """Figures of which every target can be computed by hand."""
    large = {"vocabulary": 151_936}
    sanm, whisper = "PART, SAN-M, 4.2 tokens/s", "PART, Whisper, 12.5 tokens/s"
    return [
        a_row("classes", "Fun-ASR-Nano", "fun_asr_nano", [8.0, 9.0, 10.0]),
        a_row("classes", "Qwen3-ASR", "qwen3_asr", [6.0, 7.0, 8.0]),
        a_row("classes", "Qwen2-Audio", "qwen2_audio", [4.0, 4.0, 4.0], clip_count=2, clips_per_s=0.5),
        a_row("classes", sanm, "part_sanm", [3.0, 3.5, 5.0]),
        a_row("classes", f"{sanm}, by duration", "part_sanm", [1.0, 1.0, 1.0]),
        a_row("classes", f"{sanm}, ASR", "part_sanm", [1.0, 1.0, 1.0], gated=True),
        a_row("classes", whisper, "part_whisper", [6.0, 7.0, 8.0]),
        a_row("classes", "Fun-ASR-Nano", "fun_asr_nano", [12.0, 12.0, 12.0], **large),
        a_row("classes", "Qwen3-ASR", "qwen3_asr", [10.0, 10.0, 10.0], **large),
        a_row("classes", sanm, "part_sanm", [4.0, 4.0, 4.0], **large),
        a_row("classes", whisper, "part_whisper", [8.0, 8.0, 8.0], **large),
        a_row("memory", "Fun-ASR-Nano, 16.7 tokens/s", "fun_asr_nano", [], peak_gib=20.0, **large),
        a_row("memory", "Qwen3-ASR, 13 tokens/s", "qwen3_asr", [], peak_gib=10.0, **large),
        a_row("memory", sanm, "part_sanm", [], peak_gib=4.0, **large),
        a_row("memory", whisper, "part_whisper", [], peak_gib=8.0, **large),
        a_row("gate", "full, not gated", "part_whisper", [10.0, 10.0, 10.0], clips="6"),
        a_row("gate", "full, gated", "part_whisper", [6.0, 7.0, 8.0], clips="6", gated=True),
    ]


def test_targets_of_given_figures(load, rows):
    table = load("targets").judge(rows, [49_152, 151_936])
    measured = {one["name"].replace("vocabulary ", "").replace(", mixed clips: PART", ""): one for one in table}
    expected = {
        "49,152, SAN-M, clips/s over the fastest class": (2.0, True),  # medians of 6/3, 7/3.5, 8/5
        "49,152, SAN-M, clips/s over classes padded to 30 s": (32 / 7, False),  # 8 clips in 3.5 s, 2 in 4 s
        "151,936, SAN-M, clips/s over the fastest class": (2.5, True),
        "151,936, SAN-M, peak memory over that class": (0.4, True),  # Qwen3-ASR's, not Fun-ASR-Nano's
        "49,152, Whisper, clips/s over the fastest class": (1.0, False),
        "49,152, Whisper, clips/s over classes padded to 30 s": (16 / 7, False),
        "151,936, Whisper, clips/s over the fastest class": (1.25, False),
        "151,936, Whisper, peak memory over that class": (0.8, False),
        "time of a gated ASR step over an ungated full one": (0.7, True),
    }
    assert measured.keys() == expected.keys()
    for name, (ratio, met) in expected.items():
        assert measured[name]["measured"] == pytest.approx(ratio), name
        assert measured[name]["met"] is met, name


def test_targets_that_were_not_measured(load, rows):
    """A part that did not run, and a process that did not fit, give no verdict."""
    judge = load("targets").judge
    only_gate = [row for row in rows if row["part"] == "gate"]
    assert [one["met"] for one in judge(only_gate, [49_152, 151_936])] == [None] * 8 + [True]
    for row in rows:
        row["fits"] = row["model"] != "qwen3_asr"
    memory = [one for one in judge(rows, [49_152, 151_936]) if "memory" in one["name"]]
    assert [one["measured"] for one in memory] == [None, None]


@pytest.fixture(scope="module")
def sizes(load) -> dict[str, dict[str, int]]:
    """Parameters of every class at full size, without weights."""
    models = load("speech_models")
    with torch.device("meta"):
        return {name: models.parameter_counts(models.build(name, 49_152)) for name in models.SPEECH_MODELS}


def test_all_train_the_same_sizes(sizes):
    """The same layers where the architecture is the same, the same language model everywhere."""
    layers = {name: count["encoder_layers"] for name, count in sizes.items()}
    assert layers["part_sanm"] == layers["part_sanm_dense"] == layers["fun_asr_nano"]
    assert layers["part_whisper"] == layers["qwen2_audio"] == layers["voxtral"]
    assert layers["qwen3_asr"] == layers["part_whisper"] + 6 * 512  # its keys have a bias
    encoders = {name: count["encoder"] for name, count in sizes.items()}
    assert encoders["part_sanm"] == encoders["fun_asr_nano"]
    assert encoders["part_whisper"] == encoders["qwen2_audio"] == encoders["voxtral"]
    text = {name: count["language_model"] for name, count in sizes.items()}
    untied = 49_152 * 576
    assert {text[name] - untied * (name in PADDED) for name in text} == {text["part_whisper"]}


# --------------------------------------------------------------------------------------------------------------------
# Generation and whole training
# --------------------------------------------------------------------------------------------------------------------


def test_inference(tmp_path):
    """Every class generates as many tokens as asked for; ratios are relative to the first."""
    options = ("--rows", "2", "--seconds", "2")
    printed, figures = execute(tmp_path / "figures.json", "inference.py", *options)
    (rows,) = figures["tables"].values()
    assert len(rows) == 8 and rows[0]["speed"] == 1
    assert {*IN_TREE, "part_sanm", "part_whisper", "part_sanm_static"} == {row["name"] for row in rows}
    for row in rows:
        assert row["label"] in printed
        assert row["clips_per_s"] > 0 and row["first_token_ms"] > 0
        assert math.isclose(row["real_time_factor"] * row["clips_per_s"] * 2, 1)
    assert [row["name"] for row in rows if row["over_dynamic"]] == ["part_sanm_static"]


def test_trainers(tmp_path):
    """Whole training of the classes whose processors can be made here; the others are named with the reason."""
    printed, figures = execute(tmp_path / "figures.json", "trainers.py", "--rows", "2", "--clips", "4")
    assert [title.split(":")[0] for title in figures["tables"]] == ["asr", "s2tt"]
    for rows in figures["tables"].values():
        assert {"qwen3_asr", "qwen2_audio", "part_whisper"} <= {row["model"] for row in rows}
        assert len(rows) + len(figures["left_out"]) == 7
        check_rows(rows, printed)
        assert all(row["steps_per_s"] > 0 and row["batches"] == [2] * 4 for row in rows)
    for label, reason in figures["left_out"].items():
        assert label in printed and any(word in reason for word in ("torchaudio", "mistral-common", "tekken.json"))


def test_live_sound_comes_while_the_model_computes(load):
    live = load("live")
    clock, sound = live.Clock(), np.arange(30_000)
    pieces = live.arriving(sound, 10_000, clock)
    heard = [next(pieces)]
    assert len(heard[0]) == 5000 and clock.now == 0.5  # it waits for the first
    clock.now += 1.2
    heard.append(next(pieces))
    assert len(heard[1]) == 10_000 and clock.now == 1.7  # what has come since, at once
    heard += pieces
    assert clock.now == 3.0 and np.concatenate(heard).tolist() == sound.tolist()


def test_padding_of_batches(load):
    padding_of = load("many_files").padding_of
    assert padding_of([4.0, 1.0, 4.0, 1.0], 2) == pytest.approx(37.5) and padding_of([4.0, 4.0, 1.0, 1.0], 2) == 0


def test_a_run_keeps_each_clip_once(load, tmp_path, capsys):
    options = ("--clips", "20", "--seconds", "0.5", "--targets", "3", "--rounds", "1")
    load("audio_copies").main([*options, "--output", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text())
    copied, once = figures["ways"]
    assert figures["rows"] == 20 * 4 and copied["disk_ratio"] == 1
    assert once["disk_ratio"] == pytest.approx(1 / 4, abs=0.05)
    assert "20 clips in" in capsys.readouterr().out


def test_lists_hold_the_word_or_do_not(load):
    recall = load("recall")
    others = [f"word{number}" for number in range(20)]
    for has_it in (True, False):
        words = recall.listed("word3", others, random.Random(0), has_it)
        assert len(set(words)) == recall.LISTED and ("word3" in words) == has_it


def test_drafts_of_random_weights(tmp_path):
    printed, figures = execute(
        tmp_path / "figures.json", "decoding.py", "--shape", "tiny", "--dtype", "float32", "--seconds", "2", tiny=False
    )
    by_draft = {row["label"]: row for row in figures["drafts"]}
    assert by_draft["ordinary decoding"]["ratio"] == 1 and all(row["differ"] == 0 for row in by_draft.values())
    assert by_draft["the right draft"]["passes"] <= 3 < by_draft["a useless draft"]["passes"] == 24
    assert "over ordinary decoding" in printed


def test_an_interrupted_run_keeps_the_lines_of_the_one_before(load, tmp_path, monkeypatch):
    """training_step.py: those that it has not come to again, too."""
    step, output = load("training_step"), tmp_path / "figures.json"
    words = ["--device", "cpu", "--peak", "1", "--only", "adapter", "encoder", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["training_step.py", *words])
    figures = dict.fromkeys(("seconds", "mfu", "audio_hours_per_second"), 1.0) | {"peak_gib": None}

    def run(**errors):
        def measure(variant, arguments):
            if variant.label in errors:
                raise errors[variant.label]
            return dict(figures)

        monkeypatch.setattr(step, "measure", measure)
        step.main()

    run(encoder_top=RuntimeError("no kernel"))
    with pytest.raises(KeyboardInterrupt):
        run(encoder_top=KeyboardInterrupt(), encoder=AssertionError("measured before"))
    rows = {row["label"]: row for row in json.loads(output.read_text())["rows"]}
    assert rows.keys() == {"adapter", "encoder"} and not any("error" in row for row in rows.values())


class TestEverythingThatWaitsForAGpu:
    """gpu.py: parts are processes; one that fails or hangs does not stop the others, and a second run goes on."""

    def test_parts(self, load, tmp_path):
        gpu = load("gpu")
        flag = tmp_path / "flag"

        def part(name, code, **settings):
            return gpu.Part(name, (sys.executable, "-c", code), **settings)

        parts = [
            part("good", "print('fine')"),
            part("bad", "import sys; print('oh no'); sys.exit(3)"),
            part("slow", f"import os, time; os.path.exists({str(flag)!r}) or time.sleep(60)", minutes=0.02),
            part("after_bad", "print('never')", needs=("bad",)),
            part("last", "print('the end')"),
        ]
        outcomes = gpu.run_parts(parts, tmp_path / "gpu", 5.0, {"device": "none"})
        assert outcomes == {
            "good": "passed",
            "bad": "failed",
            "slow": "out of time",
            "after_bad": "not run: bad did not pass",
            "last": "passed",
        }
        record = json.loads((tmp_path / "gpu" / "bad.json").read_text())
        assert record["returncode"] == 3 and record["last_lines"] == ["oh no"]
        assert (tmp_path / "gpu" / "last.log").read_text() == "the end\n"
        flag.touch()
        again = gpu.run_parts(parts, tmp_path / "gpu", 5.0, {"device": "none"})
        assert again["slow"] == "passed" and again["bad"] == "failed"
        assert (tmp_path / "gpu" / "good.log").read_text() == "fine\n", "what has passed is not run again"

    def test_parts_that_passed_elsewhere_or_otherwise_are_run_again(self, load, tmp_path, capsys):
        gpu = load("gpu")

        def run(code, device):
            gpu.run_parts([gpu.Part("one", (sys.executable, "-c", code))], tmp_path, 5.0, {"device": device})
            return (tmp_path / "one.log").read_text(), capsys.readouterr().out

        assert run("print('tiny')", "cpu")[0] == "tiny\n"
        assert run("print('tiny')", "cpu")[0] == "tiny\n"
        log, told = run("print('tiny')", "H100")
        assert log == "tiny\ntiny\n" and "passed before with machine {'device': 'cpu'}; now again" in told
        log, told = run("print('full')", "H100")
        assert log == "tiny\ntiny\nfull\n" and "passed before with command" in told
        assert json.loads((tmp_path / "one.json").read_text())["machine"] == {"device": "H100"}

    @pytest.mark.parametrize(("device", "tiny"), [("cuda", False), ("cpu", True)])
    def test_what_is_run(self, load, tmp_path, device, tiny):
        """Options that the programs know; what a part needs comes before it; runs on other data have another folder."""
        parts = load("gpu").all_parts(tmp_path, device, tiny, 79.0)
        names = [part.name for part in parts]
        assert len(set(names)) == len(names)
        for number, part in enumerate(parts):
            assert set(part.needs) <= set(names[:number])
            program = Path(part.command[1])
            if program.parent == BENCHMARKS:
                source = program.read_text()
                assert all(f'"{word}"' in source for word in part.command if word.startswith("--"))
        folders = {
            part.name: part.command[part.command.index("--folder") + 1]
            for part in parts
            if part.needs[:1] == ("models",) and "experiment" in part.command
        }
        for part in parts:
            if "experiment" in part.command:  # what each training is told, as `part train` takes it
                trained = part.command[part.command.index("--") + 1 :]
                assert trained[:4] == tuple(load("gpu").PRETRAINED) and "--overlays" not in trained
                assert trained[4:] == ("--precision", "auto", "--resume", "true")
        assert folders["digits_recipes"] == folders["digits_recipes_3"] != folders["sentences_recipes"]
        assert str(REPOSITORY / "tests" / "training" / "test_gpu.py") in parts[0].command

    def test_what_alignment_is_compared_with(self, load, tmp_path):
        """As many steps and clips, one thing otherwise; what is alike is not trained twice."""
        parts = {part.name: part.command for part in load("gpu").all_parts(tmp_path, "cuda", False, 79.0)}
        for data, gate in (("digits", "no_task_gate"), ("sentences", "task_gate")):  # the other of what the recipe has
            plans = {}
            for name in ("aligned", gate, "no_text_tasks", "llm_frozen", "baseline_2stage"):
                words = parts[f"{data}_{name}_42"]
                options = list(words[words.index("train") + 1 :])
                settings = parse_recipe(options)
                plans[name] = {stage.name: stage for stage in build_plan(settings.training.stages)}
                reused = [] if name == "aligned" else [str(tmp_path / "runs" / f"{data}_aligned_42")]
                assert (settings.training.reuse_runs or []) == reused
            steps = {name: sum(stage.max_steps for stage in plan.values()) for name, plan in plans.items()}
            assert set(steps.values()) == {steps["aligned"]}
            aligned = plans["aligned"]
            for name in (gate, "no_text_tasks", "llm_frozen"):
                differ = [stage for stage in aligned if plans[name][stage] != aligned[stage]]
                assert differ == ["joint"] and list(plans[name]) == list(aligned)
            assert {plans[name]["joint"].gate for name in ("aligned", gate)} == {"always", "task_gated"}
            for name in ("no_text_tasks", "llm_frozen", "baseline_2stage"):
                assert all(set(stage.active_tasks) <= {"asr", "s2tt"} for stage in plans[name].values())
            for name in ("llm_frozen", "baseline_2stage"):
                assert all("language_model" not in stage.learning_rates for stage in plans[name].values())
            assert list(plans["baseline_2stage"]) == ["adapter", "encoder"]

    def test_no_time_left(self, load, tmp_path):
        gpu = load("gpu")
        part = gpu.Part("late", (sys.executable, "-c", "pass"))
        assert gpu.run_parts([part], tmp_path, 0.0, {}) == {"late": "not run: no time left"}
        assert not (tmp_path / "late.json").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("world", [2, 4])
def test_a_simulated_rank_is_as_a_real_one(tmp_path, world):
    """ranks.py: DDP and FSDP2, LoRA and full: the same collectives and bytes, the same memory, as ranks over gloo."""
    output = tmp_path / "figures.json"
    options = ["--sizes", "tiny", "--worlds", str(world), "--check", "--output", str(output)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])}
    command = [sys.executable, str(BENCHMARKS / "ranks.py"), *options]
    result = subprocess.run(command, capture_output=True, text=True, timeout=880, check=False, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    rows = json.loads(output.read_text())
    assert {(row["wrapper"], row["tuning"]) for row in rows} == {
        (wrapper, tuning) for wrapper in ("ddp", "fsdp2") for tuning in ("lora", "full")
    }
    for row in rows:
        assert row["world"] == world and row["sent"]["all-reduce"] > 0
        assert ("reduce-scatter" in row["sent"]) == (row["wrapper"] == "fsdp2")
