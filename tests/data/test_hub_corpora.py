"""Datasets of the Hub, through `datasets` and huggingface_hub themselves, from a Hub on loopback with replicas of them."""

import json
import re
import subprocess
import sys

import datasets
import pytest
import yaml
from hub_replicas import SENTENCES, fill, sound
from loopback_hub import LoopbackHub
from tiny import REPOSITORY

from modeling_part.data.expansion import corpus_specs, expanded
from modeling_part.data.rows import CorpusError


# --------------------------------------------------------------------------------------------- many in one entry


def test_an_entry_without_patterns_is_itself():
    entry = {"reader": "manifest", "path": "x.jsonl", "languages": ["de", "fr"]}
    assert expanded(entry) == [entry]


def test_languages_and_directions_are_filled_in():
    entry = {
        "reader": "dataset",
        "path": "fixie-ai/covost2",
        "config": "{source}_{target}",
        "own_names": {"Swedish": "sv-SE"},
    }
    entry |= {"languages": ["en", "sv"], "target_languages": ["sv", "en"], "columns": {"text": "translation"}}
    assert [(one["config"], one["languages"], one["target_languages"]) for one in expanded(entry)] == [
        ("en_sv-SE", ["en"], ["sv"]),
        ("sv-SE_en", ["sv"], ["en"]),
    ]
    entry = {"reader": "dataset", "path": "x/opus", "config": "{first}-{second}", "languages": ["en"]}
    entry |= {
        "target_languages": ["de", "sv"],
        "columns": {"text": "translation.{target}", "source_text": "t.{source}"},
    }
    assert [(one["config"], one["columns"]) for one in expanded(entry)] == [
        ("de-en", {"text": "translation.de", "source_text": "t.en"}),
        ("en-sv", {"text": "translation.sv", "source_text": "t.en"}),
    ]
    entry = {"reader": "common_voice", "path": "cv", "data_collective": ["cv-24-{language}", "cv-25-{language}"]}
    assert [one["data_collective"] for one in expanded({**entry, "languages": ["de", "sv"]})] == [
        ["cv-24-de", "cv-25-de"],
        ["cv-24-sv", "cv-25-sv"],
    ]
    entry = {"reader": "manifest", "path": "data/{language}.jsonl", "languages": "German"}
    assert expanded(entry) == [{"reader": "manifest", "path": "data/de.jsonl", "languages": ["de"]}]
    entry |= {"languages": [False], "own_names": {False: "nb_no"}}  # `no` of YAML
    assert expanded(entry) == [{"reader": "manifest", "path": "data/nb_no.jsonl", "languages": ["no"]}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": "{lang}"}, r"'\{lang\}' is no pattern; there are \{language\}, \{source\}, \{target\}"),
        ({"languages": None}, r"\{language\} needs 'languages', the languages to put in its place"),
        ({"config": "{source}_{target}"}, r"needs 'target_languages'"),
        ({"config": "{source}_{target}", "target_languages": ["de"]}, "make no direction of two languages"),
        ({"own_names": ["sv-SE"]}, "'own_names' must map codes of languages to names"),
        ({"config": "de", "own_names": {"sv": "sv-SE"}}, r"'own_names' needs a pattern such as '\{language\}'"),
        ({"languages": 3}, "'languages' must be a list of names, not 3"),
    ],
)
def test_a_pattern_that_cannot_be_filled_in_says_why(change, message):
    entry = {"reader": "dataset", "path": "x/y", "config": "{language}", "languages": ["de"], "tasks": ["asr"]}
    with pytest.raises(CorpusError, match=message):
        corpus_specs([{**entry, **change}])


# ------------------------------------------------------------------------------------------------ from the Hub

VOICES = {
    "reader": "dataset",
    "path": "fixie-ai/common_voice_17_0",
    "config": "{language}",
    "columns": {"text": "sentence"},
}
VOICES |= {"tasks": ["asr"], "languages": ["de", "sv"], "own_names": {"sv": "sv-SE"}, "name": "common_voice"}
COVOST = {"reader": "dataset", "path": "fixie-ai/covost2", "config": "{source}_{target}", "own_names": {"zh": "zh-CN"}}
COVOST |= {"columns": {"source_text": "sentence", "text": "translation"}, "tasks": ["asr", "s2tt", "mt"]}
COVOST |= {"languages": ["en"], "target_languages": ["de", "zh"], "name": "covost2"}
MLS = {"reader": "dataset", "path": "facebook/multilingual_librispeech", "config": "{language}"}
MLS |= {"own_names": {"de": "german"}, "languages": ["de"], "tasks": ["asr"]}
MLS |= {"columns": {"text": "transcript", "duration": "audio_duration"}}
OPUS = {"reader": "dataset", "path": "Helsinki-NLP/opus-100", "config": "{first}-{second}", "tasks": ["mt"]}
OPUS |= {"columns": {"text": "translation.{target}", "source_text": "translation.{source}"}}
OPUS |= {"languages": ["en"], "target_languages": ["de", "sv"]}
VOX = {"reader": "dataset", "path": "facebook/voxpopuli", "revision": "refs/convert/parquet", "tasks": ["asr"]}
VOX |= {"data_files": "{language}/partial-train/*.parquet", "columns": {"id": "audio_id", "text": "normalized_text"}}
VOX |= {"languages": ["de"]}
FOLDER = {"reader": "dataset", "path": "someone/clips", "tasks": ["asr"], "languages": ["de"], "split": "test"}
FOLDER |= {"columns": {"text": "transcription"}}
LINES = {"reader": "dataset", "path": "someone/lines", "tasks": ["asr"], "languages": ["de"]}
TABLE = {"reader": "dataset", "path": "someone/words", "tasks": ["mt"], "target_languages": ["de"]}
FLEURS = {"reader": "fleurs", "path": "google/fleurs", "languages": ["sv"], "tasks": ["asr"]}

CASES = {
    "a script": [{key: value for key, value in VOX.items() if key not in ("revision", "data_files", "languages")}],
    "voices": [{**VOICES, "split": "dev"}],
    "voices, streamed": [{**VOICES, "split": "dev", "streaming": True}],
    "covost": [COVOST],
    "mls": [{**MLS, "split": "9_hours"}],
    "opus": [OPUS],
    "opus, streamed": [{**OPUS, "streaming": True}],
    "vox": [VOX],
    "fleurs": [FLEURS],
    "audiofolder": [FOLDER],
    "lines": [LINES],
    "table": [TABLE],
    "table, streamed": [{**TABLE, "streaming": True}],
    "audiofolder, streamed": [{**FOLDER, "streaming": True}],
    "no such config": [{**VOICES, "languages": ["zh"]}],
    "no such split": [{**VOICES, "split": "eval"}],
    "nowhere": [{**VOICES, "path": "nobody/nothing"}],
}
# One process, whose Hub is the one on loopback, reads a case for each line that it is given.
SCRIPT = """
import json, os, sys
from modeling_part.data.corpora import read_corpora
from modeling_part.data.rows import CorpusError
names = ("task", "source_lang", "target_lang", "text", "source_text", "id", "corpus")
for line in sys.stdin:
    try:
        dataset, report = read_corpora(json.loads(line))
        rows = [[*(row[key] for key in names), round(row["duration"], 1)] for row in dataset]
        found = {"rows": rows, "counts": report["rows"], "dropped": report["dropped"]}
    except CorpusError as error:
        found = {"error": str(error)}
    print("FOUND", json.dumps(found), flush=True)
os._exit(0)  # threads of streams wait for seconds
"""


def audiofolder() -> dict[str, bytes]:
    """Files and their metadata in a folder for each split."""
    files = {}
    for split in ("train", "test"):
        lines = [f"{number}.mp3,{text}" for number, text in enumerate(SENTENCES["de"])]
        files[f"{split}/metadata.csv"] = "\n".join(["file_name,transcription", *lines]).encode()
        files |= {f"{split}/{number}.mp3": sound(number) for number in range(len(lines))}
    return files


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Case -> what reading it gave, with the `files` that it took from the Hub."""
    home = tmp_path_factory.mktemp("home")
    found = {}
    with fill(LoopbackHub({})) as hub, (home / "stderr").open("w") as stderr:
        hub.add_dataset("someone/clips", audiofolder())
        hub.add_dataset("someone/lines", {"train.jsonl": b'{"audio": "README.md", "text": "Hallo."}\n'})
        hub.add_dataset("someone/words", {"train.tsv": b"source_lang\ttext\tsource_text\nnan\tnull\tNA, null\n"})
        environment = {**hub.environment(home, None), "PYTHONPATH": str(REPOSITORY)}
        with subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=environment,
        ) as process:
            for name, specs in CASES.items():
                hub.downloads.clear()
                process.stdin.write(json.dumps(specs) + "\n")
                process.stdin.flush()
                answer = next((line for line in process.stdout if line.startswith("FOUND ")), None)
                assert answer is not None, (home / "stderr").read_text()[-3000:]
                found[name] = json.loads(answer[6:]) | {"files": sorted({one for one in hub.downloads if "/" in one})}
            process.stdin.close()
    return found


def said(result) -> list[tuple]:
    """(task, source, target, text, source text) of each row."""
    return [tuple(row[:5]) for row in result["rows"]]


@pytest.mark.parametrize("case", ["voices", "voices, streamed"])
def test_common_voice_by_locale(results, case):
    german = [("asr", "de", "de", text, text) for text in SENTENCES["de"]]
    swedish = [("asr", "sv", "sv", text, text) for text in SENTENCES["sv"]]
    assert sorted(said(results[case])) == sorted(german + swedish)
    assert {row[6] for row in results[case]["rows"]} == {"common_voice"}
    assert {row[7] for row in results[case]["rows"]} == {1.0, 1.2, 1.5, 1.8}
    assert results["voices"]["files"] == [f"{one}/validation-00000-of-00001.parquet" for one in ("de", "sv-SE")]


def test_covost_by_direction_transcribes_each_clip_once(results):
    assert results["covost"]["counts"] == {
        "asr/en": 4, "s2tt/en-de": 4, "s2tt/en-zh": 4, "mt/en-de": 4, "mt/en-zh": 4,
    }  # fmt: skip
    assert ("s2tt", "en", "zh", SENTENCES["zh"][1], SENTENCES["en"][1]) in said(results["covost"])
    ((reason, dropped),) = results["covost"]["dropped"]["covost2"].items()
    assert (reason, dropped["rows"], dropped["broken"]) == ("the same row stands before it", 4, 0)
    assert results["covost"]["files"] == [f"{one}/train-00000-of-00001.parquet" for one in ("en_de", "en_zh-CN")]


def test_only_the_split_is_fetched_whatever_it_is_called(results):
    assert results["mls"]["files"] == ["german/9_hours-00000-of-00001.parquet"]
    assert said(results["mls"])[0] == ("asr", "de", "de", "guten morgen", "guten morgen")
    assert [row[7] for row in results["mls"]["rows"]] == [1.0, 1.2, 1.5, 1.8], "times in the chapter are no span"
    assert results["vox"]["files"] == ["de/partial-train/0000.parquet"]
    assert results["vox"]["counts"] == {"asr/de": 4}
    assert results["fleurs"]["files"] == ["data/sv_se/audio/train.tar.gz", "data/sv_se/train.tsv"]
    assert results["fleurs"]["counts"] == {"asr/sv": 4}


@pytest.mark.parametrize("case", ["opus", "opus, streamed"])
def test_pairs_of_sentences_from_nested_columns(results, case):
    expected = [
        ("mt", "en", target, text, english)
        for target in ("de", "sv")
        for english, text in zip(SENTENCES["en"], SENTENCES[target], strict=True)
    ]
    assert sorted(said(results[case])) == sorted(expected)


@pytest.mark.parametrize("case", ["table", "table, streamed"])
def test_words_of_a_table_are_words(results, case):
    assert said(results[case]) == [("mt", "nan", "de", "null", "NA, null")]


def test_clips_of_an_audiofolder_are_named_as_in_the_repository_wherever_the_cache_is(results):
    assert said(results["audiofolder"]) == [("asr", "de", "de", text, text) for text in SENTENCES["de"]]
    assert [row[5] for row in results["audiofolder"]["rows"]] == [f"test/{number}" for number in range(4)]


def test_a_file_that_a_dataset_names_is_not_taken_from_here(results):
    assert "which is not fetched; download all of it and give that folder as `path`" in results["lines"]["error"]


@pytest.mark.skipif(datasets.config.TORCHCODEC_AVAILABLE, reason="with torchcodec it is streamed")
def test_an_audiofolder_is_not_streamed_without_torchcodec(results):
    assert (
        "streams with the package torchcodec alone: leave `streaming` out" in results["audiofolder, streamed"]["error"]
    )


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (
            "no such config",
            "BuilderConfig 'zh' not found. Available: ['de', 'en', 'es', 'fr', 'it', 'ja', 'ru', 'sv-SE']",
        ),
        ("no such split", "has no split 'eval'; it has train, validation, test, other, validated"),
        (
            "a script",
            "give the files of another branch, such as revision: refs/convert/parquet with data_files: CONFIG/",
        ),
        ("nowhere", "nobody/nothing is neither a folder here nor a dataset on the Hub"),
    ],
)
def test_what_the_hub_does_not_have_is_one_clear_error(results, case, message):
    assert message in results[case].get("error", "read")
    assert results[case]["files"] == []


# ------------------------------------------------------------------------------------------------------ recipes


def test_a_dry_run_of_the_hubs_recipe_says_what_it_would_download(tiny_parts, tmp_path):
    """The whole command, whose only Hub is the one on loopback; the large parts are tiny ones."""
    recipe = tmp_path / "mine.yaml"
    parts = {"audio_model": str(tiny_parts.audio_model), "language_model": str(tiny_parts.language_model)}
    # What no CPU of the tests has, and what takes a second batch's memory.
    small = {"bf16": False, "activation_checkpointing": False, "dataloader_num_workers": 0, "frozen_dtype": None}
    adapter = {"adapter_hidden_size": 32, "adapter_num_attention_heads": 2}
    recipe.write_text(
        yaml.safe_dump({"base": "part_2b_hub", "output_dir": "run", "adapter": adapter, **parts, **small})
    )
    with fill(LoopbackHub({})) as hub:
        environment = {**hub.environment(tmp_path / "home", None), "PYTHONPATH": str(REPOSITORY)}
        command = [sys.executable, "-m", "modeling_part", "train", str(recipe), "--dry_run", "true"]
        settings = {"capture_output": True, "text": True, "env": environment, "cwd": tmp_path, "timeout": 280}
        result = subprocess.run(command, check=False, **settings)
        said = result.stdout + result.stderr
        assert result.returncode == 0, said[-3000:]
        assert not [path for path in hub.downloads if path.endswith((".parquet", ".gz", ".tsv"))]
        total = 0
        for name, repository in hub.repositories.items():
            files = repository.commits[repository.branches["main"]]
            wanted = [path for path in files if _is_of_the_recipe(name, path)]
            total += sum(len(files[path].content) for path in wanted)
    for name in (
        "common_voice_17_0 de train",
        "covost2 en_zh-CN validation",
        "covost2 fr_en test",
        "opus-100 en-zh train",
    ):
        assert re.search(rf"kB +1 files +to download +[\w-]+/{re.escape(name)}\n", said), name
    assert re.search(r"kB +20 files +to download +google/fleurs de, en, es, fr, it, ja, ko, ru, yue, zh train\n", said)
    assert f"{total / 1e6:.2f} MB  to download into {tmp_path}/home/hub" in said
    assert "A dry run downloads nothing" in said
    assert "HTTP Request" not in said, "what is fetched would be lost among hundreds of lines"


def _is_of_the_recipe(repository: str, path: str) -> bool:
    """Whether part_2b_hub needs a file of a replica; by hand, as the recipe says."""
    config, _, file = path.partition("/")
    split = file.split("-")[0]
    if repository.endswith("common_voice_17_0"):
        return config in ("de", "en", "es", "fr", "it", "ja", "ru") and split == "train"
    if repository.endswith("covost2"):
        into = {f"{source}_en" for source in ("de", "es", "fr", "it", "ja", "ru", "zh-CN")}
        return config in into | {"en_de", "en_ja", "en_zh-CN"} and split in ("train", "validation", "test")
    if repository.endswith("opus-100"):
        return config in ("de-en", "en-ja", "en-zh") and split == "train"
    if repository.endswith("fleurs"):
        return path.startswith("data/") and path.split("/")[1] not in ("sv_se", "id_id", "ar_eg")
    return False
