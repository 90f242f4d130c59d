# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Pictures of all analyses of a run for its report: `part report RUN --analyses`."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from ..evaluation.html_report import ANALYSED_FILE, ANALYSES_FOLDER
from ..evaluation.pictures import STYLE, save_picture
from ..evaluation.run_files import stage_folders
from ..prompts_part import TEXT_TASKS
from ..recipes.files import write_json
from ..recipes.stage_files import files_of
from .drift import weight_drift
from .files import load_checkpoint, read_rows
from .gradients import gradient_similarity, plot_gradients
from .probes import plot_probes, probe_representations


ROWS_PER_GROUP = 8
CLIPS_PER_LANGUAGE = 40


def analyze_run(run_folder: str | Path, *, device: str | None = None) -> list[Path]:
    """Pictures of gradients, probes and drift of every stage into the folder `analyses` of a run.

    Gradients are those of the adapter, of transcription in every language and translation into the first; rows are the
    run's dev and test rows.

    Args:
        run_folder: of a run.
        device: None takes the first accelerator.

    Returns:
        The pictures.

    Raises:
        FileNotFoundError: the run has no stage, or has left no dev or test rows.
        ValueError: the rows have no speech.
    """
    run_folder = Path(run_folder)
    folders = stage_folders(run_folder)
    found = [run_folder / "data" / split for split in ("eval", "test")]
    found = [path for path in found if (path / "rows.arrow").is_file()]
    if not folders or not found:
        raise FileNotFoundError(
            f"{run_folder} has {'no dev and test rows (data/eval, data/test)' if folders else 'no stage'}: there is nothing "
            "to analyse; leave --analyses out."
        )
    rows = [row for path in found for row in read_rows(path) if row["task"] not in TEXT_TASKS]
    if not rows:
        raise ValueError(f"The dev and test rows of {run_folder} have no speech: there is nothing to analyse.")
    into = min(row["source_lang"] for row in rows)
    compared = [row for row in rows if row["task"] == "asr" or row["target_lang"] == into]
    has_languages = len({row["source_lang"] for row in rows}) > 1
    if not has_languages:
        print(f"All speech is {into}: what the layers hold of languages is left out")
    drifts = {after.name: weight_drift(after, before)["parts"] for before, after in pairwise(folders)}
    gradients, probes = {}, {}
    for folder in folders:
        print(f"Analysing {folder}")
        model, processor = load_checkpoint(folder, device)
        settings = {"rows_per_group": ROWS_PER_GROUP}
        gradients[folder.name] = gradient_similarity(model, processor, compared, **settings)["adapter"]
        if has_languages:
            probes[folder.name] = probe_representations(model, processor, rows, clips_per_language=CLIPS_PER_LANGUAGE)
    pictures = {
        "1_gradients_of_the_adapter": plot_run_gradients(gradients),
        "2_what_the_layers_hold": plot_probes(probes) if probes else None,
        "3_drift_of_the_weights": plot_drift(drifts),
    }
    target = run_folder / ANALYSES_FOLDER
    target.mkdir(exist_ok=True)
    for name, figure in pictures.items():
        (target / f"{name}.png").unlink(missing_ok=True)
        if figure is not None:
            save_picture(figure, target / f"{name}.png")
    write_json(target / ANALYSED_FILE, {folder.name: files_of(folder) for folder in folders})
    return sorted(target.glob("*.png"))


def plot_run_gradients(gradients: Mapping[str, Mapping]) -> Figure:
    """A heat map of each stage, see [`plot_gradients`]."""
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        size = 2.2 + 0.3 * max(len(found["groups"]) for found in gradients.values())
        figure = Figure(figsize=(size * len(gradients), size))
        for axes, (name, found) in zip(
            figure.subplots(1, len(gradients), squeeze=False)[0], gradients.items(), strict=True
        ):
            plot_gradients(found, axes, name)
    return figure


def plot_drift(drifts: Mapping[str, Mapping]) -> Figure | None:
    """Relative change of each part's weights from stage to stage; None of a run of one stage.

    Args:
        drifts: by stage the `parts` of [`weight_drift`] since the stage before.
    """
    if not drifts:
        return None
    parts: Sequence[str] = sorted({part for found in drifts.values() for part in found})
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 2.9))
        axes = figure.subplots()
        width = 0.8 / len(parts)
        for position, part in enumerate(parts):
            values = [found.get(part, {}).get("drift", 0.0) for found in drifts.values()]
            places = np.arange(len(drifts)) + (position - (len(parts) - 1) / 2) * width
            bars = axes.bar(places, values, width, label=part.replace("_", " "))
            axes.bar_label(bars, [f"{value:.3f}" for value in values], fontsize=7)
        axes.set_xticks(range(len(drifts)), list(drifts))
        axes.set_title("Relative change of the weights since the stage before", loc="left")
        figure.legend(loc="outside right upper")
    return figure
