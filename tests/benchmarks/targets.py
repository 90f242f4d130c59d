"""What PART wants to reach beside transformers' classes, and whether a run of training.py reached it.

Every ratio is of rows of one table, the median over the rounds; a target whose rows were not measured says so.
"""

import operator
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from side_by_side import ratios, show
from speech_models import PADDED, SPEECH_MODELS


@dataclass(frozen=True)
class Target:
    """
    One line of the closing table.

    Attributes:
        name: with `{vocabulary}` filled in.
        wanted: comparison and number, a key of `COMPARES` first.
        measure: rows of the run -> the ratio, or None where they were not measured.
    """

    name: str
    wanted: tuple[str, float]
    measure: Callable[[list[dict]], float | None]


COMPARES = {">=": operator.ge, "<=": operator.le}


def find(rows: list[dict], **values) -> list[dict]:
    """The rows that hold all of `values`."""
    return [row for row in rows if all(row[name] == value for name, value in values.items())]


def mixed(rows: list[dict], vocabulary: int) -> list[dict]:
    """Rows of the comparison of classes on mixed clips, everything trained."""
    found = [row for row in rows if row["part"] == "classes"]
    return find(found, clips="mix", vocabulary=vocabulary, training="full", gated=False)


def of_part(rows: list[dict], model: str) -> dict | None:
    """PART's row in the same batches as the other classes, not by duration."""
    return next(iter(find(rows, model=model, label=SPEECH_MODELS[model].label)), None)


def fastest(rows: list[dict], names) -> dict | None:
    return max((row for row in rows if row["model"] in names), key=lambda row: row["clips_per_s"], default=None)


def speed_over(model: str, names, vocabulary: int) -> Callable:
    """Clips per second over the fastest of `names`."""

    def measure(rows: list[dict]) -> float | None:
        table = mixed(rows, vocabulary)
        ours, theirs = of_part(table, model), fastest(table, names)
        return None if ours is None or theirs is None else statistics.median(ratios(ours, theirs))

    return measure


def memory_over(model: str, names, vocabulary: int) -> Callable:
    """Peak memory over that of the fastest of `names`: its speed is from one table, both peaks from another."""

    def measure(rows: list[dict]) -> float | None:
        other = fastest(mixed(rows, vocabulary), names)
        peaks = find([row for row in rows if row["part"] == "memory"], vocabulary=vocabulary, gated=False)
        ours = of_part(peaks, model)
        theirs = None if other is None else of_part(peaks, other["model"])
        both = (ours, theirs)
        return ours["peak_gib"] / theirs["peak_gib"] if all(row is not None and row["fits"] for row in both) else None

    return measure


def gated_step(rows: list[dict]) -> float | None:
    """Time of an ASR step behind the gate over one that trains the whole language model."""
    steps = find([row for row in rows if row["part"] == "gate"], training="full")
    gated, open_ = (next(iter(find(steps, gated=gated)), None) for gated in (True, False))
    return None if gated is None or open_ is None else statistics.median(ratios(open_, gated))


def targets(vocabularies: list[int]) -> list[Target]:
    """All of them, for the vocabularies of a run; the last one is the large one where there are two."""
    in_tree = [name for name, one in SPEECH_MODELS.items() if one.in_tree]
    wanted = []
    for model in ("part_sanm", "part_whisper"):
        label = SPEECH_MODELS[model].label.rsplit(",", 1)[0]
        small = f"vocabulary {vocabularies[0]:,}, mixed clips: {label}, clips/s over"
        wanted += [
            Target(f"{small} the fastest class", (">=", 1.5), speed_over(model, in_tree, vocabularies[0])),
            Target(f"{small} classes padded to 30 s", (">=", 5), speed_over(model, PADDED, vocabularies[0])),
        ]
        for vocabulary in vocabularies[1:]:
            large = f"vocabulary {vocabulary:,}, mixed clips: {label}"
            wanted += [
                Target(f"{large}, clips/s over the fastest class", (">=", 2), speed_over(model, in_tree, vocabulary)),
                Target(f"{large}, peak memory over that class", ("<=", 0.5), memory_over(model, in_tree, vocabulary)),
            ]
    return [*wanted, Target("time of a gated ASR step over an ungated full one", ("<=", 0.7), gated_step)]


def judge(rows: list[dict], vocabularies: list[int]) -> list[dict]:
    """The closing table: name, wanted, measured, met (None where the run did not measure it)."""
    table = []
    for target in targets(vocabularies):
        comparison, number = target.wanted
        measured = target.measure(rows)
        met = None if measured is None else COMPARES[comparison](measured, number)
        table.append({"name": target.name, "wanted": f"{comparison} {number:g}", "measured": measured, "met": met})
    return table


def show_targets(table: list[dict]):
    """Print the closing table."""
    verdicts = {True: "met", False: "missed", None: ""}
    lines = [
        {**one, "measured": "not measured" if one["measured"] is None else f"{one['measured']:.2f}"}
        | {"verdict": verdicts[one["met"]]}
        for one in table
    ]
    columns = {"": "{name}", "wanted": "{wanted}", "measured": "{measured}", "met?": "{verdict}"}
    show("Targets", lines, columns)
