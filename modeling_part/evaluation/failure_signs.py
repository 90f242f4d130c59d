# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""The method's failure signs, per language (paper, section 4)."""

from collections.abc import Mapping

from .reports import answers_in_another_language
from .tables import number, percent


# Warnings of failure_signs; error rates as fractions, BLEU on its scale of 0 to 100.
ASR_REGRESSION = 0.01
FAR_FROM_AVERAGE_FACTOR = 2.0
FAR_FROM_AVERAGE = 0.10
BLEU_LOSS = 1.0
IN_ANOTHER_LANGUAGE = 0.10


def same_normalization(report: Mapping, other: Mapping) -> bool:
    """Whether the texts of two reports were normalised by the same rules, so that their error rates can be compared."""
    rules, others = (one["settings"].get("normalization", 1) for one in (report, other))
    return rules == others


def failure_signs(
    after: Mapping,
    before: Mapping | None = None,
    *,
    training_rows: Mapping[str, int] | None = None,
) -> list[str]:
    """The paper's signs that a stage went wrong, as sentences; empty when there are none.

    - ASR regresses (the paper: after `joint`): a language's error rate rises by more than `ASR_REGRESSION` and the
      former value lies below the new 95 % interval.
    - A language is far from the average: its ASR error rate is more than `FAR_FROM_AVERAGE_FACTOR` times the mean of
      the other languages' and more than `FAR_FROM_AVERAGE` above it.
    - BLEU of a well-provided direction falls by more than `BLEU_LOSS` and the former value lies above the new 95 %
      interval. Well provided: as many training rows as the median direction or more; every direction where
      `training_rows` is None.

    And one of ours: where the language is not named, more than `IN_ANOTHER_LANGUAGE` of its transcripts are in another.

    Args:
        after: report (`scoring.score`) of the stage to judge.
        before: report of its parent stage; None compares nothing.
        training_rows: rows per group (`s2tt/en-fr`) that the stage was trained on.
    """
    warnings = []
    former = before["groups"] if before else {}
    asr = {name: group for name, group in after["groups"].items() if group["task"] == "asr" and group["utterances"]}
    rates = {name: group["error_rate"] for name, group in asr.items() if group["error_rate"] is not None}
    for name, rate in rates.items():
        old = former.get(name, {}).get("error_rate")
        if old is not None and rate - old > ASR_REGRESSION and old < _bounds(asr[name], "error_rate")[0]:
            warnings.append(
                f"{name} got worse: {asr[name]['error_metric']} {percent(old)} % before, {percent(rate)} %"
            )
        others = [other for other_name, other in rates.items() if other_name != name]
        average = sum(others) / len(others) if others else rate
        if rate > FAR_FROM_AVERAGE_FACTOR * average and rate - average > FAR_FROM_AVERAGE:
            warnings.append(f"{name} is far from the average: {percent(rate)} %, the others {percent(average)} %")
    directions = {name: group for name, group in after["groups"].items() if group.get("bleu") is not None}
    provided = {name: (training_rows or {}).get(name, 0) for name in directions}
    median = sorted(provided.values())[len(provided) // 2] if provided else 0
    for name, group in directions.items():
        old = former.get(name, {}).get("bleu")
        fell = old is not None and old - group["bleu"] > BLEU_LOSS and old > _bounds(group, "bleu")[1]
        if fell and provided[name] >= median:
            warnings.append(f"{name} lost BLEU: {number(old)} before, {number(group['bleu'])}")
    for name, group in after.get("unnamed", {"groups": {}})["groups"].items():
        if group["wrong_language"] > IN_ANOTHER_LANGUAGE:
            count = answers_in_another_language(group)
            warnings.append(f"{name} is answered in another language where it is not named: {count}")
    return warnings


def _bounds(group: Mapping, measure: str) -> list[float]:
    """The interval of a measure; the measure itself twice where it has none."""
    return group.get(f"{measure}_interval") or [group[measure]] * 2
