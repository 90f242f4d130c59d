# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Predictions to figures: per language and direction, with intervals, error kinds and signs of a broken model.

A *prediction* is a dict with `id`, `corpus`, `task`, `source_lang`, `target_lang`, `reference`,
`hypothesis` and, where known, `source_text`; a row that failed has `error` (why) and an empty hypothesis, and
counts as deleted from start to end. A *group* is a task in a language or direction: `asr/fr`, `s2tt/en-fr`.

How texts are normalised is in `normalization.py`, one rule for all languages; BLEU and chrF see them as they are.
"""

from __future__ import annotations

import codecs
import importlib.metadata
import json
import logging
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import sacrebleu

from ..data.corpus_spec import fits
from ..data.files import check_text, parse_json
from ..data.rows import group_name, shortened
from ..prompts_part import SURROGATES, TASKS
from .bootstrap import CONFIDENCE, bootstrap_sums, interval, ratio_statistics, score_statistics, sufficient_statistics
from .metrics import bleu_metric, composed, count_edits
from .normalization import (
    NORMALIZATION,
    check_languages,
    counts_characters,
    normalize_text,
    normalizer_name,
    scored_units,
)
from .two_heads import calibration, disagreement, label_distance, listed
from .wrong_language import is_wrong_language, vocabularies_of


logger = logging.getLogger(__name__)
PREDICTIONS_FILE = "predictions.jsonl"
UNNAMED_FILE = "predictions_unnamed.jsonl"  # transcripts that were asked for without the name of the language
REQUIRED_FIELDS = ("id", "corpus", "task", "source_lang", "target_lang", "reference", "hypothesis")

# A loop is a hypothesis longer than its reference that ends in the same words this many times over, ...
LOOP_REPEATS = 4

# ... or that deflates further than this: Whisper's own threshold for a failed decoding.
LOOP_COMPRESSION_RATIO = 2.4


def check_scorable(languages: Iterable[str], translation_targets: Iterable[str] = ()) -> None:
    """Checks before training what would otherwise fail after it.

    Args:
        languages: BCP 47 codes of all texts that will be scored.
        translation_targets: those translated into.

    Raises:
        ValueError: lists the languages without a text normaliser.
        ImportError: the BLEU tokenizer of a target language is not installed; names the extra.
    """
    translation_targets = set(translation_targets)
    check_languages([*languages, *translation_targets])
    for language in sorted(translation_targets):
        bleu_metric(language)


def prediction_key(row: Mapping) -> tuple[str, str, str, str, str]:
    """What makes a row one of its kind: corpus, id, task, source and target language."""
    return row["corpus"], row["id"], row["task"], row["source_lang"], row["target_lang"]


def refuse_same_keys(keys: Sequence[tuple], what: str, fix: str) -> None:
    """Raise ValueError where two of `what` have the same [`prediction_key`]."""
    key, count = Counter(keys).most_common(1)[0] if keys else (None, 0)
    if count > 1:
        raise ValueError(f"{count} {what} share corpus, id, task and languages {key}; {fix}")


def is_looping(hypothesis: Sequence[str], reference: Sequence[str]) -> bool:
    """True for units that repeat their tail `LOOP_REPEATS` times or deflate by more than `LOOP_COMPRESSION_RATIO`.

    Never true of a hypothesis that is no longer than its reference, or that ends as it does, so that "seven seven seven
    seven" may be said. Letters are compressed, one byte each: in UTF-8 most scripts repeat themselves in every letter.
    """
    if len(hypothesis) <= len(reference):
        return False
    hypothesis, reference = list(hypothesis), list(reference)
    for length in range(1, len(hypothesis) // LOOP_REPEATS + 1):
        repeated = hypothesis[-length:] * LOOP_REPEATS
        if hypothesis[-len(repeated) :] == repeated and reference[-len(repeated) :] != repeated:
            return True
    are_characters = all(len(unit) == 1 for unit in hypothesis)
    text = ("" if are_characters else " ").join(hypothesis)
    numbers = {letter: number % 256 for number, letter in enumerate(dict.fromkeys(text))}
    letters = bytes(numbers[letter] for letter in text)
    return len(letters) / len(zlib.compress(letters)) > LOOP_COMPRESSION_RATIO


def check_prediction(row: Mapping) -> None:
    """Raise ValueError, naming row, field, value and fix, where a prediction cannot be scored."""
    if not isinstance(row, Mapping):
        raise ValueError(
            f"Prediction {shortened(row)} is a {type(row).__name__}; give an object with {REQUIRED_FIELDS}."
        )
    missing = [field for field in REQUIRED_FIELDS if row.get(field) is None]
    if missing:
        raise ValueError(
            f"Prediction {row.get('id')!r} has no {', '.join(missing)}; every row needs {REQUIRED_FIELDS}."
        )
    for field in (*REQUIRED_FIELDS, "source_text", "error", "ctc_hypothesis"):
        value = row.get(field)
        if value is not None and not isinstance(value, str):
            raise ValueError(
                f"Prediction {row['id']!r}: {field!r} is {shortened(value)}, a {type(value).__name__}; write it as text."
            )
        if value is not None and SURROGATES.search(value):
            raise ValueError(
                f"Prediction {row['id']!r}: {field!r} holds half of a surrogate pair ({shortened(value)}), which is no "
                "text; repair or leave out the row."
            )
    confidence = row.get("confidence")
    values = list(confidence.values()) if isinstance(confidence, Mapping) else []
    is_share = all(one is None or (fits(one, float) and 0 <= one <= 1 + 1e-6) for one in values)
    if not (confidence is None or isinstance(confidence, Mapping)) or not is_share:
        raise ValueError(
            f"Prediction {row['id']!r}: 'confidence' is {shortened(confidence)}; it holds numbers from 0 to 1, or leave it out."
        )
    if row["task"] not in TASKS:
        raise ValueError(
            f"Prediction {row['id']!r}: task {row['task']!r} is none of {', '.join(TASKS)}; correct it in the file."
        )
    if (row["task"] == "asr") != (row["source_lang"] == row["target_lang"]):
        raise ValueError(
            f"Prediction {row['id']!r}: {row['task']} from {row['source_lang']!r} to {row['target_lang']!r}, but asr, "
            "and only asr, keeps the language; correct task or languages."
        )


def annotate(predictions: Iterable[Mapping], *, simplify_chinese: bool = False) -> list[dict]:
    """Adds to each prediction what is counted about it.

    Returns:
        Copies of the rows with `normalized_reference`, `normalized_hypothesis`, `unit` ("word" or "character"),
        `hits`, `substitutions`, `deletions`, `insertions`, `error_rate` (errors over reference units, over
        one where the reference has none), `empty`, `looping`, `wrong_language`, and maybe `disagreement` and
        `label_distance`, see `two_heads.py`.

    Raises:
        ValueError: a row lacks a field or holds something else than text, has an unknown task or languages that do not
            fit it, is there twice, or its language has no text normaliser.
    """
    rows = list(predictions)
    for row in rows:
        check_prediction(row)
    rows = [dict(row) for row in rows]
    fix = "each would count: keep one of them, or give every row an id of its own."
    refuse_same_keys([*map(prediction_key, rows)], "predictions", fix)
    vocabularies = vocabularies_of(rows)
    for row in rows:
        language = row["target_lang"]
        for side in ("reference", "hypothesis"):
            row[f"normalized_{side}"] = normalize_text(row[side], language, simplify_chinese=simplify_chinese)
        reference = scored_units(row["normalized_reference"], language)
        hypothesis = scored_units(row["normalized_hypothesis"], language)
        counts = count_edits(reference, hypothesis)
        failed = row.get("error") is not None
        row.update(
            unit="character" if counts_characters(language) else "word",
            hits=counts.hits,
            substitutions=counts.substitutions,
            deletions=counts.deletions,
            insertions=counts.insertions,
            error_rate=counts.errors / max(counts.reference_units, 1),
            empty=not failed and not hypothesis and bool(reference),
            looping=is_looping(hypothesis, reference),
            wrong_language=is_wrong_language(row, vocabularies),
        )
        for name, figure in (("disagreement", disagreement), ("label_distance", label_distance)):
            if (differs := figure(row, simplify_chinese=simplify_chinese)) is not None:
                row[name] = differs
    return rows


def edit_statistics(rows: Sequence[Mapping]) -> np.ndarray:
    """Errors and reference units of annotated rows, `(rows, 2)`."""
    return np.array(
        [
            [
                row["substitutions"] + row["deletions"] + row["insertions"],
                row["hits"] + row["substitutions"] + row["deletions"],
            ]
            for row in rows
        ]
    )


def _score_group(
    rows: Sequence[Mapping], *, bootstrap_samples: int, seed: Sequence[int], bleu_tokenizer: str | None
) -> tuple[dict, dict[str, np.ndarray]]:
    """The figures of one group, and its measures in every bootstrap sample."""
    first = rows[0]
    statistics = edit_statistics(rows)
    errors, units = (int(total) for total in statistics.sum(axis=0))
    resampled = {"error_rate": ratio_statistics(bootstrap_sums(statistics, samples=bootstrap_samples, seed=seed))}
    result = {
        "task": first["task"],
        "source_lang": first["source_lang"],
        "target_lang": first["target_lang"],
        "utterances": len(rows),
        "failed": sum(row.get("error") is not None for row in rows),
        "error_metric": "CER" if first["unit"] == "character" else "WER",
        "normalizer": normalizer_name(first["target_lang"]),
        "error_rate": errors / units if units else None,
        "error_rate_interval": interval(resampled["error_rate"]),
        "reference_words": units if first["unit"] == "word" else None,
        "reference_characters": sum(len(row["normalized_reference"].replace(" ", "")) for row in rows),
        **{kind: sum(row[kind] for row in rows) for kind in ("hits", "substitutions", "deletions", "insertions")},
        **{sign: sum(row[sign] for row in rows) / len(rows) for sign in ("empty", "looping", "wrong_language")},
    }
    if first["task"] != "asr":
        hypotheses, references = (composed([row[side] for row in rows]) for side in ("hypothesis", "reference"))
        for name, metric in (("bleu", bleu_metric(first["target_lang"], bleu_tokenizer)), ("chrf", sacrebleu.CHRF())):
            statistics = sufficient_statistics(metric, hypotheses, references)
            sums = bootstrap_sums(statistics, samples=bootstrap_samples, seed=seed)
            resampled[name] = score_statistics(metric, sums)
            result[name] = float(score_statistics(metric, statistics.sum(axis=0, keepdims=True))[0])
            result[f"{name}_interval"] = interval(resampled[name])
            result[f"{name}_signature"] = str(metric.get_signature())
    return result, resampled


def _macro_averages(groups: Mapping[str, Mapping], resampled: Mapping[str, Mapping[str, np.ndarray]]) -> dict:
    """Per task, the unweighted mean over languages or directions, with its interval."""
    by_task = defaultdict(list)
    for name, group in groups.items():
        by_task[group["task"]].append(name)
    averages: dict[str, dict] = {}
    for task, names in sorted(by_task.items()):
        averages[task] = {"groups": len(names)}
        for measure in ("error_rate", "bleu", "chrf"):
            with_value = [name for name in names if groups[name].get(measure) is not None]
            if with_value:
                averages[task][measure] = sum(groups[name][measure] for name in with_value) / len(with_value)
                samples = np.mean([resampled[name][measure] for name in with_value], axis=0)
                averages[task][f"{measure}_interval"] = interval(samples)
    return averages


def _score_rows(rows: Sequence[Mapping], *, seed: int, **settings) -> dict:
    by_group = defaultdict(list)
    for row in rows:
        by_group[group_name(row)].append(row)
    groups, resampled = {}, {}
    for position, name in enumerate(sorted(by_group)):
        # A seed for each group: the same draws in groups of one size would tie the languages of an average together.
        groups[name], resampled[name] = _score_group(by_group[name], seed=(seed, position), **settings)
    return {"groups": groups, "macro": _macro_averages(groups, resampled)}


def score(
    predictions: Iterable[Mapping],
    *,
    unnamed: Iterable[Mapping] | None = None,
    bootstrap_samples: int = 1000,
    seed: int = 0,
    bleu_tokenizer: str | None = None,
    simplify_chinese: bool = False,
) -> dict:
    """Scores predictions per task and language or direction.

    Args:
        predictions: rows as the module's docstring says.
        unnamed: answers to its transcription rows, asked without the name of the language.
        bootstrap_samples: resamples of the utterances behind each 95 % interval.
        seed: seed of the resampling.
        bleu_tokenizer: one sacrebleu tokenizer for all directions instead of each target language's own.
        simplify_chinese: compare Chinese in simplified characters.

    Returns:
        A dict fit for JSON. `groups`: by name (`asr/fr`, `s2tt/en-fr`) `error_rate` (a fraction; word or
        character errors by `error_metric`, of texts normalised by `normalizer`; of a translation against its one
        reference) with `error_rate_interval`, `utterances`, `failed`, `reference_words`, `reference_characters`,
        `substitutions`, `deletions`, `insertions`, the shares `empty`, `looping`, `wrong_language` and,
        of translations, `bleu` and `chrf` (0 to 100) with interval and signature. `macro`: unweighted means per
        task, with intervals. `unnamed`: the same two of those answers. `corpora`: of each corpus, where there are
        several. `disagreements`, `doubtful_labels` and `calibration`, see `two_heads.py`, where there is an alignment
        head, and confidence.
        `settings`: how it was counted.

    Raises:
        ValueError: no predictions, or a row as [`annotate`] refuses it.
        ImportError: BLEU into a language whose tokenizer is not installed.
    """
    for name, value, least in (("bootstrap_samples", bootstrap_samples, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"Setting {name!r} is {value!r}, but must be a whole number, {least} or more.")
    rows = annotate(predictions, simplify_chinese=simplify_chinese)
    if not rows:
        raise ValueError("There are no predictions to score; is the test set empty?")
    settings = {"bootstrap_samples": bootstrap_samples, "seed": seed, "bleu_tokenizer": bleu_tokenizer}
    report = _score_rows(rows, **settings)
    if unnamed is not None:
        report["unnamed"] = _score_rows(annotate(unnamed, simplify_chinese=simplify_chinese), **settings)
    corpora = sorted({row["corpus"] for row in rows})
    if len(corpora) > 1:
        report["corpora"] = {
            corpus: _score_rows([row for row in rows if row["corpus"] == corpus], **settings) for corpus in corpora
        }
    if any("disagreement" in row for row in rows):
        report |= listed(rows)
    if calibrated := calibration(rows):
        report["calibration"] = calibrated
    packages = ("jiwer", "sacrebleu", "transformers", "py3langid")
    report["settings"] = {
        **settings,
        "confidence": CONFIDENCE,
        "simplify_chinese": simplify_chinese,
        "normalization": NORMALIZATION,
        "versions": {package: importlib.metadata.version(package) for package in packages},
    }
    return report


def write_predictions(predictions: Iterable[Mapping], path: str | Path) -> None:
    """Writes one JSON object per line; the file appears whole or not at all."""
    path = Path(path)
    temporary = path.with_name(path.name + ".new")
    with temporary.open("w", encoding="utf-8") as file:
        for row in predictions:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    temporary.replace(path)


def read_predictions(path: str | Path) -> list[dict]:
    """Reads what [`write_predictions`] wrote.

    A last line that a killed process left unfinished is left out with a warning.

    Raises:
        ValueError: the file is no text or not UTF-8, or another line is not a JSON object; names file and line.
    """
    content = Path(path).read_bytes().removeprefix(codecs.BOM_UTF8)
    rows = []
    lines = content.split(b"\n")
    check_text(Path(path), lines[0].strip(b"\0"))  # a line that a failing machine left as NUL bytes is unfinished
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line.decode("utf-8"))
        except ValueError as error:  # BrokenRowError and UnicodeDecodeError are its subclasses
            if number == len(lines):
                logger.warning("%s ends in an unfinished line, which is left out", path)
                break
            raise ValueError(f"{path}, line {number} is not JSON ({error}); delete the line or the file.") from error
        if not isinstance(row, dict):
            raise ValueError(
                f"{path}, line {number} is {shortened(row)}, not an object; write one prediction a line, with {REQUIRED_FIELDS}."
            )
        rows.append(row)
    return rows
