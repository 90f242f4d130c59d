# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""One report of a whole run: its stages side by side."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from rich.console import Console
from rich.text import Text

from ..prompts_part import TASKS
from ..recipes.files import write_json
from .failure_signs import failure_signs, how_to_listen, same_normalization
from .html_report import write_html
from .pictures import plot_losses, save_picture
from .report_file import NO_FIGURES
from .reports import answers_in_another_language, normalizer_notes
from .run_files import read_stage, stage_folders
from .tables import markdown_cell, markdown_table, number, percent, print_table, with_interval


NOT_EVALUATED = "Nothing was evaluated yet: give the recipe `eval_data` or `test_data`."
UNNAMED = "not named"  # the language was not named in the prompt
# Lines that are of no single language or direction: what the terminal shows of the table.
WHOLE = {"", "all", "average", *TASKS, *(f"{task}_ctc" for task in TASKS)}
EXAMPLE_HEADER = ["task", "direction", "reference", "hypothesis"]


def stage_rows(stages: Sequence[Mapping]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of a run: a row per figure and language or direction, a column per stage."""
    rows = []

    def add(measure: str, group: str, values: Sequence[str]) -> None:
        if any(value != "–" for value in values):
            rows.append([measure, group, *values])

    losses = sorted({name for stage in stages for name in stage["dev_loss"]}, key=lambda name: (name != "all", name))
    for name in losses:
        add("dev loss", name, [number(stage["dev_loss"].get(name), 3) for stage in stages])
    names = {name for stage in stages for name in stage["ctc_error"]}
    for name in sorted(names, key=lambda name: (name != "average", name)):
        add("dev CTC error %", name, [percent(stage["ctc_error"].get(name)) for stage in stages])
    words = {True: "yes", False: "no"}
    add("uses its audio", "", [words.get(stage["listens"], "–") for stage in stages])
    reports = [stage["report"] or NO_FIGURES for stage in stages]
    unnamed = [report.get("unnamed", NO_FIGURES) for report in reports]
    for of, task, measure, title, form in (
        (reports, "asr", "error_rate", "asr error %", percent),
        (unnamed, "asr", "error_rate", f"asr error %, {UNNAMED}", percent),
        (reports, "s2tt", "bleu", "s2tt BLEU", number),
        (reports, "s2tt", "error_rate", "s2tt error %", percent),
        (reports, "mt", "bleu", "mt BLEU", number),
        (reports, "mt", "error_rate", "mt error %", percent),
    ):
        averages = [report["macro"].get(task, {}) for report in of]
        scale = 100 if form is percent else 1
        add(
            title,
            "average",
            [with_interval(form(mean.get(measure)), mean.get(f"{measure}_interval"), scale) for mean in averages],
        )
        for name in sorted({name for report in of for name in report["groups"] if name.startswith(f"{task}/")}):
            figures = [report["groups"].get(name, {}) for report in of]
            metric = next((f" ({figure['error_metric']})" for figure in figures if figure), "")
            metric = metric if measure == "error_rate" else ""
            add(title, name.split("/")[1] + metric, [form(figure.get(measure)) for figure in figures])
    for name in sorted({name for report in unnamed for name in report["groups"]}):
        figures = [report["groups"].get(name) for report in unnamed]
        counts = [answers_in_another_language(figure) if figure else "–" for figure in figures]
        add(f"asr in another language, {UNNAMED}", name.split("/")[1], counts)
    return ["figure", "language", *[stage["name"] for stage in stages]], rows


def run_report(run_folder: str | Path) -> dict:
    """Gathers the stages of a run into one table; prints its averages and writes it into the run folder.

    Reads of every stage folder `stage.json`, `log_history.json` (a list of dicts with `step`, `loss`, `eval_loss`,
    `eval_asr/fr_loss`, ...), `report.json`, `predictions.jsonl` and `alignments.json`; what a stage lacks stays empty.
    Writes `report.json`, `report.md`, `report.html` and, where losses were logged, `loss.png`.

    Returns:
        What `report.json` holds: `stages` (`name`, `dev_loss`, `report`, `examples`) and `warnings`.

    Raises:
        FileNotFoundError: no folder with a `stage.json` in `run_folder`.
        ValueError: the stages name each other as parents, or a file is not what it must be; names file and part.
    """
    run_folder = Path(run_folder)
    folders = stage_folders(run_folder)
    if not folders:
        raise FileNotFoundError(f"{run_folder} has no stage folder with a stage.json; train a stage first.")
    stages = [read_stage(folder) for folder in folders]
    warnings = [warning for before, stage in pairwise([None, *stages]) for warning in _warnings(stage, before)]
    table = stage_rows(stages)
    losses = plot_losses(stages)
    if losses is not None:
        save_picture(losses, run_folder / "loss.png")
    result = {
        "stages": [{key: stage[key] for key in ("name", "dev_loss", "report", "examples")} for stage in stages],
        "warnings": warnings,
    }
    write_json(run_folder / "report.json", result)
    text = _run_markdown(run_folder.resolve().name, stages, table, warnings, losses is not None)
    (run_folder / "report.md").write_text(text, encoding="utf-8")
    write_html(run_folder, stages, table, warnings)
    if table[1]:
        header, rows = table
        print_table(str(run_folder), header, [row for row in rows if row[1] in WHOLE])
    else:
        Console().print(Text(NOT_EVALUATED))
    for stage in stages:
        if stage["examples"]:
            print_table(f"after {stage['name']}", EXAMPLE_HEADER, _example_rows(stage), text_columns=4)
    for warning in warnings:
        Console().print(Text("warning: ", "bold yellow").append(warning, "default"), highlight=False)
    return result


def stage_report(folder: str | Path) -> Path:
    """`report.html` of one stage's folder, or of one with predictions alone; its other reports are not touched.

    Raises:
        ValueError: a file is not what it must be; names file and part.
    """
    folder = Path(folder).resolve()
    stage = read_stage(folder)
    of_run = (folder.parent / "data").is_dir()
    return write_html(folder, [stage], stage_rows([stage]), run_folder=folder.parent if of_run else folder)


def _warnings(stage: Mapping, before: Mapping | None) -> list[str]:
    """The failure signs of a stage."""
    warnings = []
    if stage["listens"] is False:
        advice = how_to_listen(stage["record"]["hyperparameters"].get("losses"))
        warnings.append(f"stage {stage['name']} does not use its audio: {advice}")
    if not stage["report"]:
        return warnings
    former = before and before["report"]
    if former and not same_normalization(former, stage["report"]):
        warnings.append(
            f"stage {stage['name']}: its texts were normalised by other rules than those of {before['name']}, so "
            "that their error rates are not comparable; run `part score` on both"
        )
        former = None
    signs = failure_signs(stage["report"], former, training_rows=stage["record"]["rows"] or None)
    return warnings + [f"stage {stage['name']}: {sign}" for sign in signs]


def _example_rows(stage: Mapping) -> list[list[str]]:
    return [
        [row["task"], f"{row['source_lang']}-{row['target_lang']}", row["reference"], row["hypothesis"]]
        for row in stage["examples"]
    ]


def _run_markdown(
    name: str, stages: Sequence[Mapping], table: tuple, warnings: Sequence[str], has_picture: bool
) -> str:
    parts = [f"# {markdown_cell(name)}\n", markdown_table(*table) if table[1] else f"{NOT_EVALUATED}\n"]
    if scored := [stage["report"] for stage in stages if stage["report"]]:
        parts.append("\n".join(f"- normaliser {markdown_cell(note)}" for note in normalizer_notes(scored[-1])) + "\n")
    parts.append("Sound, curves and differences are in [report.html](report.html).\n")
    if warnings:
        parts += ["## Warnings\n", *[f"- {markdown_cell(warning)}" for warning in warnings], ""]
    if has_picture:
        parts.append("![Loss over the steps](loss.png)\n")
    for stage in stages:
        if stage["examples"]:
            rows = markdown_table(EXAMPLE_HEADER, _example_rows(stage))
            parts += [f"## Examples after {markdown_cell(stage['name'])}\n", rows]
    return "\n".join(parts)
