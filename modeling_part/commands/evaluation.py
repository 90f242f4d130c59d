# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Scores of predictions, their comparison, reports, and experiments of several runs."""

import argparse
from pathlib import Path

from .options import add_device, add_seed, add_verb, at_least, chosen


def score(options: argparse.Namespace) -> None:
    """Predictions to a report beside them."""
    from ..evaluation.reports import print_report, write_report
    from ..evaluation.scoring import PREDICTIONS_FILE, UNNAMED_FILE, read_predictions, score

    settings = chosen(options, "seed", "bleu_tokenizer", "simplify_chinese")
    unnamed = options.predictions.with_name(UNNAMED_FILE)
    if options.predictions.name == PREDICTIONS_FILE and unnamed.is_file():
        settings["unnamed"] = read_predictions(unnamed)
    report = score(read_predictions(options.predictions), **settings)
    write_report(report, options.predictions.parent)
    print_report(report, str(options.predictions.parent))


def compare(options: argparse.Namespace) -> None:
    """Reports side by side."""
    from ..evaluation.comparison import compare

    compare(options.reports, seed=options.seed)


def report(options: argparse.Namespace) -> None:
    """The stages of a run side by side, or one stage; with analyses where they are asked for."""
    from ..evaluation.run_report import run_report, stage_report
    from ..evaluation.scoring import PREDICTIONS_FILE

    if any((options.folder / name).is_file() for name in ("stage.json", PREDICTIONS_FILE)):
        if options.analyses:
            raise ValueError(
                f"--analyses compares the stages of a run, and {options.folder} is one: give the run's folder."
            )
        print(f"Written: {stage_report(options.folder)}")
        return
    if options.analyses:
        from ..analysis.run_pictures import analyze_run

        analyze_run(options.folder, device=options.device)
    run_report(options.folder)
    print(f"Written: {options.folder / 'report.html'}")


def experiment(options: argparse.Namespace) -> None:
    """Several recipes from the same seeds."""
    from ..evaluation.experiments import run_experiment

    settings = chosen(options, "launch", "folder", "overlays")
    run_experiment(options.recipes, options.seeds, options=options.passed_on, **settings)


def add_evaluation(verbs: argparse._SubParsersAction) -> None:
    """Add `score`, `compare`, `report` and `experiment`."""
    verb = add_verb(verbs, score, "write report.json and report.md beside a predictions.jsonl")
    verb.add_argument("predictions", type=Path, metavar="PREDICTIONS")
    add_seed(verb, "of the bootstrap")
    verb.add_argument("--bleu_tokenizer", help="one sacrebleu tokenizer for all directions, such as flores200")
    verb.add_argument("--simplify_chinese", action="store_true", help="compare Chinese in simplified characters")
    verb = add_verb(verbs, compare, "two or more reports side by side; the first is the baseline")
    verb.add_argument(
        "reports", type=Path, nargs="+", metavar="REPORT", help="report.json with predictions.jsonl, or their folder"
    )
    add_seed(verb, "of bootstrap and randomisation")
    summary = "gather the stages of a run into report.html, report.md, report.json and loss.png"
    verb = add_verb(verbs, report, summary, only_beside={"device": "analyses"})
    verb.add_argument(
        "folder", type=Path, metavar="RUN", help="folder of a run, such as runs/quickstart, or of a stage"
    )
    verb.add_argument("--analyses", action="store_true", help="with pictures of gradients, layers and drift: minutes")
    add_device(verb, "for the analyses, such as cuda:0; the first accelerator by default")
    summary = "train several recipes from the same seeds and compare them"
    verb = add_verb(verbs, experiment, summary, goes_on=lambda options: True)
    verb.usage = "part experiment RECIPE [RECIPE ...] [options] [-- --NAME VALUE ... for every run]"
    verb.add_argument("recipes", nargs="+", metavar="RECIPE", help="the first is what the others are compared with")
    verb.add_argument("--seeds", nargs="+", type=at_least(0), default=[42], help="42 unless given")
    verb.add_argument("--launch", help="command before `-m train_part`; `part train` unless given")
    verb.add_argument("--folder", default="runs", help="where the runs go")
    verb.add_argument("--overlays", nargs="+", default=[], help="recipes laid over each, such as data/sentences")
