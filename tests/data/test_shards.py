"""Shards of WebDataset as others write them: whatever their samples hold, each is read or counted for itself."""

import io
import json
import tarfile

import fsspec
import numpy as np
import pytest
from made_data import RATE, add_file, encoded, tone

from modeling_part.audio_part import load_audio
from modeling_part.data.corpora import read_corpora
from modeling_part.data.rows import CorpusError


SAMPLES = 9


def write_shard(path, samples) -> None:
    """A tar file of samples, each ending -> content."""
    with tarfile.open(path, "w") as tar:
        for number, files in enumerate(samples):
            for ending, content in files.items():
                add_file(tar, f"./spk/u{number}.{ending}", content)


def samples(side=lambda number: {}, **changed) -> list[dict[str, bytes]]:
    """Samples of a sound, JSON with a text and more, and a text; `changed` says of the fourth what is otherwise."""
    found = []
    for number in range(SAMPLES):
        told = {"text": f"Satz {number}.", **side(number)}
        sound = encoded(tone(0.5, 300 + 50 * number), format="FLAC")
        found.append({"flac": sound, "json": json.dumps(told).encode(), "txt": f"Satz {number}.\n".encode()})
    found[3] |= changed
    return found


def read(folder, streaming, column="json.text", **settings) -> tuple[list[dict], dict]:
    spec = {"reader": "dataset", "path": str(folder), "streaming": streaming, "tasks": ["asr"], "languages": ["de"]}
    dataset, report = read_corpora([{**spec, "columns": {"audio": "flac", "text": column}}], **settings)
    return list(dataset), report


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "side",
    [
        lambda number: {"spk": "a" if number > 5 else None},
        lambda number: {"age": "x" if number > 5 else number},
        lambda number: {"more": number} if number > 5 else {},
        lambda number: {"words": [["Satz", 0.1]] if number % 2 else "none"},
    ],
)
def test_fields_that_are_not_used_may_hold_anything(tmp_path, side, streaming):
    write_shard(tmp_path / "train-000000.tar", samples(side))
    rows, _ = read(tmp_path, streaming, max_bad_fraction=0)
    assert [row["text"] for row in rows] == [f"Satz {number}." for number in range(SAMPLES)]
    assert [row["id"] for row in rows][:2] == ["spk/u0", "spk/u1"]
    sound = load_audio(rows[8]["audio"])
    assert abs(np.argmax(np.abs(np.fft.rfft(sound))) * RATE / len(sound) - 700) < 5


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("column", "changed", "reason"),
    [
        ("json.text", {"json": b'{"text": "Sat'}, "no valid JSON"),
        ("json.text", {"json": "[1, 2]".encode("utf-16")}, "the file .json of a sample is not UTF-8"),
        ("txt", {"txt": "Gr\xfc\xdfe".encode("latin-1")}, "the file .txt of a sample is not UTF-8"),
    ],
)
def test_a_sample_that_cannot_be_read_costs_its_own_row(tmp_path, caplog, column, changed, reason, streaming):
    write_shard(tmp_path / "train-000000.tar", samples(**changed))
    rows, report = read(tmp_path, streaming, column, max_bad_fraction=0.2)
    assert [row["text"] for row in rows] == [f"Satz {number}." for number in range(SAMPLES) if number != 3]
    if streaming:
        assert any(reason in message for message in caplog.messages)
    else:
        dropped = report["dropped"]["dataset"][reason]
        assert (dropped["rows"], dropped["broken"]) == (1, 1)
        assert "train-000000.tar, sample ./spk/u3" in dropped["examples"][0]
        with pytest.raises(CorpusError, match="1 of 9 rows are broken"):
            read(tmp_path, streaming, column)


@pytest.mark.parametrize("streaming", [False, True])
def test_what_shards_do_not_hold_is_said_before_they_are_read(tmp_path, streaming):
    write_shard(tmp_path / "train-000000.tar", samples())
    with pytest.raises(CorpusError, match=r"no column 'json\.words': 'json' has text"):
        read(tmp_path, streaming, "json.words")
    with pytest.raises(CorpusError, match="no column 'lab'; there are flac, json, txt, __key__, __url__"):
        read(tmp_path, streaming, "lab")
    with pytest.raises(CorpusError, match="has no split 'test'"):
        read_corpora([{"reader": "dataset", "path": str(tmp_path), "split": "test", "tasks": ["asr"]}])
    shard = tmp_path / "train-000000.tar"
    shard.write_bytes(shard.read_bytes()[:20_000])
    with pytest.raises(CorpusError, match=r"train-000000\.tar could not be read .* Is it whole"):
        read(tmp_path, streaming)


def end_of(data: bytes) -> int:
    """Where the blocks that end an archive begin."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        last = tar.getmembers()[-1]
    return last.offset_data + -(-last.size // 512) * 512


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("damaged", "told"),
    [
        (lambda data, place: data[:place], "empty header"),
        (lambda data, place: data[: place - 1024] + b"x" * 200 + data[place - 824 :], "invalid header"),
        (lambda data, place: data[: place - 1024] + bytes(512) + data[place - 512 :], "more follows its end"),
        (lambda data, place: data + data, "more follows its end"),
    ],
)
def test_what_tar_would_take_for_the_end_of_a_shard_loses_no_samples(tmp_path, damaged, told, streaming):
    shard = tmp_path / "train-000000.tar"
    write_shard(shard, samples())
    shard.write_bytes(damaged(shard.read_bytes(), end_of(shard.read_bytes())))
    with pytest.raises(CorpusError, match=rf"train-000000\.tar could not be read \(ReadError: {told}"):
        read(tmp_path, streaming)


def test_each_part_of_a_stream_of_shards_has_its_own(tmp_path):
    from modeling_part.data.streaming import read_share

    for shard in range(4):
        write_shard(
            tmp_path / f"train-{shard:06d}.tar", samples(lambda number, shard=shard: {"text": f"{shard}{number}"})
        )
    spec = {"reader": "dataset", "path": str(tmp_path), "streaming": True, "tasks": ["asr"], "languages": ["de"]}
    stream, _ = read_corpora([{**spec, "columns": {"audio": "flac", "text": "json.text"}}])
    shares = [[row["text"] for row in read_share(stream, share, 2)] for share in range(2)]
    assert [len(share) for share in shares] == [18, 18]
    assert len({*shares[0], *shares[1]}) == 36


@pytest.mark.parametrize("streaming", [False, True])
def test_shards_are_read_wherever_fsspec_reaches(tmp_path, streaming):
    for shard in range(2):
        write_shard(tmp_path / "shard.tar", samples(lambda number, shard=shard: {"text": f"{shard}{number}"}))
        fsspec.filesystem("memory").pipe(f"/shards/train-{shard}.tar", (tmp_path / "shard.tar").read_bytes())
    rows, _ = read("memory://shards/train-*.tar", streaming)
    assert [row["text"] for row in rows] == [f"{shard}{number}" for shard in (0, 1) for number in range(SAMPLES)]
    rows, _ = read(tmp_path / "shard.tar", streaming)
    assert [row["text"] for row in rows] == [f"1{number}" for number in range(SAMPLES)]
