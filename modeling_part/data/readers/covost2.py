# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""CoVoST 2: translations of Common Voice 4."""

import re
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path

from ..checking import DataReport
from ..corpus_spec import CorpusSpec, chosen
from ..files import OnBroken, read_table, unquoted
from ..rows import BrokenRowError, CorpusError, language_code, speech_row, text_row
from .common_voice import clip_durations


COLUMNS_OF_TABLES = ("path", "translation", "split")
SPLITS_OF_TABLES = ("train", "train_covost", "dev", "test")


def read_covost2(spec: CorpusSpec, report: DataReport, *, common_voice: str | None = None) -> Iterator[dict]:
    """asr, s2tt and mt rows of CoVoST 2: `covost_v2.<src>_<tgt>.tsv` joined with Common Voice 4.

    The tables may lie anywhere under `path`; the sentences come from `<src>/validated.tsv` and the audio from
    `<src>/clips` of the Common Voice release. train is train + train_covost. A clip has one asr row, whatever number
    of languages it is translated into.

    Args:
        spec: the entry of the recipe.
        report: counts the rows that are dropped.
        common_voice: folder of the Common Voice release whose clips are translated. Default: the spec's `path`.
    """
    splits = {"train": ("train", "train_covost")}.get(spec.split, (spec.split,))
    on_broken = partial(report.drop_line, spec.corpus)
    check_place(spec)
    release = Path(common_voice or spec.path).expanduser()
    tables = {}
    for path in sorted(spec.folder().rglob("covost_v2.*.tsv")):
        if match := re.fullmatch(r"covost_v2\.([\w-]+?)_([\w-]+)\.tsv", path.name):
            tables[match[1], match[2]] = path
    names = chosen({source: language_code(source) for source, _ in tables}, spec)
    for source_name, source in names.items():
        sentences = validated_sentences(release / source_name, on_broken)
        durations = clip_durations(release / source_name)
        transcribed = set()
        for (_, target_name), table in ((key, table) for key, table in tables.items() if key[0] == source_name):
            target = language_code(target_name)
            for record in records_of_split(table, splits, on_broken):
                clip, translation = record["path"], record["translation"]
                if clip not in sentences:
                    report.drop(spec.corpus, f"{source}-{target}/{clip}", "not in Common Voice's validated.tsv")
                    continue
                stem, sentence, audio = Path(clip).stem, sentences[clip], release / source_name / "clips" / clip
                if clip not in transcribed and spec.wants("asr", source, source):
                    transcribed.add(clip)
                    row = (source, source, sentence, sentence, durations.get(clip), audio)
                    yield speech_row(f"{stem}/{source}", spec.corpus, *row)
                row_id = f"{stem}/{source}-{target}"
                if spec.wants("s2tt", source, target):
                    row = (source, target, translation, sentence, durations.get(clip), audio)
                    yield speech_row(row_id, spec.corpus, *row)
                if spec.wants("mt", source, target):
                    yield text_row(row_id, spec.corpus, source, target, translation, sentence)


def records_of_split(table: Path, splits: Collection[str], on_broken: OnBroken) -> Iterator[dict[str, str]]:
    """The fields of the lines of a table that are of one of `splits`; of another split, that is known, nothing is said."""
    for number, record in read_table(table, COLUMNS_OF_TABLES, on_broken, escaped_fields):
        if record["split"] in splits:
            yield record
        elif record["split"] not in SPLITS_OF_TABLES:
            on_broken(f"{table}, line {number}", BrokenRowError("unknown 'split'", repr(record["split"])))


def check_place(spec: CorpusSpec) -> None:
    """Raise `CorpusError` where the tables' folder, or that of the Common Voice release, is not there."""
    spec.folder()
    release = spec.settings.get("common_voice")
    if release and not Path(str(release)).expanduser().exists():
        raise CorpusError(
            f"covost2: {release} does not exist; give the folder that holds the locales of Common Voice 4 as `common_voice`"
        )


def escaped_fields(line: str) -> list[str]:
    """Fields of a CoVoST 2 or Common Voice 4 table as its authors read them: tabs, no quoting, backslash escapes.

    Raises:
        BrokenRowError: a backslash at the end, which would make the next line a part of this one.
    """
    if "\\" not in line:
        return line.split("\t")
    fields, characters = [""], iter(line)
    for character in characters:
        if character == "\t":
            fields.append("")
            continue
        if character == "\\" and not (character := next(characters, "")):
            raise BrokenRowError("a backslash at the end of a line", line[-40:])
        fields[-1] += character
    return fields


def validated_sentences(folder: Path, on_broken: OnBroken | None = None) -> dict[str, str]:
    """Clip -> sentence of `validated.tsv` in a Common Voice locale, of which some were written the CSV way."""
    table = folder / "validated.tsv"
    if not table.exists():
        raise CorpusError(
            f"covost2: {table} does not exist; CoVoST 2 needs the Common Voice 4 release of its source languages: "
            "give the folder that holds its locales as `common_voice`"
        )
    rows = read_table(table, ("path", "sentence"), on_broken, escaped_fields)
    return {record["path"]: unquoted(record["sentence"]) for _, record in rows}
