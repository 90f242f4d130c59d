"""Sound, rows and small functions that several test modules share."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import soundfile

from modeling_part.data.corpora import read_corpora


RATE = 16_000
MT = {"id": "m", "task": "mt", "source_lang": "fr", "target_lang": "en", "text": "Red.", "source_text": "Rouge."}


def tone(seconds: float, hertz: float = 440.0, rate: int = RATE) -> np.ndarray:
    """`(samples,)` of one frequency."""
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def encoded(samples: np.ndarray, rate: int = RATE, **options) -> bytes:
    """An audio file's bytes; WAV unless `format` says otherwise."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, **{"format": "WAV", **options})
    return buffer.getvalue()


def add_file(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """A file of an archive."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def asr(name: str, **changes) -> dict:
    """A manifest row of the fixture `clips`."""
    record = {"id": name, "task": "asr", "source_lang": "fr", "target_lang": "fr", "text": f"Texte {name}."}
    return {**record, "audio": "clips/a.flac", "duration": 1.5, **changes}


def write_lines(path: Path, records) -> str:
    """Write a JSONL file; its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return str(path)


def read_lines(folder: Path, records, **settings):
    """Dataset and report of `train.jsonl` in a folder, with these records."""
    return read_corpora([{"reader": "manifest", "path": write_lines(folder / "train.jsonl", records)}], **settings)


def edit_distance(reference: list[str], hypothesis: list[str]) -> int:
    """Levenshtein's recurrence."""
    row = list(range(len(hypothesis) + 1))
    for i, wanted in enumerate(reference, start=1):
        previous, row[0] = row[0], i
        for j, unit in enumerate(hypothesis, start=1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (wanted != unit))
    return row[-1]


def places(value, place=()) -> list[tuple]:
    """The way to every value inside nested objects and lists."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [*([place] if place else []), *(found for key, item in inner for found in places(item, (*place, key)))]
