# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Common Voice: `LANGUAGE/SPLIT.tsv` and MP3 clips."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ..checking import DataReport
from ..corpus_spec import CorpusSpec, chosen
from ..files import read_table, text_lines
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
    on_broken = partial(report.drop_line, spec.corpus)
    for locale, language in chosen(locales, spec).items():
        folder = root / locale
        durations = clip_durations(folder)
        for _, record in read_table(folder / f"{spec.split}.tsv", ("path", "sentence"), on_broken):
            clip, sentence = record["path"], unquoted(record["sentence"])
            speech = (language, language, sentence, sentence, durations.get(clip))
            yield speech_row(Path(clip).stem, spec.corpus, *speech, folder / "clips" / clip)


def unquoted(sentence: str) -> str:
    """A sentence as it was read, where a release wrote it the CSV way: in quotes, with its own quotes doubled.

    Other sentences in quotes stay as they are: CSV does not quote what needs no quoting.
    """
    inner = sentence[1:-1]
    if (
        len(sentence) > 3
        and sentence[0] == sentence[-1] == '"'
        and '""' in inner
        and '"' not in inner.replace('""', "")
    ):
        return inner.replace('""', '"')
    return sentence


def clip_durations(folder: Path) -> dict[str, float]:
    """Seconds of each clip of a Common Voice locale, from the release's own table; empty if it has none.

    Lines without a number are passed over: those clips are measured.
    """
    for name in ("clip_durations.tsv", "times.txt"):
        if (folder / name).exists():
            fields = (line.split() for _, line in text_lines(folder / name, on_broken=lambda where, error: None))
            numbers = ((each[0], each[-1]) for each in fields if len(each) > 1)
            return {clip: int(last) / 1000 for clip, last in numbers if last.isascii() and last.isdigit()}
    return {}
