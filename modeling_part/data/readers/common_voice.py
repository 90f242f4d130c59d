# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Common Voice: `LANGUAGE/SPLIT.tsv` and MP3 clips."""

from collections.abc import Iterator
from pathlib import Path

from ..checking import DataReport
from ..corpus_spec import CorpusSpec, chosen
from ..files import read_table
from ..rows import CorpusError, language_code, speech_row
from .dataset import is_hub_id


def read_common_voice(spec: CorpusSpec, report: DataReport) -> Iterator[dict]:
    """Asr rows of a Common Voice release: `<locale>/{train,dev,test}.tsv` and `<locale>/clips/*.mp3`.

    Works for every release, as columns are found by the header. Durations come from `clip_durations.tsv` (since 16.1)
    or `times.txt` (14 to 16.0), both in milliseconds; without them they are measured. `path` is the folder that holds
    the locales. The Hub has no official copy any more; others there are read with the reader `dataset`.
    """
    root = Path(spec.path).expanduser()
    if not root.exists() and is_hub_id(spec.path):
        raise CorpusError(
            f"common_voice: {spec.path} is no folder. Give the unpacked release, or read a copy on the Hub with "
            f"{{reader: dataset, path: {spec.path}, config: LOCALE, columns: {{text: sentence}}, tasks: [asr], "
            "languages: [LANGUAGE], name: common_voice}"
        )
    if not spec.wants("asr"):
        return
    locales = {path.parent.name: language_code(path.parent.name) for path in spec.folder().glob(f"*/{spec.split}.tsv")}
    for locale, language in chosen(locales, spec).items():
        folder = root / locale
        durations = clip_durations(folder)
        for record in read_table(folder / f"{spec.split}.tsv"):
            clip, sentence = record["path"], record["sentence"]
            path = folder / "clips" / clip
            duration = durations.get(clip)
            yield speech_row(Path(clip).stem, spec.corpus, language, language, sentence, sentence, duration, path)


def clip_durations(folder: Path) -> dict[str, float]:
    """Seconds of each clip of a Common Voice locale, from the release's own table; empty if it has none."""
    for name in ("clip_durations.tsv", "times.txt"):
        if (folder / name).exists():
            with (folder / name).open(encoding="utf-8") as lines:
                fields = (line.split() for line in lines if line.strip())
                return {first: int(last) / 1000 for first, *_, last in fields if last.isdigit()}
    return {}
