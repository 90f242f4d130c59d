"""Reports of one stage and of a whole run: what is written, in which order, and the warnings."""

import copy
import json
import re
from html import escape, unescape
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_data import places
from markdown_it import MarkdownIt
from PIL import Image

from modeling_part.evaluation.failure_signs import failure_signs
from modeling_part.evaluation.report_file import check_report
from modeling_part.evaluation.reports import _report_markdown, normalizer_notes, write_report
from modeling_part.evaluation.run_files import read_stage
from modeling_part.evaluation.run_report import run_report, stage_rows
from modeling_part.evaluation.scoring import annotate, score, write_predictions
from modeling_part.evaluation.tables import markdown_cell, markdown_table, print_table
from modeling_part.recipes.files import CheckpointError


def predictions(correct: int, count: int = 20) -> list[dict]:
    """Transcripts in two languages and translations into English, the first `correct` of each right."""
    rows = []
    for task, source, target in (("asr", "en", "en"), ("asr", "fr", "fr"), ("s2tt", "fr", "en")):
        for number in range(count):
            reference = f"number {number} | of the [bold] list"
            hypothesis = reference if number < correct else "something else entirely"
            row = {
                "id": f"{task}-{number}",
                "corpus": "made",
                "task": task,
                "source_lang": source,
                "target_lang": target,
            }
            rows.append({**row, "reference": reference, "hypothesis": hypothesis})
    return annotate(rows)


def write_stage(
    run: Path, name: str, parent: str | None, correct: int | None, losses: list[float], metrics=None
) -> None:
    folder = run / name
    folder.mkdir(parents=True)
    stage = {"stage": name, "parent": parent, "metrics": metrics or {}, "data": {"rows": {"s2tt/fr-en": 5}}}
    (folder / "stage.json").write_text(json.dumps(stage))
    history = [{"step": 10 * (number + 1), "loss": loss} for number, loss in enumerate(losses)]
    history.append({"step": 10 * len(losses), "eval_loss": losses[-1] + 0.1, "eval_asr/fr_loss": losses[-1]})
    (folder / "log_history.json").write_text(json.dumps(history))
    if correct is not None:
        rows = predictions(correct)
        write_predictions(rows, folder / "predictions.jsonl")
        write_report(score(rows, bootstrap_samples=50), folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "tiny"
    write_stage(run, "joint", "runs/tiny/encoder", 2, [1.0, 0.9])  # worse than its parent on purpose
    write_stage(run, "adapter", None, 0, [4.0, 3.0])
    write_stage(run, "encoder", str(run / "adapter"), 15, [3.0, 2.0])
    return run


def test_run_report_orders_stages_by_parent_and_gathers_their_figures(run):
    result = run_report(run)
    assert [stage["name"] for stage in result["stages"]] == ["adapter", "encoder", "joint"]
    assert result == json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert [stage["dev_loss"] for stage in result["stages"]] == [
        {"asr/fr": last, "all": last + 0.1} for last in (3.0, 2.0, 0.9)
    ]
    text = (run / "report.md").read_text(encoding="utf-8")
    header = next(line for line in text.splitlines() if line.startswith("| figure"))
    assert header == "| figure | language | adapter | encoder | joint |"
    line = next(line for line in text.splitlines() if line.startswith("| asr error % | fr (WER)"))
    expected = [stage["report"]["groups"]["asr/fr"]["error_rate"] for stage in result["stages"]]
    assert line.split(" | ")[2:] == [
        f"{100 * expected[0]:.1f}",
        f"{100 * expected[1]:.1f}",
        f"{100 * expected[2]:.1f} |",
    ]
    assert "| s2tt BLEU | fr-en | " in text and "| s2tt error % | fr-en (WER) | " in text
    assert "| dev loss | all | 3.100 | 2.100 | 1.000 |" in text
    assert "![Loss over the steps](loss.png)" in text
    notes = normalizer_notes(result["stages"][-1]["report"])
    page = (run / "report.html").read_text(encoding="utf-8")
    assert notes and all(f"- normaliser {markdown_cell(note)}" in text for note in notes)
    assert all(f"Normaliser {note}" in unescape(page) for note in notes)


def test_a_stage_that_does_not_listen_is_warned_of_with_what_to_do(tmp_path):
    write_stage(tmp_path, "adapter", None, None, [4.0, 3.0], {"listens": False})
    write_stage(tmp_path, "encoder", "adapter", 5, [2.0], {"listens": True})
    (warning,) = [one for one in run_report(tmp_path)["warnings"] if "its audio" in one]
    assert warning.startswith("stage adapter does not use its audio: ") and "part_aligned" in warning
    assert warning.split(": ")[1][:30] in (tmp_path / "report.md").read_text(encoding="utf-8")
    record = tmp_path / "adapter" / "stage.json"
    held = json.loads(record.read_text(encoding="utf-8"))
    record.write_text(json.dumps({**held, "hyperparameters": {"losses": {"ctc": 1.0}}}), encoding="utf-8")
    (warning,) = [one for one in run_report(tmp_path)["warnings"] if "its audio" in one]
    assert "part_aligned" not in warning and "Train longer" in warning, "it aligns already"


def test_run_report_shows_pairs_of_every_stage(run):
    result = run_report(run)
    for stage in result["stages"]:
        assert {(row["task"], row["source_lang"]) for row in stage["examples"]} == {
            ("asr", "en"),
            ("asr", "fr"),
            ("s2tt", "fr"),
        }
        assert all(row["reference"] and "hypothesis" in row for row in stage["examples"])
    text = (run / "report.md").read_text(encoding="utf-8")
    for name in ("adapter", "encoder", "joint"):
        assert f"## Examples after {name}" in text
    assert "\\| of the [bold] list" in text


def test_run_report_prints_the_table_and_texts_that_look_like_markup(run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    run_report(run)
    printed = capsys.readouterr().out
    assert "encoder" in printed and "s2tt BLEU" in printed and "[bold]" in printed
    assert not re.search(r"│ (asr/)?en ", printed.split("after ")[0])  # languages are in the files
    assert "warning: stage joint: asr/en got worse" in printed


def test_a_table_whose_names_look_like_markup_is_printed_as_they_are(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    print_table("runs/x[v2][/a]", ["group", "[b]one[/c]"], [["asr/en", "[/i]"]])
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("runs/x[v2][/a]", "[b]one[/c]", "[/i]"))


def test_loss_curve_is_a_picture(run):
    run_report(run)
    with Image.open(run / "loss.png") as picture:
        assert picture.format == "PNG" and picture.width > 600


def test_run_report_warns_of_the_regressed_stage(run):
    warnings = run_report(run)["warnings"]
    assert any(warning.startswith("stage joint: asr/en got worse: WER ") for warning in warnings)
    assert any(warning.startswith("stage joint: s2tt/fr-en lost BLEU: ") for warning in warnings)
    assert not any("adapter" in warning or "stage encoder" in warning for warning in warnings)


def test_run_report_of_an_unfinished_run_leaves_gaps(tmp_path):
    write_stage(tmp_path, "adapter", None, None, [2.0], metrics={"eval_s2tt/en-fr_loss": 1.5})
    (tmp_path / "adapter" / "log_history.json").unlink()
    result = run_report(tmp_path)
    assert result["stages"][0]["report"] is None and result["stages"][0]["examples"] == []
    assert result["stages"][0]["dev_loss"] == {"s2tt/en-fr": 1.5}
    assert not (tmp_path / "loss.png").exists()
    assert "loss.png" not in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("stage.json", "null", r"the file is None, but must be an object"),
        ("stage.json", '{"parent": 3}', r"'parent' is 3, but must be text"),
        ("stage.json", '{"metrics": [1]}', r"'metrics' is \[1\]"),
        ("stage.json", '{"data": {"rows": "x"}}', r"'rows' of 'data' is 'x'"),
        ("log_history.json", "[1]", "no list of objects"),
        ("report.json", "null", r" is missing, but must be an object; make it anew with `part score"),
        ("report.json", '{"groups": {}, "macro": {}}', r"'settings' is missing"),
        ("predictions.jsonl", '{"id": "1"}\n', r": Prediction '1' has no corpus"),
    ],
)
def test_a_file_of_a_stage_that_is_not_what_it_must_be_is_named(tmp_path, file, content, message):
    write_stage(tmp_path, "adapter", None, None, [1.0])
    (tmp_path / "adapter" / file).write_text(content)
    with pytest.raises(ValueError, match=rf"{re.escape(str(tmp_path / 'adapter' / file))}.*{message}"):
        run_report(tmp_path)


def test_parts_of_a_stage_that_are_null_are_gaps(tmp_path):
    write_stage(tmp_path, "adapter", None, None, [1.0])
    (tmp_path / "adapter" / "stage.json").write_text('{"parent": null, "metrics": null, "data": {"rows": null}}')
    history = [{"step": 1, "loss": None}, {"loss": 2.0}, {"step": 2, "loss": 1.5, "eval_loss": "x"}]
    (tmp_path / "adapter" / "log_history.json").write_text(json.dumps(history))
    assert run_report(tmp_path)["stages"][0]["dev_loss"] == {}


def test_stages_that_were_normalised_by_other_rules_are_not_compared(tmp_path):
    write_stage(tmp_path, "adapter", None, 15, [1.0])
    write_stage(tmp_path, "joint", "adapter", 2, [1.0])
    path = tmp_path / "adapter" / "report.json"
    report = json.loads(path.read_text())
    del report["settings"]["normalization"]
    path.write_text(json.dumps(report))
    (warning,) = run_report(tmp_path)["warnings"]
    assert "not comparable" in warning


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_a_report_that_was_changed_is_shown_or_refused_by_name(changed_report, data):
    report = copy.deepcopy(changed_report)
    place = data.draw(st.sampled_from(places(report)))
    odd = (
        st.none()
        | st.booleans()
        | st.integers(-5, 5)
        | st.floats()
        | st.sampled_from(["", "a|b\n", [], {}, [1], {"a": 1}])
    )
    parent = report
    for key in place[:-1]:
        parent = parent[key]
    if isinstance(parent, dict) and data.draw(st.booleans()):
        del parent[place[-1]]
    else:
        parent[place[-1]] = data.draw(odd)
    try:
        check_report(report, "report.json")
    except CheckpointError as error:
        assert str(error).startswith("report.json") and "part score" in str(error)
        keys = (*place, "a")  # what is put there may be named by its own key
        assert any(repr(key) in str(error) or f"'{key}" in str(error) for key in keys)
    else:
        _report_markdown(report)
        failure_signs(report, changed_report)
        stage = {"name": "joint", "dev_loss": {}, "ctc_error": {}, "listens": None, "report": report}
        stage_rows([stage])


@pytest.fixture(scope="module")
def changed_report() -> dict:
    rows = [row | {"corpus": corpus} for row in predictions(2, count=3) for corpus in ("made", "found")]
    return json.loads(json.dumps(score(rows, bootstrap_samples=5)))


@pytest.mark.parametrize(
    "text",
    [
        "<script>x</script>",
        "[a](http://b)",
        "![a](b)",
        "a|b\n# c",
        "`x`",
        "**a**",
        "www.x.de",
        "a@b.de",
        "&lt;",
        "$$x$$",
    ],
)
def test_texts_in_tables_are_shown_as_they_are_written(text):
    cell = markdown_cell(text)
    assert "\n" not in cell
    html = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(f"|a|\n|---|\n| {cell} |\n")
    assert re.findall(r"<td>(.*?)</td>", html) == [escape(" ".join(text.split()), quote=False)]


def test_run_report_without_stages_and_with_circular_parents(tmp_path):
    with pytest.raises(FileNotFoundError, match="no stage folder"):
        run_report(tmp_path)
    for name, parent in (("a", "b"), ("b", "a")):
        write_stage(tmp_path, name, parent, None, [1.0])
    with pytest.raises(ValueError, match="each other's parents"):
        run_report(tmp_path)


def test_write_report_writes_what_was_scored(tmp_path):
    report = score(predictions(12), bootstrap_samples=50)
    write_report(report, tmp_path / "new")
    assert json.loads((tmp_path / "new" / "report.json").read_text(encoding="utf-8")) == report
    text = (tmp_path / "new" / "report.md").read_text(encoding="utf-8")
    group = report["groups"]["asr/en"]
    low, high = group["error_rate_interval"]
    assert f"| asr/en | WER | {100 * group['error_rate']:.1f} [{100 * low:.1f}, {100 * high:.1f}] |" in text
    assert group is not None and report["groups"]["s2tt/fr-en"]["bleu_signature"] in text


def group(rate: float, bleu: float | None = None, task: str = "asr") -> dict:
    figures = {"task": task, "utterances": 100, "error_metric": "WER", "error_rate": rate, "bleu": bleu}
    figures["error_rate_interval"] = [rate - 0.02, rate + 0.02]
    return figures | ({} if bleu is None else {"bleu_interval": [bleu - 2, bleu + 2]})


def test_failure_signs():
    before = {"groups": {"asr/en": group(0.10), "asr/fr": group(0.10), "s2tt/fr-en": group(0.5, 30, "s2tt")}}
    assert failure_signs(before, before) == failure_signs(before) == []
    slightly = {"groups": {"asr/en": group(0.115), "asr/fr": group(0.09), "s2tt/fr-en": group(0.5, 29.5, "s2tt")}}
    assert failure_signs(slightly, before) == []
    worse = {"groups": {"asr/en": group(0.15), "asr/fr": group(0.10), "s2tt/fr-en": group(0.6, 25, "s2tt")}}
    assert failure_signs(worse, before) == [
        "asr/en got worse: WER 10.0 % before, 15.0 %",
        "s2tt/fr-en lost BLEU: 30.0 before, 25.0",
    ]
    far = {"groups": {"asr/en": group(0.1), "asr/fr": group(0.1), "asr/ko": group(0.45)}}
    assert failure_signs(far) == ["asr/ko is far from the average: 45.0 %, the others 10.0 %"]


def test_answers_in_another_language_where_it_is_not_named_are_a_sign():
    def asked(shares: dict[str, float]) -> dict:
        groups = {name: group(0.1) | {"wrong_language": share} for name, share in shares.items()}
        return {"groups": {"asr/en": group(0.1)}, "unnamed": {"groups": groups, "macro": {}}}

    assert failure_signs(asked({"asr/en": 0.0, "asr/es": 0.1})) == []
    assert failure_signs(asked({"asr/en": 0.02, "asr/es": 0.31})) == [
        "asr/es is answered in another language where it is not named: 31 of 100"
    ]


def test_the_table_of_a_run_shows_transcripts_with_and_without_the_language():
    rows = [row for row in predictions(20) if row["task"] == "asr"]
    unnamed = [{**row, "hypothesis": "nothing"} for row in rows]
    stages = [
        {"name": name, "dev_loss": {}, "ctc_error": {}, "listens": None, "report": report}
        for name, report in (
            ("before", score(rows, bootstrap_samples=20)),
            ("after", score(rows, unnamed=unnamed, bootstrap_samples=20)),
        )
    ]
    header, table = stage_rows(stages)
    assert header == ["figure", "language", "before", "after"]
    figures = {(title, language): values for title, language, *values in table}
    assert figures["asr error %", "en (WER)"] == ["0.0", "0.0"]
    assert figures["asr error %, not named", "en (WER)"] == ["–", "100.0"]
    assert figures["asr error %, not named", "average"] == ["–", "100.0 [100.0, 100.0]"]
    assert figures["asr in another language, not named", "fr"] == ["–", "0 of 20"]


def test_falling_bleu_counts_for_well_provided_directions_only():
    names = ("s2tt/fr-en", "s2tt/de-en", "s2tt/id-en")
    before = {"groups": {name: group(0.5, 30, "s2tt") for name in names}}
    after = {"groups": {name: group(0.6, 20, "s2tt") for name in names}}
    rows = {"s2tt/fr-en": 100_000, "s2tt/de-en": 50_000, "s2tt/id-en": 300}
    assert [sign.split()[0] for sign in failure_signs(after, before, training_rows=rows)] == [
        "s2tt/fr-en",
        "s2tt/de-en",
    ]
    assert len(failure_signs(after, before)) == 3


def test_markdown_cells_cannot_break_the_table():
    assert markdown_table(["a"], [["x|y\nz"]]) == "| a |\n| --- |\n| x\\|y z |\n"


FOUND = {
    "disagreements": [{"disagreement": 0.5, "error_rate": 0.5, "source_lang": "en", "id": "a", "reference": "a",
                       "hypothesis": "a", "ctc_hypothesis": "b"}],
    "calibration": {"ctc": {"error": 0.1, "utterances": 3, "bins": [{"confidence": 0.5, "accuracy": 0.5, "utterances": 3}]}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"disagreements": {}}, "'disagreements' is {}"),
        ({"disagreements": [None]}, "one of 'disagreements' is missing"),
        ({"disagreements": [{**FOUND["disagreements"][0], "id": 5}]}, "'id' of 'disagreements' is 5"),
        ({"calibration": []}, r"'calibration' is \[\]"),
        ({"calibration": {"ctc": {**FOUND["calibration"]["ctc"], "error": {}}}}, "calibration 'ctc': 'error' is {}"),
        ({"calibration": {"ctc": {**FOUND["calibration"]["ctc"], "bins": None}}}, "'bins' is missing"),
        (
            {"calibration": {"ctc": {**FOUND["calibration"]["ctc"], "bins": [{"confidence": 1}]}}},
            "'accuracy' of a bin is",
        ),
    ],
)
def test_what_the_two_heads_say_is_checked(change, told):
    report = score(predictions(3), bootstrap_samples=50)
    assert check_report({**report, **FOUND})
    with pytest.raises(CheckpointError, match=f"{told}.*part score"):
        check_report({**report, **FOUND, **change})


@pytest.mark.parametrize(
    "change", [{}, {"probabilities": []}, {"probabilities": [[0.5]]}, {"path": [None]}, {"seconds": "1"}, {"text": 5}]
)
def test_odd_alignments_are_named(tmp_path, change):
    whole = {
        "probabilities": [[0.5, 0.5]],
        "tokens": ["a"],
        "path": [0],
        "seconds": 1.0,
        "text": "a",
        "language": "en",
    }
    write_stage(tmp_path, "joint", None, None, [1.0])
    path = tmp_path / "joint" / "alignments.json"
    path.write_text(json.dumps([whole]))
    assert read_stage(tmp_path / "joint")["alignments"] == [whole]
    path.write_text(json.dumps([{**whole, **change}] if change else {"a": 1}))
    with pytest.raises(CheckpointError, match=r"alignments\.json is no list of alignments"):
        read_stage(tmp_path / "joint")
