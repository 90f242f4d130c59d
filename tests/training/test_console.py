"""What training writes on the screen: short lines, tables that fit, no pictures where there is no terminal."""

import logging
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import tiny_training
from datasets import Dataset

from modeling_part.data.batches import Batches
from modeling_part.data.loading import Rows
from modeling_part.recipes.stages import BUILT_IN_STAGES, build_plan
from modeling_part.training import console
from modeling_part.training.console import Console, estimate_steps, figures_with_table, fold, language_table, log_parts


ADAPTER, JOINT = BUILT_IN_STAGES["adapter"], BUILT_IN_STAGES["joint"]
LOGS = {
    "loss": 3.0,
    "learning_rate": 5e-4,
    "asr_loss": 3.21,
    "asr_ctc_loss": 1.2,
    "asr/fr_loss": 3.2,
    "s2tt_loss": 4.1,
    "mt_loss": 2.9,
    "audio_hours_per_second": 0.01,
    "gate_open_share": 2 / 3,
}
# 60 languages, as FLEURS names them, with every measure that an evaluation has of one.
CODES = [f"{first}{second}" for first in "abcdefghij" for second in "klmnop"]
MANY = {f"asr/{code}_loss": index / 7 for index, code in enumerate(CODES)}
MANY |= {f"asr/{code}_wer": index / 100 for index, code in enumerate(CODES)}
MANY |= {f"s2tt/{code}-en_bleu": 1.0 * index for index, code in enumerate(CODES)} | {"asr_error_rate": 0.295}


def test_a_line_of_the_log_is_short_and_says_what_matters():
    parts = log_parts(LOGS, JOINT)
    assert parts == ["loss asr 3.210 (CTC 1.200) s2tt 4.100 mt 2.900", "lr 5.0e-04", "36 s/s", "gate 67%"]


def test_the_gate_is_said_only_of_a_language_model_that_trains():
    assert not any("gate" in part for part in log_parts(LOGS, ADAPTER))


def test_without_losses_per_task_the_loss_itself_is_said():
    assert log_parts({"loss": 3.0}, ADAPTER) == ["loss 3.000"]


@pytest.mark.parametrize("width", [100, 200])
def test_sixty_languages_fit_the_terminal_and_each_is_there_once(width):
    lines = figures_with_table("dev at step 200", MANY, width).splitlines()
    assert all(len(line) <= width for line in lines) and len(lines[0]) <= width - len("00:00:00 ")
    words = " ".join(lines).split()
    for index, code in enumerate(CODES):
        place = words.index(code)
        assert words[place + 1 : place + 3] == [f"{index / 7:.3f}", f"{index:.1f}"]
        assert words[words.index(f"{code}-en") + 1] == f"{index:.1f}"
    assert all(words.count(name) == 1 for code in CODES for name in (code, f"{code}-en"))
    assert len(lines) <= 40


def test_more_languages_than_a_person_reads_are_counted():
    figures = {f"s2tt/a{index}-en_bleu": 1.0 for index in range(100)}
    lines = language_table(figures, 91)
    assert lines[-1] == "and 36 more: see log_history.json"


def test_what_a_language_lacks_is_a_dash():
    lines = language_table({"asr/en_loss": 1.0, "asr/fr_loss": 2.0, "asr/fr_wer": 0.5}, 91)
    assert [line.split() for line in lines] == [
        ["asr", "loss", "WER", "%"],
        ["en", "1.000", "-"],
        ["fr", "2.000", "50.0"],
    ]


def test_greedy_ctc_stands_in_the_row_of_its_language():
    (_, line) = language_table({"asr/en_ctc_loss": 1.0, "ctc/en_error_rate": 0.25}, 91)
    assert line.split() == ["en", "1.000", "25.0"]


def test_lines_are_folded_between_parts_and_only_for_a_terminal():
    assert fold(["a" * 30, "b" * 30], 60) == f"{'a' * 30}\n           {'b' * 30}"
    assert fold(["a" * 30, "b" * 30], None) == f"{'a' * 30}  {'b' * 30}"


def test_the_steps_of_later_stages_are_estimated_from_their_rows():
    rows = Rows(Dataset.from_dict({"task": ["asr"] * 20 + ["s2tt"] * 40 + ["mt"] * 10}))
    batches = Batches(rows.train, None, None, report={"steps": 5, "rows": {}, "hours": {}, "padding_share": 0.0})
    assert estimate_steps(ADAPTER, [JOINT], batches, rows) == 18  # 17.5: 70 rows where 20 make 5 steps
    (fixed,) = build_plan([{"name": "joint", "max_steps": 7}])
    assert estimate_steps(ADAPTER, [fixed], batches, rows) == 7
    assert estimate_steps(ADAPTER, [fixed, JOINT], batches, rows) == 24  # 7 and 17.5
    assert estimate_steps(ADAPTER, [], batches, rows) == 0
    assert estimate_steps(ADAPTER, [JOINT], batches, Rows(rows.train, is_streamed=True)) is None


def test_a_long_message_is_broken_between_words_and_its_command_is_not(monkeypatch):
    monkeypatch.setattr(console, "terminal_width", lambda: 60)
    command = "part train mine.yaml --output_dir runs/a-name-that-is-longer-than-the-terminal --resume true"
    message = f"{'a word after another ' * 5}in models/a-folder. Go on with:\n{command}"
    record = logging.LogRecord("part", logging.WARNING, "", 0, message, (), None)
    *lines, last = console._Format("%(asctime)s %(message)s", datefmt="%H:%M:%S").format(record).split("\n")
    assert last == command and len(lines) > 2 and all(len(line) <= 60 for line in lines)
    assert all(line.startswith(" " * 9) for line in lines[1:])
    assert " ".join(line.strip() for line in lines)[9:] == f"Warning: {message.split(chr(10), maxsplit=1)[0]}"
    monkeypatch.setattr(console, "terminal_width", lambda: None)
    assert console._Format("%(asctime)s %(message)s", datefmt="%H:%M:%S").format(record)[9:] == f"Warning: {message}"


@pytest.mark.parametrize(
    ("losses", "run"),
    [({"nll": 1.0}, "run 5 min"), ({"ctc": 1.0}, "run over 5 min")],
    ids=["steps alike", "the language model joins later"],
)
def test_the_time_left_is_of_the_stage_and_of_the_run(losses, run, monkeypatch, caplog):
    clock = iter([100.0, 120.0])
    monkeypatch.setattr(console.time, "perf_counter", lambda: next(clock))
    (later,) = build_plan([{"name": "joint", "max_steps": 50}])
    batches = Batches(None, None, None)
    one = Console(replace(ADAPTER, losses=losses), [later], batches, Rows())
    state = SimpleNamespace(global_step=10, max_steps=110, is_world_process_zero=True)
    one.on_train_begin(SimpleNamespace(stage=None), state, None)
    state.global_step = 20
    with caplog.at_level(logging.INFO):
        one.on_log(None, state, None, {"loss": 1.0})
    (message,) = caplog.messages
    assert message == f"step  20/110  loss 1.000  3 min left ({run})"  # 2 s a step


@pytest.mark.parametrize(("width", "lines"), [(None, 2), (100, 1)])
def test_a_log_file_has_the_total_as_trainer_prints_it(monkeypatch, caplog, width, lines):
    monkeypatch.setattr(console, "terminal_width", lambda: width)
    state = SimpleNamespace(global_step=20, max_steps=110, is_world_process_zero=True)
    with caplog.at_level(logging.INFO):
        Console(ADAPTER, [], Batches(None, None, None), Rows()).on_log(
            None, state, None, {"eval_loss": 1.5, "eval_asr_loss": 1.25, "epoch": 2.0}
        )
    assert caplog.messages == ["dev at step 20  loss asr 1.250", "{'eval_loss': 1.5, 'epoch': 2.0}"][:lines]


def test_norms_are_means_over_the_steps_that_train_a_part(tmp_path):
    """Three optimizer steps per line, of which the last is transcription: the language model's norm is not 0."""
    trainer = tiny_training.make_trainer(tmp_path, tiny_training.joint_stage(), steps=6, logging_steps=3)
    norms = []
    add = trainer._statistics.add_norms
    trainer._statistics.add_norms = lambda found: (norms.append(found), add(found))
    trainer.train()
    lines = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(norms) == 6 and any("language_model" not in one for one in norms)
    for line, window in zip(lines, (norms[:3], norms[3:]), strict=True):
        for part in ("adapter", "encoder", "language_model"):
            found = [one[part] for one in window if part in one]
            key = f"grad_norm/{part}"
            assert (key in line) == bool(found)
            assert not found or math.isclose(line[key], sum(found) / len(found), rel_tol=1e-4)
        last = math.hypot(*window[-1].values())
        assert math.isclose(line["grad_norm"], last, rel_tol=1e-4)  # `Trainer`'s own, over all parts


def test_an_epoch_is_a_pass_over_the_data(tmp_path):
    trainer = tiny_training.make_trainer(tmp_path, tiny_training.joint_stage(), steps=6)
    trainer.batches.report["steps"] = 4
    trainer.train()
    assert [entry["epoch"] for entry in trainer.state.log_history if "loss" in entry] == [
        0.25,
        0.5,
        0.75,
        1.0,
        1.25,
        1.5,
    ]
