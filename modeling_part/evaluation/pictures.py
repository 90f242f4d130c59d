# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""The pictures of reports: losses and other curves over all stages, scores with intervals, alignments."""

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from itertools import islice
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # not pyplot, whose backend is the caller's (a notebook's)

from ..prompts_part import TASKS
from .report_file import NO_FIGURES, bounds
from .run_files import is_number


# One style for all pictures, those of the analyses and notebooks included: `with matplotlib.rc_context(STYLE):`
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.92",
    "axes.axisbelow": True,
    "lines.linewidth": 1.4,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.constrained_layout.use": True,
    "svg.fonttype": "none",  # texts stay texts: the browser has the letters of more languages than a font of matplotlib's
}
TASK_COLOURS = {"asr": "C0", "s2tt": "C1", "mt": "C2", "text": "C3"}
TASK_NAMES = {"asr": "transcription", "s2tt": "speech translation", "mt": "text translation", "text": "text"}
MOST_LINES = 10  # in one picture; of more languages those with the highest last value are named, the others are grey
MOST_GROUPS = 40  # languages or directions of a task in the picture of scores, below their average
LOSS = re.compile(
    rf"(?:(?P<dev>eval)_)?(?P<task>{'|'.join(TASK_NAMES)})(?:/(?P<language>[A-Za-z0-9-]+))?(?:_(?P<ctc>ctc))?_loss"
)

Points = list[tuple[float, float]]


def curve(stages: Sequence[Mapping], name: str, scale: float = 1.0) -> list[Points]:
    """The values of one figure of the log over the optimizer steps of the run; a list of points per stage."""
    found, offset = [], 0
    for stage in stages:
        points = [
            (offset + entry["step"], scale * entry[name])
            for entry in stage["log_history"]
            if is_number(entry.get(name))
        ]
        found.append(points)
        offset += stage["steps"]
    return found


def logged_names(stages: Sequence[Mapping], wanted: Callable[[str], object]) -> list[str]:
    """Names of figures that some line of the log has and that are wanted, in order."""
    names = {
        name for stage in stages for entry in stage["log_history"] for name in entry if is_number(entry.get(name))
    }
    return sorted(name for name in names if wanted(name))


def plot_losses(stages: Sequence[Mapping]) -> Figure | None:
    """Training and dev loss of each task over the steps; None where no stage logged one.

    With alignment a second panel has its loss (CTC). A run that logged no losses by task shows the whole loss.
    """
    panels = {
        "Loss of the answers, nats per token": logged_names(stages, lambda name: _is_loss(name, ctc=False)),
        "Loss of the alignment (CTC), nats per transcript token": logged_names(
            stages, lambda name: _is_loss(name, ctc=True)
        ),
    }
    if not any(panels.values()):
        panels = {"Loss, nats per token": logged_names(stages, {"loss", "eval_loss"}.__contains__)}
    panels = {title: names for title, names in panels.items() if names}
    if not panels:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.4 * len(panels)))
        for axes, (title, names) in zip(
            figure.subplots(len(panels), squeeze=False)[:, 0], panels.items(), strict=True
        ):
            for name in names:
                found = LOSS.fullmatch(name)
                task = found["task"] if found else None
                label = f"{TASK_NAMES.get(task, 'all')}, {'dev' if name.startswith('eval_') else 'training'}"
                _draw(axes, curve(stages, name), label, TASK_COLOURS.get(task, "C0"), name.startswith("eval_"))
            axes.set_title(title, loc="left")
            _mark_stages(axes, stages)
            axes.legend()
    return figure


def plot_curves(stages: Sequence[Mapping]) -> list[Figure]:
    """The other curves, a figure each, where something was logged: losses by language, rate, norms, gate, speed, errors."""
    figures = []
    for dev, of in ((False, "training"), (True, "dev")):
        for task in TASKS:
            for ctc in (False, True):
                names = logged_names(stages, lambda name: _is_loss(name, ctc, task, dev))  # noqa: B023  called at once
                measure = "alignment loss (CTC)" if ctc else "loss"
                title = f"{TASK_NAMES[task].capitalize()}: {of} {measure} by language, nats per token"
                figures.append(_lines(stages, {LOSS.fullmatch(name)["language"]: name for name in names}, title))
    named = {
        "Errors on the dev data, %": (
            {"asr_error_rate", "s2tt_error_rate", "ctc_error_rate"},
            100.0,
            "eval_",
        ),
        "BLEU on the dev data": ({"s2tt_bleu", "mt_bleu"}, 1.0, "eval_"),
        "Learning rate": ({"learning_rate"}, 1.0, ""),
        "Share of the batches with the gate open, %": ({"gate_open_share"}, 100.0, ""),
        "Speed, seconds of audio per second": ({"audio_hours_per_second"}, 3600.0, ""),
        "Speed, tokens per second": ({"tokens_per_second"}, 1.0, ""),
    }
    for title, (wanted, scale, prefix) in named.items():
        names = logged_names(stages, lambda name: name.removeprefix(prefix) in wanted and name.startswith(prefix))  # noqa: B023
        labels = {name.removeprefix(prefix).replace("_", " "): name for name in names}
        if len(labels) == 1 < len(wanted):  # a line alone has no legend
            title += f": {next(iter(labels))}"
        figures.append(_lines(stages, labels, title, scale))
    norms = logged_names(stages, lambda name: name.startswith("grad_norm/"))
    labels = {name.removeprefix("grad_norm/").replace("_", " "): name for name in norms}
    figures.append(_lines(stages, labels, "Norm of the gradients by part, before clipping", log=True))
    return [figure for figure in figures if figure is not None]


def plot_scores(stages: Sequence[Mapping]) -> Figure | None:
    """Error rates of transcription and BLEU of translation with their intervals, a colour per stage; None without any."""
    panels = []
    for task, measure, title, scale in (
        ("asr", "error_rate", "Transcription: errors (WER or CER), %", 100.0),
        ("s2tt", "bleu", "Speech translation: BLEU", 1.0),
        ("mt", "bleu", "Text translation: BLEU", 1.0),
    ):
        rows = _score_rows(stages, task, measure, scale)
        if rows:
            of_all = f", first {MOST_GROUPS} of {len(rows) - 1}" if len(rows) > MOST_GROUPS + 1 else ""
            panels.append((f"{title}, 95 % intervals{of_all}", dict(islice(rows.items(), MOST_GROUPS + 1))))
    if not panels:
        return None
    heights = [0.8 + 0.2 * len(rows) + 0.09 * sum(len(values) for values in rows.values()) for _, rows in panels]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, sum(heights)))
        grid = figure.subplots(len(panels), squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
        for axes, (title, rows) in zip(grid, panels, strict=True):
            _draw_scores(axes, rows, [stage["name"] for stage in stages])
            axes.set_title(title, loc="left")
    return figure


def plot_calibration(calibration: Mapping) -> Figure:
    """Reliability diagram: right words over confidence, a line for each kind, its points larger where more utterances are.

    Args:
        calibration: see `two_heads.calibration`.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5, 4.4))
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], "--", color="gray", linewidth=1, label="as sure as right")
        for kind, found in calibration.items():
            bins = found["bins"]
            points = [[one[name] for one in bins] for name in ("confidence", "accuracy")]
            (line,) = axes.plot(*points, label=f"{kind.replace('_', ' ')} ({100 * found['error']:.1f} % off)")
            sizes = [10 + 150 * one["utterances"] / found["utterances"] for one in bins]
            axes.scatter(*points, s=sizes, color=line.get_color(), alpha=0.7)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="share of words that are right")
        axes.legend()
    return figure


def plot_alignment(alignment: Mapping) -> Figure:
    """Probability of each token of a transcript at each audio token, and the most probable path through them.

    Args:
        alignment: see `alignments.align_clip`.
    """
    probabilities = np.asarray(alignment["probabilities"])[:, 1:].T
    tokens, seconds = alignment["tokens"], alignment["seconds"]
    step = seconds / probabilities.shape[1]
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(9, 1.1 + 0.22 * len(tokens)))
        axes = figure.subplots()
        image = axes.imshow(
            probabilities,
            aspect="auto",
            interpolation="nearest",
            cmap="Blues",
            vmin=0,
            vmax=1,
            extent=(0, seconds, len(tokens) - 0.5, -0.5),
        )
        path = [((at + 0.5) * step, token) for at, token in enumerate(alignment["path"]) if token >= 0]
        axes.plot(*zip(*path, strict=True), "o", color="C3", markersize=3.5, label="most probable path")
        axes.set_yticks(range(len(tokens)), [_plain(token.strip() or "␣") for token in tokens])
        axes.set(xlabel="seconds (one column is one audio token)")
        axes.set_title(_plain(f"{alignment['language']}: {alignment['text']}"), loc="left")
        figure.colorbar(image, label="probability", ticks=(0, 0.5, 1))
    return figure


def save_picture(figure: Figure, path: Path) -> None:
    """A PNG file; in the place of a link, not at its target."""
    if path.is_symlink():
        path.unlink()
    path.write_bytes(picture_bytes(figure))


def picture_bytes(figure: Figure, format: str = "png") -> bytes:
    """PNG, or SVG."""
    buffer = BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format=format, dpi=120, metadata={"Date": None} if format == "svg" else None)
    return buffer.getvalue()


def picture_uri(figure: Figure) -> str:
    """An SVG picture as a `data:` URI."""
    return f"data:image/svg+xml;base64,{base64.b64encode(picture_bytes(figure, 'svg')).decode()}"


def _is_loss(name: str, ctc: bool, task: str | None = None, dev: bool | None = None) -> bool:
    """Whether a figure is a loss of a whole task or, where `task` is given, of one of its languages."""
    found = LOSS.fullmatch(name)
    if not found or bool(found["ctc"]) != ctc or (task is None) != (found["language"] is None):
        return False
    return task is None or (found["task"] == task and bool(found["dev"]) == dev)


def _draw(axes: Axes, points: Sequence[Points], label: str | None, colour: str, is_dev: bool = False) -> None:
    """One line per stage, so that no line joins the end of a stage with the beginning of the next."""
    for part in filter(None, points):
        style = {"linestyle": "--", "marker": "o", "markersize": 4} if is_dev or len(part) == 1 else {}
        axes.plot(*zip(*part, strict=True), color=colour, label=label, **({"marker": "."} if not style else style))
        label = None


def _mark_stages(axes: Axes, stages: Sequence[Mapping]) -> None:
    offset = 0
    for stage in stages:
        axes.axvline(offset, color="0.75", linewidth=0.8)
        place = {"xycoords": ("data", "axes fraction"), "xytext": (3, 3), "textcoords": "offset points"}
        axes.annotate(_plain(stage["name"]), (offset, 0), color="0.45", fontsize=8, **place)
        offset += stage["steps"]
    axes.set_xlabel("optimizer step")
    axes.set_xlim(left=0)


def _lines(
    stages: Sequence[Mapping], names: Mapping[str, str], title: str, scale: float = 1.0, log: bool = False
) -> Figure | None:
    """One figure with a line for each of `names` (label -> figure of the log); None without any."""
    curves = {label: curve(stages, name, scale) for label, name in names.items()}
    curves = {label: points for label, points in curves.items() if any(points)}
    if not curves:
        return None
    last = {label: next(part[-1][1] for part in reversed(points) if part) for label, points in curves.items()}
    named = sorted(sorted(last, key=last.get, reverse=True)[:MOST_LINES])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 2.9))
        axes = figure.subplots()
        for label in sorted(set(curves) - set(named)):
            _draw(axes, curves[label], None, "0.85")
        for position, label in enumerate(named):
            _draw(axes, curves[label], label, f"C{position}")
        axes.set_title(title, loc="left")
        _mark_stages(axes, stages)
        if log:
            axes.set_yscale("log")
        if len(curves) > 1:
            heading = f"highest {MOST_LINES} of {len(curves)}" if len(curves) > MOST_LINES else None
            figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", title=heading)
    return figure


def _score_rows(stages: Sequence[Mapping], task: str, measure: str, scale: float) -> dict[str, dict]:
    """Average, then languages or directions -> {number of the stage: (value, low, high)}."""
    rows: dict[str, dict] = {}
    for number, stage in enumerate(stages):
        report = stage["report"] or NO_FIGURES
        figures = {"average": report["macro"].get(task, {})}
        figures |= {name.partition("/")[2]: group for name, group in report["groups"].items() if group["task"] == task}
        for name, found in figures.items():
            if found.get(measure) is not None:
                low, high = bounds(found, measure)
                rows.setdefault(name, {})[number] = (scale * found[measure], scale * low, scale * high)
    return rows


def _draw_scores(axes: Axes, rows: Mapping[str, Mapping], names: Sequence[str]) -> None:
    height, ticks, seen = 0.0, [], set()
    for values in rows.values():
        places = height + 0.6 * np.arange(len(values))
        for place, (number, (value, low, high)) in zip(places, sorted(values.items()), strict=True):
            reach = [[max(value - low, 0)], [max(high - value, 0)]]
            label = None if number in seen else _plain(names[number])
            axes.errorbar(value, place, xerr=reach, fmt="o", markersize=4, color=f"C{number}", label=label)
            seen.add(number)
        ticks.append(float(places.mean()))
        height = float(places[-1]) + 1.4
    axes.set_yticks(ticks, list(rows))
    axes.set_ylim(height - 0.7, -0.9)
    axes.grid(axis="y", visible=False)
    axes.set_xlim(left=0)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))


def _plain(text: str) -> str:
    """Text that matplotlib does not take for a formula."""
    return text.replace("$", r"\$")
