"""Readers of the public corpora against tiny replicas of their published layouts, with real mp3, wav, opus and ogg."""

import csv
import gzip
import io
import json
import shutil
import subprocess
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor

import datasets
import httpx2
import huggingface_hub
import numpy as np
import pytest
import soundfile
from huggingface_hub.utils import filter_repo_objects
from hypothesis import given, settings
from hypothesis import strategies as st
from made_data import RATE, add_file, encoded, tone

from modeling_part import load_audio
from modeling_part.data.corpora import read_corpora
from modeling_part.data.files import unpack_tar, unquoted
from modeling_part.data.readers.covost2 import escaped_fields, validated_sentences
from modeling_part.data.readers.wenetspeech import json_array
from modeling_part.data.rows import CorpusError, split_of


def pitch(samples: np.ndarray) -> float:
    """The strongest frequency of (samples,) at 16 kHz, Hz."""
    return float(np.argmax(np.abs(np.fft.rfft(samples))) * RATE / len(samples))


def read(reader: str, path, **settings):
    filters = {key: settings.pop(key) for key in ("max_bad_fraction", "max_duration") if key in settings}
    return read_corpora([{"reader": reader, "path": str(path), **settings}], **filters)


def rows(dataset) -> set[tuple[str, str, str, str, str | None]]:
    """What a dataset says, without the audio: (task, source, target, text, source_text)."""
    return {
        tuple(row[name] for name in ("task", "source_lang", "target_lang", "text", "source_text")) for row in dataset
    }


def test_runs_that_begin_together_unpack_an_archive_once(tmp_path, monkeypatch):
    archive = tmp_path / "audio.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("a.wav", "b.wav"):
            add_file(tar, f"dev/{name}", name[:1].encode() * 4)
    extracted, extract = [], tarfile.TarFile.extract

    def slowly(self, member, path, **options):
        time.sleep(0.05)  # the others have begun by now
        extracted.append(member.name)
        extract(self, member, path, **options)

    monkeypatch.setattr(tarfile.TarFile, "extract", slowly)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: unpack_tar(archive, tmp_path / "audio"), range(4)))
    assert extracted == ["a.wav", "b.wav"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "audio").iterdir()} == {
        "a.wav": b"aaaa",
        "b.wav": b"bbbb",
    }


# --------------------------------------------------------------------------------------------------- Common Voice

HEADERS = {
    "4": "client_id path sentence up_votes down_votes age gender accent",
    "15": "client_id path sentence up_votes down_votes age gender accents variant locale segment",
    "17": "client_id path sentence_id sentence sentence_domain up_votes down_votes age gender accents variant locale segment",
}


def common_voice(root, locale: str, release: str, splits: dict[str, list[tuple[str, str, float]]]):
    """Write one locale of a release: `splits[split]` lists (clip, sentence, seconds)."""
    folder = root / locale
    (folder / "clips").mkdir(parents=True)
    header = HEADERS[release].split()
    for split, clips in splits.items():
        lines = ["\t".join(header)]
        for clip, sentence, seconds in clips:
            soundfile.write(folder / "clips" / clip, tone(seconds, rate=32000), 32000)
            values = {"client_id": "f" * 128, "path": clip, "sentence": sentence, "locale": locale, "up_votes": "2"}
            lines.append("\t".join(values.get(name, "") for name in header))
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("release", HEADERS)
def test_common_voice_of_any_release(tmp_path, release):
    splits = {
        "train": [("common_voice_de_1.mp3", 'Er sagte: "Ja', 1.0), ("common_voice_de_2.mp3", "Zwei", 2.5)],
        "dev": [("common_voice_de_3.mp3", "Drei", 1.5)],
        "validated": [("common_voice_de_1.mp3", 'Er sagte: "Ja', 1.0)],
    }
    common_voice(tmp_path, "de", release, splits)
    common_voice(tmp_path, "sv-SE", release, {"train": [("common_voice_sv-SE_1.mp3", "Ett", 1.25)]})
    dataset, report = read("common_voice", tmp_path)
    assert rows(dataset) == {
        ("asr", "de", "de", 'Er sagte: "Ja', 'Er sagte: "Ja'),
        ("asr", "de", "de", "Zwei", "Zwei"),
        ("asr", "sv", "sv", "Ett", "Ett"),
    }
    assert dataset["id"][:] == ["common_voice_de_1", "common_voice_de_2", "common_voice_sv-SE_1"]
    assert dataset["duration"][:] == pytest.approx([1.0, 2.5, 1.25], abs=0.1)
    assert report["rows"] == {"asr/de": 2, "asr/sv": 1}
    assert pitch(load_audio(dataset[1]["audio"])) == pytest.approx(440, abs=2)
    assert read("common_voice", tmp_path, split="dev", languages=["de"])[0]["text"][:] == ["Drei"]
    assert len(read("common_voice", tmp_path, split="validated")[0]) == 1
    with pytest.raises(CorpusError, match=r"reader: dataset, path: fixie-ai/common_voice_17_0, config: LOCALE"):
        read("common_voice", "owner/voices")
    with pytest.raises(CorpusError, match="no fr there; found de, sv"):
        read("common_voice", tmp_path, languages=["fr"])


def test_common_voice_in_a_folder_of_another_language_is_refused(tmp_path):
    common_voice(tmp_path, "cv", "15", {"train": [("a.mp3", "Ett", 1.0), ("b.mp3", "Två", 1.0)]})
    table = tmp_path / "cv" / "train.tsv"
    table.write_text(table.read_text(encoding="utf-8").replace("\tcv\t", "\tsv-SE\t"), encoding="utf-8")
    with pytest.raises(CorpusError, match=r"rename the folder.*sv-SE in the folder cv"):
        read_corpora([{"reader": "common_voice", "path": str(tmp_path)}])
    (tmp_path / "cv").rename(tmp_path / "sv-SE")
    assert set(read("common_voice", tmp_path)[0]["source_lang"]) == {"sv"}


def test_a_link_to_a_locale_of_common_voice_has_its_own_name(tmp_path):
    common_voice(tmp_path / "disk", "cv-20", "15", {"train": [("a.mp3", "Eins", 1.0)]})
    table = tmp_path / "disk" / "cv-20" / "train.tsv"
    table.write_text(table.read_text(encoding="utf-8").replace("\tcv-20\t", "\t\t"), encoding="utf-8")
    (tmp_path / "voices").mkdir()
    (tmp_path / "voices" / "de").symlink_to(tmp_path / "disk" / "cv-20")
    assert set(read("common_voice", tmp_path / "voices")[0]["source_lang"]) == {"de"}
    (tmp_path / "disk" / "cv-20").rename(tmp_path / "disk" / "fr")
    (tmp_path / "mine").symlink_to(tmp_path / "disk" / "fr")
    assert set(read("common_voice", tmp_path / "mine")[0]["source_lang"]) == {"fr"}


def test_spontaneous_speech_is_another_format_than_common_voice(tmp_path):
    (tmp_path / "sps-corpus-1.0-tr" / "audios").mkdir(parents=True)
    (tmp_path / "sps-corpus-1.0-tr" / "ss-corpus-tr.tsv").write_text("client_id\taudio_file\ttranscription\n")
    with pytest.raises(CorpusError, match=r"ss-corpus-tr\.tsv is spontaneous speech .* another format"):
        read("common_voice", tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("clip_durations.tsv", "clip\tduration[ms]\na.mp3\t1234\nb.mp3\t2000\n"),
        ("times.txt", "a.mp3 1234\nb.mp3 2000\n"),
        ("times.txt", "a.mp3\t1234\nb.mp3\t2000\n"),
    ],
)
def test_common_voice_takes_durations_from_its_own_tables(tmp_path, name, content):
    folder = common_voice(tmp_path, "de", "15", {"train": [("a.mp3", "Eins", 1.0), ("b.mp3", "Zwei", 1.0)]})
    (folder / name).write_text(content, encoding="utf-8")
    assert read("common_voice", tmp_path)[0]["duration"][:] == pytest.approx([1.234, 2.0])


def test_common_voice_counts_clips_that_are_missing(tmp_path):
    folder = common_voice(tmp_path, "de", "15", {"train": [("a.mp3", "Eins", 1.0), ("b.mp3", "Zwei", 1.0)]})
    (folder / "clips" / "b.mp3").unlink()
    (folder / "clip_durations.tsv").write_text("clip\tduration[ms]\na.mp3\t1000\nb.mp3\t1000\n", encoding="utf-8")
    dataset, report = read("common_voice", tmp_path, max_bad_fraction=0.5)
    assert dataset["text"][:] == ["Eins"]
    assert report["dropped"]["common_voice"]["audio file not found"]["examples"] == ["b"]
    with pytest.raises(CorpusError, match="1 of 2 rows are broken"):
        read("common_voice", tmp_path)


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ('"""Good-bye,"" said the boy."', '"Good-bye," said the boy.'),
        ('"He said ""yes"" twice."', 'He said "yes" twice.'),
        ('"""Hello."""', '"Hello."'),
        ('He said "yes".', 'He said "yes".'),
        ('"Open quote', '"Open quote'),
        ('"Hello."', '"Hello."'),  # CSV does not quote what needs no quoting
        ('"One" and "two"', '"One" and "two"'),
        ('""', '""'),
        ('""""', '"'),
        ('"', '"'),
    ],
)
def test_common_voice_quotes_are_those_of_the_sentence(written, sentence):
    assert unquoted(written) == sentence


@given(st.text(alphabet="a\"b ,'", min_size=1, max_size=12))
def test_what_csv_has_quoted_is_what_was_said(sentence):
    buffer = io.StringIO()
    csv.writer(buffer, delimiter="\t", lineterminator="").writerow([sentence, ""])
    assert unquoted(buffer.getvalue().removesuffix("\t")) == sentence


def test_a_line_of_common_voice_with_a_tab_too_many_is_counted(tmp_path):
    clips = [(f"{number}.mp3", f"Satz {number}", 1.0) for number in range(9)]
    folder = common_voice(tmp_path, "de", "15", {"train": clips})
    table = folder / "train.tsv"
    table.write_text(table.read_text(encoding="utf-8").replace("Satz 4", "Satz\t4"), encoding="utf-8-sig")
    (folder / "clip_durations.tsv").write_bytes(b"clip\tduration[ms]\nx\n\xff\t9\n0.mp3\t\xc2\xb2\n1.mp3\t1500\n")
    dataset, report = read("common_voice", tmp_path, max_bad_fraction=0.2)
    assert len(dataset) == 8
    assert dataset["duration"][:2] == pytest.approx([1.0, 1.5], abs=0.1)
    entry = report["dropped"]["common_voice"]["not the header's 11 fields"]
    assert entry == {"rows": 1, "broken": 1, "examples": [f"{table}, line 6: 12 fields"]}
    with pytest.raises(CorpusError, match=r"train.tsv, line 6: 12 fields"):
        read("common_voice", tmp_path)
    table.write_text(table.read_text(encoding="utf-8-sig").replace("sentence", "text", 1), encoding="utf-8")
    with pytest.raises(CorpusError, match=r"train.tsv has no column 'sentence'; its header is client_id, path, text"):
        read("common_voice", tmp_path)


# --------------------------------------------------------------------------------------------------------- FLEURS

FLEURS = {
    "de_de": [
        (7, "70.wav", 'Der Hund "Rex".', 1.0),
        (8, "80.wav", "Die Katze.", 1.5),
        (8, "81.wav", "Die Katze.", 1.2),
    ],
    "cmn_hans_cn": [(8, "82.wav", "猫。", 0.8), (9, "90.wav", "鸟。", 0.6)],
    "en_us": [(7, "71.wav", "The dog.", 1.1), (8, "83.wav", "The cat.", 0.9)],
}


@pytest.fixture
def fleurs_archives(tmp_path):
    """The Hub layout: `data/<lang>/dev.tsv` without a header and `data/<lang>/audio/dev.tar.gz`."""
    for name, recordings in FLEURS.items():
        folder = tmp_path / "fleurs" / "data" / name
        (folder / "audio").mkdir(parents=True)
        with tarfile.open(folder / "audio" / "dev.tar.gz", "w:gz") as tar:
            for _, file, _, seconds in recordings:
                add_file(tar, f"dev/{file}", encoded(tone(seconds)))
        with (folder / "dev.tsv").open("w", encoding="utf-8") as table:
            for number, file, text, seconds in recordings:
                spelled = " ".join(text.lower()) + " |"
                fields = (number, file, text, text.lower(), spelled, round(seconds * RATE), "FEMALE")
                table.write("\t".join(map(str, fields)) + "\n")
    return tmp_path / "fleurs"


@pytest.fixture
def fleurs_parquet(tmp_path):
    """The layout of the Hub's parquet branch: `<lang>/validation/0000.parquet` with the audio inside."""
    for name, recordings in FLEURS.items():
        records = [
            {
                "id": number,
                "num_samples": round(seconds * RATE),
                "path": f"/cache/{file}",
                "audio": {"bytes": encoded(tone(seconds)), "path": file},
                "transcription": text.lower(),
                "raw_transcription": text,
                "gender": 1,
                "lang_id": 3,
                "language": "x",
                "lang_group_id": 2,
            }
            for number, file, text, seconds in recordings
        ]
        (tmp_path / "parquet" / name / "validation").mkdir(parents=True)
        table = datasets.Dataset.from_list(records).cast_column("audio", datasets.Audio(decode=False))
        table.to_parquet(tmp_path / "parquet" / name / "validation" / "0000.parquet")
    return tmp_path / "parquet"


@pytest.mark.parametrize("layout", ["fleurs_archives", "fleurs_parquet"])
def test_fleurs_joins_languages_by_sentence(request, layout):
    root = request.getfixturevalue(layout)
    dog, cat = ('Der Hund "Rex".', "The dog."), ("Die Katze.", "The cat.")
    dataset, report = read("fleurs", root, split="dev", languages=["de"], target_languages=["en", "zh"])
    assert rows(dataset) == {
        ("asr", "de", "de", dog[0], dog[0]),
        ("asr", "de", "de", cat[0], cat[0]),
        ("s2tt", "de", "en", dog[1], dog[0]),
        ("s2tt", "de", "en", cat[1], cat[0]),
        ("s2tt", "de", "zh", "猫。", cat[0]),
        ("mt", "de", "en", dog[1], dog[0]),
        ("mt", "de", "en", cat[1], cat[0]),
        ("mt", "de", "zh", "猫。", cat[0]),
    }
    assert report["rows"] == {"asr/de": 3, "s2tt/de-en": 3, "s2tt/de-zh": 2, "mt/de-en": 2, "mt/de-zh": 1}
    seconds = {row["id"]: row["duration"] for row in dataset if row["task"] == "asr"}
    assert seconds == pytest.approx({"70/de": 1.0, "80/de": 1.5, "81/de": 1.2})
    for row in dataset:
        if row["task"] != "mt":
            assert len(load_audio(row["audio"])) / RATE == pytest.approx(row["duration"], abs=1e-3)
    assert len({(row["task"], row["id"]) for row in dataset}) == len(dataset)
    unpacked = {path.parts[len(root.parts) :][-4] for path in root.rglob("*.wav")}
    assert unpacked == {"de_de"}, "the audio of target languages is left packed"


def test_fleurs_pairs_the_languages_asked_for_and_reads_unpacked_audio_again(fleurs_archives):
    first, report = read("fleurs", fleurs_archives, split="dev", languages=["zh", "en"])
    assert report["rows"] == {
        "asr/en": 2, "asr/zh": 2, "mt/en-zh": 1, "mt/zh-en": 1, "s2tt/en-zh": 1, "s2tt/zh-en": 1
    }  # fmt: skip
    for archive in fleurs_archives.rglob("*.tar.gz"):
        archive.unlink()
    assert read("fleurs", fleurs_archives, split="dev", languages=["zh", "en"])[0][:] == first[:]
    shutil.rmtree(fleurs_archives / "data" / "en_us" / "audio")
    with pytest.raises(CorpusError, match=r"neither .*dev.tar.gz nor the unpacked folder"):
        read("fleurs", fleurs_archives, split="dev", languages=["en"])


def test_a_folder_of_fleurs_has_no_revisions(fleurs_archives):
    with pytest.raises(CorpusError, match="fleurs: revision would have no effect on"):
        read("fleurs", fleurs_archives, split="dev", revision="refs/convert/parquet")


def test_odd_lines_of_fleurs_are_counted(fleurs_archives):
    table = fleurs_archives / "data" / "de_de" / "dev.tsv"
    lines = table.read_bytes().splitlines(keepends=True)
    odd = [
        b"id\tpath\traw\ttext\tspelled\tnum_samples\tgender\n",
        b"7\tx.wav\tcaf\xe9\ta\ta\t9\tF\n",
        b"short\n",
        b"\n",
    ]
    table.write_bytes(b"".join([odd[0], *lines, *odd[1:]]))
    dataset, report = read("fleurs", fleurs_archives, split="dev", languages=["de"], max_bad_fraction=0.8)
    assert len(dataset) == 3
    reasons = report["dropped"]["fleurs"]
    assert sum(entry["broken"] for entry in reasons.values()) == 3
    examples = [example for entry in reasons.values() for example in entry["examples"]]
    assert all(f"dev.tsv, line {number}" in " ".join(examples) for number in (1, 5, 6))
    with pytest.raises(CorpusError, match="3 of 6 rows are broken"):
        read("fleurs", fleurs_archives, split="dev", languages=["de"])


def test_damaged_fleurs_parquet_is_named(fleurs_parquet):
    file = fleurs_parquet / "de_de" / "validation" / "0000.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CorpusError, match=r"fleurs: .* could not be read"):
        read("fleurs", fleurs_parquet, split="dev", languages=["de"])


def test_odd_records_of_fleurs_parquet_are_counted(fleurs_parquet):
    file = fleurs_parquet / "de_de" / "validation" / "0000.parquet"
    whole = datasets.Dataset.from_parquet(str(file)).to_list()
    more = [{"id": None}, {"path": None}, {"num_samples": None}]
    more += [{"path": "/cache/lost.wav", "audio": None}, {"path": "/cache/gone.wav", "audio": {"bytes": None}}]
    datasets.Dataset.from_list(whole + [{**whole[0], **changed} for changed in more]).to_parquet(file)
    dataset, report = read("fleurs", fleurs_parquet, split="dev", languages=["de"], max_bad_fraction=0.9)
    assert len(dataset) == len(whole)
    dropped = report["dropped"]["fleurs"]
    assert {reason: entry["broken"] for reason, entry in dropped.items()} == {
        "no id, num_samples, path in a record": 3,
        "audio file not found": 2,
    }
    shutil.rmtree(fleurs_parquet / "de_de" / "validation" / "audio")
    datasets.Dataset.from_list([*whole, {**whole[0], "audio": {"bytes": encoded(tone(2.0))}}]).to_parquet(file)
    with pytest.raises(CorpusError, match="two recordings named"):
        read("fleurs", fleurs_parquet, split="dev", languages=["de"])


def test_an_archive_that_would_lose_files_or_is_cut_off_is_refused(fleurs_archives):
    archive = fleurs_archives / "data" / "de_de" / "audio" / "dev.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for folder in ("a", "b"):
            tar.addfile(tarfile.TarInfo(f"{folder}/70.wav"))
    with pytest.raises(CorpusError, match="two files named 70"):
        read("fleurs", fleurs_archives, split="dev", languages=["de"])
    with tarfile.open(archive, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("70.wav"))
        tar.addfile(tarfile.TarInfo("71.wav"))
    plain = gzip.decompress(archive.read_bytes())
    archive.write_bytes(gzip.compress(plain[:512] + b"x" * 512 + plain[1024:]))  # of which tar sees one file
    with pytest.raises(CorpusError, match=r"dev\.tar\.gz could not be unpacked .* invalid header"):
        read("fleurs", fleurs_archives, split="dev", languages=["de"])
    archive.write_bytes(archive.read_bytes()[:20])
    with pytest.raises(CorpusError, match=r"dev\.tar\.gz could not be unpacked"):
        read("fleurs", fleurs_archives, split="dev", languages=["de"])


def test_fleurs_from_the_hub_downloads_what_is_asked_for(fleurs_archives, monkeypatch):
    files = [str(path.relative_to(fleurs_archives)) for path in fleurs_archives.rglob("*.*")]
    files += ["de_de/validation/0000.parquet", "de_de/train/0000.parquet", "data/de_de/test.tsv", "README.md"]
    downloaded = []

    def snapshot(repository, allow_patterns, **settings):
        assert (repository, settings) == ("google/fleurs", {"repo_type": "dataset", "revision": None})
        downloaded[:] = sorted(filter_repo_objects(files, allow_patterns=allow_patterns))
        return str(fleurs_archives)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    spec = {"split": "dev", "languages": ["de"], "target_languages": ["zh"]}
    _, report = read("fleurs", "google/fleurs", **spec)
    assert report["rows"] == {"asr/de": 3, "s2tt/de-zh": 2, "mt/de-zh": 1}
    tables = ["data/cmn_hans_cn/dev.tsv", "data/de_de/dev.tsv", "de_de/validation/0000.parquet"]
    assert downloaded == sorted([*tables, "data/de_de/audio/dev.tar.gz"]), "no audio of languages only written"
    read("fleurs", "google/fleurs", **spec, tasks=["mt"])
    assert downloaded == tables, "no audio for text alone"
    read("fleurs", "google/fleurs", split="dev")
    assert len(downloaded) == 7


@pytest.mark.parametrize("error", [ConnectionError("no route"), httpx2.ConnectError("no route")])
def test_fleurs_without_the_hub_names_the_folder_to_give(monkeypatch, error):
    def unreachable(repository, **settings):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(CorpusError, match="give a local copy as `path`: the folder that `hf download google/fleurs"):
        read("fleurs", "google/fleurs", split="dev", languages=["de"])


# ------------------------------------------------------------------------------------------------------- CoVoST 2


@pytest.fixture
def covost(tmp_path):
    """Common Voice 4 with de and sv-SE, and the tables of three directions in a folder of their own."""
    release = tmp_path / "cv-corpus-4-2019-12-10"
    clips = [(f"de_{i}.mp3", f"Satz {i}", 0.5 + i / 10) for i in range(5)]
    common_voice(release, "de", "4", {"validated": [*clips, ("de_9.mp3", 'Ein \\"Zitat\\".', 1.0)]})
    common_voice(release, "sv-SE", "4", {"validated": [("sv_0.mp3", "Hej", 1.0)]})
    tables = {
        "de_en": [("de_0.mp3", "S0 en", "train"), ("de_1.mp3", "S1 en", "train_covost"), ("de_2.mp3", "S2 en", "dev"),
                  ("de_9.mp3", 'A \\"quote\\".', "test"), ("de_7.mp3", "lost", "train")],
        "de_zh-CN": [("de_0.mp3", "句零", "train")],
        "sv-SE_en": [("sv_0.mp3", "Hi", "train")],
    }  # fmt: skip
    (tmp_path / "covost2").mkdir()
    for pair, records in tables.items():
        with (tmp_path / "covost2" / f"covost_v2.{pair}.tsv").open("w", encoding="utf-8") as table:
            table.write("path\ttranslation\tsplit\tclient_id\n")
            table.writelines(f"{path}\t{text}\t{split}\tx\n" for path, text, split in records)
    return tmp_path / "covost2", release


def test_covost_joins_common_voice(covost):
    tables, release = covost
    dataset, report = read("covost2", tables, common_voice=str(release))
    assert rows(dataset) == {
        ("asr", "de", "de", "Satz 0", "Satz 0"),
        ("asr", "de", "de", "Satz 1", "Satz 1"),
        ("asr", "sv", "sv", "Hej", "Hej"),
        ("s2tt", "de", "en", "S0 en", "Satz 0"),
        ("s2tt", "de", "en", "S1 en", "Satz 1"),
        ("s2tt", "de", "zh", "句零", "Satz 0"),
        ("s2tt", "sv", "en", "Hi", "Hej"),
        ("mt", "de", "en", "S0 en", "Satz 0"),
        ("mt", "de", "en", "S1 en", "Satz 1"),
        ("mt", "de", "zh", "句零", "Satz 0"),
        ("mt", "sv", "en", "Hi", "Hej"),
    }
    assert len(dataset) == 11, "de_0 is translated twice but transcribed once"
    assert report["dropped"]["covost2"]["not in Common Voice's validated.tsv"]["examples"] == ["de-en/de_7.mp3"]
    seconds = {row["text"]: row["duration"] for row in dataset if row["task"] == "s2tt"}
    assert seconds == pytest.approx({"S0 en": 0.5, "S1 en": 0.6, "句零": 0.5, "Hi": 1.0}, abs=0.1)
    assert read("covost2", tables, common_voice=str(release), split="dev")[0]["source_text"][:] == ["Satz 2"] * 3
    quoted, _ = read("covost2", tables, common_voice=str(release), split="test", tasks=["s2tt"])
    assert rows(quoted) == {("s2tt", "de", "en", 'A "quote".', 'Ein "Zitat".')}
    only, _ = read("covost2", tables, common_voice=str(release), tasks=["mt"], target_languages=["zh"])
    assert rows(only) == {("mt", "de", "zh", "句零", "Satz 0")}
    with pytest.raises(CorpusError, match=r"validated.tsv does not exist; CoVoST 2 needs the Common Voice 4 release"):
        read("covost2", tables)


def test_odd_lines_of_covost_are_counted_not_lost(covost):
    tables, release = covost
    table = tables / "covost_v2.sv-SE_en.tsv"
    odd = ["sv_0.mp3\tHi", "sv_0.mp3\tHi\tthere\ttrain\tx", "sv_0.mp3\tHi\tTrain\tx", "sv_0.mp3\tHi\ttrain \tx"]
    odd += ["sv_0.mp3\tHi\ttrain\tx\\"]
    lines = table.read_text(encoding="utf-8").splitlines()
    table.write_text("\n".join([lines[0], *odd, *lines[1:]]) + "\n", encoding="utf-8")
    dataset, report = read("covost2", tables, common_voice=str(release), languages=["sv"], max_bad_fraction=0.9)
    assert len(dataset) == 3, "the row after the backslash is whole"
    reasons = report["dropped"]["covost2"]
    assert {reason: entry["broken"] for reason, entry in reasons.items()} == {
        "not the header's 4 fields": 2,
        "unknown 'split'": 2,
        "a backslash at the end of a line": 1,
    }
    assert "line 4: 'Train'" in reasons["unknown 'split'"]["examples"][0]
    table.write_text("path\ttext\tsplit\tclient_id\n", encoding="utf-8")
    with pytest.raises(CorpusError, match=r"covost_v2.sv-SE_en.tsv has no column 'translation'"):
        read("covost2", tables, common_voice=str(release), languages=["sv"])


def test_covost_escapes_are_those_of_its_authors():
    assert escaped_fields('a\\\tb\tc\\"d\\\\') == ["a\tb", 'c"d\\']
    assert escaped_fields("a\t\tb") == ["a", "", "b"]
    with pytest.raises(CorpusError, match="a backslash at the end of a line"):
        escaped_fields("a\tb\\")


def test_sentences_of_covost_are_unquoted_as_those_of_common_voice(covost):
    tables, release = covost
    table = release / "de" / "validated.tsv"
    sentence = next(iter(validated_sentences(release / "de").values()))
    table.write_text(table.read_text(encoding="utf-8").replace(sentence, '"Er sagt ""ja""."'), encoding="utf-8")
    dataset, _ = read("covost2", tables, common_voice=str(release), languages=["de"], tasks=["asr"])
    assert 'Er sagt "ja".' in dataset["text"][:] and '"Er sagt ""ja""."' not in dataset["text"][:]


def test_covost_agrees_with_the_join_of_its_authors(covost):
    """The recipe of facebookresearch/covost's get_covost_splits.py, in pandas."""
    import pandas

    tables, release = covost
    options = {"sep": "\t", "header": 0, "escapechar": "\\", "quoting": csv.QUOTE_NONE, "na_filter": False}
    covost_table = pandas.read_csv(tables / "covost_v2.de_en.tsv", **options)
    validated = pandas.read_csv(release / "de" / "validated.tsv", **options)
    joined = covost_table.merge(validated[["path", "sentence"]], how="inner", on="path")
    joined = joined[joined["split"].isin(["train", "train_covost"])]
    dataset, _ = read(
        "covost2", tables, common_voice=str(release), languages=["de"], target_languages=["en"], tasks=["s2tt"]
    )
    ours = {(row["audio"]["path"].rsplit("/", 1)[1], row["source_text"], row["text"]) for row in dataset}
    assert ours == set(zip(joined["path"], joined["sentence"], joined["translation"], strict=True))


# ---------------------------------------------------------------------------------------------------- WenetSpeech


@pytest.fixture
def wenetspeech(tmp_path):
    """An index with one 10 s opus file, 1 s of each tone from 300 Hz to 1200 Hz, cut into segments."""
    path = tmp_path / "audio" / "train" / "youtube" / "B00000" / "Y0.opus"
    path.parent.mkdir(parents=True)
    sound = np.concatenate([tone(1.0, 300 + 100 * i) for i in range(10)])
    soundfile.write(path, sound, RATE, format="OGG", subtype="OPUS")

    def segment(number, begin, end, confidence, subsets):
        times = {"begin_time": begin, "end_time": end}
        return {
            "sid": f"Y0_S{number}",
            "confidence": confidence,
            **times,
            "subsets": subsets,
            "text": f"句子 {number}",
        }

    segments = [
        segment(0, 0.0, 1.0, 1.0, ["L", "M", "S"]),
        segment(1, 4.0, 5.0, 0.95, ["L"]),
        segment(2, 7.25, 8.75, 0.7, ["W"]),
        segment(3, 9.0, 12.0, 1.0, ["L"]),
    ]
    audio = {
        "aid": "Y0",
        "duration": 10.0,
        "md5": "0",
        "path": "audio/train/youtube/B00000/Y0.opus",
        "source": "youtube",
    }
    test = {**audio, "aid": "T0", "segments": [segment(4, 2.0, 3.0, 1.0, ["TEST_NET"])]}
    index = {"audios": [{**audio, "tags": ["x"], "url": "https://example.org", "segments": segments}, test]}
    (tmp_path / "WenetSpeech.json").write_text(json.dumps(index, ensure_ascii=False, indent=1), encoding="utf-8")
    return tmp_path


def test_wenetspeech_segments_point_into_the_long_file(wenetspeech):
    dataset, report = read("wenetspeech", wenetspeech, max_bad_fraction=0.5)
    assert [(row["id"], row["text"], row["start"], row["end"], row["duration"]) for row in dataset] == [
        ("Y0_S0", "句子 0", 0.0, 1.0, 1.0),
        ("Y0_S1", "句子 1", 4.0, 5.0, 1.0),
    ]
    assert report["rows"] == {"asr/zh": 2}
    assert report["dropped"]["wenetspeech"]["segment ends after its audio"] == {
        "rows": 1, "broken": 1, "examples": ["Y0_S3"]
    }  # fmt: skip
    for row, hertz in zip(dataset, (300, 700), strict=True):
        samples = load_audio(row["audio"], start=row["start"], end=row["end"])
        assert len(samples) == RATE
        assert pitch(samples) == pytest.approx(hertz, abs=3)


def test_wenetspeech_subsets_confidence_and_splits(wenetspeech):
    assert read("wenetspeech", wenetspeech, subset="S")[0]["id"][:] == ["Y0_S0"]
    assert read("wenetspeech", wenetspeech, split="test")[0]["id"][:] == ["Y0_S4"]
    assert read("wenetspeech", wenetspeech, subset="W")[0]["duration"][:] == [1.5]
    sure, report = read("wenetspeech", wenetspeech, min_confidence=0.99, max_bad_fraction=0.5)
    assert sure["id"][:] == ["Y0_S0"]
    assert report["dropped"]["wenetspeech"]["confidence under 0.99"]["broken"] == 0
    with pytest.raises(CorpusError, match="asr in zh only"):
        read("wenetspeech", wenetspeech, languages=["de"])


def test_odd_segments_of_wenetspeech_are_counted(wenetspeech):
    index = json.loads((wenetspeech / "WenetSpeech.json").read_text(encoding="utf-8"))
    segments = index["audios"][0]["segments"]
    segments += [
        {},
        None,
        {**segments[0], "sid": 7},
        {**segments[0], "begin_time": "0"},
        {**segments[0], "text": None},
    ]
    index["audios"] += [{"aid": "no segments"}, {**index["audios"][0], "aid": "T1", "duration": None}]
    (wenetspeech / "WenetSpeech.json").write_text(json.dumps(index), encoding="utf-8-sig")
    dataset, report = read("wenetspeech", wenetspeech, max_bad_fraction=1.0)
    assert dataset["id"][:] == ["Y0_S0", "Y0_S1"]
    reasons = report["dropped"]["wenetspeech"]
    assert {"'sid' must be text", "'begin_time' must be a number", "'text' must be text"} < set(reasons)
    assert "an audio without 'segments'" in reasons
    with pytest.raises(CorpusError, match=r"subset 'XL' is none of S, M, L"):
        read("wenetspeech", wenetspeech, subset="XL")
    (wenetspeech / "WenetSpeech.json").write_bytes('{"audios": [{"aid": "\xe9"}]}'.encode("latin-1"))
    with pytest.raises(CorpusError, match=r"WenetSpeech.json is not UTF-8"):
        read("wenetspeech", wenetspeech)
    (wenetspeech / "WenetSpeech.json").write_text('{"audios": [5]}', encoding="utf-8")
    with pytest.raises(CorpusError, match=r"holds 5, which is no object"):
        read("wenetspeech", wenetspeech)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(
        st.dictionaries(st.text(max_size=5), st.text(max_size=20) | st.integers() | st.lists(st.text(max_size=9))),
        max_size=6,
    ),
    block=st.integers(1, 50),
    indent=st.sampled_from([None, 2]),
    ascii_only=st.booleans(),
)
def test_a_json_array_is_read_in_blocks_of_any_size(tmp_path_factory, values, block, indent, ascii_only):
    path = tmp_path_factory.mktemp("json") / "index.json"
    text = json.dumps({"version": 1, "audios": values, "more": [1]}, indent=indent, ensure_ascii=ascii_only)
    path.write_text(text, encoding="utf-8")
    assert list(json_array(path, "audios", block)) == values


def test_a_cut_off_index_is_an_error(tmp_path):
    (tmp_path / "WenetSpeech.json").write_text('{"audios": [{"aid": "Y0", "seg', encoding="utf-8")
    with pytest.raises(CorpusError, match="ends or breaks inside the array 'audios'"):
        read("wenetspeech", tmp_path)
    (tmp_path / "WenetSpeech.json").write_text('{"files": []}', encoding="utf-8")
    with pytest.raises(CorpusError, match="no array 'audios'"):
        read("wenetspeech", tmp_path)


# ------------------------------------------------------------------------------------------------------ Tux Paint


@pytest.fixture
def stamps(tmp_path):
    """Two stamps of the train split and one of another, with silence around the stereo speech."""
    words = [f"A thing {i}." for i in range(200)]
    train = [word for word in words if split_of(word) == "train"][:2]
    other = next(word for word in words if split_of(word) != "train")
    root = tmp_path / "usr" / "share" / "tuxpaint" / "stamps"
    for number, english in enumerate([*train, other]):
        folder = root / "things" / "small"
        folder.mkdir(parents=True, exist_ok=True)
        text = f"{english}\nfr.utf8=Chose {number}.\nes.utf8=Cosa {number}.\npt_BR.utf8=Coisa {number}.\nxx.utf8=\n"
        (folder / f"thing{number}.txt").write_text(text, encoding="utf-8")
        speech = np.concatenate([np.zeros(22050), tone(1.0, rate=44100), np.zeros(44100)])
        for tag in ("_desc", "_desc_fr", "_desc_es", "_desc_it"):
            if not (number == 1 and tag == "_desc_es"):
                soundfile.write(folder / f"thing{number}{tag}.ogg", np.stack([speech, speech], 1), 44100)
        soundfile.write(folder / f"thing{number}.ogg", speech, 44100)
    return tmp_path, train


def test_tuxpaint_joins_languages_by_stamp_and_trims_silence(stamps):
    root, train = stamps
    dataset, report = read("tuxpaint", root, languages=["en", "fr"], target_languages=["fr", "pt-BR"])
    expected = set()
    for number, english in enumerate(train):
        french, brazilian = f"Chose {number}.", f"Coisa {number}."
        expected |= {("asr", "en", "en", english, english), ("asr", "fr", "fr", french, french)}
        for task in ("s2tt", "mt"):
            expected.add((task, "en", "fr", french, english))
            expected.add((task, "en", "pt-BR", brazilian, english))
            expected.add((task, "fr", "pt-BR", brazilian, french))
    assert rows(dataset) == expected
    for row in dataset:
        if row["task"] != "mt":
            assert row["duration"] == pytest.approx(1.24, abs=0.05)
            assert row["start"] == pytest.approx(0.38, abs=0.03)
            assert len(load_audio(row["audio"], start=row["start"], end=row["end"])) == pytest.approx(
                1.24 * RATE, rel=0.05
            )
    _, report = read("tuxpaint", root, tasks=["asr"])
    assert report["rows"] == {"asr/en": 2, "asr/es": 1, "asr/fr": 2}
    assert report["dropped"]["tuxpaint"]["recording without a text"]["rows"] == 2, "the Italian ones"


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="dpkg-deb makes and unpacks Debian packages")
def test_tuxpaint_from_the_debian_package(stamps, tmp_path):
    root, _ = stamps
    (root / "DEBIAN").mkdir()
    control = "Package: tuxpaint-stamps-default\nVersion: 1\nArchitecture: all\nMaintainer: x <x@x>\nDescription: x\n"
    (root / "DEBIAN" / "control").write_text(control, encoding="utf-8")
    package = tmp_path / "out" / "tuxpaint-stamps-default_1_all.deb"
    package.parent.mkdir()
    subprocess.run(["dpkg-deb", "-b", root / "usr" / "..", package], check=True, capture_output=True)
    dataset, _ = read("tuxpaint", package, tasks=["asr"], languages=["fr"])
    assert dataset["text"][:] == ["Chose 0.", "Chose 1."]
    with pytest.raises(CorpusError, match="no folder 'stamps'"):
        read(
            "tuxpaint",
            tmp_path
            / "out"
            / "tuxpaint-stamps-default_1_all.unpacked"
            / "usr"
            / "share"
            / "tuxpaint"
            / "stamps"
            / "things",
        )


def test_the_text_side_of_a_speech_corpus_is_text_data(covost):
    tables, release = covost
    dataset, report = read("covost2", tables, common_voice=str(release), tasks=["mt"])
    assert set(report["rows"]) == {"mt/de-en", "mt/de-zh", "mt/sv-en"}
    assert all(row["audio"] is None and row["duration"] == 0.0 for row in dataset)
