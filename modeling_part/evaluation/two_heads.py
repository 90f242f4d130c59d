# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""What the alignment head says of the language model's transcripts: where they disagree, and how sure both are rightly.

And where both disagree with the reference. Predictions of transcription hold `ctc_hypothesis`, what greedy CTC writes, where
the model has an alignment head, and `confidence`, see `confidence_part.overall`.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from .metrics import count_edits
from .normalization import normalize_text, scored_units
from .report_file import LISTS


MOST_SHOWN = 20
BINS = 10
KINDS = ("language_model", "ctc", "product")


def disagreement(row: Mapping, *, simplify_chinese: bool = False) -> float | None:
    """Share of the answer's words (or characters) that greedy CTC writes otherwise, in normalised texts; None without it.

    Args:
        row: an annotated prediction.
        simplify_chinese: compare Chinese in simplified characters.
    """
    if not isinstance(row.get("ctc_hypothesis"), str) or row.get("error") is not None:
        return None
    language = row["target_lang"]
    heard = normalize_text(row["ctc_hypothesis"], language, simplify_chinese=simplify_chinese)
    written = scored_units(row["normalized_hypothesis"], language)
    counts = count_edits(written, scored_units(heard, language))
    return counts.errors / max(counts.reference_units, 1)


def label_distance(row: Mapping, *, simplify_chinese: bool = False) -> float | None:
    """How far the reference is from the nearer of what the two heads write, 0 to 1; None where one has written nothing.

    By characters, of the longer of the two texts, so that a model which hardly spells still tells a clip's own text from
    another's. Of a wrong label both heads are far; whether they agree with each other says nothing of it.

    Args:
        row, simplify_chinese: see [`disagreement`].
    """
    if not isinstance(row.get("ctc_hypothesis"), str) or row.get("error") is not None:
        return None
    heard = normalize_text(row["ctc_hypothesis"], row["target_lang"], simplify_chinese=simplify_chinese)
    label, *written = (
        "".join(text.split()) for text in (row["normalized_reference"], row["normalized_hypothesis"], heard)
    )
    if not all(written):
        return None
    return min(count_edits(label, one).errors / max(len(label), len(one)) for one in written)


def _most(rows: Iterable[Mapping], by: str) -> list[Mapping]:
    """The annotated predictions with the highest of a figure; of several as high, the further from their reference first."""
    order = ("corpus", "id", "source_lang")  # whatever order the rows come in
    found = (row for row in rows if row.get(by))
    return sorted(found, key=lambda row: (-row[by], -row["error_rate"], *(row[name] for name in order)))[:MOST_SHOWN]


def most_differing(rows: Iterable[Mapping]) -> list[Mapping]:
    """The transcripts on which the two heads differ most: where the model is unsure."""
    return _most(rows, "disagreement")


def most_doubtful(rows: Iterable[Mapping]) -> list[Mapping]:
    """The transcripts whose reference both heads contradict most: where wrong labels are found, see [`label_distance`]."""
    return _most(rows, "label_distance")


def listed(rows: Iterable[Mapping]) -> dict[str, list[dict]]:
    """What `report.json` says of them: `disagreements`, see [`most_differing`], `doubtful_labels`, see [`most_doubtful`]."""
    texts = ("id", "corpus", "source_lang", "error_rate", "reference", "hypothesis", "ctc_hypothesis")
    return {
        name: [{field: row[field] for field in (by, *texts)} for row in _most(rows, by)] for name, by in LISTS.items()
    }


def calibration(rows: Sequence[Mapping]) -> dict[str, dict]:
    """How far confidence keeps its word, over transcripts: by `language_model`, `ctc` and their `product`.

    Returns:
        Of each that some rows have: `bins` of confidence with some rows, `{"confidence", "accuracy", "utterances"}`, means
        over these (accuracy: 1 less the error rate, 0 at least); `error`, the mean distance of the two over all
        utterances (expected calibration error, Guo et al. 2017); `utterances`.
    """
    found = {}
    spoken = [row for row in rows if row["task"] == "asr" and row.get("error") is None]
    for kind in KINDS:
        pairs = np.array(
            [
                (value, max(0.0, 1 - row["error_rate"]))
                for row in spoken
                if isinstance(row.get("confidence"), Mapping) and (value := row["confidence"].get(kind)) is not None
            ]
        ).reshape(-1, 2)
        of_bin = np.minimum((pairs[:, 0] * BINS).astype(int), BINS - 1)
        bins = []
        for number in np.unique(of_bin):
            confidence, accuracy = pairs[of_bin == number].mean(0)
            bins.append({"confidence": confidence, "accuracy": accuracy, "utterances": int((of_bin == number).sum())})
        if bins:
            distance = sum(one["utterances"] * abs(one["confidence"] - one["accuracy"]) for one in bins)
            found[kind] = {"bins": bins, "error": distance / len(pairs), "utterances": len(pairs)}
    return found
