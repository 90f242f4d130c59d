"""Corpora at addresses: every reader of files through fsspec's `memory://`, and what an address must not be taken for."""

import gzip
import json

import fsspec
import numpy as np
import pyarrow
import pytest
import soundfile
from fsspec.registry import known_implementations

from modeling_part.audio_part import load_clip
from modeling_part.data.addresses import is_address, joined, path_of, without_suffix
from modeling_part.data.checking import RowFilters
from modeling_part.data.corpora import open_corpora, read_corpora
from modeling_part.data.corpus_spec import CorpusSpec
from modeling_part.data.downloads import planned_downloads
from modeling_part.data.rows import CorpusError
from modeling_part.data.streamed_corpora import StreamedRows
from modeling_part.recipes.arguments import PARTTrainingArguments


@pytest.fixture
def bucket(tmp_path):
    """A folder in memory with two sounds of 0.5 and 0.7 s."""
    fs = fsspec.filesystem("memory")
    for name, seconds in (("a", 0.5), ("b", 0.7)):
        tone = 0.1 * np.sin(np.arange(round(16_000 * seconds)) * 0.3)
        soundfile.write(tmp_path / f"{name}.wav", tone, 16_000)
        fs.pipe_file(f"/bucket/clips/{name}.wav", (tmp_path / f"{name}.wav").read_bytes())
    yield fs
    fs.rm("/bucket", recursive=True)


def write(fs, name, records):
    fs.pipe_file(f"/bucket/{name}", "".join(json.dumps(record) + "\n" for record in records).encode())


def manifests(fs):
    """One corpus for each reader of files: the entry of the recipe."""
    asr = {"task": "asr", "source_lang": "en", "target_lang": "en"}
    lines = [{"audio": "clips/a.wav", "text": "one"}, {"audio": "memory://bucket/clips/b.wav", "text": "two"}]
    write(fs, "train.jsonl", [{"id": line["text"], **asr, **line} for line in lines])
    places = [("clips/a.wav", 0.5, "one"), ("memory://bucket/clips/b.wav", 0.7, "two")]
    write(fs, "nemo.json", [dict(zip(("audio_filepath", "duration", "text"), one, strict=True)) for one in places])
    keys = [("a", "clips/a.wav", "one"), ("b", "memory://bucket/clips/b.wav", "two")]
    write(fs, "funasr.jsonl", [dict(zip(("key", "source", "target"), one, strict=True)) for one in keys])
    fs.pipe_file("/bucket/kaldi/wav.scp", b"a ../clips/a.wav\nb memory://bucket/clips/b.wav\n")
    fs.pipe_file("/bucket/kaldi/text", b"a one\nb two\n")
    one = {"languages": ["en"]}
    return {
        "manifest": {"path": "memory://bucket/train.jsonl"},
        "nemo": {"path": "memory://bucket/nemo.json", **one},
        "funasr": {"path": "memory://bucket/funasr.jsonl", **one},
        "kaldi": {"path": "memory://bucket/kaldi", **one},
    }


@pytest.mark.parametrize("reader", ["manifest", "nemo", "funasr", "kaldi"])
def test_manifest_and_sounds_at_an_address(bucket, tmp_path, reader):
    if reader == "kaldi":  # addresses have no `..`
        entry = manifests(bucket)[reader]
        bucket.pipe_file("/bucket/kaldi/a.wav", bucket.cat_file("/bucket/clips/a.wav"))
        bucket.pipe_file("/bucket/kaldi/wav.scp", b"a a.wav\nb memory://bucket/clips/b.wav\n")
    else:
        entry = manifests(bucket)[reader]
    in_memory, report = read_corpora([{"reader": reader, **entry}])
    assert report["dropped"] == {}
    read_corpora([{"reader": reader, **entry}], cache_dir=tmp_path / "data")
    opened, _ = open_corpora(tmp_path / "data")
    for dataset in (in_memory, opened):
        assert [row["text"] for row in dataset] == ["one", "two"]
        assert dataset["duration"][:] == pytest.approx(
            [0.5, 0.7], abs=1e-4
        )  # measured where the manifest does not say
        assert [len(load_clip(row)) for row in dataset] == [8000, 11200]
    stored = opened.with_format("arrow")[:]["audio"].to_pylist()
    assert [one["bytes"] for one in stored] == [None, None]  # fetched when a row is read, not copied into the run
    assert all(one["path"].startswith("memory://bucket/") for one in stored)
    assert len({row["id"] for row in opened}) == 2 and not any("memory:/b" in row["id"] for row in opened)


def test_a_manifest_here_may_name_sounds_at_an_address(bucket, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"audio": "memory://bucket/clips/a.wav", "text": "one", "language": "en"}) + "\n")
    dataset, _ = read_corpora([{"reader": "manifest", "path": str(path)}])
    assert len(load_clip(dataset[0])) == 8000
    assert dataset[0]["id"] == "memory://bucket/clips/a"


def test_text_pairs_and_compressed_lines(bucket):
    pairs = [{"text": "Hallo", "source_text": "Hello"}, {"text": "Tag", "source_text": "Day"}]
    write(bucket, "pairs.jsonl", pairs)
    spec = {"reader": "text_pairs", "languages": ["en"], "target_languages": ["de"]}
    dataset, _ = read_corpora([{**spec, "path": "memory://bucket/pairs.jsonl"}])
    assert dataset["text"][:] == ["Hallo", "Tag"]
    lines = json.dumps({"audio": "clips/a.wav", "text": "one", "language": "en"}) + "\n"
    bucket.pipe_file("/bucket/packed.jsonl.gz", gzip.compress(lines.encode()))
    dataset, _ = read_corpora([{"reader": "manifest", "path": "memory://bucket/packed.jsonl.gz"}])
    assert len(load_clip(dataset[0])) == 8000


def test_cuts_of_lhotse(bucket):
    lhotse = pytest.importorskip("lhotse")
    supervision = lhotse.SupervisionSegment("a", "a", 0.0, 0.5, text="one", language="en")
    for kind in ("file", "url"):
        source = lhotse.audio.AudioSource(kind, [0], "memory://bucket/clips/a.wav")
        recording = lhotse.Recording("a", [source], 16_000, 8000, 0.5)
        cut = lhotse.MonoCut("a", 0.0, 0.5, 0, supervisions=[supervision], recording=recording)
        write(bucket, "cuts.jsonl", [cut.to_dict()])
        dataset, _ = read_corpora([{"reader": "lhotse", "path": "memory://bucket/cuts.jsonl"}])
        assert len(load_clip(dataset[0])) == 8000


def test_a_sound_that_is_not_there_is_a_broken_row(bucket):
    lines = [{"audio": f"clips/{name}.wav", "text": name, "language": "en", "duration": 0.5} for name in ("a", "x")]
    write(bucket, "train.jsonl", lines)
    spec = [{"reader": "manifest", "path": "memory://bucket/train.jsonl"}]
    dataset, report = read_corpora(spec, max_bad_fraction=0.5)
    assert [row["text"] for row in dataset] == ["a"]
    assert list(report["dropped"]["train"]) == ["audio file not found"]
    bucket.rm_file("/bucket/clips/a.wav")  # gone while training
    with pytest.raises(ValueError, match=r"memory://bucket/clips/a\.wav"):
        load_clip(dataset[0])


def test_what_is_not_there_or_not_installed_is_said(bucket, monkeypatch):
    with pytest.raises(CorpusError, match=r"memory://bucket/none\.jsonl does not exist"):
        CorpusSpec.from_dict({"reader": "manifest", "path": "memory://bucket/none.jsonl"}).folder()
    monkeypatch.setitem(known_implementations, "moon", {"class": "moonfs.MoonFileSystem", "err": "no"})
    for reader, path in (("manifest", "moon://b/x.jsonl"), ("dataset", "moon://b/*.parquet")):
        with pytest.raises(CorpusError, match="pip install moonfs"):
            read_corpora([{"reader": reader, "path": path, "tasks": ["asr"]}])
    with pytest.raises(CorpusError, match="no protocol 'sun'"):
        CorpusSpec.from_dict({"reader": "nemo", "path": "sun://b/x.jsonl"}).folder()
    with pytest.raises(CorpusError, match="must lie here"):
        CorpusSpec.from_dict({"reader": "common_voice", "path": "s3://b/cv"})
    with pytest.raises(ValueError, match="`output_dir` is 's3://b/run'"):
        PARTTrainingArguments(output_dir="s3://b/run", use_cpu=True)
    assert planned_downloads([CorpusSpec.from_dict({"reader": "manifest", "path": "s3://b/x.jsonl"})]) == []


def test_what_is_read_at_an_address_is_said_with_its_size(bucket):
    with bucket.open("/bucket/a.parquet", "wb") as file:
        file.write(b"x" * 3000)
    spec = {"reader": "dataset", "path": "memory://bucket/*.parquet", "tasks": ["asr"], "languages": ["en"]}
    (planned,) = planned_downloads([CorpusSpec.from_dict(spec)])
    assert not planned.missing and planned.passes_by == "read now"
    assert list(planned.sizes.values()) == [3000]


def test_sounds_of_a_stream_are_fetched(bucket):
    settings = {"reader": "dataset", "path": "memory://bucket/x.parquet", "tasks": ["asr"], "languages": ["en"]}
    spec = CorpusSpec.from_dict({**settings, "streaming": True})
    table = pyarrow.Table.from_pylist([{"audio": "memory://bucket/clips/a.wav", "text": "one"}])
    (row,) = StreamedRows(spec, RowFilters(), 0.01)(table).to_pylist()
    assert row["audio"]["path"] is None and len(load_clip(row)) == 8000


def test_slashes_stay():
    assert str(path_of("memory://bucket/x/y.jsonl").parent) == "memory://bucket/x"
    assert joined(path_of("memory://bucket/x"), "a/b.wav") == "memory://bucket/x/a/b.wav"
    assert joined("/here", "s3://b/a.wav") == "s3://b/a.wav" and joined(path_of("memory://b/x"), "/a.wav") == "/a.wav"
    assert without_suffix("s3://b/a.wav") == "s3://b/a" and without_suffix("x/a.wav") == "x/a"
    assert is_address("hf://datasets/a/b") and not is_address("a/b") and not is_address("/a:/b")


class Refused(Exception):
    """What aiohttp raises for 403, or botocore without credentials: no `OSError`."""


def test_what_a_file_system_raises_is_named_or_a_broken_row(bucket, monkeypatch):
    lines = [{"audio": f"clips/{name}.wav", "text": name, "language": "en"} for name in ("a", "b")]
    write(bucket, "train.jsonl", lines)
    opened = type(bucket)._open

    def refuse(self, path, *args, **kwargs):
        if path.endswith(refused):
            raise Refused("403, message='Forbidden'")
        return opened(self, path, *args, **kwargs)

    monkeypatch.setattr(type(bucket), "_open", refuse)
    spec = [{"reader": "manifest", "path": "memory://bucket/train.jsonl"}]
    refused = "b.wav"
    dataset, report = read_corpora(spec, max_bad_fraction=0.5)
    assert dataset["text"][:] == ["a"] and "audio could not be fetched" in report["dropped"]["train"]
    refused = "train.jsonl"
    with pytest.raises(CorpusError, match=r"train\.jsonl .*could not be fetched: Refused: 403, message='Forbidden'"):
        read_corpora(spec)


def test_a_folder_that_gives_its_files_and_not_their_list(bucket, monkeypatch, caplog):
    """S3 grants GetObject and ListBucket apart: a sound that is not there is known when it is fetched."""
    lines = [{"audio": f"clips/{name}.wav", "text": name, "language": "en"} for name in ("a", "x")]
    write(bucket, "train.jsonl", lines)

    def denied(*args, **kwargs):
        raise PermissionError("AccessDenied: s3:ListBucket")

    monkeypatch.setattr(type(bucket), "ls", denied)
    dataset, report = read_corpora(
        [{"reader": "manifest", "path": "memory://bucket/train.jsonl"}], max_bad_fraction=0.5
    )
    assert dataset["text"][:] == ["a"] and "audio could not be fetched" in report["dropped"]["train"]
    assert "memory://bucket/clips could not be fetched: PermissionError: AccessDenied" in caplog.text
