"""Training on data of every kind: streams, resumed in the middle, and the small real corpora."""

import json
import shutil

import pytest
import tiny
import tiny_training
from datasets import Dataset

import train_part
from modeling_part.audio_part import load_clip
from modeling_part.data import loading
from modeling_part.data.loading import load_rows
from modeling_part.recipes.arguments import parse_recipe


KINDS = (
    "asterisk-core-sounds",
    "audio-cmn-hsk",
    "en-samples",
    "fsdd",
    "kerstin-de",
    "ljspeech-mini",
    "speechbrain-samples",
    "tuxpaint-stamps",
)


@pytest.fixture(scope="module")
def streamed(tmp_path_factory, tiny_parts):
    """A recipe whose corpora are parquet files that are streamed."""
    folder = tmp_path_factory.mktemp("streamed")
    corpus = tiny.tiny_corpus(folder / "corpus")
    rows = [json.loads(line) for line in corpus["train"].read_text().splitlines()]
    specs = []
    for task in ("asr", "s2tt"):
        chosen = [row for row in rows if row["task"] == task]
        for row in chosen:
            row["audio"] = {"path": None, "bytes": (corpus["train"].parent / row["audio"]).read_bytes()}
        path = folder / task / "train-00000-of-00001.parquet"
        path.parent.mkdir()
        Dataset.from_list(chosen).to_parquet(path)
        specs.append(
            {
                "reader": "dataset",
                "path": str(path.parent),
                "tasks": [task],
                "streaming": True,
                "columns": {name: name for name in ("source_lang", "target_lang", "text", "source_text")},
            }
        )
    return folder, corpus, specs


def losses(folder):
    """Step -> loss of a stage's log."""
    history = json.loads((folder / "log_history.json").read_text())
    return {entry["step"]: entry["loss"] for entry in history if "loss" in entry}


def test_streams_train_and_resume_at_the_same_batch(streamed, tiny_parts):
    folder, corpus, specs = streamed
    stage = [{"name": "joint", "max_steps": 6, "tasks": {"asr": 1.0, "s2tt": 1.0}}]
    common = {"train_data": specs, "stages": stage, "test_data": None, "save_strategy": "steps", "save_steps": 3}

    recipe = tiny_training.write_recipe(folder, tiny_parts, corpus, output_dir=str(folder / "whole"), **common)
    train_part.main([str(recipe)])
    record = json.loads((folder / "whole/joint/stage.json").read_text())
    fingerprint = record["data"].pop("fingerprint")
    assert len(fingerprint) == 16 and record["data"] == {"rows": {}, "hours": {}, "stream_shares": 1}

    # The same run, cut off after its first checkpoint.
    recipe = tiny_training.write_recipe(folder, tiny_parts, corpus, output_dir=str(folder / "cut"), **common)
    train_part.main([str(recipe)])
    joint = folder / "cut/joint"
    for name in ("stage.json", "model.safetensors", "log_history.json"):
        (joint / name).unlink()
    shutil.rmtree(joint / "checkpoint-6")
    # Other rows would come: from other streams, with other weights, or as each process reads another part of them.
    weighted = [{**spec, "weight": 3.0} if spec["tasks"] == ["asr"] else spec for spec in specs]
    for change, name in (
        ({"train_data": weighted}, "data.fingerprint"),
        ({"max_duration": 5.0}, "data.fingerprint"),
        ({"temperature": 2.0}, "`temperature` is 2.0, which has no effect on streamed corpora"),
        ({"direction_weights": {"en": 2.0}}, "`direction_weights` is .*, which has no effect on streamed corpora"),
        ({"dataloader_num_workers": 2}, "data.stream_shares"),
    ):
        tiny_training.write_recipe(folder, tiny_parts, corpus, output_dir=str(folder / "cut"), **(common | change))
        with pytest.raises(ValueError, match=name if name.startswith("`") else f"{name} was"):
            train_part.main([str(recipe), "--resume", "true"])
    tiny_training.write_recipe(folder, tiny_parts, corpus, output_dir=str(folder / "cut"), **common)
    train_part.main([str(recipe), "--resume", "true"])
    assert losses(joint) == losses(folder / "whole/joint")


def test_a_stage_on_streams_is_never_taken_from_another_run(streamed, tiny_parts, tmp_path, caplog):
    _, corpus, specs = streamed
    stage = [{"name": "adapter", "max_steps": 1, "tasks": {"asr": 1.0}}]
    caplog.set_level("INFO")
    for name, options in (("first", {}), ("second", {"reuse_runs": [str(tmp_path / "first")]})):
        settings = {"train_data": specs, "stages": stage, "test_data": None, "eval_data": None, **options}
        train_part.main(
            [
                str(
                    tiny_training.write_recipe(
                        tmp_path, tiny_parts, corpus, output_dir=str(tmp_path / name), **settings
                    )
                )
            ]
        )
    assert not [message for message in caplog.messages if "was trained alike" in message]
    assert losses(tmp_path / "second/adapter")


def test_what_is_not_streamed_is_read_once_and_mixed_in(streamed, tiny_parts, tmp_path):
    """A manifest beside a stream: each task has all of its rows, from both, with their sound."""
    folder, corpus, specs = streamed
    local = {"reader": "manifest", "path": str(corpus["train"]), "tasks": ["asr", "mt"], "name": "local"}
    recipe = tiny_training.write_recipe(
        folder, tiny_parts, corpus, output_dir=str(tmp_path / "run"), train_data=[local, *specs]
    )
    rows = load_rows(parse_recipe([str(recipe)]))
    assert rows.is_streamed and set(rows.train) == {"asr", "s2tt", "mt"}
    written = [json.loads(line) for line in corpus["train"].read_text().splitlines()]
    for task, times in (("asr", 2), ("s2tt", 1), ("mt", 1)):
        found = list(rows.train[task])
        assert len(found) == times * sum(row["task"] == task for row in written)
        assert {row["task"] for row in found} == {task}
        assert {row["corpus"] for row in found} == {"asr": {"local", "dataset"}, "s2tt": {"dataset"}, "mt": {"local"}}[
            task
        ]
    clip = next(row for row in rows.train["asr"] if row["corpus"] == "local")
    assert len(load_clip(clip, tiny.SAMPLING_RATE)) == round(clip["duration"] * tiny.SAMPLING_RATE)


def test_each_read_corpus_beside_a_stream_has_its_own_weight(streamed, tiny_parts, tmp_path, monkeypatch):
    folder, corpus, specs = streamed
    local = {"reader": "manifest", "path": str(corpus["train"])}
    data = [
        {**local, "tasks": ["asr"], "name": "a", "weight": 5.0},
        {**local, "tasks": ["asr", "mt"], "name": "b", "weight": 0.5},
        *specs,
    ]
    mixed = []
    monkeypatch.setattr(loading, "interleaved", lambda parts: mixed.append([weight for _, weight in parts]) or parts)
    recipe = tiny_training.write_recipe(folder, tiny_parts, corpus, output_dir=str(tmp_path / "run"), train_data=data)
    streams = load_rows(parse_recipe([str(recipe)])).train
    assert dict(zip(streams, mixed, strict=True)) == {"asr": [5.0, 0.5, 1.0], "s2tt": [1.0], "mt": [0.5]}


def test_streams_need_a_number_of_steps(streamed, tiny_parts):
    folder, corpus, specs = streamed
    recipe = tiny_training.write_recipe(folder, tiny_parts, corpus, train_data=specs, stages=[{"name": "adapter"}])
    with pytest.raises(ValueError, match="'adapter' streams its corpora, whose size is not known"):
        train_part.main([str(recipe)])


def test_dev_and_test_data_are_read_where_the_entry_is_that_of_a_stream(streamed, tiny_parts, tmp_path):
    folder, corpus, specs = streamed
    recipe = tiny_training.write_recipe(
        folder,
        tiny_parts,
        corpus,
        output_dir=str(tmp_path / "run"),
        train_data=specs,
        test_data=specs,
        eval_data=specs,
    )
    rows = load_rows(parse_recipe([str(recipe)]))
    assert rows.is_streamed and len(rows.eval) > 0
    assert len(rows.test) == sum(len(list(one)) for one in rows.train.values())


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize("kind", KINDS)
def test_the_adapter_trains_on_real_speech(kind, tmp_path, shared_data):
    """With an encoder that has no window: some of these clips are longer than the tiny Whisper's 4 s."""
    parts = tiny.tiny_parts(tmp_path / "parts", audio_kind="wav2vec2")
    path = shared_data / kind / "train" / "metadata.jsonl"
    recipe = tiny_training.write_recipe(
        tmp_path,
        parts,
        {"train": path, "dev": path, "test": path},
        stages=[{"name": "adapter", "max_steps": 4, "learning_rates": {"adapter": 3e-3}}],
        test_data=None,
    )
    train_part.main([str(recipe)])
    record = json.loads((tmp_path / "run/adapter/stage.json").read_text())
    assert sum(record["data"]["rows"].values()) > 0
    assert len(losses(tmp_path / "run/adapter")) == 4
