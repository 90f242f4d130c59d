# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Systems side by side on the same utterances, and whether they differ by more than chance."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ..data.rows import group_name
from .bootstrap import (
    bootstrap_sums,
    exchanged_differences,
    interval,
    paired_p_value,
    ratio_statistics,
    score_statistics,
    sufficient_statistics,
)
from .metrics import bleu_metric, composed
from .report_file import read_report
from .scoring import PREDICTIONS_FILE, annotate, edit_statistics, prediction_key, read_predictions
from .tables import number, percent, print_table


SIGNIFICANT = 0.05


def _load_systems(report_paths: Sequence[Path]) -> tuple[dict[str, list[dict]], Mapping]:
    """Annotated predictions by system name, reduced to the rows all systems have and in the same order; settings."""
    report_paths = [path / "report.json" if path.is_dir() else path for path in report_paths]
    names = ["/".join(path.resolve().parts[-3:-1]) for path in report_paths]
    if len(set(names)) < len(names):
        names = [str(path.parent) for path in report_paths]
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise ValueError(
            f"Comparing needs at least two different reports; got {[str(path) for path in report_paths]}."
        )
    counted = []
    by_key: list[dict[tuple, dict]] = []
    for path in report_paths:
        predictions = path.with_name(PREDICTIONS_FILE)
        for needed in (path, predictions):
            if not needed.exists():
                raise FileNotFoundError(f"{needed} does not exist; comparing needs report.json and predictions.jsonl.")
        settings = read_report(path)["settings"]
        counted.append({name: settings[name] for name in ("simplify_chinese", "bleu_tokenizer")})
        rows = annotate(read_predictions(predictions), simplify_chinese=settings["simplify_chinese"])
        by_key.append({prediction_key(row): row for row in rows})
    if any(settings != counted[0] for settings in counted):
        raise ValueError(
            f"The reports were counted differently: {dict(zip(names, counted, strict=True))}; score them alike."
        )
    common = [key for key in by_key[0] if all(key in rows for rows in by_key)]
    if not common:
        raise ValueError("The systems have no row in common (corpus, id, task and languages).")
    for key in common:
        references = {rows[key]["reference"] for rows in by_key}
        if len(references) > 1:
            raise ValueError(f"The systems were scored against different references for {key}: {sorted(references)}.")
    left_out = {name: len(rows) - len(common) for name, rows in zip(names, by_key, strict=True)}
    if any(left_out.values()):
        print(f"Only the {len(common)} rows that all systems have are compared; left out: {left_out}")
    return {name: [rows[key] for key in common] for name, rows in zip(names, by_key, strict=True)}, counted[0]


# By system: a measure, its values over the bootstrap samples, and its differences from the first system's, as they are and
# with answers exchanged.
Figures = dict[str, tuple[float, np.ndarray, np.ndarray]]


def _measure(
    systems: Mapping[str, Sequence[Mapping]],
    measure: str,
    *,
    samples: int,
    seed: Sequence[int],
    bleu_tokenizer: str | None,
) -> Figures:
    """A measure of all systems on one group."""
    if measure == "error_rate":
        score, counts = ratio_statistics, {name: edit_statistics(rows) for name, rows in systems.items()}
    else:
        metric = bleu_metric(next(iter(systems.values()))[0]["target_lang"], bleu_tokenizer)
        score, counts = partial(score_statistics, metric), {}
        for name, rows in systems.items():
            texts = (composed([row[side] for row in rows]) for side in ("hypothesis", "reference"))
            counts[name] = sufficient_statistics(metric, *texts)
    first = next(iter(counts.values()))
    drawn = {"samples": samples, "seed": seed}
    return {
        name: (
            float(score(statistics.sum(axis=0, keepdims=True))[0]),
            score(bootstrap_sums(statistics, **drawn)),
            exchanged_differences(score, first, statistics, **drawn),
        )
        for name, statistics in counts.items()
    }


def compare_predictions(
    systems: Mapping[str, Sequence[Mapping]],
    *,
    samples: int = 1000,
    seed: int = 0,
    bleu_tokenizer: str | None = None,
) -> list[dict]:
    """Compares systems with the first one, per group and on average over the groups of a task.

    Args:
        systems: annotated predictions by system name, the same rows in the same order.
        samples: of the bootstrap, each of which draws the same utterances for all systems, and of the randomisation.
        seed: of both.
        bleu_tokenizer: as in `scoring.score`.

    Returns:
        One dict per measure and group: `group` (`asr/fr` or `asr, average`), `measure` (`error_rate`, a
        fraction, or `bleu`), `utterances` and `systems`: by name `value`, its `interval` and, except for
        the first, `difference`, `difference_interval` and two-sided `p_value`.
    """
    first, *others = systems
    positions = defaultdict(list)
    for position, row in enumerate(systems[first]):
        positions[group_name(row)].append(position)
    results = []
    averages: dict[tuple[str, str], list] = defaultdict(list)
    for index, (group, members) in enumerate(sorted(positions.items())):
        task = group.split("/")[0]
        in_group = {name: [rows[position] for position in members] for name, rows in systems.items()}
        measures = [] if task == "asr" else ["bleu"]
        if edit_statistics(in_group[first])[:, 1].any():
            measures.append("error_rate")  # without a single reference word there is no rate
        for measure in measures:
            figures = _measure(in_group, measure, samples=samples, seed=(seed, index), bleu_tokenizer=bleu_tokenizer)
            averages[task, measure].append((len(members), figures))
            results.append(_comparison(group, measure, len(members), figures, first, others))
    for (task, measure), parts in averages.items():
        figures = {
            name: tuple(np.mean([part[name][at] for _, part in parts], axis=0) for at in range(3)) for name in systems
        }
        utterances = sum(count for count, _ in parts)
        results.append(_comparison(f"{task}, average", measure, utterances, figures, first, others))
    return results


def _comparison(
    group: str, measure: str, utterances: int, figures: Figures, first: str, others: Sequence[str]
) -> dict:
    systems = {
        name: {"value": float(value), "interval": interval(samples)} for name, (value, samples, _) in figures.items()
    }
    for name in others:
        _, samples, exchanged = figures[name]
        systems[name].update(
            difference=float(exchanged[0]),
            difference_interval=interval(samples - figures[first][1]),
            p_value=paired_p_value(exchanged),
        )
    return {"group": group, "measure": measure, "utterances": utterances, "systems": systems}


def compare(report_paths: Sequence[str | Path], *, samples: int = 1000, seed: int = 0) -> list[dict]:
    """Prints two or more reports side by side and returns what [`compare_predictions`] found.

    Args:
        report_paths: `report.json` files, each with its `predictions.jsonl` beside it, or their folders; the first is the
            baseline.
        samples: of bootstrap and randomisation.
        seed: of both.

    Raises:
        FileNotFoundError: a report or its predictions are missing.
        ValueError: fewer than two reports, no row in common, or rows counted against different references or settings.
    """
    systems, settings = _load_systems([Path(path) for path in report_paths])
    results = compare_predictions(systems, samples=samples, seed=seed, bleu_tokenizer=settings["bleu_tokenizer"])
    first, *others = systems
    rows = []
    for result in results:
        form = percent if result["measure"] == "error_rate" else number
        cells = [form(result["systems"][first]["value"])]
        for name in others:
            figure = result["systems"][name]
            star = "*" if figure["p_value"] < SIGNIFICANT else " "
            sign = "+" if figure["difference"] >= 0 else "−"
            change = f"{sign}{form(abs(figure['difference']))}"
            cells.append(f"{form(figure['value'])} ({change}, p {figure['p_value']:.3f}{star})")
        label = "error %" if result["measure"] == "error_rate" else "BLEU"
        rows.append([result["group"], label, str(result["utterances"]), *cells])
    print_table("Comparison", ["group", "measure", "utterances", first, *others], rows)
    print(
        f"In brackets: difference from {first} and its two-sided p (approximate randomisation, {samples} samples, seed {seed}; "
        f"* below {SIGNIFICANT}; not corrected for the number of comparisons)."
    )
    return results
