# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""`report.html`: a run, or one stage, in one file that opens without a network."""

import base64
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2

from .. import __version__
from ..recipes.files import read_json
from ..recipes.stage_files import files_of
from .normalization import normalize_text
from .pictures import picture_uri, plot_alignment, plot_calibration, plot_curves, plot_losses, plot_scores
from .reports import normalizer_notes
from .run_files import is_number, read_launches
from .scoring import annotate
from .tables import duration, language_name, number, percent, plain_value, with_interval
from .utterances import Clips, choose_utterances, clips_of_run, differences, frequent_substitutions


TEMPLATE = Path(__file__).with_name("report.html.jinja")
logger = logging.getLogger(__name__)

ANALYSES_FOLDER = "analyses"  # pictures that `part report RUN --analyses` leaves in the run's folder
# There: of each stage's folder, the size and SHA-256 of the weights that were analysed.
ANALYSED_FILE = "analysed.json"
TASK_TITLES = {"asr": "Transcription", "s2tt": "Speech translation", "mt": "Text translation"}
SIGNS = {"empty": "no text", "looping": "looping", "wrong_language": "wrong language"}


def write_html(
    folder: str | Path,
    stages: Sequence[Mapping],
    table: tuple[Sequence[str], Sequence[Sequence[str]]],
    warnings: Sequence[str] = (),
    run_folder: Path | None = None,
) -> Path:
    """Write `report.html` into a folder.

    Args:
        folder: of the run, or of one stage.
        stages: what `run_files.read_stage` returns, in order.
        table: header and rows of `run_report.stage_rows`.
        warnings: sentences.
        run_folder: where `run.json`, the test data and the pictures of analyses are; `folder` by default.

    Returns:
        The path of the file.
    """
    folder = Path(folder)
    run_folder = run_folder or folder
    clips = clips_of_run(run_folder)
    answered = _with_answers(stages)
    utterances = _utterances(answered, clips)
    scored = [stage for stage in stages if stage["report"]]
    losses, scores = plot_losses(stages), plot_scores(stages)
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, autoescape=True)
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        name=folder.resolve().name,
        version=__version__,
        tiles=_tiles(scored[-1]) if scored else [],
        facts=_facts(stages),
        launches=read_launches(run_folder),
        stages=[_stage_line(stage) for stage in stages],
        warnings=warnings,
        table=table,
        scores=scores and picture_uri(scores),
        normalizers=normalizer_notes(scored[-1]["report"]) if scored else [],
        curves=[picture_uri(figure) for figure in (losses, *plot_curves(stages)) if figure],
        signs=_sign_rows(scored),
        substitutions=frequent_substitutions(answered[-1][1]) if answered else [],
        alignments=_alignments(stages),
        analyses=_analyses(run_folder),
        calibration=_calibration(scored),
        utterances=utterances,
        clips=clips.uris,
        missing=sorted(clips.missing.items()),
    )
    path = folder / "report.html"
    path.write_text(text, encoding="utf-8")
    return path


def _tiles(stage: Mapping) -> list[tuple[str, str, str]]:
    """(what, figure, interval) of the last stage that was scored."""
    tiles = []
    for task, average in stage["report"]["macro"].items():
        groups = [group for group in stage["report"]["groups"].values() if group["task"] == task]
        metrics = " / ".join(sorted({group["error_metric"] for group in groups}))
        of_asr, of_others = ("error_rate", f"{metrics} %", percent, 100), ("bleu", "BLEU", number, 1)
        measure, label, form, scale = of_asr if task == "asr" else of_others
        if average.get(measure) is not None:
            bounds = with_interval("", average.get(f"{measure}_interval"), scale).strip()
            of = "languages" if task == "asr" else "directions"
            title = f"{TASK_TITLES[task]}: {label}, mean of {average['groups']} {of}"
            tiles.append((title, form(average[measure]), bounds))
    return tiles


def _facts(stages: Sequence[Mapping]) -> list[tuple[str, str]]:
    """What was trained, on what, and how long."""
    records = [stage["record"] for stage in stages]
    models = {part: model for record in records for part, model in record["base_models"].items()}
    rows: dict[str, float] = {}
    hours: dict[str, float] = {}
    for record in records:  # a stage may leave some of the rows out
        for total, key in ((rows, "rows"), (hours, "hours")):
            for group, value in record[key].items():
                total[group] = max(value, total.get(group, 0))
    codes = {group.partition("/")[2] for group in rows if group.startswith("asr/")}
    directions = sum(group.startswith("s2tt/") for group in rows)
    seconds = [stage["seconds"] for stage in stages if stage["seconds"] is not None]
    versions = {package: version for record in records for package, version in record["versions"].items()}
    tested = max((len(stage["predictions"]) for stage in stages), default=0)
    facts = [
        ("Speech encoder", models.get("audio_model")),
        ("Language model", models.get("language_model")),
        ("Started from", models.get("checkpoint")),
        ("Languages", ", ".join(map(language_name, sorted(codes)))),
        ("Directions of translation", f"{directions}" if directions else None),
        ("Training data", _training_data(rows, hours)),
        ("Test rows", f"{tested:,}" if tested else None),
        ("Training took", f"{duration(sum(seconds))} in {len(seconds)} stages" if seconds else None),
        ("Versions", ", ".join(f"{package} {version}" for package, version in versions.items())),
    ]
    return [(name, value) for name, value in facts if value]


def _training_data(rows: Mapping[str, float], hours: Mapping[str, float]) -> str:
    """Rows and hours by task."""
    parts = []
    for task, title in TASK_TITLES.items():
        names = [name for name in rows if name.startswith(f"{task}/")]
        if names:
            part = f"{title.lower()} {sum(rows[name] for name in names):,} rows"
            time = sum(hours.get(name, 0) for name in names)
            parts.append(part + (f" ({time:.2f} h)" if time else ""))
    return "; ".join(parts)


def _stage_line(stage: Mapping) -> dict:
    trained = {part: count for part, count in stage["record"]["trainable_parameters"].items() if count}
    tasks = stage["record"]["hyperparameters"].get("tasks")
    return {
        "name": stage["name"],
        "trained": ", ".join(f"{part.replace('_', ' ')} ({plain_value(count)})" for part, count in trained.items()),
        "tasks": ", ".join(tasks) if isinstance(tasks, Mapping) else "",
        "steps": stage["steps"],
        "time": "–" if stage["seconds"] is None else duration(stage["seconds"]),
    }


def _sign_rows(scored: Sequence[Mapping]) -> list[list[str]]:
    """Stage, language or direction, utterances, and how many show a sign of a broken model; only those that do."""
    rows = []
    for stage in reversed(scored):
        for name, group in stage["report"]["groups"].items():
            counts = [round(group[sign] * group["utterances"]) for sign in SIGNS]
            if any(counts) or group["failed"]:
                rows.append([stage["name"], name, *map(str, [group["utterances"], *counts, group["failed"]])])
    return rows


def _with_answers(stages: Sequence[Mapping]) -> list[tuple[Mapping, list[dict]]]:
    """Stages that answered, with their predictions as they are counted, as the file has them.

    Where it does not they are annotated anew: rows that are written or corrected by hand, those of an earlier version, and
    texts that the report compares in simplified characters.
    """
    answered = []
    for stage in stages:
        rows = stage["predictions"]
        settings = {"simplify_chinese": bool(stage["report"] and stage["report"]["settings"]["simplify_chinese"])}
        if not all(_is_annotated(row, **settings) for row in rows):
            rows = annotate(rows, **settings)
        if rows:
            answered.append((stage, rows))
    return answered


def _is_annotated(row: Mapping, **settings: bool) -> bool:
    return (
        is_number(row.get("error_rate"))
        and set(SIGNS) <= set(row)
        and all(
            row.get(f"normalized_{side}") == normalize_text(row[side], row["target_lang"], **settings)
            for side in ("reference", "hypothesis")
        )
    )


def _utterances(answered: Sequence[tuple[Mapping, Sequence[Mapping]]], clips: Clips) -> list[dict]:
    """The rows of the table, the last stage's first: the sound of these is taken first."""
    rows = []
    for stage, predictions in reversed(answered):
        for row, kind in choose_utterances(predictions):
            rows.append(
                {
                    "stage": stage["name"],
                    "kind": kind,
                    "task": row["task"],
                    "direction": row["source_lang"]
                    if row["task"] == "asr"
                    else f"{row['source_lang']}→{row['target_lang']}",
                    "language": row["target_lang"],
                    "errors": row["error_rate"],
                    "differences": differences(row),
                    "reference": row["reference"],
                    "hypothesis": row["hypothesis"],
                    "source": row.get("source_text") if row["task"] != "asr" else None,
                    "id": row["id"],
                    "failed": row.get("error"),
                    "heard": row.get("ctc_hypothesis") if row.get("disagreement") else None,
                    "signs": [word for sign, word in SIGNS.items() if row[sign]],
                    "clip": clips.number(row),
                }
            )
    return rows


def _alignments(stages: Sequence[Mapping]) -> list[tuple[str, str]]:
    """(stage, picture) of the last stage that has some."""
    with_some = [stage for stage in stages if stage["alignments"]]
    if not with_some:
        return []
    return [(with_some[-1]["name"], picture_uri(plot_alignment(one))) for one in with_some[-1]["alignments"]]


def _calibration(scored: Sequence[Mapping]) -> tuple[str, str] | None:
    """(stage, picture) of the last stage whose answers have confidence."""
    for stage in reversed(scored):
        if stage["report"].get("calibration"):
            return stage["name"], picture_uri(plot_calibration(stage["report"]["calibration"]))
    return None


def _analyses(run_folder: Path) -> list[tuple[str, str]]:
    """(title, picture) of what `--analyses` has left; of none where a stage has other weights now."""
    record = run_folder / ANALYSES_FOLDER / ANALYSED_FILE
    analysed = read_json(record) if record.is_file() else {}
    stages = [run_folder / name for name in analysed] if isinstance(analysed, dict) else []
    if changed := [one.name for one in stages if not one.is_dir() or files_of(one) != analysed[one.name]]:
        message = "The pictures in %s are of other weights of %s than are there now: left out. Make them anew with --analyses"
        logger.warning(message, record.parent, ", ".join(changed))
        return []
    return [
        (
            path.stem.replace("_", " "),
            f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}",
        )
        for path in sorted((run_folder / ANALYSES_FOLDER).glob("*.png"))
    ]
