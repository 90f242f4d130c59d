# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Readers of public corpora in the layouts in which they are published.

Each takes a `CorpusSpec` and a `DataReport` and yields canonical rows with audio still compressed. Common Voice (any
release), FLEURS, CoVoST 2, WenetSpeech and the spoken stamp descriptions of Tux Paint; asterisk.py has the Asterisk
core sounds.
"""

import csv
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from .canonical import (
    CorpusError,
    CorpusSpec,
    DataReport,
    language_code,
    read_table,
    speech_bounds,
    speech_row,
    split_of,
    text_row,
    unpack_tar,
)
from .generic_corpora import SPLIT_NAMES, is_hub_id, unreachable


def chosen(found: dict[str, str], spec: CorpusSpec) -> dict[str, str]:
    """Of the languages `found` (the corpus's own name -> BCP 47 code) those of `spec.languages`, in order of name.

    Raises:
        `CorpusError`: one that is asked for is not there, or none is.
    """
    missing = sorted(set(spec.languages or ()) - set(found.values()))
    if missing or not found:
        there = ", ".join(sorted(set(found.values()))) or f"nothing in the layout of {spec.reader}"
        raise CorpusError(f"{spec.reader} at {spec.path}: no {', '.join(missing) or 'language'} there; found {there}")
    wanted = spec.languages or tuple(found.values())
    return {name: code for name, code in sorted(found.items()) if code in wanted}


# --------------------------------------------------------------------------------------------------- Common Voice


def read_common_voice(spec: CorpusSpec, report: DataReport) -> Iterator[dict]:
    """asr rows of a Common Voice release: `<locale>/{train,dev,test}.tsv` and `<locale>/clips/*.mp3`.

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


# --------------------------------------------------------------------------------------------------------- FLEURS


def read_fleurs(spec: CorpusSpec, report: DataReport) -> Iterator[dict]:
    """asr, s2tt and mt rows of FLEURS; the same sentence has the same number in all languages.

    Read from a copy of the Hub repository: `data/<lang>/<split>.tsv` with `data/<lang>/audio/<split>.tar.gz`, or the
    files of its parquet branch, `<lang>/<split>/*.parquet`. The audio of the source languages is unpacked once, beside
    the archives. With a Hub id ("google/fleurs") only the files that are needed are downloaded. Texts are the raw
    transcriptions.
    """
    root = fleurs_folder(spec)
    names = {path.parent.name: language_code(path.parent.name) for path in fleurs_tables(root, "*", spec.split)}
    sources = chosen(names, spec)
    targets = chosen(names, replace(spec, languages=spec.target_languages or spec.languages))
    texts = {code: fleurs_sentences(root, name, spec.split) for name, code in {**sources, **targets}.items()}
    for name, source in sources.items():
        spoken = spec.wants("asr") or spec.wants("s2tt")
        recordings = fleurs_recordings(root, name, spec.split) if spoken else []
        for target in dict.fromkeys((source, *targets.values())):
            task = "asr" if source == target else "s2tt"
            for number, path, text, duration in recordings if spec.wants(task, source, target) else ():
                if number in texts[target]:
                    answer = text if source == target else texts[target][number]
                    row_id = f"{path.stem}/{source}" if source == target else f"{path.stem}/{source}-{target}"
                    yield speech_row(row_id, spec.corpus, source, target, answer, text, duration, path)
            if source != target and spec.wants("mt", source, target):
                for number in sorted(texts[source].keys() & texts[target].keys()):
                    pair = texts[target][number], texts[source][number]
                    yield text_row(f"{number}/{source}-{target}", spec.corpus, source, target, *pair)


def fleurs_folder(spec: CorpusSpec) -> Path:
    """The folder given, or the snapshot of the Hub repository with what the spec needs of it."""
    if Path(spec.path).expanduser().exists() or not is_hub_id(spec.path):
        return spec.folder()
    import httpx2
    from huggingface_hub import snapshot_download

    spoken = spec.languages or ("*",)
    written = {*spoken, *(spec.target_languages or ())}
    patterns = [f"data/{fleurs_name(code)}/{spec.split}.tsv" for code in sorted(written)]
    patterns += [f"{fleurs_name(code)}/{split}/*" for code in sorted(written) for split in SPLIT_NAMES[spec.split]]
    if spec.wants("asr") or spec.wants("s2tt"):
        patterns += [f"data/{fleurs_name(code)}/audio/{spec.split}.tar.gz" for code in spoken]
    settings = {"repo_type": "dataset", "revision": spec.revision, "allow_patterns": patterns}
    try:
        return Path(snapshot_download(spec.path, **settings))
    except (OSError, RuntimeError, httpx2.HTTPError) as error:
        raise unreachable(spec, error) from error


def fleurs_name(code: str) -> str:
    """The file name pattern of FLEURS's own name of a language: "de" -> "de_*", as in "de_de"."""
    return code if code == "*" else "cmn_*" if code == "zh" else f"{code}_*"


def fleurs_tables(root: Path, name: str, split: str) -> list[Path]:
    """Of one language (or, with "*", all of them) the split's .tsv file or else the folder of its parquet files."""
    tables = sorted(root.glob(f"data/{name}/{split}.tsv")) or sorted(root.glob(f"{name}/{split}.tsv"))
    if tables:
        return tables
    folders = (folder for each in SPLIT_NAMES[split] for folder in root.glob(f"**/{name}/{each}"))
    return sorted(folder for folder in folders if any(folder.glob("*.parquet")))


def fleurs_sentences(root: Path, name: str, split: str) -> dict[int, str]:
    """Number of the sentence -> raw transcription, of one language."""
    return {record["id"]: record["raw_transcription"] for record in fleurs_records(root, name, split, [])}


def fleurs_records(root: Path, name: str, split: str, more: list[str]) -> Iterator[dict]:
    """id, raw_transcription, num_samples and path of every recording; from parquet also the columns `more`."""
    table = fleurs_tables(root, name, split)[0]
    if table.is_dir():
        import pyarrow.parquet

        columns = ["id", "num_samples", "path", "raw_transcription", *more]
        for path in sorted(table.glob("*.parquet")):
            for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=100, columns=columns):
                yield from batch.to_pylist()
        return
    with table.open(encoding="utf-8", newline="") as lines:
        for fields in csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
            if len(fields) != 7:
                raise CorpusError(f"{table}: {len(fields)} columns where FLEURS has 7: {fields[:3]}")
            number, path, raw_transcription, _, _, num_samples, _ = fields
            texts = {"path": path, "raw_transcription": raw_transcription}
            yield {"id": int(number), "num_samples": int(num_samples), **texts}


def fleurs_recordings(root: Path, name: str, split: str) -> list[tuple[int, Path, str, float]]:
    """(number of the sentence, audio file, raw transcription, seconds) of every recording; unpacks the audio."""
    table = fleurs_tables(root, name, split)[0]
    audio = table / "audio" if table.is_dir() else table.parent / "audio" / split
    if not audio.exists():
        print(f"fleurs: unpacking the audio of {table}", flush=True)
        if table.is_dir():
            unpack_parquet(root, name, split, audio)
        elif not (archive := table.parent / "audio" / f"{split}.tar.gz").exists():
            raise CorpusError(f"fleurs: neither {archive} nor the unpacked folder {audio} exists")
        else:
            unpack_tar(archive, audio)
    return [
        (record["id"], audio / Path(record["path"]).name, record["raw_transcription"], record["num_samples"] / 16000)
        for record in fleurs_records(root, name, split, [])
    ]


def unpack_parquet(root: Path, name: str, split: str, folder: Path) -> None:
    """Write the audio in FLEURS's parquet files to files, so that the rows of many directions need not repeat it."""
    partial = folder.with_name("audio.partial")
    partial.mkdir(exist_ok=True)
    for record in fleurs_records(root, name, split, ["audio"]):
        (partial / Path(record["path"]).name).write_bytes(record["audio"]["bytes"])
    partial.rename(folder)


# ------------------------------------------------------------------------------------------------------- CoVoST 2


def read_covost2(spec: CorpusSpec, report: DataReport) -> Iterator[dict]:
    """asr, s2tt and mt rows of CoVoST 2: `covost_v2.<src>_<tgt>.tsv` joined with Common Voice 4.

    The tables may lie anywhere under `path`; the sentences come from `<src>/validated.tsv` and the audio from
    `<src>/clips` of the Common Voice release in `common_voice` (default: `path`). train is train + train_covost.
    A clip has one asr row, whatever number of languages it is translated into.
    """
    splits = {"train": ("train", "train_covost")}.get(spec.split, (spec.split,))
    release = Path(spec.common_voice).expanduser() if spec.common_voice else spec.folder()
    tables = {}
    for path in sorted(spec.folder().rglob("covost_v2.*.tsv")):
        if match := re.fullmatch(r"covost_v2\.([\w-]+?)_([\w-]+)\.tsv", path.name):
            tables[match[1], match[2]] = path
    names = chosen({source: language_code(source) for source, _ in tables}, spec)
    for source_name, source in names.items():
        sentences = validated_sentences(release / source_name)
        durations = clip_durations(release / source_name)
        transcribed = set()
        for (_, target_name), table in ((key, table) for key, table in tables.items() if key[0] == source_name):
            target = language_code(target_name)
            for record in covost_table(table):
                if record["split"] not in splits:
                    continue
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


def covost_table(path: Path) -> Iterator[dict[str, str]]:
    """Records of a CoVoST 2 or Common Voice 4 table as its authors read it: tabs, no quoting, backslash escapes."""
    with path.open(encoding="utf-8", newline="") as lines:
        yield from csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE, escapechar="\\")


def validated_sentences(folder: Path) -> dict[str, str]:
    """Clip -> sentence of `validated.tsv` in a Common Voice locale."""
    table = folder / "validated.tsv"
    if not table.exists():
        raise CorpusError(
            f"covost2: {table} does not exist; CoVoST 2 needs the Common Voice 4 release of its source languages: "
            "give the folder that holds its locales as `common_voice`"
        )
    return {record["path"]: record["sentence"] for record in covost_table(table)}


# ---------------------------------------------------------------------------------------------------- WenetSpeech


def read_wenetspeech(spec: CorpusSpec, report: DataReport) -> Iterator[dict]:
    """asr rows of WenetSpeech: segments, by begin and end, of the long opus files that `WenetSpeech.json` lists.

    `subset` chooses S, M, L, W, DEV, TEST_NET or TEST_MEETING; `min_confidence` leaves out doubtful segments.
    """
    if not spec.wants("asr", "zh", "zh"):
        raise CorpusError(f"wenetspeech: it has asr in zh only, not tasks {spec.tasks}, languages {spec.languages}")
    root = spec.folder()
    subset = spec.subset or {"train": "L", "dev": "DEV", "test": "TEST_NET"}[spec.split]
    index = root / "WenetSpeech.json" if root.is_dir() else root
    if not index.exists():
        raise CorpusError(f"wenetspeech: no WenetSpeech.json in {root}")
    for audio in json_array(index, "audios"):
        path = index.parent / audio["path"]
        for segment in audio["segments"]:
            if subset not in segment["subsets"]:
                continue
            begin, end = segment["begin_time"], segment["end_time"]
            if end > audio["duration"] + 0.5:
                report.drop(spec.corpus, segment["sid"], "segment ends after its audio", broken=True)
            elif spec.min_confidence is not None and segment["confidence"] < spec.min_confidence:
                report.drop(spec.corpus, segment["sid"], f"confidence under {spec.min_confidence:g}")
            else:
                text, times = segment["text"], {"start": begin, "end": end}
                yield speech_row(segment["sid"], spec.corpus, "zh", "zh", text, text, end - begin, path, **times)


def json_array(path: Path, key: str, block: int = 1 << 20) -> Iterator[dict]:
    """The objects of the array under `key` of a JSON file, one by one: WenetSpeech's index has gigabytes."""
    decoder = json.JSONDecoder()
    with path.open(encoding="utf-8") as file:
        buffer = file.read(block)
        while not (start := re.search(rf'"{key}"\s*:\s*\[', buffer)):
            more = file.read(block)
            if not more:
                raise CorpusError(f"{path}: no array {key!r} in it")
            buffer = buffer[-len(key) - 10 :] + more
        position = start.end()
        while True:
            position = re.compile(r"[\s,]*").match(buffer, position).end()
            try:
                value, position = decoder.raw_decode(buffer, position)
            except json.JSONDecodeError as error:
                if buffer.startswith("]", position):
                    return
                more = file.read(max(block, len(buffer)))
                if not more:
                    raise CorpusError(f"{path}: it ends or breaks inside the array {key!r} ({error})") from error
                buffer, position = buffer[position:] + more, 0
                continue
            yield value


# ------------------------------------------------------------------------------------------------------ Tux Paint


def read_tuxpaint(spec: CorpusSpec, report: DataReport) -> Iterator[dict]:
    """asr, s2tt and mt rows of Tux Paint's stamps: volunteers read what each stamp shows, in ten languages and more.

    `path` is the Debian package `tuxpaint-stamps-default_*.deb` (unpacked once, beside itself) or the folder it is
    unpacked in. `NAME.txt` has the English text and `lang.utf8=` lines, `NAME_desc_LANG.ogg` the recordings, of which
    `start` and `end` leave out the silence around the speech. Splits by hash of the English text, so that the same
    content is in one split in all languages. Translations go into the languages that are spoken, or
    `target_languages` (about sixty are there).
    """
    stamps = stamp_folder(spec)
    texts = {path.with_suffix(""): stamp_texts(path) for path in sorted(stamps.rglob("*.txt"))}
    texts = {stamp: found for stamp, found in texts.items() if found.get("en") and split_of(found["en"]) == spec.split}
    recordings = {}
    for stamp in texts:
        for path in sorted(stamp.parent.glob(f"{stamp.name}_desc*.ogg")):
            tag = path.stem.removeprefix(f"{stamp.name}_desc").removeprefix("_") or "en"
            recordings[path] = (stamp, language_code(tag, keep_region=True))
    if spec.wants("asr") or spec.wants("s2tt"):
        chosen({code: code for _, code in recordings.values()}, spec)
    targets = spec.target_languages or spec.languages or sorted({code for _, code in recordings.values()})
    wanted = [path for path, (_, code) in recordings.items() if spec.wants("asr", code) or spec.wants("s2tt", code)]
    for path, bounds in zip(wanted, spoken_parts(wanted), strict=True):
        stamp, source = recordings[path]
        name, text = stamp.relative_to(stamps).as_posix(), texts[stamp].get(source)
        if isinstance(bounds, CorpusError) or text is None:
            reason = "recording without a text" if text is None else str(bounds)
            report.drop(spec.corpus, f"{name}/{source}", reason, broken=text is not None)
            continue
        for target in (source, *(code for code in targets if code != source)):
            answer = texts[stamp].get(target)
            if answer and spec.wants("asr" if source == target else "s2tt", source, target):
                row_id = f"{name}/{source}" if source == target else f"{name}/{source}-{target}"
                part = {"duration": bounds[1] - bounds[0], "start": bounds[0], "end": bounds[1]}
                yield speech_row(row_id, spec.corpus, source, target, answer, text, path=path, **part)
    if spec.wants("mt"):
        by_name = {stamp.relative_to(stamps).as_posix(): found for stamp, found in texts.items()}
        yield from stamp_pairs(spec, by_name, targets)


def stamp_pairs(spec: CorpusSpec, texts: dict[str, dict[str, str]], targets: list[str]) -> Iterator[dict]:
    """mt rows between the texts of each stamp, from `languages` (or all targets) into all targets."""
    for name, found in texts.items():
        for source in spec.languages or targets:
            for target in targets:
                if source != target and source in found and target in found:
                    pair = found[target], found[source]
                    yield text_row(f"{name}/{source}-{target}", spec.corpus, source, target, *pair)


def stamp_folder(spec: CorpusSpec) -> Path:
    """The folder `stamps` of an unpacked package; a `.deb` file is unpacked first."""
    folder = spec.folder()
    if folder.suffix == ".deb":
        package, folder = folder, folder.with_suffix(".unpacked")
        if not folder.exists():
            if not shutil.which("dpkg-deb"):
                raise CorpusError(f"tuxpaint: dpkg-deb is needed to unpack {package}; or give the unpacked folder")
            result = subprocess.run(["dpkg-deb", "-x", package, folder], capture_output=True, text=True, check=False)
            if result.returncode != 0:
                raise CorpusError(f"tuxpaint: {package} could not be unpacked: {result.stderr.strip()}")
    found = [path for path in (folder, *sorted(folder.rglob("stamps"))) if path.name == "stamps" and path.is_dir()]
    if not found:
        raise CorpusError(f"tuxpaint: no folder 'stamps' in {folder}; is it tuxpaint-stamps-default, unpacked?")
    return found[0]


def stamp_texts(path: Path) -> dict[str, str]:
    """BCP 47 code -> text of a `NAME.txt`: the first line is English, the others `lang.utf8=TEXT`."""
    first, *lines = path.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    texts = {"en": first.strip()}
    for line in lines:
        tag, _, text = line.partition(".utf8=")
        if text.strip() and "\ufffd" not in text:
            texts.setdefault(language_code(tag, keep_region=True), text.strip())
    return texts


def spoken_parts(paths: list[Path]) -> list[tuple[float, float] | CorpusError]:
    """(start, end) seconds of the speech in each file, or what is wrong with the file, decoded on all cores."""
    import soundfile
    from tqdm import tqdm

    def measure(path):
        try:
            samples, sampling_rate = soundfile.read(path, dtype="float32", always_2d=True)
            first, last = speech_bounds(samples.mean(axis=1), sampling_rate, margin=0.12)
        except soundfile.LibsndfileError:
            return CorpusError("audio cannot be read")
        except CorpusError as error:
            return error
        return first / sampling_rate, last / sampling_rate

    with ThreadPoolExecutor() as pool:
        return list(tqdm(pool.map(measure, paths), total=len(paths), desc="tuxpaint", unit="file", disable=None))
