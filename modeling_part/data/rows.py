# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""The canonical row: the one schema between every corpus reader and the collator, and what is counted about it.

A row is one training or test example. Its columns:

    id           str     unique within its corpus, split and task
    corpus       str     where it comes from, for example "fleurs"
    task         str     "asr" (speech to transcript), "s2tt" (speech to translation), "mt" (text to translation) or "text"
                         (any question and answer in text)
    source_lang  str     BCP 47 code of what is spoken or, for mt, of the source sentence
    target_lang  str     BCP 47 code of `text`; equal to `source_lang` for asr and text
    text         str     the answer, with the corpus's own casing and punctuation; without spaces around it
    source_text  str     the transcript, the source sentence or what is asked; None where it is unknown
    duration     float   seconds of audio; 0.0 for mt and text
    audio        struct  {"path": str or None, "bytes": binary or None}, still compressed; None without
    start, end   float   seconds, for a part of a long file; None for a whole file
    prompt       str     what is asked instead of the task's instruction; None: that
    context      str     names, terms or sentences that what is said may be about, one on each line; None without

Nothing here decodes audio: `audio_part.load_audio` does, row by row, when a batch is made.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..audio_part import AudioError, audio_seconds
from ..prompts_part import TASKS, context_of
from .addresses import AddressError, fetched


if TYPE_CHECKING:
    import datasets


SPLIT_NAMES = {  # our names, and those by which `datasets` and folders of corpora know them
    "train": ("train", "training"),
    "dev": ("dev", "validation", "valid", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SPLITS = tuple(SPLIT_NAMES)
FOR_PEOPLE = ("speaker", "license")  # may stand in a manifest; not read
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
    "prompt",
    "context",
)
QUESTION = ("prompt", "context")  # what a row is asked in words of its own
EXAMPLES_PER_REASON = 5
ROWS_BEFORE_JUDGEMENT = 1000  # a few broken rows at the start of a corpus or a run say nothing about their share
# What stands around a text and is no part of it: spaces and ends of lines of all kinds, a byte order mark.
EDGES = "".join(filter(str.isspace, map(chr, range(0x3001)))) + "\ufeff"
_LANGUAGE_CODE = re.compile(r"[a-z]{2,3}(-[A-Z][a-z]{3})?(-([A-Z]{2}|[0-9]{3}))?(-[A-Za-z0-9]{4,8})*")


class CorpusError(ValueError):
    """A corpus, manifest or recipe entry that cannot be read as asked: the message names what, why and the fix."""


class BrokenRowError(CorpusError):
    """One row that cannot be used: `reason` is the same for all rows with this fault, `detail` says what this one has."""

    def __init__(self, reason: str, detail: object = "") -> None:
        self.reason = reason
        self.detail = shortened(detail)
        super().__init__(f"{reason}: {self.detail}" if self.detail else reason)


def shortened(value: object, longest: int = 60) -> str:
    """A value as messages show it."""
    shown = value if isinstance(value, str) and value.isprintable() else "" if value == "" else repr(value)
    return shown if len(shown) <= longest else f"{shown[:longest]}…"


@contextmanager
def errors_of_row(row: Mapping) -> Iterator[None]:
    """Say in a ValueError which row it is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"Row {row['id']!r} of corpus {row.get('corpus')!r}: {error}") from error


def canonical_features() -> "datasets.Features":
    """The `datasets.Features` of a canonical row (audio as a struct of path and bytes, never decoded)."""
    from datasets import Features, Value

    strings = ("id", "corpus", "task", "source_lang", "target_lang", "text", "source_text")
    features = {name: Value("string") for name in strings}
    features["duration"] = Value("float32")
    features["audio"] = {"path": Value("string"), "bytes": Value("binary")}
    features["start"] = features["end"] = Value("float64")
    features["prompt"] = features["context"] = Value("string")
    return Features(features)


def check_language(code: str, where: str) -> str:
    """Return `code` if it is shaped like a BCP 47 code ("pt", "pt-BR", "zh-Hans"); else raise `CorpusError`."""
    if not isinstance(code, str) or not _LANGUAGE_CODE.fullmatch(code):
        raise CorpusError(
            f"{where}: {code!r} is not a BCP 47 language code; write one such as 'en', 'pt-BR' or 'zh-Hans'."
        )
    return code


def check_direction(task: str, source_lang: str, target_lang: str) -> None:
    """Raise `BrokenRowError` for an unknown task, a malformed language code, or languages that do not fit the task."""
    if task not in TASKS:
        raise BrokenRowError(f"'task' is none of {', '.join(TASKS)}", repr(task))
    for name, code in (("source_lang", source_lang), ("target_lang", target_lang)):
        if not isinstance(code, str) or not _LANGUAGE_CODE.fullmatch(code):
            raise BrokenRowError(f"'{name}' is not a BCP 47 language code such as 'en' or 'pt-BR'", repr(code))
    if (task in ("asr", "text")) != (source_lang == target_lang):
        raise BrokenRowError(
            "asr and text, and only they, keep the language", f"{task} from {source_lang!r} to {target_lang!r}"
        )


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
    """Train (90 %), dev (5 %) or test (5 %), from a hash of `key`: the same on every machine and in every language."""
    number = int.from_bytes(hashlib.sha256(key.encode("utf-8")).digest()[:8], "big") % 100
    return "test" if number < 5 else "dev" if number < 10 else "train"


def speech_row(
    row_id: str,
    corpus: str,
    source_lang: str,
    target_lang: str,
    text: str,
    source_text: str | None,
    duration: float | None,
    audio: str | Path | bytes | None = None,
    span: tuple[float | None, float | None] = (None, None),
    question: tuple[str | None, str | None] = (None, None),
) -> dict:
    """One asr row (`source_lang == target_lang`) or s2tt row.

    A `duration` of None is measured later from the file; `span` is the seconds of a long file where it starts and ends;
    `question` the row's own prompt and context. Texts lose what stands around them, see `EDGES`.
    """
    encoded = isinstance(audio, bytes)
    path = None if audio is None or encoded else str(audio)
    return {
        "id": row_id,
        "corpus": corpus,
        "task": "asr" if source_lang == target_lang else "s2tt",
        "source_lang": source_lang,
        "target_lang": target_lang,
        "text": text.strip(EDGES) if isinstance(text, str) else text,
        "source_text": source_text.strip(EDGES) if isinstance(source_text, str) else source_text,
        "duration": duration,
        "audio": {"path": path, "bytes": audio if encoded else None},
        "start": span[0],
        "end": span[1],
        "prompt": question[0],
        "context": question[1],
    }


def text_row(
    row_id: str,
    corpus: str,
    source_lang: str,
    target_lang: str,
    text: str,
    source_text: str,
    task: str = "mt",
    question: tuple[str | None, str | None] = (None, None),
) -> dict:
    """One mt or text row: `source_text` in, `text` out, no audio; `question` as in [`speech_row`]."""
    row = speech_row(row_id, corpus, source_lang, target_lang, text, source_text, 0.0, question=question)
    return {**row, "task": task, "audio": None}


def question_of(prompt: object, context: object) -> tuple[str | None, str | None]:
    """A record's own prompt and context; a list of words is a context of a line each.

    Raises:
        BrokenRowError: they are no texts.
    """
    if isinstance(context, (list, tuple)):
        if strange := [word for word in context if not isinstance(word, str) or not word.strip()]:
            raise BrokenRowError("'context' must be a text or a list of words", repr(strange[0]))
        context = context_of(context)
    for name, value in (("prompt", prompt), ("context", context)):
        if value is not None and (not isinstance(value, str) or not value.strip()):
            raise BrokenRowError(f"{name!r} must be a text, or left out", repr(value))
    return prompt, context


def direction(source_lang: str, target_lang: str) -> str:
    """A row's languages as recipes and reports write them: "fr" for transcription, "fr-en" for translation."""
    return source_lang if source_lang == target_lang else f"{source_lang}-{target_lang}"


def group_name(row: Mapping) -> str:
    """The name under which rows are counted: "asr/fr", "s2tt/fr-en", "mt/fr-en"."""
    return f"{row['task']}/{direction(row['source_lang'], row['target_lang'])}"


def audio_duration(audio: str | Path | bytes) -> float:
    """Seconds of an audio file (or its bytes), from its header or, for mp3, its frames, without decoding.

    Raises:
        CorpusError: the file does not exist, is no audio, is cut off, or holds no samples; the message is the reason
            alone, the same for all such files.
    """
    try:
        return audio_seconds(audio)
    except AudioError as error:
        raise CorpusError(error.reason) from error
    except (OSError, ValueError) as error:  # of a disk that fails while the file is read, of a name that is none
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise CorpusError(f"audio file cannot be read ({reason})") from error


def audio_durations(audios: Sequence[str | Path | bytes]) -> list[float | CorpusError]:
    """`audio_duration` of many files on all cores; a file that fails gives its error instead."""

    def measure(audio: str | Path | bytes) -> float | CorpusError:
        try:
            return audio_duration(fetched(audio))
        except CorpusError as error:
            return error
        except AddressError:
            return CorpusError("audio could not be fetched")

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(measure, audios))


def speech_bounds(samples: np.ndarray, sampling_rate: int, margin: float = 0.03) -> tuple[int, int]:
    """First and last sample of (samples,) where 10 ms frames exceed 3 % of the peak, with `margin` seconds around."""
    frame, around = sampling_rate // 100, round(margin * sampling_rate)
    frames = samples[: len(samples) // frame * frame].reshape(-1, frame)
    if not len(frames):
        raise CorpusError("audio is too short")
    loud = np.flatnonzero(np.abs(frames).max(axis=1) > 0.03 * np.abs(samples).max())
    if not len(loud):
        raise CorpusError("audio is silent")
    return max(0, int(loud[0]) * frame - around), min(len(samples), (int(loud[-1]) + 1) * frame + around)


def too_many_broken(broken: int, seen: int, max_bad_fraction: float, at_least: int = 0) -> bool:
    """Whether more of the `seen` rows are broken than may be; never with fewer than `at_least` rows."""
    return seen >= at_least and broken > max_bad_fraction * seen
