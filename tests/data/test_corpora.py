"""read_corpora with the readers of one's own files: manifests, datasets, text pairs; filters, counts, streaming."""

import hashlib
import json
from collections import Counter

import datasets
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from made_data import MT, RATE, asr, encoded, read_lines, tone, write_lines

from modeling_part import load_audio
from modeling_part.audio_part import load_clip
from modeling_part.data.checking import RowFilters, summary
from modeling_part.data.corpora import open_corpora, read_corpora
from modeling_part.data.files import read_table, write_manifest
from modeling_part.data.rows import (
    COLUMNS,
    CorpusError,
    audio_duration,
    canonical_features,
    language_code,
    speech_bounds,
    split_of,
)
from modeling_part.data.stored_corpora import fingerprint


# ------------------------------------------------------------------------------------------------------ manifests


def test_a_manifest_gives_exactly_the_canonical_rows(clips):
    records = [
        asr("known"),
        asr("measured", audio="clips/b.mp3", duration=None, speaker="x", license="CC0-1.0"),
        {**asr("part"), "audio": "clips/long.opus", "start": 2.5, "end": 4.0, "duration": None},
        {**asr("rest"), "audio": "clips/long.opus", "start": 4.0, "duration": None, "corpus": "mine"},
        {**asr("s"), "task": "s2tt", "target_lang": "en", "text": "Red.", "source_text": "Rouge."},
        MT,
    ]
    dataset, report = read_lines(clips, records)
    assert dataset.column_names == list(COLUMNS)
    assert dataset.features == canonical_features()
    assert dataset["id"][:] == ["known", "measured", "part", "rest", "s", "m"]
    assert dataset["duration"][:] == pytest.approx([1.5, 2.0, 1.5, 2.0, 1.5, 0.0], abs=0.01)
    assert dataset["corpus"][:] == ["train", "train", "train", "mine", "train", "train"]
    assert dataset[5]["audio"] is None
    assert dataset[4]["source_text"] == "Rouge."
    assert report["rows"] == {"asr/fr": 4, "s2tt/fr-en": 1, "mt/fr-en": 1}
    assert report["hours"]["asr/fr"] == pytest.approx(7.0 / 3600, abs=1e-4)
    row = dataset[2]
    samples = load_audio(row["audio"], start=row["start"], end=row["end"])
    assert len(samples) == 1.5 * RATE
    spectrum = np.abs(np.fft.rfft(samples[-RATE // 2 :]))
    assert np.argmax(spectrum) * 2 == pytest.approx(880, abs=4), "the part reaches into the second tone"


def test_writing_and_reading_a_manifest_again_changes_nothing(clips):
    dataset, _ = read_lines(
        clips, [asr("a"), asr("b", audio="clips/long.opus", start=1.0, end=2.0, duration=None), MT]
    )
    (clips / "elsewhere").mkdir()
    write_manifest(dataset, clips / "elsewhere" / "train.jsonl")
    again, _ = read_corpora([{"reader": "manifest", "path": str(clips / "elsewhere" / "train.jsonl")}])
    assert fingerprint(again) == fingerprint(dataset)
    assert all(load_audio(row["audio"]).any() for row in again if row["audio"])


def test_a_row_may_say_what_is_asked_of_it(clips):
    words = [asr("a", context=["Anna  Maria", "Berta"], prompt="Write it down."), asr("b", context="Anna\nBerta")]
    none = [asr("c"), asr("d", context=[], prompt=None), MT | {"prompt": "Say it in English."}]
    dataset, _ = read_lines(clips, [*words, *none])
    assert dataset["context"][:] == ["Anna Maria\nBerta", "Anna\nBerta", None, None, None]
    assert dataset["prompt"][:] == ["Write it down.", None, None, None, "Say it in English."]
    path = write_lines(clips / "train.jsonl", [asr("a", names={"said": ["Anna"]})])
    renamed, _ = read_corpora([{"reader": "manifest", "path": path, "columns": {"context": "names.said"}}])
    assert renamed["context"][:] == ["Anna"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (asr("a", txt="x"), "unknown field 'txt'. Did you mean 'text'? The fields are id"),
        ({key: value for key, value in asr("a").items() if key != "text"}, "no 'text'; give the row one"),
        (asr("a", task="st"), "'task' is none of asr, s2tt, mt|'st'"),
        (asr("a", source_lang="Frensh", target_lang="Frensh"), "'source_lang' is not a BCP 47 language code|'Frensh'"),
        (asr("a", target_lang="en"), "asr and text, and only they, keep the language|asr from 'fr' to 'en'"),
        (asr("a", text=None), "'text' must be a string|None"),
        (asr("a", text=7), "'text' must be a string|7"),
        (asr(5), "'id' must be a string|5"),
        (asr("a", source_text=["a"]), "'source_text' must be a string|['a']"),
        (asr("a", duration="1.5"), "'duration' must be a number of seconds|'1.5'"),
        (asr("a", duration=True), "'duration' must be a number of seconds|True"),
        (asr("a", duration=float("nan")), "'duration' must be a number of seconds|nan"),
        (asr("a", start=float("inf")), "'start' must be a number of seconds|inf"),
        (asr("a", end=float("-inf")), "'end' must be a number of seconds|-inf"),
        (asr("a", audio=None), "an asr row needs 'audio'"),
        (asr("a", audio=""), "an asr row needs 'audio'"),
        ({**MT, "audio": "clips/a.flac"}, "an mt row has a 'source_text' and no 'audio'"),
        (asr("a", translation="One."), "a row with a 'translation' is s2tt or mt; leave 'translation' or 'task' out"),
        (asr("a", context=7), "'context' must be a text, or left out|7"),
        (asr("a", context=["Anna", None]), "'context' must be a text or a list of words|None"),
        (asr("a", prompt=["Anna"]), "'prompt' must be a text, or left out|['Anna']"),
        (asr("a", prompt=" "), "'prompt' must be a text, or left out|' '"),
    ],
)
def test_a_row_of_another_shape_is_named_with_its_line_and_counted(clips, record, message):
    rows = [asr(f"fine{number}") for number in range(9)]
    with pytest.raises(CorpusError, match=r"train\.jsonl, line 10") as error:
        read_lines(clips, [*rows, record])
    for part in message.split("|"):
        assert part in str(error.value)
    dataset, report = read_lines(clips, [*rows, record], max_bad_fraction=0.1)
    assert len(dataset) == 9
    assert sum(entry["broken"] for entry in report["dropped"]["train"].values()) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"id": "a",', "no valid JSON|line 2: Expecting"),
        (b"[1, 2]", "no JSON object|[1, 2]"),
        (b"[" * 100_000, "no valid JSON"),
        (b'{"id": ' + b"9" * 5000 + b"}", "no valid JSON"),
        (b'{"id": "a", "text": "one", "text": "two"}', "a field stands twice in a row|'text'"),
        ('{"id": "caf\xe9"}'.encode("latin-1"), "not UTF-8 (convert the file|byte 0xe9 after"),
    ],
)
def test_a_line_that_is_no_json_is_named_and_counted(clips, line, message):
    path = clips / "bad.jsonl"
    path.write_bytes(json.dumps(asr("a")).encode() + b"\n" + line + b"\n\n" + json.dumps(asr("b")).encode())
    spec = {"reader": "manifest", "path": str(path)}
    with pytest.raises(CorpusError, match=r"1 of 3 rows are broken[^$]*bad.jsonl, line 2") as error:
        read_corpora([spec])
    for part in message.split("|"):
        assert part in str(error.value)
    assert read_corpora([spec], max_bad_fraction=0.5)[0]["id"][:] == ["a", "b"]


# ------------------------------------------------------------------------------------- broken rows, filters, report


def test_broken_rows_are_counted_with_reason_and_id(clips):
    (clips / "clips" / "noise.wav").write_bytes(b"no audio at all")
    soundfile.write(clips / "clips" / "empty.wav", np.zeros(0), RATE)
    records = [
        asr("good"),
        asr("blank", text="  "),
        asr("gone", audio="clips/none.flac"),
        asr("gone-too", audio="nowhere/none.flac", duration=None),
        asr("noise", audio="clips/noise.wav", duration=None),
        asr("empty", audio="clips/empty.wav", duration=None),
        asr("backwards", start=1.0, end=0.5, duration=None),
        {**MT, "source_text": ""},
    ]
    dataset, report = read_lines(clips, records, max_bad_fraction=1.0, report_path=clips / "out" / "data_report.json")
    assert dataset["id"][:] == ["good"]
    dropped = {reason: entry["examples"] for reason, entry in report["dropped"]["train"].items()}
    assert dropped == {
        "no text": ["blank"],
        "audio file not found": ["gone", "gone-too"],
        "audio cannot be read": ["noise"],
        "audio without samples": ["empty"],
        "start and end leave no audio": ["backwards"],
        "no source text": ["m"],
    }
    assert json.loads((clips / "out" / "data_report.json").read_text(encoding="utf-8")) == report
    assert "audio file not found (such as gone)" in summary(report)


def test_too_many_broken_rows_stop_the_run_with_the_list(clips):
    records = [asr(f"good{number}") for number in range(98)] + [asr("gone", audio="x.flac"), asr("blank", text="")]
    dataset, _ = read_lines(clips, records, max_bad_fraction=0.02)
    assert len(dataset) == 98
    with pytest.raises(CorpusError) as error:
        read_lines(clips, records, max_bad_fraction=0.01)
    message = str(error.value)
    assert "2 of 100 rows are broken" in message
    assert "audio file not found, such as gone" in message
    assert "no text, such as blank" in message


def test_filters_leave_out_and_count_but_are_no_faults(clips):
    records = [
        asr("stays"),
        asr("short", audio="clips/long.opus", start=0.0, end=0.2, duration=None),
        asr("long", audio="clips/long.opus", duration=None),
        asr("hasty", text="x" * 60),
        asr("slow", text="x"),
        asr("german", source_lang="de", target_lang="de"),
        {**asr("untranscribed"), "task": "s2tt", "target_lang": "en", "text": "Yes."},
        MT,
    ]
    bounds = {"min_duration": 0.5, "max_duration": 4, "min_characters_per_second": 2, "max_characters_per_second": 25}
    dataset, report = read_lines(clips, records, languages=["fr", "en"], max_bad_fraction=0.0, **bounds)
    assert dataset["id"][:] == ["stays", "untranscribed", "m"]
    dropped = report["dropped"]["train"]
    assert {reason: (entry["rows"], entry["broken"]) for reason, entry in dropped.items()} == {
        "shorter than 0.5 s": (1, 0),
        "longer than 4 s": (1, 0),
        "more than 25 characters per second": (1, 0),
        "fewer than 2 characters per second": (1, 0),
        "language not asked for": (1, 0),
    }


@settings(max_examples=200, deadline=None)
@given(
    duration=st.floats(0.01, 60),
    characters=st.integers(1, 600),
    shortest=st.floats(0.0, 5.0),
    longest=st.floats(5.0, 40.0),
    slowest=st.floats(0.5, 5.0),
    fastest=st.floats(5.0, 40.0),
)
def test_a_row_stays_exactly_if_it_is_within_all_bounds(duration, characters, shortest, longest, slowest, fastest):
    row = {"task": "asr", "source_lang": "en", "target_lang": "en", "text": "x" * characters, "duration": duration}
    inside = shortest <= duration <= longest and slowest <= characters / duration <= fastest
    assert (RowFilters(shortest, longest, slowest, fastest).reason(row) is None) == inside


def test_tasks_and_languages_choose_rows_and_none_is_an_error(clips):
    path = write_lines(clips / "train.jsonl", [asr("a"), asr("d", source_lang="de", target_lang="de"), MT])
    spec = {"reader": "manifest", "path": path, "name": "mine"}
    dataset, _ = read_corpora([{**spec, "tasks": ["asr"], "languages": ["de"]}])
    assert [(row["id"], row["corpus"]) for row in dataset] == [("d", "mine")]
    with pytest.raises(CorpusError, match=r"gives no rows .* languages \('it',\)"):
        read_corpora([{**spec, "languages": ["it"]}])


def test_weights_are_given_per_corpus_column(clips):
    mine = {"reader": "manifest", "path": write_lines(clips / "mine.jsonl", [asr("a"), asr("b", corpus="other")])}
    pairs = {"reader": "manifest", "path": write_lines(clips / "pairs.jsonl", [MT]), "weight": 0.5}
    assert read_corpora([{**mine, "weight": 3}, pairs])[1]["weights"] == {"mine": 3, "other": 3, "pairs": 0.5}
    with pytest.raises(CorpusError, match="Corpus 'mine' has two weights; tell its parts apart with `name`"):
        read_corpora([{**mine, "weight": 3}, {**pairs, "name": "mine"}])
    with pytest.raises(CorpusError, match="Corpus 'fleurs' has two weights"):
        read_corpora([{"reader": "fleurs", "path": "not/read"}, {"reader": "fleurs", "path": "x", "weight": 2}])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"reader": "manifest", "path": "x", "weight": 0}, "weight 0 is no number above 0"),
        ({"reader": "manifest", "path": "x", "langauges": ["de"]}, "Did you mean 'languages'?"),
        ({"reader": "manifest"}, "lacks 'path'"),
        ({"reader": "librispeech", "path": "x"}, "Unknown reader 'librispeech'. The readers are manifest, nemo"),
        ({"reader": "manifesto", "path": "x"}, "Did you mean 'manifest'?"),
        ("m.jsonl", "is 'm.jsonl'; it must be a mapping"),
        ({"reader": "dataset", "path": "x", "min_confidence": 1}, "is a setting of wenetspeech, not of the reader 'd"),
        ({"reader": "fleurs", "path": "x", "revison": "a"}, "Did you mean 'revision'?"),
        ({"reader": "dataset", "path": "x", "streaming": "often"}, "'streaming' must be true or false, not 'often'"),
        ({"reader": "dataset", "path": "x", "columns": ["text"]}, "'columns' must be a mapping, not ['text']"),
        (
            {"reader": "wenetspeech", "path": "x", "min_confidence": True},
            "'min_confidence' must be a number, not True",
        ),
        ({"reader": "manifest", "path": "x", "languages": [["de"]]}, "'languages' must be a list of names"),
        ({"reader": "manifest", "path": "x", "languages": 5}, "'languages' must be a list of names, not 5"),
        (
            {"reader": "manifest", "path": "x", "weight": 1e12},
            "weight 1000000000000.0 is no number above 0 and up to 1000",
        ),
        ({"reader": "manifest", "path": "x", "weight": True}, "weight True is no number above 0"),
        ({"reader": "manifest", "path": "x", "name": 5}, "'name' must be text, not 5"),
        ({"reader": "asterisk", "path": "x", "columns": {"text": "a"}}, "'columns' is a setting of manifest"),
        ({"reader": "fleurs", "path": "x", "tasks": ["tts"]}, "task 'tts' is none of"),
        ({"reader": "fleurs", "path": "x", "languages": ["de_de"]}, "'de_de' is not a BCP 47"),
        ({"reader": "fleurs", "path": "x", "split": "eval"}, "split 'eval' is none of"),
        ({"reader": "fleurs", "path": "no/such/folder"}, "no/such/folder does not exist"),
    ],
)
def test_a_wrong_entry_of_a_recipe_is_one_clear_error(spec, message):
    with pytest.raises(CorpusError) as error:
        read_corpora([spec])
    assert message in str(error.value)


def test_settings_are_those_that_the_readers_declare():
    from modeling_part.data.corpus_spec import CorpusSpec
    from modeling_part.data.readers.registry import READERS, find_reader, reader_settings

    assert all(callable(find_reader(name)) for name in READERS)
    assert set(reader_settings("dataset")) == {"columns", "streaming", "config", "revision", "data_files"}
    spec = CorpusSpec.from_dict(
        {"reader": "wenetspeech", "path": "x", "min_confidence": 1, "subset": None, "languages": "zh", "tasks": []}
    )
    assert spec.settings == {"min_confidence": 1}
    assert (spec.languages, spec.tasks) == (("zh",), None)
    # What YAML 1.1 makes of `languages: [no, de]`.
    norwegian = CorpusSpec.from_dict({"reader": "manifest", "path": "x", "languages": [False, "de"]})
    assert norwegian.languages == ("no", "de")


def test_the_rows_on_disk_are_opened_by_other_processes_and_keep_their_fingerprint(clips):
    spec = {"reader": "manifest", "path": write_lines(clips / "train.jsonl", [asr("a"), asr("b"), MT])}
    dataset, report = read_corpora([spec], cache_dir=clips / "cache")
    assert dataset.cache_files, "memory-mapped"
    opened, read_report = open_corpora(clips / "cache")
    assert opened[:] == dataset[:]
    assert read_report == report
    in_memory, _ = read_corpora([spec])
    assert fingerprint(opened) == report["fingerprint"] == fingerprint(in_memory)
    assert fingerprint(dataset.select([1, 0, 2])) != report["fingerprint"]
    changed, _ = read_lines(clips, [asr("a"), asr("b", text="Autre."), MT])
    assert fingerprint(changed) != report["fingerprint"]


@pytest.mark.parametrize("name", ["rows.arrow", "report.json"])
@pytest.mark.parametrize("content", [b"", b"half", None])
def test_damaged_rows_on_disk_are_named(clips, name, content):
    spec = {"reader": "manifest", "path": write_lines(clips / "train.jsonl", [asr("a"), asr("b"), MT])}
    read_corpora([spec], cache_dir=clips / "cache")
    path = clips / "cache" / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(CorpusError, match=r"in .*cache"):
        open_corpora(clips / "cache")


# ------------------------------------------------------------------------------------------------ mapped datasets


@pytest.fixture
def parquet(tmp_path):
    """A folder with train and validation parquet files of 7 and 2 rows, audio bytes inside, made as the Hub does."""
    for split, count in (("train", 7), ("validation", 2)):
        records = [
            {
                "audio": {"bytes": encoded(tone(0.5 + i / 10), format="FLAC"), "path": f"{split}{i}.flac"},
                "sentence": f"Satz {i}",
                "en": f"S{i}",
            }
            for i in range(count)
        ]
        dataset = datasets.Dataset.from_list(records).cast_column("audio", datasets.Audio(decode=False))
        dataset.to_parquet(tmp_path / "parquet" / f"{split}-00000-of-00001.parquet")
    return tmp_path / "parquet"


def test_parquet_rows_hold_the_bytes_and_get_their_durations(parquet):
    spec = {"reader": "dataset", "path": str(parquet), "columns": {"text": "sentence"}, "tasks": ["asr"]}
    dataset, report = read_corpora([{**spec, "languages": ["de"], "name": "saetze"}])
    assert report["rows"] == {"asr/de": 7}
    assert dataset["text"][:] == [f"Satz {i}" for i in range(7)]
    assert dataset["id"][:] == [f"train{i}" for i in range(7)]
    assert dataset["duration"][:] == pytest.approx([0.5 + i / 10 for i in range(7)], abs=1e-3)
    assert set(dataset["corpus"]) == {"saetze"}
    row = dataset[3]
    assert np.allclose(load_audio(row["audio"]), tone(0.8), atol=1e-3)
    dev, _ = read_corpora([{**spec, "languages": ["de"], "split": "dev"}])
    assert len(dev) == 2


def test_one_record_gives_a_row_per_task(parquet):
    spec = {"reader": "dataset", "path": str(parquet), "columns": {"source_text": "sentence", "text": "en"}}
    spec |= {"languages": ["de"], "target_languages": ["en"], "split": "dev"}
    dataset, _ = read_corpora([{**spec, "tasks": ["asr", "s2tt", "mt"]}])
    assert [(row["task"], row["target_lang"], row["text"], row["source_text"]) for row in dataset][:3] == [
        ("asr", "de", "Satz 0", "Satz 0"),
        ("s2tt", "en", "S0", "Satz 0"),
        ("mt", "en", "S0", "Satz 0"),
    ]
    assert [row["audio"] is None for row in dataset] == [False, False, True] * 2
    only_mt, _ = read_corpora([{**spec, "tasks": ["mt"]}])
    assert set(only_mt["task"]) == {"mt"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": {"text": "transcript"}}, "no column 'transcript'; there are audio, sentence, en"),
        ({"columns": {"words": "sentence"}}, "maps 'words', which is none of"),
        ({"columns": {}}, "no column 'text'; say under 'columns' which of audio, sentence, en it is"),
        ({"tasks": None}, "no column gives the task"),
        ({"languages": None}, "no column gives 'source_lang'; name one language under 'languages'"),
        ({"split": "test"}, "has no split 'test'; it has train, validation"),
    ],
)
def test_a_mapping_that_does_not_fit_says_what_is_there(parquet, change, message):
    spec = {"reader": "dataset", "path": str(parquet), "columns": {"text": "sentence"}, "tasks": ["asr"]}
    with pytest.raises(CorpusError) as error:
        read_corpora([{**spec, "languages": ["de"], **change}])
    assert message in str(error.value)


def test_saved_datasets_and_audiofolders_are_read_too(parquet, tmp_path):
    records = [{"audio": {"bytes": encoded(tone(0.7), format="FLAC"), "path": None}, "text": "Ja", "locale": "de"}]
    datasets.DatasetDict({"train": datasets.Dataset.from_list(records)}).save_to_disk(tmp_path / "saved")
    spec = {"reader": "dataset", "tasks": ["asr"]}
    saved, _ = read_corpora([{**spec, "path": str(tmp_path / "saved"), "columns": {"source_lang": "locale"}}])
    assert saved["duration"][:] == pytest.approx([0.7])
    assert saved["source_lang"][:] == ["de"]

    for split in ("train", "test"):
        (tmp_path / "folder" / split).mkdir(parents=True)
        soundfile.write(tmp_path / "folder" / split / "x.flac", tone(0.9), RATE)
        table = tmp_path / "folder" / split / "metadata.csv"
        table.write_text(f'file_name,sentence\nx.flac,"Guten Tag, {split}"\n', encoding="utf-8")
    spec |= {"languages": ["de"], "columns": {"text": "sentence"}, "split": "test"}
    folder, _ = read_corpora([{**spec, "path": str(tmp_path / "folder")}])
    assert folder[0]["text"] == "Guten Tag, test"
    assert folder[0]["audio"]["path"].endswith("test/x.flac")
    assert folder[0]["duration"] == pytest.approx(0.9)
    file = {**spec, "split": "train", "path": str(parquet / "train-00000-of-00001.parquet")}
    assert len(read_corpora([file])[0]) == 7
    datasets.Dataset.from_list(records).save_to_disk(tmp_path / "one")
    for source in (file, {**spec, "path": str(tmp_path / "one")}):
        with pytest.raises(CorpusError, match=r"has no splits, so that 'test' would be the same rows"):
            read_corpora([{**source, "split": "test"}])
        with pytest.raises(CorpusError, match="config would have no effect"):
            read_corpora([{**source, "split": "train", "config": "de"}])


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("source", "settings"),
    [
        ("audiofolder", {"data_files": "fr/*"}),
        ("audiofolder", {"config": "fr"}),
        ("audiofolder", {"revision": "main"}),
        ("dictionary", {"data_files": "train/*"}),
        ("dictionary", {"config": "fr"}),
        ("parquet", {"revision": "main"}),
    ],
)
def test_a_setting_that_a_folder_does_not_have_is_refused(parquet, tmp_path, source, settings, streaming):
    for language in ("de", "fr"):
        (tmp_path / "audiofolder" / language).mkdir(parents=True)
        soundfile.write(tmp_path / "audiofolder" / language / "x.flac", tone(0.9), RATE)
        (tmp_path / "audiofolder" / language / "metadata.csv").write_text("file_name,sentence\nx.flac,Ja\n")
    records = [{"audio": {"bytes": encoded(tone(0.7)), "path": None}, "sentence": "Ja"}]
    datasets.DatasetDict({"train": datasets.Dataset.from_list(records)}).save_to_disk(tmp_path / "dictionary")
    spec = {"reader": "dataset", "path": str(tmp_path / source), "columns": {"text": "sentence"}, "tasks": ["asr"]}
    with pytest.raises(
        CorpusError, match=f"{next(iter(settings))} would have no effect on .*{source}: leave that out"
    ):
        read_corpora([{**spec, "languages": ["fr"], "streaming": streaming, **settings}])
    if source == "audiofolder":
        with pytest.raises(CorpusError, match=r"has no splits, so that 'test' would be the same rows as 'train'"):
            read_corpora([{**spec, "languages": ["fr"], "streaming": streaming, "split": "test"}])


@pytest.mark.parametrize("streaming", [False, True])
def test_an_audiofolders_table_has_seconds_and_empty_fields(tmp_path, streaming):
    for name in "xyz":
        soundfile.write(tmp_path / f"{name}.flac", tone(2.0), RATE)
    lines = [
        "file_name,text,duration,start,context",
        "x.flac,Ja,2.0,,",
        "y.flac,Nein,0.5,1.25,Ada Lovelace",
        ",Oh,1,,",
    ]
    (tmp_path / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")
    spec = {"reader": "dataset", "path": str(tmp_path), "tasks": ["asr"], "languages": ["de"], "streaming": streaming}
    found, _ = read_corpora([spec], max_bad_fraction=0.5)
    rows = [(row["text"], row["duration"], row["start"], row["end"], row["context"]) for row in found]
    assert rows == [("Ja", 2.0, None, None, None), ("Nein", 0.5, 1.25, 1.75, "Ada Lovelace")]
    assert len(load_clip(found[1] if not streaming else list(found)[1], RATE)) == RATE // 2


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("ending", "between"), [("csv", ","), ("tsv", "\t")])
def test_words_of_a_folders_table_are_words(clips, ending, between, streaming, monkeypatch):
    """pandas takes them for nothing: Min Nan would be read as the language that the recipe names."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    lines = [("audio", "text", "source_lang", "duration", "id"), ("../clips/a.flac", "null", "nan", "1.5", "NA")]
    lines += [("../clips/a.flac", "None", "", "", "b"), ("../clips/a.flac", "", "nan", "1.5", "c")]
    lines += [("../clips/a.flac", "NA", "nan", "unknown", "d")]
    (clips / "table").mkdir()
    (clips / "table" / f"train.{ending}").write_text("\n".join(map(between.join, lines)), encoding="utf-8")
    spec = {"reader": "dataset", "path": str(clips / "table"), "tasks": ["asr"], "streaming": streaming}
    found, report = read_corpora([{**spec, "languages": ["nan"]}], max_bad_fraction=0.9)
    rows = [(row["id"], row["text"], row["source_lang"], row["duration"]) for row in found]
    assert rows == [("NA", "null", "nan", 1.5), ("b", "None", "nan", 1.5)]
    if not streaming:
        assert report["dropped"]["dataset"].keys() == {"no text", "'duration' is no number of seconds but str"}


@pytest.mark.parametrize("streaming", [False, True])
def test_lines_that_an_open_quote_of_tsv_takes_in_are_counted(tmp_path, streaming, monkeypatch):
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    lines = ["source_text\ttext", 'Ja.\t"Yes.', "Nein.\tNo.", 'Gut.\tGood."', 'Er sagt "so".\t"He says ""so""."']
    (tmp_path / "train.tsv").write_text("\n".join(lines), encoding="utf-8")
    spec = {"reader": "dataset", "path": str(tmp_path), "tasks": ["mt"], "languages": ["de"], "streaming": streaming}
    found, report = read_corpora([{**spec, "target_languages": ["en"]}], max_bad_fraction=0.5)
    assert [(row["source_text"], row["text"]) for row in found] == [('Er sagt "so".', 'He says "so".')]
    if not streaming:
        (reason,) = report["dropped"]["dataset"]
        assert reason == "a field begins with a quote that is not closed before other lines: they are in it"


def test_streaming_gives_the_same_rows_lazily(parquet, clips, monkeypatch):
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    spec = {"reader": "dataset", "path": str(parquet), "columns": {"text": "sentence"}, "tasks": ["asr"]}
    spec |= {"languages": ["de"]}
    whole, _ = read_corpora([spec], min_duration=0.75)
    stream, report = read_corpora([{**spec, "streaming": True}], min_duration=0.75)
    assert isinstance(stream, datasets.IterableDataset)
    assert list(stream) == list(whole)
    assert len(list(stream)) == 4, "0.8 to 1.1 s"
    assert report["rows"] == {}, "streamed rows are not counted beforehand"

    local = {"reader": "manifest", "path": write_lines(clips / "train.jsonl", [asr(f"a{i}") for i in range(5)])}
    mixed, report = read_corpora([local, {**spec, "streaming": True, "weight": 3.0}])
    rows = list(mixed)
    assert sorted(row["id"] for row in rows) == sorted([f"a{i}" for i in range(5)] + [f"train{i}" for i in range(7)])
    assert all(set(row) == set(COLUMNS) for row in rows)
    assert report["rows"] == {"asr/fr": 5}
    assert [corpus["path"] for corpus in report["corpora"]] == [local["path"], spec["path"]]


def test_a_hub_id_without_the_hub_names_the_folder_to_give(monkeypatch):
    def unreachable(*arguments, **settings):
        raise ConnectionError("Couldn't reach 'owner/speech' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset_builder", unreachable)
    spec = {"reader": "dataset", "path": "owner/speech", "tasks": ["asr"], "languages": ["de"]}
    with pytest.raises(CorpusError) as error:
        read_corpora([spec])
    assert "'owner/speech' could not be read (ConnectionError: Couldn't reach" in str(error.value)
    assert "give a local copy as `path`: the folder that `hf download owner/speech" in str(error.value)
    with pytest.raises(CorpusError, match="neither a file or folder nor a Hub id"):
        read_corpora([{**spec, "path": "/no/such/folder"}])


# ----------------------------------------------------------------------------------------------------- text pairs


def test_text_pairs_from_tsv_and_jsonl(tmp_path):
    (tmp_path / "pairs.tsv").write_text('de\ten\nEr sagte "ja".\tHe said "yes".\n\tEmpty\n', encoding="utf-8")
    spec = {"reader": "text_pairs", "languages": ["de"], "target_languages": ["en"]}
    columns = {"source_text": "de", "text": "en"}
    dataset, report = read_corpora(
        [{**spec, "path": str(tmp_path / "pairs.tsv"), "columns": columns}], max_bad_fraction=0.5
    )
    assert report["rows"] == {"mt/de-en": 1}
    assert (dataset[0]["source_text"], dataset[0]["text"]) == ('Er sagte "ja".', 'He said "yes".')
    assert (dataset[0]["duration"], dataset[0]["audio"]) == (0.0, None)
    assert report["dropped"]["text_pairs"]["no source text"]["rows"] == 1

    record = {"source_text": "Ja", "text": "Sí", "target_lang": "es", "id": 7}
    path = write_lines(tmp_path / "pairs.jsonl", [record])
    dataset, _ = read_corpora([{"reader": "text_pairs", "path": path, "languages": ["de"]}], max_bad_fraction=0)
    assert [dataset[0][key] for key in ("id", "source_lang", "target_lang", "text")] == ["7", "de", "es", "Sí"]
    (tmp_path / "pairs.csv").write_text('de,en\n"Ja, gut",Yes\n', encoding="utf-8")
    dataset, _ = read_corpora([{**spec, "path": str(tmp_path / "pairs.csv"), "columns": columns}], max_bad_fraction=0)
    assert (dataset[0]["source_text"], dataset[0]["text"]) == ("Ja, gut", "Yes")
    # Separators that `str.splitlines` would break a sentence at.
    write_lines(tmp_path / "pairs.jsonl", [{**record, "text": "Sí\u2028no\x85"}])
    (tmp_path / "pairs.tsv").write_text("de\ten\nJa\u2028nein\x85\tYes\rno\n", encoding="utf-8", newline="\n")
    dataset, _ = read_corpora([{"reader": "text_pairs", "path": path, "languages": ["de"]}], max_bad_fraction=0)
    assert dataset["text"][0].split() == ["Sí", "no"]
    dataset, _ = read_corpora([{**spec, "path": str(tmp_path / "pairs.tsv"), "columns": columns}], max_bad_fraction=0)
    assert [dataset[0][key].split() for key in ("source_text", "text")] == [["Ja", "nein"], ["Yes", "no"]]
    with pytest.raises(CorpusError, match=r"pairs.txt is neither"):
        (tmp_path / "pairs.txt").touch()
        read_corpora([{**spec, "path": str(tmp_path / "pairs.txt")}])


# ------------------------------------------------------------------------------------------------- small functions


@pytest.mark.parametrize(
    ("name", "code", "with_region"),
    [
        ("de", "de", "de"),
        ("en_us", "en", "en-US"),
        ("cmn_hans_cn", "zh", "zh"),
        ("yue_hant_hk", "yue", "yue-HK"),
        ("es_419", "es", "es-419"),
        ("zh-TW", "zh-TW", "zh-TW"),
        ("zh-CN", "zh", "zh"),
        ("rm-sursilv", "rm-sursilv", "rm-sursilv"),
        ("ca@valencia", "ca-valencia", "ca-valencia"),
        ("nan-tw", "nan", "nan-TW"),
    ],
)
def test_language_codes_of_corpora_become_bcp_47(name, code, with_region):
    assert language_code(name) == code
    assert language_code(name, keep_region=True) == with_region


def test_splits_by_hash_are_90_5_5_and_stay_what_they_are():
    """Another split would train on what was tested."""
    keys = [f"clip {number} é" for number in range(2000)]
    hashes = [int(hashlib.sha256(key.encode()).hexdigest()[:16], 16) % 100 for key in keys]
    assert [split_of(key) for key in keys] == [
        "test" if number in range(5) else "dev" if number in range(5, 10) else "train" for number in hashes
    ]
    counts = Counter(map(split_of, keys))
    assert counts["train"] == pytest.approx(1800, abs=40) and counts["dev"] == pytest.approx(100, abs=30)


def test_durations_of_every_format_match_what_was_written(tmp_path):
    for kind in ("wav", "flac", "mp3", "ogg", "opus"):
        settings = {"format": "OGG", "subtype": "OPUS"} if kind == "opus" else {}
        soundfile.write(tmp_path / f"x.{kind}", tone(1.234), RATE, **settings)
        assert audio_duration(tmp_path / f"x.{kind}") == pytest.approx(1.234, abs=0.005), kind
        assert audio_duration((tmp_path / f"x.{kind}").read_bytes()) == pytest.approx(1.234, abs=0.005), kind


def test_speech_bounds_find_the_sound_between_silences():
    samples = np.concatenate([np.zeros(RATE // 2), tone(0.5), np.zeros(RATE)])
    assert speech_bounds(samples, RATE, margin=0.05) == (round(0.45 * RATE), round(1.05 * RATE))  # whole frames of it
    assert speech_bounds(samples, RATE, margin=9.0) == (0, len(samples))
    with pytest.raises(CorpusError, match="silent"):
        speech_bounds(np.zeros(RATE), RATE)


def test_a_table_keeps_quotes_and_counts_ragged_lines(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text('a\tb\n"x\ty"\n', encoding="utf-8")
    assert list(read_table(path)) == [(2, {"a": '"x', "b": 'y"'})]
    path.write_text("a\tb\nx\n1\t2\tand\n\n3\t4\n", encoding="utf-8-sig")
    with pytest.raises(CorpusError, match="line 2: not the header's 2 fields: 1 fields"):
        list(read_table(path))
    broken = []
    rows = list(read_table(path, ("a", "b"), lambda where, error: broken.append((where, error.detail))))
    assert rows == [(5, {"a": "3", "b": "4"})]
    assert broken == [(f"{path}, line 2", "1 fields"), (f"{path}, line 3", "3 fields")]
    with pytest.raises(CorpusError, match="has no column 'c'; its header is a, b"):
        list(read_table(path, ("c",)))
    path.write_text("a\tb\ta\n", encoding="utf-8")
    with pytest.raises(CorpusError, match="has two columns 'a'; rename or remove one"):
        list(read_table(path))


# ------------------------------------------------------------------------------------------------------- real data


def test_real_manifests_are_read(shared_data):
    specs = [{"reader": "manifest", "path": str(path)} for path in sorted(shared_data.glob("*/dev/metadata.jsonl"))]
    if not specs:
        pytest.skip(f"no metadata.jsonl in {shared_data}")
    dataset, report = read_corpora(specs, max_bad_fraction=0.0)
    assert {row["task"] for row in dataset} == {"asr", "s2tt"}
    assert report["rows"]["asr/zh"] == 20
    row = dataset[0]
    assert len(load_audio(row["audio"])) / RATE == pytest.approx(row["duration"], abs=0.01)
