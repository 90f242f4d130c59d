"""Text, types, ids and languages as they come: each row is used as it is, or counted with its place and the reason."""

import csv
import json
import os
import unicodedata
from unittest import mock

import datasets
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from made_data import MT, RATE, asr, encoded, read_lines, tone, write_lines

from modeling_part.audio_part import load_audio, load_clip
from modeling_part.data import checking
from modeling_part.data.corpora import read_corpora
from modeling_part.data.files import read_csv, text_lines
from modeling_part.data.rows import COLUMNS, CorpusError


# ------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\tb\n".encode("utf-16"), "is UTF-16; convert it with `iconv -f utf-16"),
        (b"\x1f\x8b\x08\0\0", "is compressed; unpack it"),
        (b"a\0b\n", "is no text: its first line holds NUL bytes"),
    ],
)
def test_files_that_are_no_text_are_refused_as_a_whole(tmp_path, content, message):
    for name, reader in (("x.tsv", "text_pairs"), ("x.jsonl", "manifest")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CorpusError, match=message):
            read_corpora([{"reader": reader, "path": str(tmp_path / name)}], max_bad_fraction=1.0)
    with pytest.raises(CorpusError, match="cannot be read"):
        list(text_lines(tmp_path))


field = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), max_size=12)


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(st.tuples(field, field | st.just('a "quote", and\nanother line')), max_size=6), bom=st.booleans())
def test_a_csv_file_is_read_as_it_was_written(tmp_path_factory, rows, bom):
    path = tmp_path_factory.mktemp("csv") / "metadata.csv"
    with path.open("w", encoding="utf-8-sig" if bom else "utf-8", newline="") as file:
        csv.writer(file).writerows([("file_name", "text"), *rows])
    read = [(record["file_name"], record["text"]) for _, record in read_csv(path, ("file_name",))]
    assert read == rows


def test_a_quote_that_is_never_closed_costs_its_own_line(tmp_path):
    path = tmp_path / "metadata.csv"
    path.write_text('file_name,text\n1.wav,one\n2.wav,"two\n3.wav,three\n4.wav,"fo\nur"\n5.wav\n', encoding="utf-8")
    broken = []
    read = list(read_csv(path, ("file_name",), lambda where, error: broken.append((where, error.reason))))
    assert [(number, record["text"]) for number, record in read] == [(2, "one"), (4, "three"), (5, "fo\nur")]
    assert broken == [
        (f"{path}, line 3", "a quote is never closed, or the field is too long"),
        (f"{path}, line 7", "not the header's 2 fields"),
    ]
    with pytest.raises(CorpusError, match="has no column 'path'; its header is file_name, text"):
        list(read_csv(path, ("path",)))


# ------------------------------------------------------------------------------------------------- text as it comes


def test_a_byte_order_mark_changes_nothing(clips, tmp_path):
    lines = "".join(json.dumps(record) + "\r\n" for record in (asr("a"), asr("b")))
    (clips / "m.jsonl").write_text(lines, encoding="utf-8-sig", newline="")
    dataset, _ = read_corpora([{"reader": "manifest", "path": str(clips / "m.jsonl")}], max_bad_fraction=0)
    assert dataset["id"][:] == ["a", "b"]
    (tmp_path / "p.tsv").write_text("source_text\ttext\r\nJa\tYes\r\n", encoding="utf-8-sig", newline="")
    spec = {"reader": "text_pairs", "path": str(tmp_path / "p.tsv"), "languages": ["de"], "target_languages": ["en"]}
    dataset, _ = read_corpora([spec], max_bad_fraction=0)
    assert (dataset[0]["source_text"], dataset[0]["text"]) == ("Ja", "Yes")


def test_files_that_were_put_one_after_the_other_bring_their_headers_and_marks(clips, tmp_path):
    once = "source_text\ttext\nJa\tYes\n"
    (tmp_path / "p.tsv").write_bytes(once.encode("utf-8-sig") * 2)
    (tmp_path / "p.csv").write_bytes(once.replace("\t", ",").replace("Ja", "Nein").encode("utf-8-sig") * 2)
    for name in ("p.tsv", "p.csv"):
        spec = {"reader": "text_pairs", "path": str(tmp_path / name), "languages": ["de"], "target_languages": ["en"]}
        dataset, report = read_corpora([spec], max_bad_fraction=0.5)
        assert len(dataset["text"][:]) == 2 and set(dataset["text"][:]) == {"Yes"}
        (reason,) = report["dropped"]["text_pairs"]
        assert reason.startswith("the header again")
    lines = [json.dumps(asr(name)).encode("utf-8-sig") for name in "ab"]
    (clips / "m.jsonl").write_bytes(b"\n".join(lines))
    assert read_corpora([{"reader": "manifest", "path": str(clips / "m.jsonl")}], max_bad_fraction=0)[0]["id"][:] == [
        "a",
        "b",
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("\u200b\ufeff\u2060", "no text"),
        (" \u3000\u00a0\u00ad", "no text"),
        ("don\x92t", "'text' holds control characters"),  # Windows-1252 as Latin-1
        ("Voilà le café".encode().decode("latin-1"), "'text' is UTF-8 that was read as Latin-1"),
        (
            "“Ça”, c’est".encode().decode("cp1252", "replace").replace("\ufffd", "\x9d"),
            "'text' holds control characters",
        ),
        ("c’est".encode().decode("cp1252"), "'text' is UTF-8 that was read as Latin-1"),
        ("caf\ufffd", "'text' holds control characters or U+FFFD"),
        ("a\0b", "'text' holds control characters"),
        ("\x1b[31mred", "'text' holds control characters"),
        ("nan", "'text' is 'nan', which programs write where there is nothing"),
        ("<NA>", "'text' is '<NA>'"),
    ],
)
def test_text_that_is_none_is_counted(clips, text, reason):
    dataset, report = read_lines(clips, [asr("a", text="zwei\tdrei\nNan."), asr("b", text=text)], max_bad_fraction=0.5)
    assert dataset["id"][:] == ["a"]
    (found,) = report["dropped"]["train"]
    assert found.startswith(reason)


AROUND = ("\ufeff{}\r\n", " {} ", "\t{}\u3000\u00a0", "\n\ufeff {}\n")


@pytest.mark.parametrize("around", AROUND)
def test_what_stands_around_a_text_is_no_part_of_it(clips, tmp_path, around):
    text, source = around.format("Un mot."), around.format("A word.")
    spoken = {"languages": ["fr"], "tasks": ["asr"]}
    pair = {"languages": ["en"], "target_languages": ["fr"]}
    chat = [{"role": "user", "content": source}, {"role": "assistant", "content": text}]
    sound = {"audio": str(clips / "clips/a.flac"), "text": text}
    write_lines(tmp_path / "metadata" / "metadata.jsonl", [{"file_name": sound["audio"], "text": text}])
    datasets.Dataset.from_list([sound]).to_parquet(tmp_path / "x.parquet")
    entries = [
        {"reader": "manifest", "path": write_lines(tmp_path / "m.jsonl", [{**sound, "source_lang": "fr"}])},
        {"reader": "nemo", "path": write_lines(tmp_path / "n.jsonl", [sound | {"audio_filepath": sound["audio"]}]), **spoken},
        {"reader": "funasr", "path": write_lines(tmp_path / "f.jsonl", [{"source": sound["audio"], "target": text}]), **spoken},
        {"reader": "dataset", "path": str(tmp_path / "x.parquet"), **spoken},
        {"reader": "dataset", "path": str(tmp_path / "metadata"), **spoken},
        {"reader": "text_pairs", "path": write_lines(tmp_path / "p.jsonl", [{"source_text": source, "text": text}]), **pair},
        {"reader": "text_pairs", "path": write_lines(tmp_path / "c.jsonl", [{"messages": chat}]), "languages": ["fr"],
         "tasks": ["text"], "columns": {"messages": "messages"}},
    ]  # fmt: skip
    for entry in entries:
        (row,) = read_corpora([entry], max_bad_fraction=0)[0]
        assert row["text"] == "Un mot.", entry
        assert row["source_text"] in ((None, "Un mot.") if row["task"] == "asr" else ("A word.",)), entry


def test_a_tab_separated_file_written_the_csv_way_is_read_as_it_was_meant(tmp_path):
    pairs = [('Il dit "oui".', 'He says "yes".'), ('"Oui" dit-il', '"Yes", he says')]
    with (tmp_path / "p.tsv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows([("source_text", "text"), *pairs])
    spec = {"reader": "text_pairs", "path": str(tmp_path / "p.tsv"), "languages": ["fr"], "target_languages": ["en"]}
    rows = read_corpora([spec], max_bad_fraction=0)[0]
    assert [(row["source_text"], row["text"]) for row in rows] == pairs


@pytest.mark.parametrize("reader", ["manifest", "text_pairs"])
def test_a_pipe_is_no_corpus(tmp_path, reader):
    path = tmp_path / "pipe.jsonl"
    os.mkfifo(path)
    with pytest.raises(CorpusError, match="it is a folder or a pipe, no file"):
        read_corpora([{"reader": reader, "path": str(path), "languages": ["fr"], "target_languages": ["en"]}])


@pytest.mark.parametrize("column", ["source_lang", "target_lang", "task"])
def test_the_number_0_is_no_language_and_no_task(tmp_path, column):
    path = tmp_path / "x.jsonl"
    rows = [{"source_text": "Bonjour", "text": "Hallo", "label": 0}, {"source_text": "Oui", "text": "Ja", "label": 1}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = {"reader": "manifest", "path": str(path), "languages": ["fr"], "target_languages": ["de"]}
    spec |= {"tasks": ["mt"], "columns": {column: "label"}}
    with pytest.raises(CorpusError, match=f"2 rows: '{column}'"):
        read_corpora([spec], max_bad_fraction=0.5)


@pytest.mark.parametrize(
    ("audio", "reason"),
    [
        ([0.0] * 4000, r"'audio' \(column 'audio'\) holds a list"),
        (
            {"array": [0.0] * 40, "sampling_rate": 16_000},
            r"'audio' \(column 'audio'\) holds a mapping of array, sampling_rate",
        ),
        (
            {"path": "there.wav", "array": [0.0] * 4000, "sampling_rate": 16_000},  # the file's own may be others
            r"'audio' \(column 'audio'\) holds samples \(`array`\), which casting the column",
        ),
        (5, r"'audio' \(column 'audio'\) holds"),
        ({"path": None, "bytes": b""}, "audio file is empty"),
        ({"path": "x" * 4000, "bytes": None}, "audio file not found"),
    ],
)
def test_audio_of_a_dataset_that_is_no_file_is_counted(tmp_path, audio, reason):
    path = tmp_path / "x.parquet"
    soundfile.write(tmp_path / "there.wav", np.zeros(8000), 16_000)
    datasets.Dataset.from_list([{"audio": audio, "text": "un"}]).to_parquet(path)
    spec = {"reader": "dataset", "path": str(path), "tasks": ["asr"], "languages": ["fr"]}
    with pytest.raises(CorpusError, match=f"1 row: {reason}"):
        read_corpora([spec], max_bad_fraction=0.5)


@pytest.mark.parametrize("path", ["", ".", "/"])
@pytest.mark.parametrize(
    ("reader", "audio", "text"),
    [
        ("manifest", "audio", "text"),
        ("nemo", "audio_filepath", "text"),
        ("funasr", "source", "target"),
        ("dataset", "audio", "text"),
    ],
)
def test_audio_without_a_name_costs_its_own_row(clips, reader, audio, text, path):
    lines = [{audio: "clips/a.flac", text: "Un."}, {audio: path, text: "Deux."}]
    spec = {"reader": reader, "path": write_lines(clips / "train.jsonl", lines), "languages": ["fr"]}
    if reader == "dataset":
        spec |= {"path": str(clips), "data_files": "train.jsonl", "tasks": ["asr"]}
        stream, _ = read_corpora([{**spec, "streaming": True}], max_bad_fraction=0.5)
        assert [row["text"] for row in stream] == ["Un."]
    dataset, report = read_corpora([spec], max_bad_fraction=0.5)
    assert dataset["text"][:] == ["Un."]
    assert [one["broken"] for reasons in report["dropped"].values() for one in reasons.values()] == [1]


def test_sounds_whose_path_is_empty_get_ids_of_their_own(tmp_path):
    sounds = [{"path": "", "bytes": encoded(tone(1.0 + number))} for number in range(2)]
    datasets.Dataset.from_dict({"audio": sounds, "text": ["a", "b"]}).to_parquet(tmp_path / "train.parquet")
    spec = {"reader": "dataset", "path": str(tmp_path / "train.parquet"), "tasks": ["asr"], "languages": ["fr"]}
    dataset, _ = read_corpora([spec], max_bad_fraction=0)
    assert dataset["text"][:] == ["a", "b"]
    assert [name.rsplit("/", 1)[1] for name in dataset["id"]] == ["train-0", "train-1"]


def test_text_in_another_encoding_is_never_guessed(tmp_path):
    path = tmp_path / "p.tsv"
    path.write_bytes("source_text\ttext\ncaf\xe9\tcoffee\noui\tyes\n".encode("latin-1"))
    spec = {"reader": "text_pairs", "path": str(path), "languages": ["fr"], "target_languages": ["en"]}
    with pytest.raises(CorpusError, match=r"not UTF-8 \(convert[^$]*p.tsv, line 2: byte 0xe9 after 'caf'"):
        read_corpora([spec])
    dataset, _ = read_corpora([spec], max_bad_fraction=0.5)
    assert dataset["text"][:] == ["yes"]


@pytest.mark.parametrize("column", ["id", "text", "source_text", "corpus"])
def test_half_a_surrogate_pair_is_a_broken_row(clips, column):
    records = [asr("a"), {**asr("b"), "source_text": "Texte.", "corpus": "train", column: "x\ud83d"}]
    path = clips / "train.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    dataset, report = read_corpora(
        [{"reader": "manifest", "path": str(path)}], max_bad_fraction=0.5, report_path=clips / "report.json"
    )
    assert dataset["id"][:] == ["a"]
    reasons = [reason for dropped in report["dropped"].values() for reason in dropped]
    assert reasons == [f"'{column}' holds half of a surrogate pair, which is no character"]


values = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.lists(st.integers(), max_size=2)
)


@settings(max_examples=150, deadline=None)
@given(changes=st.dictionaries(st.sampled_from([*COLUMNS, "speaker", "other"]), values, min_size=1, max_size=3))
def test_whatever_a_row_holds_it_is_used_as_it_is_or_counted(manifest_folder, changes):
    path = manifest_folder / "m.jsonl"
    path.write_text(
        json.dumps(asr("fine")) + "\n" + json.dumps({**asr("odd"), **changes}) + "\n", encoding="utf-8", newline="\n"
    )
    dataset, report = read_corpora([{"reader": "manifest", "path": str(path)}], max_bad_fraction=1.0)
    assert dataset[0]["id"] == "fine"
    dropped = sum(entry["rows"] for reasons in report["dropped"].values() for entry in reasons.values())
    assert len(dataset) + dropped == 2
    if len(dataset) == 2:
        for name, value in changes.items():
            if name == "context" and value == []:
                assert dataset[1][name] is None  # no words
            elif value is not None and name not in ("audio", "speaker", "corpus"):
                expected = value.strip().strip("\ufeff").strip() if name in ("text", "source_text") else value
                assert dataset[1][name] == pytest.approx(expected)


@pytest.fixture(scope="module")
def manifest_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("manifest")
    (folder / "clips").mkdir()
    soundfile.write(folder / "clips" / "a.flac", tone(1.5), RATE)
    return folder


@pytest.mark.parametrize(
    ("texts", "kept", "reason"),
    [
        ([1, 2, 3], 0, "'text' is no text but int"),
        ([1.5, float("nan"), 2.0], 0, "'text' is no text but float"),
        (["a", None, " "], 1, "no text"),
    ],
)
def test_texts_that_are_none_are_counted(tmp_path, texts, kept, reason):
    audio = [{"path": None, "bytes": encoded(tone(1.0), format="FLAC")}] * 3
    datasets.Dataset.from_dict({"audio": audio, "text": texts}).to_parquet(tmp_path / "x.parquet")
    spec = {"reader": "dataset", "path": str(tmp_path / "x.parquet"), "tasks": ["asr"], "languages": ["en"]}
    if kept:
        dataset, report = read_corpora([spec], max_bad_fraction=1.0)
        assert len(dataset) == kept and report["dropped"]["dataset"][reason]["broken"] == 3 - kept
    else:
        with pytest.raises(CorpusError, match=f"gives no rows .* 3 dropped: {reason}"):
            read_corpora([spec], max_bad_fraction=1.0)
    stream, _ = read_corpora([{**spec, "streaming": True}])  # judged after 1,000 rows
    assert len(list(stream)) == kept


def test_a_language_that_a_stream_does_not_bring_is_said(tmp_path, caplog):
    audio = [{"path": None, "bytes": encoded(tone(0.5), format="FLAC")}] * 1100
    rows = {"audio": audio, "text": ["a"] * 1100, "lang": ["en", "de"] * 550}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "x.parquet")
    spec = {"reader": "dataset", "path": str(tmp_path / "x.parquet"), "tasks": ["asr"], "streaming": True}
    spec["columns"] = {"source_lang": "lang"}
    for languages in (["en", "de"], ["en", "xx", "sv"]):
        stream, _ = read_corpora([{**spec, "languages": languages}])
        assert {row["source_lang"] for row in stream} == {"en", "de"} & set(languages)
        told = [message for message in caplog.messages if "records is in" in message]
        assert len(told) == (languages[1] == "xx")
    assert "none of the first 1024 records is in sv, xx; so far there are en" in told[0]


def test_an_audiofolder_with_odd_records_is_read_without_them(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(1.0), RATE)
    soundfile.write(tmp_path / "b.wav", tone(1.0), RATE)
    records = [{"file_name": "a.wav", "text": "one"}, {"file_name": None, "text": "two"}, {"text": "three"}]
    write_lines(tmp_path / "metadata.jsonl", [*records, {"file_name": "b.wav", "text": 4}])
    spec = {"reader": "dataset", "path": str(tmp_path), "tasks": ["asr"], "languages": ["en"]}
    dataset, report = read_corpora([spec], max_bad_fraction=0.9)
    assert (dataset["text"][:], dataset["id"][:]) == (["one"], ["a"])
    assert {reason: entry["broken"] for reason, entry in report["dropped"]["dataset"].items()} == {
        "no 'file_name'": 2,
        "'text' is no text but int": 1,
    }
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "metadata.csv").write_text('file_name,text\na.wav,"one\nb.wav,two\n', encoding="utf-8-sig")
    dataset, _ = read_corpora([spec], max_bad_fraction=0.5)
    assert dataset["text"][:] == ["two"]
    (tmp_path / "metadata.csv").write_text("file,text\na.wav,one\n", encoding="utf-8")
    with pytest.raises(CorpusError, match="has no column 'file_name'; its header is file, text"):
        read_corpora([spec])


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("train", "test", "table"),
    [
        ("train", "test", "{}/metadata.csv"),
        ("data/train", "data/test", "{}/metadata.csv"),
        ("data/train", "data/test", "data/metadata.csv"),
        ("train", "test", "metadata.csv"),
        ("en/train-clean-100", "en/test-clean", "{}/metadata.csv"),
        ("training", "evaluation", "{}/metadata.csv"),
        ("Train", "Test", "metadata.csv"),
    ],
)
def test_splits_of_an_audiofolder_are_those_of_its_folders(tmp_path, train, test, table, streaming):
    for split in (train, test):
        name = tmp_path / table.format(split)
        (tmp_path / split).mkdir(parents=True)
        soundfile.write(tmp_path / split / "a.wav", tone(1.0), RATE)
        with name.open("a", encoding="utf-8") as file:
            header = "" if file.tell() else "file_name,text\n"
            file.write(f"{header}{(tmp_path / split / 'a.wav').relative_to(name.parent)},{split}\n")
    spec = {"reader": "dataset", "path": str(tmp_path), "tasks": ["asr"], "languages": ["en"], "streaming": streaming}
    for split, folder in (("train", train), ("test", test), (test.split("/")[-1], test)):
        rows, _ = read_corpora([{**spec, "split": split}])
        assert [(row["text"], row["id"]) for row in rows] == [(folder, "a")]
    with pytest.raises(CorpusError, match=r"no metadata.jsonl or metadata.csv for the split 'dev'"):
        read_corpora([{**spec, "split": "dev"}])


def test_a_folder_named_after_a_format_is_that_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("parquet", "others"):
        (tmp_path / folder).mkdir()
        record = {"audio": {"path": None, "bytes": encoded(tone(1.0))}, "text": folder}
        datasets.Dataset.from_list([record]).to_parquet(f"{folder}/train.parquet")
    for streaming in (False, True):
        spec = {"reader": "dataset", "path": "parquet", "tasks": ["asr"], "languages": ["en"], "streaming": streaming}
        rows, _ = read_corpora([spec])
        assert [row["text"] for row in rows] == ["parquet"]


def test_a_split_in_capitals_is_not_trained_on(tmp_path):
    for split in ("Train", "Test"):
        record = {"audio": {"path": None, "bytes": encoded(tone(1.0))}, "text": split}
        datasets.Dataset.from_list([record]).to_parquet(tmp_path / f"{split}-00000.parquet")
    spec = {"reader": "dataset", "path": str(tmp_path), "tasks": ["asr"], "languages": ["en"]}
    with pytest.raises(CorpusError, match=r"Test-00000\.parquet in .* would be read as 'train'"):
        read_corpora([spec])
    for split in ("Train", "Test"):
        rows, _ = read_corpora([{**spec, "data_files": f"{split}-*.parquet"}])
        assert rows["text"][:] == [split]


def test_a_damaged_parquet_file_is_named(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1" + bytes(100))
    spec = {"reader": "dataset", "path": str(tmp_path / "x.parquet"), "tasks": ["asr"], "languages": ["en"]}
    for streaming in (False, True):
        with pytest.raises(CorpusError, match=r"x.parquet could not be read \(.*Is it whole"):
            read_corpora([{**spec, "streaming": streaming}])


# ---------------------------------------------------------------------------------------------- ids, languages, times


def test_another_row_under_a_known_id_is_broken(clips):
    records = [asr(f"a{number}") for number in range(9)] + [asr("a3", text="Autre.")]
    records += [asr("a3", source_lang="de", target_lang="de"), {**MT, "id": "a3"}]  # other languages, other tasks
    with pytest.raises(CorpusError, match=r"1 row: id of another row; give each its own, .* such as a3"):
        read_lines(clips, records, max_bad_fraction=0.05)
    dataset, _ = read_lines(clips, records, max_bad_fraction=0.1)
    assert len(dataset) == 11 and dataset[3]["text"] == "Texte a3."


@pytest.mark.parametrize("column", ["prompt", "context"])
def test_another_question_about_a_clip_is_another_row(clips, column):
    records = [asr("a", **{column: question}) for question in ("Is it a man?", "Is it English?")]
    with pytest.raises(CorpusError, match="1 row: id of another row; give each its own"):
        read_lines(clips, records, max_bad_fraction=0)


def test_a_row_that_is_there_again_is_left_out_and_reported(clips):
    records = [asr("a"), asr("b"), MT, asr("a"), MT]
    dataset, report = read_lines(clips, records, max_bad_fraction=0)
    assert dataset["id"][:] == ["a", "b", "m"]
    assert report["dropped"]["train"]["the same row stands before it"] == {
        "rows": 2, "broken": 0, "examples": ["a", "m"]
    }  # fmt: skip
    spec = {"reader": "manifest", "path": write_lines(clips / "train.jsonl", [asr("a"), asr("b")]), "name": "mine"}
    more = {**spec, "path": write_lines(clips / "more.jsonl", [asr("b"), asr("c")])}
    assert read_corpora([spec, more], max_bad_fraction=0)[0]["id"][:] == ["a", "b", "c"]


def test_pairs_and_clips_without_ids_get_their_own(tmp_path):
    pair = {"source_text": "Ja", "text": "Yes"}
    spec = {"reader": "text_pairs", "languages": ["de"], "target_languages": ["en"]}
    path = write_lines(tmp_path / "pairs.jsonl", [pair, pair])
    assert len(set(read_corpora([{**spec, "path": path}], max_bad_fraction=0)[0]["id"])) == 2
    for speaker in ("x", "y"):
        (tmp_path / "train" / speaker).mkdir(parents=True)
        soundfile.write(tmp_path / "train" / speaker / "1.wav", tone(1.0), RATE)
    records = [{"file_name": f"{speaker}/1.wav", "text": "one"} for speaker in ("x", "y")]
    write_lines(tmp_path / "train" / "metadata.jsonl", records)
    spec = {"reader": "dataset", "path": str(tmp_path), "tasks": ["asr"], "languages": ["en"]}
    assert read_corpora([spec], max_bad_fraction=0)[0]["id"][:] == ["x/1", "y/1"]


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
@pytest.mark.parametrize("reader", ["text_pairs", "dataset"])
def test_pairs_of_two_files_are_all_read(tmp_path, reader, names):
    for name, count in (("a", 2), ("b", 401)):
        pairs = [{"source_text": f"{name} {number}", "text": f"{name}{number}"} for number in range(count)]
        write_lines(tmp_path / f"{name}.jsonl", pairs)
        datasets.Dataset.from_list(pairs).to_parquet(tmp_path / f"{name}.parquet")
    ending = {"text_pairs": "jsonl", "dataset": "parquet"}[reader]
    spec = {"reader": reader, "languages": ["de"], "target_languages": ["en"], "tasks": ["mt"]}
    files = [{**spec, "path": str(tmp_path / f"{name}.{ending}")} for name in names]
    rows = read_corpora(files, max_bad_fraction=0)[0]
    assert len(rows) == 403 and len(set(rows["id"])) == 403


@pytest.mark.parametrize("streaming", [False, True])
def test_clips_that_are_named_alike_are_all_read(tmp_path, streaming):
    for speaker in "abc":
        (tmp_path / speaker).mkdir()
        soundfile.write(tmp_path / speaker / "001.flac", tone(2.0), RATE)
    spec = {"reader": "dataset", "tasks": ["asr"], "languages": ["en"], "streaming": streaming}
    path, clip = str(tmp_path / "x.parquet"), str(tmp_path / "a" / "001.flac")
    paths = [{"audio": str(tmp_path / speaker / "001.flac"), "text": speaker} for speaker in "abc"]
    parts = [{"audio": clip, "text": f"{start}", "start": start, "end": start + 0.5} for start in (0.0, 0.5, 1.0)]
    names = ("000.flac", "001.flac", "000.flac", "001.flac", "000.flac", "001.flac")
    sounds = [
        {"audio": {"bytes": encoded(tone(1.0, 200 + 10 * number)), "path": name}, "text": f"{number}"}
        for number, name in enumerate(names)
    ]
    for records in (paths, parts, sounds):
        datasets.Dataset.from_list(records).to_parquet(path)
        rows = list(read_corpora([{**spec, "path": path}], max_bad_fraction=0)[0])
        assert [row["text"] for row in rows] == [record["text"] for record in records]
        assert streaming or len({row["id"] for row in rows}) == len(records)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"languages": ["fr", "xx"]}, "has no rows in xx; it has en, fr"),
        ({"target_languages": ["en", "zz"]}, "has no rows in zz; it has en, fr"),
        ({"languages": ["fr", "yy"], "target_languages": ["zz"], "tasks": ["asr"]}, "has no rows in yy; it has fr"),
    ],
)
def test_languages_that_are_nowhere_are_refused(clips, settings, message):
    path = write_lines(clips / "train.jsonl", [asr("a"), MT])
    with pytest.raises(CorpusError, match=message):
        read_corpora([{"reader": "manifest", "path": path, **settings}])
    read_corpora([{"reader": "manifest", "path": path, "languages": ["fr"], "target_languages": ["en"]}])


def test_times_that_contradict_each_other_are_counted(clips):
    records = [
        asr("right", audio="clips/long.opus", start=1.0, end=3.0, duration=2.05),
        asr("wrong", audio="clips/long.opus", start=1.0, end=3.0, duration=5.0),
    ]
    dataset, report = read_lines(clips, records, max_bad_fraction=0.5)
    assert dataset["id"][:] == ["right"]
    assert "duration is not the time from start to end" in report["dropped"]["train"]


@pytest.mark.parametrize(("on_disk", "in_the_row"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_names_of_files_in_another_unicode_form_are_found(tmp_path, on_disk, in_the_row):
    """Archives made on macOS hold decomposed accents, manifests mostly composed ones."""
    names = ["été/é.wav", "été/ô.wav", "plain/ç.wav"]
    for number, name in enumerate(names):
        path = tmp_path / unicodedata.normalize(on_disk, name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(tone(1.0 + number)))
    (tmp_path / unicodedata.normalize(in_the_row, "été/ô.wav").replace("/", "_")).write_bytes(b"")  # no stand-in
    rows = [asr(str(number), audio=unicodedata.normalize(in_the_row, name)) for number, name in enumerate(names)]
    rows = [{**row, "duration": None} for row in rows]
    dataset, report = read_lines(tmp_path, [*rows, asr("absent", audio="plain/à.wav")], max_bad_fraction=0.5)
    assert dataset["duration"][:] == [1.0, 2.0, 3.0]
    assert [round(len(load_clip(row)) / RATE) for row in dataset] == [1, 2, 3]
    assert len(load_audio(tmp_path / unicodedata.normalize(in_the_row, names[0]))) == RATE
    assert list(report["dropped"]["train"]) == ["audio file not found"]


def test_of_two_files_whose_names_look_alike_the_one_that_is_named_is_read(tmp_path):
    for seconds, form in ((1.0, "NFC"), (2.0, "NFD")):
        (tmp_path / unicodedata.normalize(form, "é.wav")).write_bytes(encoded(tone(seconds)))
    rows = [asr(form, audio=unicodedata.normalize(form, "é.wav"), duration=None) for form in ("NFC", "NFD")]
    assert read_lines(tmp_path, rows)[0]["duration"][:] == [1.0, 2.0]


def test_what_a_clip_holds_is_measured_not_believed(clips):
    whole = (clips / "clips" / "b.mp3").read_bytes()
    (clips / "clips" / "half.mp3").write_bytes(whole[: len(whole) // 2])
    (clips / "clips" / "clip.raw").write_bytes(bytes(32_000))
    (clips / "clips" / "pointer.wav").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    names = ("half.mp3", "clip.raw", "pointer.wav")
    records = [asr("a"), *(asr(name, audio=f"clips/{name}", duration=None) for name in names)]
    dataset, report = read_lines(clips, records, max_bad_fraction=0.8)
    assert dataset["id"][:] == ["a"]
    reasons = {entry["examples"][0]: reason for reason, entry in report["dropped"]["train"].items()}
    assert reasons["half.mp3"] == "audio is cut off"
    assert reasons["clip.raw"] == "audio without a header"
    assert reasons["pointer.wav"].startswith("file is a Git LFS pointer")


@pytest.mark.parametrize(
    "settings",
    [
        {"max_bad_fraction": 50},
        {"max_bad_fraction": float("nan")},
        {"max_bad_fraction": -0.1},
        {"max_bad_fraction": None},
        {"min_duration": float("nan")},
        {"max_duration": -1},
        {"max_duration": "30"},
        {"max_characters_per_second": 0},
        {"min_characters_per_second": True},
    ],
)
def test_filters_that_filter_nothing_or_all_are_refused(clips, settings):
    with pytest.raises(CorpusError, match=f"`{next(iter(settings))}` is "):
        read_lines(clips, [asr("a")], **settings)


odd_texts = st.one_of(
    st.text(max_size=12),
    st.text("aéЖ中Ãâ€Ð©\xa0\x85\ufffd\ud800 \n", max_size=6),
    st.sampled_from(
        ["nan", "#N/A", "café".encode().decode("cp1252"), "Ж".encode().decode("latin-1"), "don’t", 7, None]
    ),
)


@given(st.lists(odd_texts, min_size=6, max_size=6))
@settings(max_examples=300)
def test_a_row_whose_texts_look_plain_at_once_has_no_fault_in_them(values):
    row = dict.fromkeys(COLUMNS) | dict(zip(checking.TEXTS, values, strict=True))
    found = checking.mistyped(row)
    with mock.patch.object(checking, "_is_plain", return_value=False):
        assert checking.mistyped(row) == found


@pytest.mark.parametrize("text", ["Grüß Gott, René!", "早上好", "Доброе утро.", "مرحبا"])
def test_what_is_written_in_any_script_is_plain(text):
    assert checking._is_plain(dict.fromkeys(COLUMNS) | {"id": "a", "corpus": "c", "text": text})
