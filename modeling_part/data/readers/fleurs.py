# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""FLEURS: from the Hub, or a folder of its archives."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

from ..checking import DataReport
from ..corpus_spec import CorpusSpec, chosen
from ..files import OnBroken, filled_once, handle, text_lines, unpack_tar
from ..rows import SPLIT_NAMES, BrokenRowError, CorpusError, direction, language_code, speech_row, text_row
from .dataset import errors_of_dataset, errors_of_hub, is_hub_id, refuse_settings


logger = logging.getLogger(__name__)
NEEDED = {"id": int, "num_samples": int, "path": str}  # columns of each record in parquet, beside its text


def read_fleurs(spec: CorpusSpec, report: DataReport, *, revision: str | None = None) -> Iterator[dict]:
    """asr, s2tt and mt rows of FLEURS; the same sentence has the same number in all languages.

    Read from a copy of the Hub repository: `data/<lang>/<split>.tsv` with `data/<lang>/audio/<split>.tar.gz`, or the
    files of its parquet branch, `<lang>/<split>/*.parquet`. The audio of the source languages is unpacked once, beside
    the archives. With a Hub id ("google/fleurs") only the files that are needed are downloaded. Texts are the raw
    transcriptions.

    Args:
        spec: the entry of the recipe.
        report: counts the rows that are dropped.
        revision: of the Hub repository.
    """
    root = fleurs_folder(spec, revision)
    with errors_of_dataset(spec):
        yield from fleurs_rows(spec, root, partial(report.drop_line, spec.corpus))


def fleurs_rows(spec: CorpusSpec, root: Path, on_broken: OnBroken) -> Iterator[dict]:
    """The rows of `read_fleurs` from a folder."""
    tables = {path.parent.name: path for path in reversed(fleurs_tables(root, spec.split))}  # of two the first
    names = {name: language_code(name) for name in tables}
    sources = chosen(names, spec)
    targets = chosen(names, replace(spec, languages=spec.target_languages or spec.languages))
    texts = {}
    for name, code in {**sources, **targets}.items():
        records = fleurs_records(tables[name], on_broken=on_broken)
        texts[code] = {record["id"]: record["raw_transcription"] for record in records}
    spoken = spec.wants("asr") or spec.wants("s2tt")
    for name, source in sources.items():
        recordings = fleurs_recordings(tables[name]) if spoken else []
        for target in dict.fromkeys((source, *targets.values())):
            task = "asr" if source == target else "s2tt"
            for number, path, text, duration in recordings if spec.wants(task, source, target) else ():
                if number in texts[target]:
                    answer = text if source == target else texts[target][number]
                    row_id = f"{path.stem}/{direction(source, target)}"
                    yield speech_row(row_id, spec.corpus, source, target, answer, text, duration, path)
            if source != target and spec.wants("mt", source, target):
                for number in sorted(texts[source].keys() & texts[target].keys()):
                    pair = texts[target][number], texts[source][number]
                    yield text_row(f"{number}/{source}-{target}", spec.corpus, source, target, *pair)


def fleurs_folder(spec: CorpusSpec, revision: str | None) -> Path:
    """The folder given, or the snapshot of the Hub repository with what the spec needs of it."""
    check_place(spec)
    if (folder := spec.local_path).exists():
        refuse_settings(spec, ("revision",))
        return folder
    from huggingface_hub import snapshot_download

    settings = {"repo_type": "dataset", "revision": revision, "allow_patterns": fleurs_patterns(spec)}
    with errors_of_hub(spec):
        return Path(snapshot_download(spec.path, **settings))


def check_place(spec: CorpusSpec) -> None:
    """Raise `CorpusError` where a path is neither a folder here nor the id of a dataset on the Hub."""
    if not is_hub_id(spec.path):
        spec.folder()


def fleurs_patterns(spec: CorpusSpec) -> list[str]:
    """The files of the Hub repository that a spec needs."""
    spoken = spec.languages or ("*",)
    written = {*spoken, *(spec.target_languages or ())}
    patterns = [f"data/{fleurs_name(code)}/{spec.split}.tsv" for code in sorted(written)]
    patterns += [f"{fleurs_name(code)}/{split}/*" for code in sorted(written) for split in SPLIT_NAMES[spec.split]]
    if spec.wants("asr") or spec.wants("s2tt"):
        patterns += [f"data/{fleurs_name(code)}/audio/{spec.split}.tar.gz" for code in spoken]
    return patterns


def fleurs_name(code: str) -> str:
    """The file name pattern of FLEURS's own name of a language: "de" -> "de_*", as in "de_de"."""
    return code if code == "*" else "cmn_*" if code == "zh" else f"{code}_*"


def fleurs_tables(root: Path, split: str) -> list[Path]:
    """The split's table of each language, a .tsv file or else the folder of its parquet files, in order of their paths."""
    tables = sorted(root.glob(f"data/*/{split}.tsv")) or sorted(root.glob(f"*/{split}.tsv"))
    if tables:
        return tables
    folders = (folder for each in SPLIT_NAMES[split] for folder in root.glob(f"**/*/{each}"))
    return sorted(folder for folder in folders if any(folder.glob("*.parquet")))


def fleurs_records(table: Path, more: Sequence[str] = (), on_broken: OnBroken | None = None) -> Iterator[dict]:
    """id, raw_transcription, num_samples and path of every recording; from parquet also the columns `more`."""
    if table.is_dir():
        yield from _parquet_records(table, more, on_broken)
        return
    for line_number, line in text_lines(table, on_broken):
        fields = line.split("\t")
        numbers = (fields[0], fields[5]) if len(fields) == 7 else ()
        if numbers and all(one.isascii() and one.isdigit() for one in numbers):
            texts = {"path": fields[1], "raw_transcription": fields[2]}
            yield {"id": int(fields[0]), "num_samples": int(fields[5]), **texts}
        elif line.strip():
            fault = BrokenRowError("not 7 fields, the first and the sixth of them numbers", line)
            handle(on_broken, f"{table}, line {line_number}", fault)


def _parquet_records(folder: Path, more: Sequence[str], on_broken: OnBroken | None) -> Iterator[dict]:
    import pyarrow.parquet

    columns = ["id", "num_samples", "path", "raw_transcription", *more]
    for path in sorted(folder.glob("*.parquet")):
        batches = pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=100, columns=columns)
        for record in chain.from_iterable(batch.to_pylist() for batch in batches):
            if all(isinstance(record[column], kind) for column, kind in NEEDED.items()):
                yield record
            else:
                fault = BrokenRowError(f"no {', '.join(NEEDED)} in a record", repr(record["raw_transcription"]))
                handle(on_broken, str(path), fault)


def fleurs_recordings(table: Path) -> list[tuple[int, Path, str, float]]:
    """(number of the sentence, audio file, raw transcription, seconds) of every recording; unpacks the audio."""
    audio = table / "audio" if table.is_dir() else table.parent / "audio" / table.stem
    if not audio.exists():
        logger.info("fleurs: unpacking the audio of %s", table)
        if table.is_dir():
            unpack_parquet(table, audio)
        elif not (archive := table.parent / "audio" / f"{table.stem}.tar.gz").exists():
            raise CorpusError(f"fleurs: neither {archive} nor the unpacked folder {audio} exists")
        else:
            unpack_tar(archive, audio)
    return [
        (record["id"], audio / Path(record["path"]).name, record["raw_transcription"], record["num_samples"] / 16000)
        for record in fleurs_records(table, on_broken=_counted_with_texts)
    ]


def unpack_parquet(table: Path, folder: Path) -> None:
    """Write the audio in FLEURS's parquet files to files, so that the rows of many directions need not repeat it."""
    names: set[str] = set()
    with filled_once(folder) as partial:
        for record in fleurs_records(table, ["audio"], _counted_with_texts) if partial else ():
            sound = (record["audio"] or {}).get("bytes")
            if sound is None:  # counted as a file that is not found
                continue
            file = partial / Path(record["path"]).name
            if file.name in names and file.read_bytes() != sound:
                raise CorpusError(f"fleurs: {folder.parent} holds two recordings named {file.name}")
            names.add(file.name)
            file.write_bytes(sound)


def _counted_with_texts(where: str, error: BrokenRowError) -> None:
    """Of a row that is broken, once more."""
