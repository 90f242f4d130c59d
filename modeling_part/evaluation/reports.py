# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""The report of one set of predictions, as a person reads it; that of a run is in `run_report.py`."""

from collections.abc import Mapping
from pathlib import Path

from ..recipes.files import write_json
from .report_file import LISTS
from .tables import markdown_cell, markdown_code, markdown_table, number, percent, print_table, with_interval


# Of a report from before November 2026: texts were normalised otherwise, English with digits joined.
UNKNOWN_NORMALIZER = "an earlier one"
NORMALIZERS = {
    "english": "Whisper's English normaliser, with digits that are spoken one by one kept apart, as all languages have them",
    "basic": "Whisper's basic normaliser, with marks, apostrophes and digits treated alike in all languages",
    UNKNOWN_NORMALIZER: "of an earlier version, which joined digits spoken in English; not comparable",
}
UNNAMED_TITLE = "Transcription, the language not named"
NOT_PRINTED = ("chrF", "units", "sub", "del", "ins")  # columns that no terminal has room for


def normalizer_notes(report: Mapping) -> list[str]:
    """A sentence for each normaliser of a report, with the languages whose texts it is for."""
    languages: dict[str, set[str]] = {}
    for group in report["groups"].values():
        languages.setdefault(group.get("normalizer", UNKNOWN_NORMALIZER), set()).add(group["target_lang"])
    return [
        f"{name} ({', '.join(sorted(of))}): {NORMALIZERS.get(name, name)}" for name, of in sorted(languages.items())
    ]


def report_rows(report: Mapping) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of one report: averages first, then every language and direction."""
    header = [
        "group",
        "measure",
        "error % [95 %]",
        "BLEU [95 %]",
        "chrF",
        "utterances",
        "failed",
        "units",
        "normaliser",
    ]
    header += ["sub", "del", "ins", "empty %", "looping %", "wrong language %"]
    rows = []
    for task, average in report["macro"].items():
        figures = [
            with_interval(percent(average.get("error_rate")), average.get("error_rate_interval"), 100),
            with_interval(number(average.get("bleu")), average.get("bleu_interval")),
            number(average.get("chrf")),
        ]
        row = [f"{task}, average of {average['groups']}", "", *figures]
        rows.append(row + [""] * (len(header) - len(row)))
    for name, group in report["groups"].items():
        rows.append(
            [
                name,
                group["error_metric"],
                with_interval(percent(group["error_rate"]), group.get("error_rate_interval"), 100),
                with_interval(number(group.get("bleu")), group.get("bleu_interval")),
                number(group.get("chrf")),
                str(group["utterances"]),
                str(group["failed"]),
                str(group["hits"] + group["substitutions"] + group["deletions"]),
                group.get("normalizer", UNKNOWN_NORMALIZER),
                *[str(group[kind]) for kind in ("substitutions", "deletions", "insertions")],
                *[percent(group[sign]) for sign in ("empty", "looping", "wrong_language")],
            ]
        )
    return header, rows


def answers_in_another_language(group: Mapping) -> str:
    """`3 of 12`."""
    return f"{round(group['wrong_language'] * group['utterances'])} of {group['utterances']}"


def _report_markdown(report: Mapping) -> str:
    settings = report["settings"]
    parts = ["# Evaluation\n", markdown_table(*report_rows(report))]
    parts += _two_heads_markdown(report)
    if "unnamed" in report:
        parts += [f"## {UNNAMED_TITLE}\n", markdown_table(*report_rows(report["unnamed"]))]
    for corpus, figures in report.get("corpora", {}).items():
        parts += [f"## {markdown_cell(corpus)}\n", markdown_table(*report_rows(figures))]
    parts.append(
        "Error: word errors (WER) or character errors (CER) per unit of the reference, of a translation against its "
        "one reference. Failed rows count as deleted. Intervals: "
        f"{100 * settings['confidence']:.0f} % by {settings['bootstrap_samples']} bootstrap resamples of the "
        f"utterances, seed {settings['seed']}.\n"
    )
    parts.append("Error rates are of normalised texts; BLEU and chrF of the texts as they are.\n")
    parts.append("\n".join(f"- normaliser {markdown_cell(note)}" for note in normalizer_notes(report)) + "\n")
    signatures = sorted(
        {value for group in report["groups"].values() for key, value in group.items() if key.endswith("_signature")}
    )
    parts += [f"- `{markdown_code(signature)}`" for signature in signatures]
    return "\n".join(parts).rstrip() + "\n"


def _two_heads_markdown(report: Mapping) -> list[str]:
    """Where the two heads disagree, with each other and with the reference, and how far confidence keeps its word."""
    parts = []
    for name, title, note, measure in (
        (
            "disagreements",
            "Where the two heads disagree",
            "Transcripts that the alignment head writes otherwise than the language model.",
            "heads differ %",
        ),
        (
            "doubtful_labels",
            "References that both heads contradict",
            "Look here for wrong labels: how many of the characters the nearer of the two heads writes otherwise.",
            "distance %",
        ),
    ):
        if name not in report:
            continue
        header = [measure, "error %", "language", "id", "reference", "answer", "greedy CTC"]
        rows = [
            [percent(row[LISTS[name]]), percent(row["error_rate"])]
            + [row[field] for field in ("source_lang", "id", "reference", "hypothesis", "ctc_hypothesis")]
            for row in report[name]
        ]
        parts += [f"## {title}\n", f"{note}\n", markdown_table(header, rows) if rows else "Nowhere.\n"]
    if "calibration" in report:
        rows = [
            [kind.replace("_", " "), percent(one["error"]), str(one["utterances"])]
            for kind, one in report["calibration"].items()
        ]
        parts += [
            "## Confidence\n",
            "Mean distance of the confidence in a transcript (0 to 1) from the share of its words that are right:\n",
            markdown_table(["by", "distance %", "utterances"], rows),
        ]
    return parts


def write_report(report: Mapping, folder: str | Path) -> None:
    """Writes `report.json` and `report.md` of a report from `scoring.score` into a folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", report)
    (folder / "report.md").write_text(_report_markdown(report), encoding="utf-8")


def print_report(report: Mapping, title: str) -> None:
    """The report's tables on the terminal, without `NOT_PRINTED`."""
    tables = {title: report} | ({UNNAMED_TITLE: report["unnamed"]} if "unnamed" in report else {})
    for title, part in tables.items():
        header, rows = report_rows(part)
        shown = [column for column, name in enumerate(header) if name not in NOT_PRINTED]
        print_table(title, [header[column] for column in shown], [[row[column] for column in shown] for row in rows])
