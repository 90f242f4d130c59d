"""A manifest of one's own: what a person leaves out, and Whisper's words."""

import json

import pytest
import soundfile

from modeling_part.data.corpora import read_corpora
from modeling_part.data.readers.manifest import completed
from modeling_part.data.rows import BrokenRowError, CorpusError
from modeling_part.prompts_part import LANGUAGE_NAMES, TASKS, code_of, task_of


SPOKEN = {"audio": "clips/a1.wav", "text": "Bonjour."}


def asr(**more) -> dict:
    return {"id": "clips/a1", "task": "asr", "source_lang": "fr", "target_lang": "fr", **SPOKEN, **more}


def s2tt(**more) -> dict:
    return {**asr(), "task": "s2tt", "target_lang": "en", "text": "Hello.", **more}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (SPOKEN, asr()),
        ({**SPOKEN, "id": "mine"}, asr(id="mine")),
        ({**SPOKEN, "start": 1.0, "end": 2.5}, asr(id="clips/a1-1-2.5", start=1.0, end=2.5)),
        ({**SPOKEN, "task": "transcribe", "language": "French"}, asr()),
        ({**SPOKEN, "language": "it"}, asr(source_lang="it", target_lang="it")),
        ({**SPOKEN, "text": "Hello.", "target_lang": "english"}, s2tt()),
        ({**SPOKEN, "text": "Hello.", "task": "translate"}, s2tt()),
        ({**SPOKEN, "translation": "Hello.", "target_lang": "en"}, s2tt(source_text="Bonjour.")),
        ({"audio": "clips/a1.wav", "translation": "Hello.", "target_lang": "en"}, s2tt()),
        ({**SPOKEN, "target_lang": "fr"}, asr()),
        (
            {"text": "Merci.", "translation": "Thanks.", "target_lang": "en"},
            {"id": "line-7", "task": "mt", "source_lang": "fr", "target_lang": "en", "text": "Thanks.", "source_text": "Merci."},
        ),
    ],
)  # fmt: skip
def test_what_follows_from_the_rest_may_be_left_out(record, expected):
    before = json.dumps(record)
    assert completed(record, 7, "fr") == expected
    assert json.dumps(record) == before


def test_a_whole_record_stays_as_it_is():
    for record in (asr(), s2tt(source_text="Bonjour.", duration=1.0)):
        assert completed(record, 1, "it", "de") == record


def test_the_recipe_names_the_language_of_translations():
    assert completed({**SPOKEN, "translation": "Hallo."}, 1, "fr", "de")["target_lang"] == "de"
    assert "target_lang" not in completed({**SPOKEN, "translation": "Hallo."}, 1, "fr")


def test_what_contradicts_itself_is_broken():
    with pytest.raises(BrokenRowError, match="name two languages"):
        completed({**SPOKEN, "language": "fr", "source_lang": "it"}, 1)
    with pytest.raises(BrokenRowError, match="'text' is the transcript"):
        completed({**SPOKEN, "translation": "Hello.", "source_text": "Bonjour."}, 1)


def test_names_of_languages_and_tasks_are_understood():
    for code, name in LANGUAGE_NAMES.items():
        assert code_of(code) == code and code_of(name) == code and code_of(name.lower()) == code
    assert [task_of(word) for word in (*TASKS, "transcribe", "translate", "sing")] == [*TASKS, "asr", "s2tt", "sing"]
    assert code_of("Klingon") == "Klingon"


@pytest.fixture
def manifest(tmp_path):
    """Two lines with sound and text, nothing else."""
    records = [{"audio": f"{name}.wav", "text": name} for name in ("un", "deux")]
    for record in records:
        soundfile.write(tmp_path / record["audio"], [0.1, -0.1] * 8000, 16000)
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "setting", [{"language": "French"}, {"language": "fr"}, {"languages": "French"}, {"languages": ["fr"]}]
)
def test_one_line_a_clip_and_the_language_in_the_recipe_are_enough(manifest, setting):
    dataset, report = read_corpora([{"reader": "manifest", "path": str(manifest), "tasks": ["transcribe"], **setting}])
    assert report["rows"] == {"asr/fr": 2}
    assert dataset["id"][:] == ["un", "deux"] and dataset["duration"][:] == [1.0, 1.0]


def test_without_a_language_it_is_said_where_to_name_one(manifest):
    with pytest.raises(
        CorpusError, match="no 'source_lang'; give the row one, or the corpus in the recipe a `language`"
    ):
        read_corpora([{"reader": "manifest", "path": str(manifest)}])
