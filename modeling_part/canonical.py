"""The canonical row: the one schema between every corpus reader and the collator, and what is counted about it.

A row is one training or test example. Its columns:

    id           str     unique within its corpus, split and task
    corpus       str     where it comes from, for example "fleurs"
    task         str     "asr" (speech to transcript), "s2tt" (speech to translation) or "mt" (text to translation)
    source_lang  str     BCP 47 code of what is spoken or, for mt, of the source sentence
    target_lang  str     BCP 47 code of `text`; equal to `source_lang` for asr
    text         str     the answer, with the corpus's own casing and punctuation
    source_text  str     the transcript or the source sentence; None where it is unknown
    duration     float   seconds of audio; 0.0 for mt
    audio        struct  {"path": str or None, "bytes": binary or None}, still compressed; None for mt
    start, end   float   seconds, for a part of a long file; None for a whole file

Nothing here decodes audio: `processing_part.load_audio` does, row by row, when a batch is made.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TASKS = ("asr", "s2tt", "mt")
COLUMNS = (
    "id",
    "corpus",
    "task",
    "source_lang",
    "target_lang",
    "text",
    "source_text",
    "duration",
    "audio",
    "start",
    "end",
)
EXAMPLES_PER_REASON = 5
_LANGUAGE_CODE = re.compile(r"[a-z]{2,3}(-[A-Z][a-z]{3})?(-([A-Z]{2}|[0-9]{3}))?(-[A-Za-z0-9]{4,8})*")


class CorpusError(ValueError):
    """A corpus, manifest or recipe entry that cannot be read as asked: the message names what, why and the fix."""


def canonical_features():
    """The `datasets.Features` of a canonical row (audio as a struct of path and bytes, never decoded)."""
    from datasets import Features, Value

    strings = ("id", "corpus", "task", "source_lang", "target_lang", "text", "source_text")
    features = {name: Value("string") for name in strings}
    features["duration"] = Value("float32")
    features["audio"] = {"path": Value("string"), "bytes": Value("binary")}
    features["start"] = features["end"] = Value("float64")
    return Features(features)


def check_language(code: str, where: str) -> str:
    """Return `code` if it is shaped like a BCP 47 code ("pt", "pt-BR", "zh-Hans"); else raise `CorpusError`."""
    if not isinstance(code, str) or not _LANGUAGE_CODE.fullmatch(code):
        raise CorpusError(
            f"{where}: {code!r} is not a BCP 47 language code; write one such as 'en', 'pt-BR' or 'zh-Hans'."
        )
    return code


def speech_row(
    row_id: str,
    corpus: str,
    source_lang: str,
    target_lang: str,
    text: str,
    source_text: str | None,
    duration: float | None,
    path: str | Path | None = None,
    audio_bytes: bytes | None = None,
    start: float | None = None,
    end: float | None = None,
) -> dict:
    """One asr row (`source_lang == target_lang`) or s2tt row. A `duration` of None is measured later from the file."""
    return {
        "id": row_id,
        "corpus": corpus,
        "task": "asr" if source_lang == target_lang else "s2tt",
        "source_lang": source_lang,
        "target_lang": target_lang,
        "text": text,
        "source_text": source_text,
        "duration": duration,
        "audio": {"path": None if path is None else str(path), "bytes": audio_bytes},
        "start": start,
        "end": end,
    }


def text_row(row_id: str, corpus: str, source_lang: str, target_lang: str, text: str, source_text: str) -> dict:
    """One mt row: `source_text` in, `text` out, no audio."""
    row = speech_row(row_id, corpus, source_lang, target_lang, text, source_text, 0.0)
    return {**row, "task": "mt", "audio": None}


class DataReport:
    """Counts what was kept and what was dropped and why, with a few examples of each, for `data_report.json`.

    Attributes:
        dropped (`Counter`): rows left out, per reason, keyed by (corpus, reason).
        broken (`Counter`): the part of `dropped` that are faults of the data (held against `max_bad_fraction`),
            per corpus; a row left out by a filter that was asked for is not a fault.
        offered (`Counter`): rows a reader came across, per corpus.
    """

    def __init__(self):
        self.dropped: Counter = Counter()
        self.broken: Counter = Counter()
        self.offered: Counter = Counter()
        self.examples: dict[tuple[str, str], list[str]] = {}
        self.rows: Counter = Counter()
        self.seconds: Counter = Counter()
        self.notes: list[str] = []

    def drop(self, corpus: str, row_id: str, reason: str, broken: bool = False) -> None:
        """Count one row that is left out; `broken` marks a fault of the data rather than a filter's choice."""
        self.dropped[corpus, reason] += 1
        if broken:
            self.broken[corpus] += 1
        examples = self.examples.setdefault((corpus, reason), [])
        if len(examples) < EXAMPLES_PER_REASON:
            examples.append(row_id)

    def keep(self, row: dict) -> None:
        """Count one row that is used."""
        direction = direction_of(row["task"], row["source_lang"], row["target_lang"])
        self.rows[direction] += 1
        self.seconds[direction] += row["duration"] or 0.0

    def as_dict(self) -> dict:
        """Rows and hours per direction ("asr/fr", "s2tt/fr-en"), dropped rows per corpus and reason with examples."""
        dropped: dict = {}
        for (corpus, reason), count in sorted(self.dropped.items()):
            examples = self.examples[corpus, reason]
            dropped.setdefault(corpus, {})[reason] = {"rows": count, "examples": examples}
        return {
            "rows": dict(sorted(self.rows.items())),
            "hours": {key: round(seconds / 3600, 4) for key, seconds in sorted(self.seconds.items())},
            "total_rows": sum(self.rows.values()),
            "total_hours": round(sum(self.seconds.values()) / 3600, 4),
            "dropped": dropped,
            "notes": self.notes,
        }

    def write(self, path: str | Path) -> None:
        """Write `as_dict()` as JSON, making the folder if needed."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(self.as_dict(), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")

    def summary(self) -> str:
        """A few lines for the screen: rows and hours per direction, then what was dropped and why."""
        lines = [
            f"{sum(self.rows.values()):,} rows, {sum(self.seconds.values()) / 3600:.2f} hours of audio, counted row by row"
        ]
        for direction, count in sorted(self.rows.items()):
            lines.append(f"  {direction:<12} {count:>9,} rows {self.seconds[direction] / 3600:>9.2f} h")
        for (corpus, reason), count in sorted(self.dropped.items()):
            example = self.examples[corpus, reason][0]
            lines.append(f"  dropped {count:,} from {corpus}: {reason} (such as {example})")
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])


def direction_of(task: str, source_lang: str, target_lang: str) -> str:
    """The name under which rows are counted: "asr/fr", "s2tt/fr-en", "mt/fr-en"."""
    return f"{task}/{source_lang}" if task == "asr" else f"{task}/{source_lang}-{target_lang}"


def audio_duration(path: str | Path) -> float:
    """Seconds of an audio file, read from its header (mp3: from its frames) without decoding.

    Raises:
        `CorpusError`: the file does not exist, is no audio that libsndfile reads, or holds no samples.
    """
    import soundfile

    if not os.path.exists(path):
        raise CorpusError("audio file not found")
    try:
        info = soundfile.info(str(path))
    except soundfile.LibsndfileError as error:
        raise CorpusError(f"unreadable audio ({error.error_string.rstrip('.')})") from error
    if info.frames <= 0:
        raise CorpusError("audio without samples")
    return info.frames / info.samplerate


def audio_durations(paths: Sequence[str | Path], description: str = "durations") -> list[float | CorpusError]:
    """`audio_duration` of many files on all cores with a progress bar; a file that fails gives its error instead."""
    from tqdm import tqdm

    def measure(path):
        try:
            return audio_duration(path)
        except CorpusError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        measured = pool.map(measure, paths)
        return list(tqdm(measured, total=len(paths), desc=description, unit="file", disable=len(paths) < 1000))


def write_manifest(rows: Iterable[dict], path: str | Path) -> int:
    """Write canonical rows as a JSONL manifest with audio paths relative to its folder; return how many.

    Columns that are None are left out. Rows must hold audio as a path (bytes have no place in a text file).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with path.open("w", encoding="utf-8") as manifest:
        for row in rows:
            record = {name: row[name] for name in COLUMNS if row[name] is not None}
            if "audio" in record:
                record["audio"] = Path(os.path.relpath(record["audio"]["path"], path.parent)).as_posix()
                record["duration"] = round(record["duration"], 4)
            else:
                record.pop("duration")
            manifest.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
    return count
