# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Several recipes from the same seeds, and their comparison on the same utterances.

    part experiment baseline_2stage part no_text_tasks --seeds 42 43
    part experiment baseline_2stage part --overlays data/sentences --folder runs/sentences
    part experiment baseline_2stage part --launch "accelerate launch --config_file my.yaml" -- --bf16 false

A run is `runs/RECIPE-SEED`; stages that are finished are not run again, and others go on from their last checkpoint, so
that a list that was cut off goes on with the same command. A stage that two recipes train alike from the same seed is
trained once. What follows `--` goes to every run.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil

from ..data.corpus_spec import LISTS, CorpusSpec
from ..data.expansion import corpus_specs
from ..recipes.arguments import check_recipe
from ..recipes.files import CheckpointError, read_json
from ..recipes.program import part_command
from ..recipes.signals import handling
from ..recipes.user_errors import take_debug
from .comparison import compare
from .report_file import read_report
from .tables import number, percent, print_table


# Of each run by its recipe, its seed, and where it is: options that give all of them the same, and what to give instead.
OF_ONE_RUN = {"seed": "--seeds", "output_dir": "--folder"}
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)  # exit status of a trainer that was told to stop
SECONDS = 2  # between two looks at what a run has started
MEASURES = (
    ("asr", "error_rate", "error %", percent),
    ("s2tt", "bleu", "BLEU", number),
    ("s2tt", "chrf", "chrF", number),
    ("mt", "bleu", "BLEU", number),
)


def run_recipes(
    recipes: Sequence[str],
    seeds: Sequence[int],
    *,
    launch: str | None = None,
    folder: str | Path = "runs",
    overlays: Sequence[str] = (),
    options: Sequence[str] = (),
) -> dict[int, list[Path]]:
    """Train every recipe from every seed, one after the other.

    Args:
        recipes: names or files, as for `train_part.py`.
        launch: the command before `-m train_part`; None: `part train`.
        folder: gets a folder `NAME-SEED` per run.
        overlays: recipes whose keys replace those of each of `recipes`, such as other data.
        options: further arguments of `train_part.py`.

    Returns:
        By seed, the `report.json` of the last stage of each recipe, in the order of `recipes`; none after a dry run.

    Raises:
        ValueError: two recipes or seeds are the same, so that two runs would share a folder; or a recipe cannot be trained,
            or not be compared. Nothing has been trained then.
        FileNotFoundError: there is no such recipe, or a run left no report.
        subprocess.CalledProcessError: a run failed.
        KeyboardInterrupt: after Ctrl-C, SIGTERM or SIGHUP, or when a run alone was told to stop, and it has saved where it
            stands.
    """
    for what, names in (("recipes", [Path(recipe).stem for recipe in recipes]), ("seeds", seeds)):
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise ValueError(
                f"Two of the {what} are {twice[0]!r}, and both runs would be in {Path(folder)}{os.sep}RECIPE-SEED, where the second "
                "would find the first one finished: rename one, or leave it out."
            )
    only_plans = _check_comparable(recipes, overlays, options)
    program = (
        [*shlex.split(launch), "-m", "train_part"] if launch else [sys.executable, "-m", "modeling_part", "train"]
    )
    reports: dict[int, list[Path]] = {seed: [] for seed in seeds}
    for seed in seeds:
        for recipe in recipes:
            run = Path(folder) / f"{Path(recipe).stem}-{seed}"
            settings = ["--seed", str(seed), "--output_dir", str(run), "--resume", "true"]
            if before := [str(path.parents[1]) for path in reports[seed]]:
                settings += ["--reuse_runs", *before]
            status = _finish([*program, recipe, *overlays, *settings, *options])
            if status in STOPPED:
                raise KeyboardInterrupt
            if status:
                # Not the whole command: among its other words may be a token.
                raise subprocess.CalledProcessError(status, f"train_part {recipe}")
            if only_plans:
                continue
            report = run / _last_stage(run)["name"] / "report.json"
            if not report.is_file():
                raise FileNotFoundError(
                    f"{report} is not there: the last stage that {recipe!r} has trained predicted no `test_data` to compare."
                )
            reports[seed].append(report)
    return reports


def _check_comparable(recipes: Sequence[str], overlays: Sequence[str], options: Sequence[str]) -> bool:
    """Whether the recipes only show their plans (`dry_run`), and so leave nothing to compare.

    Raises:
        ValueError: one cannot be trained, or would leave nothing to compare with the others; none has been trained yet.
    """
    for word in options:
        name = word.split("=")[0].removeprefix("--").replace("-", "_")
        if word.startswith("--") and name in OF_ONE_RUN:
            raise ValueError(
                f"--{name} would be the same for every run; give {OF_ONE_RUN[name]} before the `--` instead."
            )
    options, _ = take_debug(options)  # a word of the trainer's, no setting of a recipe
    checked = {recipe: check_recipe([recipe, *overlays, "--output_dir", "runs", *options]) for recipe in recipes}
    planned = [recipe for recipe, (_, _, is_dry_run) in checked.items() if is_dry_run]
    if planned and len(planned) < len(checked):
        others = [recipe for recipe in recipes if recipe not in planned]
        raise ValueError(
            f"The recipe {planned[0]!r} says `dry_run: true` and {others[0]!r} does not, so that there would be nothing to "
            "compare it with: say `-- --dry_run true` or `-- --dry_run false` for all."
        )
    if planned:
        return True
    for recipe, (data, plan, _) in checked.items():
        if not data.test_data:
            raise ValueError(f"The recipe {recipe!r} has no `test_data` to compare the runs on: add some to it.")
        if not plan[-1].losses.get("nll"):
            raise ValueError(
                f"The recipe {recipe!r} ends in stage {plan[-1].name!r}, whose `losses` have no nll: it answers nothing that "
                "could be compared. Add a stage that does."
            )
    _check_common_rows({recipe: corpus_specs(data.test_data) for recipe, (data, _, _) in checked.items()})
    return False


def _check_common_rows(tested: Mapping[str, Sequence[CorpusSpec]]) -> None:
    """Raise ValueError where recipes have no `test_data` in common; print which have some, and some of their own."""
    first, *others = tested
    common = tested[first]
    for recipe in others:
        common = [spec for spec in common if any(_overlap(spec, other) for other in tested[recipe])]
        if not common:
            raise ValueError(
                f"The recipe {recipe!r} shares no entry of `test_data` (reader, path, split, name) with those before it, so that "
                "they would have no answers to compare: give all the same, such as with --overlays."
            )
    differing = [recipe for recipe in others if set(map(_scope, tested[recipe])) != set(map(_scope, tested[first]))]
    if differing:
        print(
            f"Other `test_data` than {first!r} has: {', '.join(map(repr, differing))}. The comparisons are of the rows that all "
            "have; the averages are of all that each has."
        )


def _place(spec: CorpusSpec) -> tuple[object, ...]:
    """Where an entry's rows are from, however its path is written, and the corpus they name: what makes rows the same."""
    return spec.reader, Path(spec.path).resolve(), spec.split, spec.settings.get("config"), spec.corpus


def _scope(spec: CorpusSpec) -> tuple[object, ...]:
    """What an entry takes from its place."""
    return _place(spec), *(frozenset(getattr(spec, name) or ()) for name in LISTS)


def _overlap(one: CorpusSpec, other: CorpusSpec) -> bool:
    """Whether two entries can have a row in common."""
    pairs = ((one.tasks, other.tasks), (one.languages, other.languages))
    return _place(one) == _place(other) and all(
        not first or not second or set(first) & set(second) for first, second in pairs
    )


def _finish(command: Sequence[str]) -> int:
    """Run a command to its end; its exit status.

    Ctrl-C reaches all that the command has started, and the trainer saves: it is waited for, also where its launcher is
    gone before it, so that nothing goes on unseen. What asks this process alone to stop is passed on and does the same.

    Raises:
        KeyboardInterrupt: after all of that.
    """
    process, family = psutil.Popen(command), []
    was_told = False

    def pass_on(signal_number: int, frame: object) -> None:
        nonlocal was_told, family
        was_told = True
        family = _descendants(process) or family
        for one in (process, *filter(_hears_ctrl_c, family)):
            with suppress(psutil.NoSuchProcess):
                one.send_signal(signal_number)

    with handling(pass_on):
        try:
            status = None
            while status is None:
                with suppress(psutil.TimeoutExpired):
                    status = process.wait(SECONDS)
                family = _descendants(process) or family
            if not was_told:
                return status
        except KeyboardInterrupt:
            family = _descendants(process) or family
        while any(map(_is_running, (process, *family))):
            time.sleep(0.1)
    raise KeyboardInterrupt


def _hears_ctrl_c(process: psutil.Process) -> bool:
    """Whether a process is in the group of this one; those that load a trainer's data have one of their own."""
    with suppress(ProcessLookupError):
        return os.getpgid(process.pid) == os.getpgrp()
    return False


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    """What a process has started; nobody can tell any more when it is gone."""
    with suppress(psutil.NoSuchProcess):
        return process.children(recursive=True)
    return []


def _is_running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def summarize(recipes: Sequence[str], reports: dict[int, list[Path]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table over all seeds, a row per recipe.

    Mean and range over the seeds of the averages over languages, and of the last stage's dev losses (nats per token),
    which tell recipes apart before their answers do.
    """
    figures = [[_figures(found[index]) for found in reports.values()] for index in range(len(recipes))]
    columns = {f"{task} {label}": form for task, _, label, form in MEASURES}
    columns |= {f"{task} dev loss": lambda value: number(value, 3) for task in ("asr", "s2tt")}
    known = [title for title in columns if any(title in one for row in figures for one in row)]
    rows = []
    for recipe, seeds in zip(recipes, figures, strict=True):
        values = ([one[title] for one in seeds if title in one] for title in known)
        cells = (_mean_and_range(found, columns[title]) for title, found in zip(known, values, strict=True))
        rows.append([Path(recipe).stem, *cells])
    return ["recipe", *known], rows


def _figures(report: Path) -> dict[str, float]:
    """Column -> figure of one run, from the `report.json` of its last stage and that of the run."""
    macro = read_report(report)["macro"]
    figures = {f"{task} {label}": macro.get(task, {}).get(measure) for task, measure, label, _ in MEASURES}
    losses = _last_stage(report.parents[1]).get("dev_loss") or {}
    figures |= {f"{task} dev loss": losses.get(task) for task in ("asr", "s2tt")}
    return {title: figure for title, figure in figures.items() if figure is not None}


def _last_stage(run: Path) -> dict:
    """What the `report.json` of a run says of its last stage."""
    path = run / "report.json"
    content = read_json(path)
    stages = content.get("stages") if isinstance(content, dict) else None
    last = stages[-1] if isinstance(stages, list) and stages else None
    if not isinstance(last, dict) or not isinstance(last.get("name"), str):
        raise CheckpointError(
            f"{path} names no stages of a run; make it anew with `{part_command('report', str(run))}`."
        )
    return last


def _mean_and_range(values: Sequence[float], form: Callable[[float], str]) -> str:
    if not values:
        return "–"
    spread = f" ({form(min(values))} to {form(max(values))})" if len(values) > 1 else ""
    return form(float(np.mean(values))) + spread


def run_experiment(recipes: Sequence[str], seeds: Sequence[int], **settings) -> list[list[str]]:
    """Train every recipe from every seed, print the table over the seeds and their comparison per seed.

    Args:
        recipes: the first is what the others are compared with.
        seeds: of the runs.
        **settings: of [`run_recipes`].

    Returns:
        The rows of the table, see [`summarize`]; none after a dry run.
    """
    reports = run_recipes(recipes, seeds, **settings)
    if not any(reports.values()):
        return []
    header, rows = summarize(recipes, reports)
    print_table(f"Averages over languages, {len(seeds)} seed(s)", header, rows, text_columns=1)
    if len(recipes) > 1:  # after the table, which does not ask for rows in common
        for seed, found in reports.items():
            print(f"\nSeed {seed}")
            compare(found)
    return rows
