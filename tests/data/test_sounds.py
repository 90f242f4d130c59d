"""Sounds that rows hold as bytes are kept once, whatever number of rows they stand in."""

import pickle

import datasets
import pytest
from made_data import encoded, tone

from modeling_part.data.corpora import kept_rows, open_corpora, read_corpora
from modeling_part.data.rows import CorpusError
from modeling_part.data.sounds import FILE


@pytest.fixture
def translated(tmp_path):
    """Parquet of six records, of two of which the clip is the same; three tasks each."""
    sounds = [encoded(tone(0.5 + number / 10), format="FLAC") for number in (0, 1, 2, 3, 4, 0)]
    records = [
        {"audio": {"bytes": sound, "path": f"{number}.flac"}, "sentence": f"Satz {number}", "en": f"Sentence {number}"}
        for number, sound in enumerate(sounds)
    ]
    dataset = datasets.Dataset.from_list(records).cast_column("audio", datasets.Audio(decode=False))
    dataset.to_parquet(tmp_path / "parquet" / "train-00000-of-00001.parquet")
    spec = {"reader": "dataset", "path": str(tmp_path / "parquet"), "tasks": ["asr", "s2tt", "mt"]}
    spec |= {"columns": {"source_text": "sentence", "text": "en"}, "languages": ["de"], "target_languages": ["en"]}
    return spec, sounds, tmp_path / "run"


def test_each_sound_is_kept_once_and_read_with_every_row(translated):
    spec, sounds, folder = translated
    written, _ = read_corpora([spec], cache_dir=folder)
    in_memory, _ = read_corpora([spec])
    opened, _ = open_corpora(folder)
    assert list(written) == list(in_memory) == list(opened) == list(kept_rows(folder))
    assert [row["audio"] and row["audio"]["bytes"] for row in opened] == [
        one for sound in sounds for one in (sound, sound, None)
    ]
    assert len(datasets.Dataset.from_file(str(folder / FILE))) == 5
    held = sum(map(len, set(sounds)))
    assert held < (folder / FILE).stat().st_size < held + 4096
    assert (folder / "rows.arrow").stat().st_size < 8192


def test_what_was_read_before_stays_where_reading_fails(translated, tmp_path):
    spec, sounds, folder = translated
    read_corpora([spec], cache_dir=folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(CorpusError, match="gives no rows"):
        read_corpora([spec, {"reader": "manifest", "path": str(tmp_path / "empty.jsonl")}], cache_dir=folder)
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert open_corpora(folder)[0][0]["audio"]["bytes"] == sounds[0]


def test_rows_are_used_as_ever(translated):
    spec, sounds, folder = translated
    read_corpora([spec], cache_dir=folder)
    opened, _ = open_corpora(folder)
    copy = pickle.loads(pickle.dumps(opened))
    assert copy[3]["audio"]["bytes"] == opened.select([3])[0]["audio"]["bytes"] == sounds[1]
    assert opened[[0, 2, 15]]["audio"][2]["bytes"] == sounds[5]
    assert set(opened["task"]) == set(opened.unique("task")) == {"asr", "s2tt", "mt"}
    assert next(iter(opened.select_columns(["text"]).iter(batch_size=2))) == {"text": ["Satz 0", "Sentence 0"]}
    assert (
        opened.shuffle(seed=0).select(range(4)).filter(lambda row: row["task"] != "mt")[0]["audio"]["bytes"] in sounds
    )


def test_rows_with_files_have_no_sounds_of_their_own(translated, clips):
    spec, _, folder = translated
    read_corpora([spec], cache_dir=folder)
    from made_data import asr, write_lines

    path = write_lines(clips / "train.jsonl", [asr("a")])
    rows, _ = read_corpora([{"reader": "manifest", "path": path}], cache_dir=folder)
    assert not (folder / FILE).exists(), "those of the corpus before are gone"
    assert rows[0]["audio"]["path"].endswith("clips/a.flac")
