"""Records with columns of their own: names that go into mappings, and what is said where they lead nowhere."""

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_data import encoded, tone, write_lines

from modeling_part.data.corpora import read_corpora
from modeling_part.data.records import column_value
from modeling_part.data.rows import BrokenRowError, CorpusError


PAIRS = [("Hello.", "Hej."), ("Good night.", "God natt."), ("Thanks.", "Tack.")]
OPUS = {"columns": {"text": "translation.sv", "source_text": "translation.en"}, "tasks": ["mt"]}
OPUS |= {"languages": ["en"], "target_languages": ["sv"]}


@pytest.fixture
def opus(tmp_path):
    """A folder such as a config of opus-100 or wmt: one column, a `Translation`."""
    features = datasets.Features({"translation": datasets.Translation(languages=["en", "sv"])})
    records = [{"translation": {"en": english, "sv": swedish}} for english, swedish in PAIRS]
    datasets.Dataset.from_list(records, features=features).to_parquet(tmp_path / "en-sv" / "train-00000.parquet")
    return {"reader": "dataset", "path": str(tmp_path / "en-sv"), **OPUS}


@pytest.mark.parametrize("streaming", [False, True])
def test_keys_of_a_translation_are_columns(opus, streaming, monkeypatch):
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    rows = list(read_corpora([{**opus, "streaming": streaming}])[0])
    assert [(row["source_text"], row["text"], row["task"], row["target_lang"]) for row in rows] == [
        (*pair, "mt", "sv") for pair in PAIRS
    ]


def test_keys_of_json_are_columns_whether_or_not_every_line_has_them(tmp_path):
    lines = [{"translation": {"en": english, "sv": swedish}} for english, swedish in PAIRS]
    lines += [{"translation": {"en": "No Swedish."}}, {"translation": ["a", "b"]}, {"translation": None}]
    path = write_lines(tmp_path / "pairs.jsonl", lines)
    dataset, report = read_corpora([{"reader": "text_pairs", "path": path, **OPUS}], max_bad_fraction=1.0)
    assert dataset["text"][:] == [swedish for _, swedish in PAIRS]
    assert {reason: entry["rows"] for reason, entry in report["dropped"]["text_pairs"].items()} == {
        "no 'sv' in 'translation', which has en": 1,
        "'translation' is a list, of which 'sv' is no part": 1,
        "no text": 1,
    }


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "audiofolder"])
def test_values_of_several_types_in_a_column_cost_their_own_rows(tmp_path, kind, streaming, monkeypatch):
    """Of such a column `datasets` writes every value as JSON: a text in quotes, which are not the text's."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    (tmp_path / "a.wav").write_bytes(encoded(tone(0.5)))
    texts = ["Hej.", ["Hej", "då."], 'Ett "citat" å.', 5, None]
    records = [{"file_name": "a.wav", "id": f"{n}", "said": {"sv": text}} for n, text in enumerate(texts)]
    turns = [[{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": text}] for text in texts]
    records = [{**record, "turns": pair} for record, pair in zip(records, turns, strict=True)]
    if kind == "parquet":
        datasets.Dataset.from_list(records, on_mixed_types="use_json").to_parquet(tmp_path / "train-00000.parquet")
    else:
        write_lines(tmp_path / {"jsonl": "train.jsonl", "audiofolder": "metadata.jsonl"}[kind], records)
    audio = {} if kind == "audiofolder" else {"audio": "file_name"}
    spec = {"reader": "dataset", "path": str(tmp_path), "languages": ["sv"], "streaming": streaming}
    for task, columns in (("asr", {"text": "said.sv", **audio}), ("text", {"messages": "turns"})):
        rows, _ = read_corpora([{**spec, "tasks": [task], "columns": columns}], max_bad_fraction=1.0)
        assert [row["text"] for row in rows] == ["Hej.", 'Ett "citat" å.']


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": "translation.fr"}, "no column 'translation.fr': 'translation' has en, sv"),
        ({"text": "translations.sv"}, "no column 'translations.sv'; there are translation"),
        ({"text": "translation.sv.x"}, "no column 'translation.sv.x': 'translation.sv' is no mapping, of which 'x'"),
        ({"text": {"sv": "en"}}, "maps 'text' to {'sv': 'en'}; it must be the name of a column"),
        ({"text": "translation"}, "'text' (column 'translation') is no text but a mapping"),
    ],
)
def test_a_name_that_leads_nowhere_says_what_is_there(opus, columns, message):
    with pytest.raises(CorpusError) as error:
        read_corpora([{**opus, "columns": {**opus["columns"], **columns}}])
    assert message in str(error.value)


@pytest.fixture
def conversations(tmp_path):
    """A dataset with audio in `speech`, lists of texts, and samples in place of a file."""
    records = [
        {
            "speech": {"bytes": encoded(tone(0.5 + i / 10), format="FLAC"), "path": f"{i}.flac"},
            "turns": [{"role": "user", "content": f"turn {i}"}],
            "nested": {"sentence": f"Sats {i}", "samples": [0.0, 0.5]},
        }
        for i in range(3)
    ]
    dataset = datasets.Dataset.from_list(records).cast_column("speech", datasets.Audio(decode=False))
    dataset.to_parquet(tmp_path / "speech" / "train-00000.parquet")
    spec = {"reader": "dataset", "path": str(tmp_path / "speech"), "tasks": ["asr"], "languages": ["sv"]}
    return {**spec, "columns": {"audio": "speech", "text": "nested.sentence"}}


def test_audio_is_found_in_the_column_that_is_named(conversations):
    dataset, _ = read_corpora([conversations])
    assert dataset["text"][:] == ["Sats 0", "Sats 1", "Sats 2"]
    assert dataset["duration"][:] == pytest.approx([0.5, 0.6, 0.7])
    assert read_corpora([{**conversations, "columns": {"audio": "speech.bytes", "text": "nested.sentence"}}])[0]


@pytest.mark.parametrize("streaming", [False, True])
def test_classes_are_read_by_their_names(tmp_path, streaming):
    """VoxPopuli and MInDS-14 have their languages as numbers, of which 0 is one as well."""
    sounds = [encoded(tone(0.5 + number / 10)) for number in range(4)]
    records = {"audio": sounds, "text": ["Hi.", "Hallo.", "Salut.", "What?"], "language": [0, 1, 2, None]}
    dataset = datasets.Dataset.from_dict(records).cast_column("audio", datasets.Audio(decode=False))
    dataset = dataset.cast_column("language", datasets.ClassLabel(names=["en", "de-DE", "fr"]))
    dataset.to_parquet(tmp_path / "speech" / "train-00000.parquet")
    spec = {"reader": "dataset", "path": str(tmp_path / "speech"), "tasks": ["asr"], "streaming": streaming}
    spec |= {"columns": {"source_lang": "language"}}
    rows, _ = read_corpora([spec], max_bad_fraction=0.5)
    assert [(row["source_lang"], row["text"]) for row in rows] == [
        ("en", "Hi."),
        ("de-DE", "Hallo."),
        ("fr", "Salut."),
    ]
    rows, _ = read_corpora([{**spec, "languages": ["fr"]}], max_bad_fraction=0.5)
    assert [(row["source_lang"], row["text"]) for row in rows] == [("fr", "Salut."), ("fr", "What?")]


@pytest.mark.parametrize(
    ("columns", "tasks", "expected"),
    [
        (
            {"source_text": "said", "text": "translated"},
            ["asr", "s2tt"],
            [("asr", "Hej."), ("s2tt", "Hello."), ("s2tt", "Bye.")],
        ),
        ({"source_text": "said"}, ["asr"], [("asr", "Hej.")]),
        ({"text": "said"}, ["asr"], [("asr", "Hej.")]),
    ],
)
def test_a_translation_is_no_transcript_where_there_is_none(tmp_path, columns, tasks, expected):
    sound = encoded(tone(0.5), format="FLAC")
    records = [
        {"audio": {"bytes": sound, "path": f"{text}flac"}, "said": said, "translated": text}
        for said, text in (("Hej.", "Hello."), (None, "Bye."))
    ]
    dataset = datasets.Dataset.from_list(records).cast_column("audio", datasets.Audio(decode=False))
    dataset.to_parquet(tmp_path / "speech" / "train-00000.parquet")
    spec = {"reader": "dataset", "path": str(tmp_path / "speech"), "tasks": tasks, "columns": columns}
    found, report = read_corpora([{**spec, "languages": ["sv"], "target_languages": ["en"]}], max_bad_fraction=1.0)
    assert sorted((row["task"], row["text"]) for row in found) == sorted(expected)
    assert [entry["rows"] for entry in report["dropped"]["dataset"].values()] == [1]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": "nested.sentence"}, "no column 'audio' for asr; say under 'columns' columns: {audio: speech}"),
        ({"audio": "speech", "text": "turns.content"}, "'turns' is a list, of which 'content' is no part"),
        ({"audio": "nested.samples", "text": "nested.sentence"}, "'audio' (column 'nested.samples') holds a list; it"),
        ({"audio": "nested", "text": "nested.sentence"}, "holds a mapping of sentence, samples; it must be a file's"),
        ({"audio": "speech", "text": "speech"}, "'text' (column 'speech') is no text but a mapping"),
        ({"audio": "speech", "text": "turns"}, "'text' (column 'turns') is no text but a list"),
    ],
)
def test_lists_and_audio_in_the_wrong_place_are_one_clear_error(conversations, columns, message):
    with pytest.raises(CorpusError) as error:
        read_corpora([{**conversations, "columns": columns}])
    assert message in str(error.value)


VALUES = st.recursive(
    st.none() | st.sampled_from(["", "x", 1, 0.5, True, b"y"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


@given(
    record=st.dictionaries(st.sampled_from(["a", "b", "a.b"]), VALUES),
    path=st.lists(st.sampled_from("abc"), min_size=1),
)
def test_a_path_gives_what_stands_there_or_says_that_nothing_does(record, path):
    column = ".".join(path)
    try:
        found = column_value(record, column)
    except BrokenRowError:
        value = record
        with pytest.raises((KeyError, TypeError, IndexError)):
            for key in path:
                value = value[key]
        return
    if column in record or len(path) == 1:
        assert found == record.get(column)
        return
    value = record
    for key in path:
        value = None if value is None else value[key]
    assert found == value
