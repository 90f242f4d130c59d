# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Single utterances for a person to read and hear: which to show, what is different in them, and their sound."""

import base64
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from itertools import zip_longest
from pathlib import Path

import jiwer
import numpy as np
import soundfile

from ..audio_part import AudioError, load_clip
from ..data.corpora import kept_rows
from ..data.rows import group_name
from ..prompts_part import TEXT_TASKS
from .normalization import counts_characters, scored_units
from .scoring import prediction_key
from .two_heads import most_differing, most_doubtful


WORST, RANDOM = 60, 60  # utterances shown of a stage, beside those on which the heads differ
MOST_AUDIO = 13_000_000  # bytes of MP3 in a report: 17.4 MB as base64, so that the file stays below 20 MB
CLIP_RATE = 16_000
MOST_SUBSTITUTIONS = 25

# ("equal" | "substitute" | "delete" | "insert", what the reference has, what the answer has)
Difference = tuple[str, str, str]


def _pieces(row: Mapping) -> Iterator[tuple[str, list[str], list[str]]]:
    """As [`differences`], the two sides in units of the error rate."""
    units = [scored_units(row[f"normalized_{side}"], row["target_lang"]) for side in ("reference", "hypothesis")]
    for chunk in jiwer.process_words(*map(" ".join, units)).alignments[0]:
        said = units[0][chunk.ref_start_idx : chunk.ref_end_idx]
        yield chunk.type, said, units[1][chunk.hyp_start_idx : chunk.hyp_end_idx]


def differences(row: Mapping) -> list[Difference]:
    """Where the normalised answer of an annotated prediction differs from its reference: what the error rate counts."""
    between = "" if counts_characters(row["target_lang"]) else " "
    return [(kind, between.join(said), between.join(written)) for kind, said, written in _pieces(row)]


def frequent_substitutions(rows: Iterable[Mapping], most: int = MOST_SUBSTITUTIONS) -> list[tuple[str, str, str, int]]:
    """(language, said, written instead, how often) of transcription: words, or characters where these are counted.

    What is missing or too many has nothing on the other side.
    """
    counts: Counter = Counter()
    for row in rows:
        if row["task"] != "asr" or row["normalized_reference"] == row["normalized_hypothesis"]:
            continue
        for kind, said, written in _pieces(row):
            if kind != "equal":
                counts.update((row["target_lang"], *pair) for pair in zip_longest(said, written, fillvalue=""))
    return [(*key, count) for key, count in counts.most_common(most)]


def choose_utterances(rows: Sequence[Mapping], worst: int = WORST, sample: int = RANDOM) -> list[tuple[Mapping, str]]:
    """(annotated prediction, "heads differ", "label doubtful", "worst" or "random"): those to look at first in front.

    First those on which alignment head and language model differ most, those whose reference both contradict, the worst of every language and direction in
    turn, and a sample. The sample is drawn by the rows' keys with a fixed seed: the same utterances for every stage of a run.
    """
    by_group = defaultdict(list)
    for row in rows:
        by_group[group_name(row)].append(row)
    for group in by_group.values():
        group.sort(key=lambda row: (-row["error_rate"], prediction_key(row)))
    # The n-th worst of every group before the next worse of any.
    ranks = sorted(
        (rank, -row["error_rate"], name)
        for name, group in by_group.items()
        for rank, row in enumerate(group)
        if row["error_rate"] > 0
    )
    chosen = [(row, "heads differ") for row in most_differing(rows)]
    taken = {prediction_key(row) for row, _ in chosen}
    chosen += [(row, "label doubtful") for row in most_doubtful(rows) if prediction_key(row) not in taken]
    taken = {prediction_key(row) for row, _ in chosen}
    of_groups = [by_group[name][rank] for rank, _, name in ranks[:worst]]
    chosen += [(row, "worst") for row in of_groups if prediction_key(row) not in taken]
    taken = {prediction_key(row) for row, _ in chosen}
    ordered = sorted(rows, key=prediction_key)
    drawn = random.Random(0).sample(range(len(ordered)), min(sample, len(ordered)))
    return chosen + [(ordered[at], "random") for at in drawn if prediction_key(ordered[at]) not in taken]


class Clips:
    """The sound of utterances: waveforms, or MP3 in `data:` URIs, each clip once, until a report is full.

    Args:
        rows: canonical rows of the test data, a `datasets.Dataset`; None where the run has left none.
        most_bytes: of MP3 in all.

    Attributes:
        uris: of the clips so far.
        missing: why there is no sound -> for how many clips.
    """

    def __init__(self, rows=None, most_bytes: int = MOST_AUDIO) -> None:
        self.rows, self.left = rows, most_bytes
        self.uris: list[str] = []
        self.missing: Counter = Counter()
        self._numbers: dict[tuple, int | None] = {}
        columns = ("corpus", "id", "task", "source_lang", "target_lang")
        keys = [] if rows is None else zip(*(rows[column][:] for column in columns), strict=True)
        self._index = {key: index for index, key in enumerate(keys)}

    def row(self, prediction: Mapping) -> Mapping | None:
        """The row of the test data that a prediction answers; None where it has no sound or is not there."""
        if prediction["task"] in TEXT_TASKS:
            return None
        index = self._index.get(prediction_key(prediction))
        if index is None:
            self.missing["the run's folder has no such row of test data"] += 1
            return None
        return self.rows[index]

    def number(self, prediction: Mapping) -> int | None:
        """The position in `uris` of a prediction's clip; None where there is no sound of it."""
        row = self.row(prediction)
        if row is None:
            return None
        audio = row["audio"]
        place = (audio["path"], row["start"], row["end"]) if audio["path"] else (prediction_key(prediction),)
        if place not in self._numbers:
            self._numbers[place] = self._add(row)
        return self._numbers[place]

    def waveform(self, prediction: Mapping) -> np.ndarray | None:
        """A prediction's clip, `(samples,)` at `CLIP_RATE`; None where there is no sound of it."""
        row = self.row(prediction)
        return None if row is None else self._load(row)

    def _load(self, row: Mapping) -> np.ndarray | None:
        try:
            return load_clip(row, CLIP_RATE)
        except AudioError as error:
            self.missing[error.reason] += 1
        except OSError as error:
            self.missing[error.strerror or type(error).__name__] += 1
        return None

    def _add(self, row: Mapping) -> int | None:
        waveform = self._load(row)
        if waveform is None:
            return None
        buffer = BytesIO()
        soundfile.write(buffer, waveform, CLIP_RATE, format="MP3", bitrate_mode="VARIABLE", compression_level=0.7)
        if buffer.tell() > self.left:
            self.missing["the report is full"] += 1
            return None
        self.left -= buffer.tell()
        self.uris.append(f"data:audio/mpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}")
        return len(self.uris) - 1


def clips_of_run(run_folder: Path) -> Clips:
    """The clips of a run's test data, as far as its folder and the files it names are there."""
    return Clips(kept_rows(run_folder / "data" / "test"))
