# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
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

import difflib
import hashlib
import io
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

from .processing_part import TASKS


SPLITS = ("train", "dev", "test")
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
ROWS_BEFORE_JUDGEMENT = 1000  # a few broken rows at the start of a corpus or a run say nothing about their share
READER_SETTINGS = {
    "columns": ("dataset", "text_pairs"),
    "streaming": ("dataset",),
    "config": ("dataset",),
    "revision": ("dataset", "fleurs"),
    "common_voice": ("covost2",),
    "subset": ("wenetspeech",),
    "min_confidence": ("wenetspeech",),
}
_LANGUAGE_CODE = re.compile(r"[a-z]{2,3}(-[A-Z][a-z]{3})?(-([A-Z]{2}|[0-9]{3}))?(-[A-Za-z0-9]{4,8})*")


class CorpusError(ValueError):
    """A corpus, manifest or recipe entry that cannot be read as asked: the message names what, why and the fix."""


@contextmanager
def errors_of_row(row: Mapping):
    """Say in a ValueError which row it is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"Row {row['id']!r} of corpus {row.get('corpus')!r}: {error}") from error


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


def language_code(name: str, keep_region: bool = False) -> str:
    """The BCP 47 code for a corpus's own name of a language: "cmn_hans_cn" -> "zh", "sv-SE" -> "sv", "es_419" -> "es".

    The region goes unless `keep_region` ("pt_br" -> "pt-BR"), so that the same language has one code in all corpora;
    "zh-TW" and "zh-HK" always keep theirs, which stands for another script or language, and "zh-CN" is "zh".
    """
    first, *rest = re.split(r"[-_@]", name)
    code = {"cmn": "zh"}.get(first.lower(), first.lower())
    for part in rest:
        if len(part) >= 5:
            code += f"-{part.lower()}"
        elif len(part) <= 3 and (part.upper() in ("TW", "HK") if code == "zh" else keep_region):
            code += f"-{part.upper()}"
    return code


def split_of(key: str) -> str:
    """train (90 %), dev (5 %) or test (5 %), from a hash of `key`: the same on every machine and in every language."""
    number = int.from_bytes(hashlib.sha256(key.encode("utf-8")).digest()[:8], "big") % 100
    return "test" if number < 5 else "dev" if number < 10 else "train"


@dataclass(frozen=True)
class CorpusSpec:
    """One entry of a recipe's list of corpora: what to read, and which part of it.

    Args:
        reader: manifest, asterisk, common_voice, fleurs, covost2, wenetspeech, tuxpaint, dataset or text_pairs.
        path: folder or file; for dataset and fleurs also a Hub id ("google/fleurs").
        split: train, dev or test; for common_voice also validated. Of no use to manifest and text_pairs, where a file
            is one split.
        name: the `corpus` of the rows. Default: the reader's name; for manifests what the rows say.
        tasks: tasks to keep. Default: all that the corpus offers.
        languages: BCP 47 codes of the source languages to keep. Default: all that are found.
        target_languages: of s2tt and mt. Default: all; in asterisk, fleurs and tuxpaint, where every language can be
            translated into every other, `languages`.
        weight: how often the rows are drawn in an epoch, for the sampler. Default: 1.0, once.
        columns: canonical column -> column of the file, for dataset and text_pairs.
        streaming: read while training instead of before; dataset only.
        config, revision: of a Hub dataset.
        common_voice: folder of the Common Voice release whose clips CoVoST 2 translates. Default: `path`.
        subset: of WenetSpeech. Default: "L" for train, "DEV", "TEST_NET".
        min_confidence: of WenetSpeech segments. Default: all.
    """

    reader: str
    path: str
    split: str = "train"
    name: str | None = None
    tasks: tuple[str, ...] | None = None
    languages: tuple[str, ...] | None = None
    target_languages: tuple[str, ...] | None = None
    weight: float = 1.0
    columns: Mapping[str, str] | None = None
    streaming: bool = False
    config: str | None = None
    revision: str | None = None
    common_voice: str | None = None
    subset: str | None = None
    min_confidence: float | None = None

    @classmethod
    def from_dict(cls, entry: Mapping) -> "CorpusSpec":
        """Check one mapping of a recipe. Raises `CorpusError` for anything unknown, missing or not of that reader."""
        known = [field.name for field in fields(cls)]
        for key in entry:
            if key not in known:
                guess = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {guess[0]!r}?" if guess else f"it has {', '.join(known)}"
                raise CorpusError(f"a corpus of the recipe has no setting {key!r}; {hint}")
        for key in ("reader", "path"):
            if not entry.get(key):
                raise CorpusError(f"the corpus {dict(entry)} of the recipe lacks {key!r}")
        reader = entry["reader"]
        for key, readers in READER_SETTINGS.items():
            if entry.get(key) and reader not in readers:
                raise CorpusError(f"{key!r} is a setting of {' and '.join(readers)}, not of the reader {reader!r}")
        lists = {key: tuple(entry[key]) for key in ("tasks", "languages", "target_languages") if entry.get(key)}
        for task in lists.get("tasks", ()):
            if task not in TASKS:
                raise CorpusError(f"{reader} at {entry['path']}: task {task!r} is none of {', '.join(TASKS)}")
        for code in (*lists.get("languages", ()), *lists.get("target_languages", ())):
            check_language(code, f"{reader} at {entry['path']}")
        weight = entry.get("weight", 1.0)
        if not isinstance(weight, int | float) or weight <= 0:
            raise CorpusError(f"{reader} at {entry['path']}: weight {weight!r} is no number above 0")
        splits = (*SPLITS, "validated") if reader == "common_voice" else SPLITS
        if entry.get("split", "train") not in splits:
            raise CorpusError(f"{reader} at {entry['path']}: split {entry['split']!r} is none of {', '.join(splits)}")
        return cls(**{**entry, **lists, "path": str(entry["path"])})

    @property
    def corpus(self) -> str:
        """The `corpus` column of the rows."""
        return self.name or self.reader

    def folder(self) -> Path:
        """`path` as a folder or file that exists; else `CorpusError`."""
        folder = Path(self.path).expanduser()
        if not folder.exists():
            raise CorpusError(f"{self.reader}: {self.path} does not exist; give the folder of the corpus as `path`")
        return folder

    def wants(self, task: str, source_lang: str | None = None, target_lang: str | None = None) -> bool:
        """Whether rows of this task and direction are asked for; a language of None stands for any."""
        if self.tasks and task not in self.tasks:
            return False
        if self.languages and source_lang and source_lang not in self.languages:
            return False
        translated = target_lang and source_lang != target_lang
        return not (translated and self.target_languages and target_lang not in self.target_languages)


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

    A row that is dropped as `broken` is a fault of the data and counts against `max_bad_fraction`; one that a filter
    leaves out, or that the corpus never meant to be used, is not.
    """

    def __init__(self):
        self.corpora: Counter = Counter()
        self.rows: Counter = Counter()
        self.seconds: Counter = Counter()
        self.dropped: Counter = Counter()
        self.broken: Counter = Counter()
        self.examples: dict[tuple[str, str], list[str]] = {}

    def keep(self, row: dict) -> None:
        """Count one row that is used."""
        group = group_name(row)
        self.corpora[row["corpus"]] += 1
        self.rows[group] += 1
        self.seconds[group] += row["duration"] or 0.0

    def drop(self, corpus: str, row_id: str, reason: str, broken: bool = False) -> None:
        """Count one row that is left out."""
        self.dropped[corpus, reason] += 1
        self.broken[corpus, reason] += broken
        examples = self.examples.setdefault((corpus, reason), [])
        if len(examples) < EXAMPLES_PER_REASON:
            examples.append(row_id)

    def add(self, other: "DataReport") -> None:
        """Add the counts of another report to this one."""
        self.corpora.update(other.corpora)
        self.rows.update(other.rows)
        self.seconds.update(other.seconds)
        self.dropped.update(other.dropped)
        self.broken.update(other.broken)
        for key, examples in other.examples.items():
            self.examples[key] = (self.examples.get(key, []) + examples)[:EXAMPLES_PER_REASON]

    def as_dict(self) -> dict:
        """Rows and hours per direction ("asr/fr", "s2tt/fr-en"); dropped rows per corpus and reason, with examples."""
        dropped: dict = {}
        for (corpus, reason), count in sorted(self.dropped.items()):
            entry = {"rows": count, "broken": self.broken[corpus, reason], "examples": self.examples[corpus, reason]}
            dropped.setdefault(corpus, {})[reason] = entry
        return {
            "rows": dict(sorted(self.rows.items())),
            "hours": {key: round(seconds / 3600, 4) for key, seconds in sorted(self.seconds.items())},
            "dropped": dropped,
        }


def write_report(report: dict, path: str | Path) -> None:
    """Write a report as JSON, making the folder if needed."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(report, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def summary(report: dict) -> str:
    """A report in a few lines for the screen: rows and hours per task and direction, and what was dropped and why."""
    lines = []
    for task in TASKS:
        directions = [key for key in report["rows"] if key.startswith(f"{task}/")]
        if directions:
            rows = sum(report["rows"][key] for key in directions)
            hours = sum(report["hours"][key] for key in directions)
            shown = [f"{key.split('/')[1]} {report['rows'][key]:,}" for key in directions[:10]]
            more = f", and {len(directions) - 10} more" if len(directions) > 10 else ""
            time = f"{hours:9.2f} h" if task != "mt" else " " * 11
            lines.append(f"{task:<4} {rows:>10,} rows {time}   {', '.join(shown)}{more}")
    for corpus, reasons in report["dropped"].items():
        for reason, entry in reasons.items():
            lines.append(f"dropped {entry['rows']:,} of {corpus}: {reason} (such as {entry['examples'][0]})")
    return "\n".join(lines)


def direction(source_lang: str, target_lang: str) -> str:
    """A row's languages as recipes and reports write them: "fr" for transcription, "fr-en" for translation."""
    return source_lang if source_lang == target_lang else f"{source_lang}-{target_lang}"


def group_name(row: Mapping) -> str:
    """The name under which rows are counted: "asr/fr", "s2tt/fr-en", "mt/fr-en"."""
    return f"{row['task']}/{direction(row['source_lang'], row['target_lang'])}"


def audio_duration(audio: str | Path | bytes) -> float:
    """Seconds of an audio file (or its bytes), from its header or, for mp3, its frames, without decoding.

    Raises:
        `CorpusError`: the file does not exist, is no audio that libsndfile reads, or holds no samples.
    """
    import soundfile

    if not isinstance(audio, bytes) and not os.path.exists(audio):
        raise CorpusError("audio file not found")
    try:
        info = soundfile.info(io.BytesIO(audio) if isinstance(audio, bytes) else str(audio))
    except soundfile.LibsndfileError as error:
        raise CorpusError("audio cannot be read") from error
    if info.frames <= 0:
        raise CorpusError("audio without samples")
    return info.frames / info.samplerate


def audio_durations(audios: Sequence[str | Path | bytes]) -> list[float | CorpusError]:
    """`audio_duration` of many files on all cores; a file that fails gives its error instead."""

    def measure(audio):
        try:
            return audio_duration(audio)
        except CorpusError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(measure, audios))


def speech_bounds(samples, sampling_rate: int, margin: float = 0.03) -> tuple[int, int]:
    """First and last sample of (samples,) where 10 ms frames exceed 3 % of the peak, with `margin` seconds around."""
    import numpy as np

    frame, around = sampling_rate // 100, round(margin * sampling_rate)
    frames = samples[: len(samples) // frame * frame].reshape(-1, frame)
    loud = np.flatnonzero(np.abs(frames).max(axis=1) > 0.03 * np.abs(samples).max())
    if not len(loud):
        raise CorpusError("audio is silent")
    return max(0, int(loud[0]) * frame - around), min(len(samples), (int(loud[-1]) + 1) * frame + around)


def too_many_broken(broken: int, seen: int, max_bad_fraction: float, at_least: int = 0) -> bool:
    """Whether more of the `seen` rows are broken than may be; never with fewer than `at_least` rows."""
    return seen >= at_least and broken > max_bad_fraction * seen


def unpack_tar(archive: Path, folder: Path) -> None:
    """
    Unpack the files of a tar archive side by side into `folder`, whatever folders they had in it.

    Raises:
        `CorpusError`: the archive is damaged, or two of its files have one name.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    names = set()
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive, "r|*") as tar:
            for member in tar:
                if member.isfile():
                    member.name = Path(member.name).name
                    if member.name in names:
                        raise CorpusError(
                            f"{archive} holds two files named {member.name}; unpack it by hand into {folder}"
                        )
                    names.add(member.name)
                    tar.extract(member, partial, filter="data")
    except (OSError, tarfile.TarError) as error:
        raise CorpusError(f"{archive} could not be unpacked into {folder}: {error}") from error
    partial.rename(folder)


def read_table(path: Path) -> Iterator[dict[str, str]]:
    """Rows of a tab-separated file with a header and no quoting, as in Common Voice and CoVoST 2.

    Raises:
        `CorpusError`: a row has more or fewer fields than the header.
    """
    with path.open(encoding="utf-8", newline="\n") as lines:  # a field may hold any other line separator
        header = next(lines, "").rstrip("\r\n").split("\t")
        for number, line in enumerate(lines, start=2):
            values = line.rstrip("\r\n").split("\t")
            if len(values) != len(header):
                raise CorpusError(f"{path}, line {number}: {len(values)} fields, but the header has {len(header)}")
            yield dict(zip(header, values, strict=True))


def read_jsonl(path: Path) -> Iterator[tuple[int, dict]]:
    """Line number and JSON object of each line that is not blank; `CorpusError` for one that is no JSON object."""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, parse_record(line, f"{path}, line {number}")


def parse_record(line: str, where: str) -> dict:
    """The JSON object in one line of a JSONL file."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise CorpusError(f"{where}: no valid JSON ({error})") from error
    if not isinstance(record, dict):
        raise CorpusError(f"{where}: a JSON object is needed, not {line.strip()[:60]!r}")
    return record


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
