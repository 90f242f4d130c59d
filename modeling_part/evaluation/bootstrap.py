# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Confidence intervals by resampling utterances, and paired tests by exchanging answers."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import sacrebleu


CONFIDENCE = 0.95


def sufficient_statistics(
    metric: sacrebleu.metrics.base.Metric, hypotheses: Sequence[str], references: Sequence[str]
) -> np.ndarray:
    """Per-sentence counts `(sentences, statistics)` whose sums determine the corpus score of `metric`.

    sacrebleu's own significance test takes the same road; the two methods are private there (2.4 to 2.6).
    """
    return np.array(metric._extract_corpus_statistics(hypotheses, [references]), dtype=np.int64)


def score_statistics(metric: sacrebleu.metrics.base.Metric, sums: np.ndarray) -> np.ndarray:
    """The corpus scores `(samples,)`, 0 to 100, of summed statistics `(samples, statistics)`."""
    return np.array([metric._compute_score_from_stats(row).score for row in sums.tolist()])


def ratio_statistics(sums: np.ndarray) -> np.ndarray:
    """Error rates `(samples,)` of `(samples, 2)` summed errors and reference units; NaN without units."""
    errors, units = sums[:, 0].astype(float), sums[:, 1].astype(float)
    return np.divide(errors, units, out=np.full(len(sums), np.nan), where=units > 0)


def _resample_weights(utterances: int, samples: int, seed: int | Sequence[int]) -> Iterator[np.ndarray]:
    """How often each utterance is drawn, `(samples in this chunk, utterances)`."""
    generator = np.random.default_rng(seed)
    probabilities = np.full(utterances, 1 / utterances)
    for size in _chunks(samples, utterances):
        yield generator.multinomial(utterances, probabilities, size=size)


def _chunks(samples: int, utterances: int) -> Iterator[int]:
    """Sizes that add up to `samples`, of which each bounds the memory of draws of so many utterances."""
    size = max(1, 4_000_000 // utterances)
    for start in range(0, samples, size):
        yield min(size, samples - start)


def bootstrap_sums(statistics: np.ndarray, *, samples: int = 1000, seed: int | Sequence[int] = 0) -> np.ndarray:
    """Sums of `statistics` over resampled utterances.

    Args:
        statistics: `(utterances, statistics)`, one row per utterance.
        samples: how many times as many utterances as there are get drawn with replacement.
        seed: the same seed draws the same utterances, so two systems on the same utterances are resampled in pairs.

    Returns:
        `(samples, statistics)`.
    """
    return np.concatenate([weights @ statistics for weights in _resample_weights(len(statistics), samples, seed)])


def interval(values: np.ndarray) -> list[float] | None:
    """The central 95 % `[low, high]` of bootstrap values (percentile method); None where no sample has a value."""
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    tail = (1 - CONFIDENCE) / 2
    return [float(bound) for bound in np.quantile(values, [tail, 1 - tail])]


def exchanged_differences(
    score: Callable[[np.ndarray], np.ndarray],
    first: np.ndarray,
    other: np.ndarray,
    *,
    samples: int = 1000,
    seed: int | Sequence[int] = 0,
) -> np.ndarray:
    """Differences of two systems on the same utterances: as they are, then with answers exchanged at random.

    Args:
        score: the figure of each row of summed statistics.
        first, other: statistics of the systems, `(utterances, statistics)`.
        samples: how many times each answer is, or is not, exchanged for that of the other system.
        seed: of the exchanges.

    Returns:
        `(1 + samples,)`, of `other` less `first`.
    """
    generator = np.random.default_rng(seed)
    change = other - first
    moved = [np.zeros((1, first.shape[1]), dtype=first.dtype)]
    for size in _chunks(samples, len(first)):
        moved.append(generator.integers(0, 2, (size, len(first))) @ change)
    sums = np.concatenate(moved)
    return score(other.sum(axis=0) - sums) - score(first.sum(axis=0) + sums)


def paired_p_value(differences: np.ndarray) -> float:
    """How likely a difference at least this large is if the systems are equal (two-sided).

    Approximate randomisation (Riezler and Maxwell 2005), as sacrebleu's: were the systems equal, each answer could as well
    be the other's. The share of [`exchanged_differences`] as large as the measured one, which counts among them, so that it
    never is 0. It holds for few utterances too, where the bootstrap finds differences between equal systems far too often.
    """
    # Sums in another order are equal.
    return float(np.mean(np.abs(differences) >= abs(differences[0]) * (1 - 1e-9)))
