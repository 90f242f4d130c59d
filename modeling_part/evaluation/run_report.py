# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""One report of a whole run: its stages side by side."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from rich.console import Console
from rich.text import Text

from ..data.rows import group_name
from ..recipes.files import CheckpointError, read_json, write_json
from .failure_signs import failure_signs
from .report_file import read_report
from .scoring import check_prediction, read_predictions
from .tables import markdown_cell, markdown_table, number, percent, print_table, with_interval


EXAMPLES_PER_STAGE = 6


def read_json_if_there(path: Path) -> dict | list | None:
    """The content of a JSON file; None where there is no file."""
    return read_json(path) if path.exists() else None


def _stage_folders(run_folder: Path) -> list[Path]:
    """The stage folders (those with stage.json), each after its parent."""
    folders = {path.parent.name: path.parent for path in sorted(run_folder.glob("*/stage.json"))}
    parents = {name: Path(_read_record(folder)["parent"]).name for name, folder in folders.items()}
    ordered: list[str] = []
    while len(ordered) < len(folders):
        ready = [name for name in folders if name not in ordered and parents[name] not in set(folders) - set(ordered)]
        if not ready:
            raise ValueError(
                f"The stages {sorted(set(folders) - set(ordered))} in {run_folder} are each other's parents."
            )
        ordered += ready
    return [folders[name] for name in ordered]


def _read_record(folder: Path) -> dict:
    """What the report needs of a `stage.json`; what is missing or null is empty, of another type an error."""
    path = folder / "stage.json"
    record = read_json(path)
    data = record.get("data") if isinstance(record, dict) else None
    for name, value, kind in (
        ("the file", record, dict),
        ("'parent'", (isinstance(record, dict) and record.get("parent")) or "", str),
        ("'metrics'", (isinstance(record, dict) and record.get("metrics")) or {}, dict),
        ("'data'", data or {}, dict),
        ("'rows' of 'data'", (isinstance(data, dict) and data.get("rows")) or {}, dict),
    ):
        if not isinstance(value, kind):
            raise CheckpointError(
                f"{path}: {name} is {value!r:.60}, but must be {'text' if kind is str else 'an object'}; "
                "restore it from a checkpoint of the stage, or train the stage again."
            )
    rows = (data or {}).get("rows") or {}
    return {"parent": record.get("parent") or "", "metrics": record.get("metrics") or {}, "rows": rows}


def _read_history(folder: Path) -> list[dict]:
    path = folder / "log_history.json"
    history = read_json_if_there(path) or []
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
        raise CheckpointError(f"{path} is no list of objects; delete it to do without a loss curve.")
    return history


def _examples(predictions: Sequence[Mapping]) -> list[dict]:
    """A few pairs spread over the groups and over each group's rows; the same ones for every stage of a run."""
    by_group = defaultdict(list)
    for row in predictions:
        by_group[group_name(row)].append(row)
    names = sorted(by_group)[:: max(1, len(by_group) // EXAMPLES_PER_STAGE)][:EXAMPLES_PER_STAGE]
    chosen = [by_group[name][3 * position % len(by_group[name])] for position, name in enumerate(names)]
    fields = ("id", "task", "source_lang", "target_lang", "reference", "hypothesis")
    return [{field: row[field] for field in fields} for row in chosen]


def _read_examples(path: Path) -> list[dict]:
    rows = read_predictions(path)
    for row in rows:
        try:
            check_prediction(row)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return _examples(rows)


def _read_stage(folder: Path) -> dict:
    stage = _read_record(folder)
    history = _read_history(folder)
    metrics = dict(stage["metrics"])
    for entry in history:  # the last evaluation counts
        metrics.update({name: value for name, value in entry.items() if name.startswith("eval_")})
    metrics = {name: value for name, value in metrics.items() if _is_number(value)}
    dev_loss = {
        name.removeprefix("eval_").removesuffix("_loss"): value
        for name, value in metrics.items()
        if name.startswith("eval_") and name.endswith("_loss") and name != "eval_loss"
    }
    if "eval_loss" in metrics:
        dev_loss["all"] = metrics["eval_loss"]
    ctc_error = {
        name.removeprefix("eval_ctc").removesuffix("error_rate").strip("/_") or "average": value
        for name, value in metrics.items()
        if name.startswith("eval_ctc") and name.endswith("error_rate")
    }
    predictions = folder / "predictions.jsonl"
    return {
        "name": folder.name,
        "dev_loss": dev_loss,
        "ctc_error": ctc_error,
        "listens": stage["metrics"].get("listens"),
        "report": read_report(folder / "report.json") if (folder / "report.json").exists() else None,
        "examples": _read_examples(predictions) if predictions.exists() else [],
        "training_rows": {name: count for name, count in stage["rows"].items() if _is_number(count)},
        "log_history": [entry for entry in history if _is_number(entry.get("step"))],
    }


def _normalization(report: Mapping) -> object:
    return report["settings"].get("normalization", 1)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def stage_rows(stages: Sequence[Mapping]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of a run: a row per figure and language or direction, a column per stage."""
    rows = []

    def add(measure: str, group: str, values: Sequence[str]) -> None:
        if any(value != "–" for value in values):
            rows.append([measure, group, *values])

    losses = sorted({name for stage in stages for name in stage["dev_loss"]}, key=lambda name: (name != "all", name))
    for name in losses:
        add("dev loss", name, [number(stage["dev_loss"].get(name), 3) for stage in stages])
    languages = sorted(
        {name for stage in stages for name in stage.get("ctc_error", ())}, key=lambda name: (name != "average", name)
    )
    for name in languages:
        add("dev CTC error %", name, [percent(stage.get("ctc_error", {}).get(name)) for stage in stages])
    words = {True: "yes", False: "no"}
    add("uses its audio", "", [words.get(stage.get("listens"), "–") for stage in stages])
    reports = [stage["report"] or {"groups": {}, "macro": {}} for stage in stages]
    groups = sorted({name for report in reports for name in report["groups"]})
    for task, measure, label, form in (
        ("asr", "error_rate", "error %", percent),
        ("s2tt", "bleu", "BLEU", number),
        ("s2tt", "error_rate", "error %", percent),
        ("mt", "bleu", "BLEU", number),
        ("mt", "error_rate", "error %", percent),
    ):
        title = f"{task} {label}"
        averages = [report["macro"].get(task, {}) for report in reports]
        scale = 100 if form is percent else 1
        add(
            title,
            "average",
            [with_interval(form(mean.get(measure)), mean.get(f"{measure}_interval"), scale) for mean in averages],
        )
        for name in (name for name in groups if name.startswith(f"{task}/")):
            figures = [report["groups"].get(name, {}) for report in reports]
            metric = next((f" ({figure['error_metric']})" for figure in figures if figure), "")
            metric = metric if measure == "error_rate" else ""
            add(title, name.split("/")[1] + metric, [form(figure.get(measure)) for figure in figures])
    return ["figure", "language", *[stage["name"] for stage in stages]], rows


def _plot_losses(stages: Sequence[Mapping], path: Path) -> bool:
    """Draws training and dev loss over the steps of all stages; False where no stage logged a loss."""
    from matplotlib.figure import Figure  # not pyplot, whose backend is the caller's (a notebook's)

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    offset, drawn = 0, False
    for stage in stages:
        for key, style in (("loss", "C0-"), ("eval_loss", "C1o-")):
            points = [
                (offset + entry["step"], entry[key]) for entry in stage["log_history"] if _is_number(entry.get(key))
            ]
            if points:
                label = {"loss": "training", "eval_loss": "dev"}[key]
                axes.plot(*zip(*points, strict=True), style, markersize=4, label=label if not drawn else None)
        drawn = drawn or any("loss" in entry or "eval_loss" in entry for entry in stage["log_history"])
        axes.annotate(
            stage["name"], (offset, 1), xycoords=("data", "axes fraction"), xytext=(4, -12), textcoords="offset points"
        )
        axes.axvline(offset, color="0.8", linewidth=1)
        offset += max((entry.get("step", 0) for entry in stage["log_history"]), default=0)
    axes.set(xlabel="optimizer step", ylabel="loss per token")
    if drawn:
        axes.legend(loc="upper right")
        figure.savefig(path, dpi=120)
    return drawn


def run_report(run_folder: str | Path) -> dict:
    """Gathers the stages of a run into one table; prints it and writes it into the run folder.

    Reads of every stage folder `stage.json` (`metrics`, `parent`, `data`), `log_history.json` (a list of
    dicts with `step`, `loss`, `eval_loss`, `eval_asr/fr_loss`, ...), `report.json` and
    `predictions.jsonl`; what a stage lacks stays empty in the table. Writes `report.json`, `report.md` and, where
    losses were logged, `loss.png`.

    Returns:
        What `report.json` holds: `stages` (`name`, `dev_loss`, `report`, `examples`) and `warnings`.

    Raises:
        FileNotFoundError: no folder with a `stage.json` in `run_folder`.
        ValueError: the stages name each other as parents, or a file is not what it must be; names file and part.
    """
    run_folder = Path(run_folder)
    folders = _stage_folders(run_folder)
    if not folders:
        raise FileNotFoundError(f"{run_folder} has no stage folder with a stage.json; train a stage first.")
    stages = [_read_stage(folder) for folder in folders]
    warnings = []
    for before, stage in pairwise([None, *stages]):
        if stage["report"]:
            former = before and before["report"]
            if former and _normalization(former) != _normalization(stage["report"]):
                warnings.append(
                    f"stage {stage['name']}: its texts were normalised by other rules than those of {before['name']}, so "
                    "that their error rates are not comparable; run `part score` on both"
                )
                former = None
            signs = failure_signs(stage["report"], former, training_rows=stage["training_rows"] or None)
            warnings += [f"stage {stage['name']}: {sign}" for sign in signs]
    header, rows = stage_rows(stages)
    has_plot = _plot_losses(stages, run_folder / "loss.png")
    result = {
        "stages": [{key: stage[key] for key in ("name", "dev_loss", "report", "examples")} for stage in stages],
        "warnings": warnings,
    }
    write_json(run_folder / "report.json", result)
    parts = [f"# {markdown_cell(run_folder.name)}\n", markdown_table(header, rows)]
    if warnings:
        parts += ["## Warnings\n", *[f"- {markdown_cell(warning)}" for warning in warnings], ""]
    if has_plot:
        parts.append("![Loss over the steps](loss.png)\n")
    example_header = ["task", "direction", "reference", "hypothesis"]
    example_rows = {
        stage["name"]: [
            [row["task"], f"{row['source_lang']}-{row['target_lang']}", row["reference"], row["hypothesis"]]
            for row in stage["examples"]
        ]
        for stage in stages
        if stage["examples"]
    }
    for name, lines in example_rows.items():
        parts += [f"## Examples after {markdown_cell(name)}\n", markdown_table(example_header, lines)]
    (run_folder / "report.md").write_text("\n".join(parts), encoding="utf-8")
    print_table(str(run_folder), header, rows)
    for name, lines in example_rows.items():
        print_table(f"after {name}", example_header, lines, text_columns=4)
    for warning in warnings:
        Console().print(Text("warning: ", "bold yellow").append(warning, "default"), highlight=False)
    return result
