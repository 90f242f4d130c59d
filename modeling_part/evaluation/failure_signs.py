# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""The method's failure signs, per language (paper, section 4)."""

import math
from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np

from .report_file import NO_FIGURES, bounds
from .reports import answers_in_another_language
from .tables import number, percent


# Warnings of failure_signs; error rates as fractions, BLEU on its scale of 0 to 100.
ASR_REGRESSION = 0.01
FAR_FROM_AVERAGE_FACTOR = 2.0
FAR_FROM_AVERAGE = 0.10
BLEU_LOSS = 1.0
IN_ANOTHER_LANGUAGE = 0.10
# Of `instability`: entries of the log that are looked at together, and factors.
WINDOW = 5
SPIKE, SPIKE_NATS = 1.5, 0.5
GROWTH, GROWN = 1.5, 4.0


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
        if old is not None and rate - old > ASR_REGRESSION and old < bounds(asr[name], "error_rate")[0]:
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
        fell = old is not None and old - group["bleu"] > BLEU_LOSS and old > bounds(group, "bleu")[1]
        if fell and provided[name] >= median:
            warnings.append(f"{name} lost BLEU: {number(old)} before, {number(group['bleu'])}")
    for name, group in after.get("unnamed", NO_FIGURES)["groups"].items():
        if group["wrong_language"] > IN_ANOTHER_LANGUAGE:
            count = answers_in_another_language(group)
            warnings.append(f"{name} is answered in another language where it is not named: {count}")
    return warnings


def how_to_listen(losses: Mapping | None) -> str:
    """What to do about a stage with these `losses` that does not use its audio."""
    if isinstance(losses, Mapping) and losses.get("ctc") and not losses.get("nll"):  # it aligns and does nothing else
        return (
            "It has learned which tokens are frequent and not yet where they are said. Train longer (`max_steps` or `epochs`), "
            "or give it more audio tokens (a smaller `adapter_conv_stride`)."
        )
    return (
        "It has learned what the texts look like and not yet to listen. Align first (`losses: {ctc: 1}` in a stage before "
        "it, as in the recipe `part_aligned`), or train longer."
    )


def instability(log: Sequence[Mapping], warm_up: float = 0) -> dict[str, str]:
    """The paper's fourth sign, unstable training, in a stage's log: measure -> what shows; empty where nothing does.

    - A loss spikes: the last `WINDOW` entries of a task's loss are all more than `SPIKE` times its best mean of as many
      entries before, and their mean more than `SPIKE_NATS` above it.
    - A gradient norm keeps growing: its medians over the last two windows each are more than `GROWTH` times those of the
      window before, and the last is more than `GROWN` times the lowest, while the loss over these windows does not fall:
      of a loss near its end gradients are as uneven as its batches.

    Entries of the warm-up, whose rates still rise, and those without a finite value count for nothing.

    Args:
        log: entries of training (`loss`, `TASK_loss`, `grad_norm`, `grad_norm/PART`, `step`), in order.
        warm_up: steps of the warm-up.
    """
    signs = {}
    after = [entry for entry in log if entry["step"] > warm_up]
    losses = dict(_finite(after, "loss"))
    for name in dict.fromkeys(chain.from_iterable(after)):
        found = None  # for most: the whole log is looked at with each new line
        if name == "loss" or (name.endswith("_loss") and "/" not in name and "ctc" not in name):
            found = _spike(_finite(after, name))
        elif name.startswith("grad_norm"):
            found = _growth(_finite(after, name), losses)
        if found is not None:
            signs[name] = f"{name} {found}"
    return signs


def _finite(log: Sequence[Mapping], name: str) -> list[tuple[int, float]]:
    """(step, value) of the entries with a finite value."""
    values = [(entry["step"], entry.get(name)) for entry in log]
    return [(step, value) for step, value in values if isinstance(value, (int, float)) and math.isfinite(value)]


def _spike(values: Sequence[tuple[int, float]]) -> str | None:
    if len(values) < 3 * WINDOW:
        return None
    losses = np.array([value for _, value in values], dtype=float)
    means = np.lib.stride_tricks.sliding_window_view(losses[:-WINDOW], WINDOW).mean(-1)
    best, last = int(means.argmin()), losses[-WINDOW:]
    if last.min() > SPIKE * means[best] and last.mean() > means[best] + SPIKE_NATS:
        return f"was {means[best]:.2f} around step {values[best + WINDOW - 1][0]} and is {last.mean():.2f}"
    return None


def _growth(values: Sequence[tuple[int, float]], losses: Mapping[int, float]) -> str | None:
    """Of the norms at steps, with the losses there."""
    windows = len(values) // WINDOW
    if windows < 4 or _falls([losses[step] for step, _ in values[-3 * WINDOW :] if step in losses]):
        return None
    norms = np.array([value for _, value in values[-windows * WINDOW :]], dtype=float)
    medians = np.median(norms.reshape(windows, WINDOW), axis=1)
    before, middle, last = medians[-3:]
    if last > GROWTH * middle > GROWTH**2 * before and last > GROWN * min(medians):
        return f"grows: {before:.3g}, {middle:.3g}, {last:.3g} (medians of {WINDOW} entries; the lowest was {min(medians):.3g})"
    return None


def _falls(losses: Sequence[float]) -> bool:
    """Whether the last of them are lower than the first."""
    return len(losses) > WINDOW and np.mean(losses[-WINDOW:]) < np.mean(losses[:WINDOW])
