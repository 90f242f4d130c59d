"""`part report RUN --analyses`: pictures of gradients, layers and drift of every stage in the report."""

import json
import shutil

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from modeling_part.__main__ import main
from modeling_part.analysis.drift import weight_drift
from modeling_part.data.checking import RowFilters
from modeling_part.data.corpus_spec import CorpusSpec
from modeling_part.data.stored_corpora import load_corpora


def test_a_report_with_analyses(tmp_path, tiny_checkpoint, tiny_corpus, capsys):
    run = tmp_path / "run"
    for name, parent in (("adapter", None), ("joint", "adapter")):
        shutil.copytree(tiny_checkpoint, run / name)
        record = {"parent": parent, "trainable_parameters": {"adapter": 1}, "data": {"rows": {}}}
        (run / name / "stage.json").write_text(json.dumps(record))
    for name in ("adapter", "joint"):  # with an alignment head, which trains with the adapter
        weights = load_file(run / name / "model.safetensors") | {"alignment_head.blank": torch.ones(4) * len(name)}
        save_file(weights, run / name / "model.safetensors", {"format": "pt"})
    assert weight_drift(run / "joint", run / "adapter")["unexpected"] == []
    weights = load_file(run / "joint" / "model.safetensors")
    del weights["alignment_head.blank"]
    save_file(weights, run / "adapter" / "model.safetensors", {"format": "pt"})
    moved = {name: tensor * (2 if name.startswith("model.adapter.") else 1) for name, tensor in weights.items()}
    save_file(
        {name: tensor.contiguous() for name, tensor in moved.items()},
        run / "joint" / "model.safetensors",
        {"format": "pt"},
    )
    load_corpora([CorpusSpec("manifest", str(tiny_corpus["train"]))], RowFilters(), 0.0, run / "data" / "test")
    with torch.random.fork_rng():
        main(["report", str(run), "--analyses", "--device", "cpu"])
    pictures = sorted(path.name for path in (run / "analyses").glob("*.png"))
    assert pictures == [
        "1_gradients_of_the_adapter.png",
        "2_what_the_layers_hold.png",
        "3_drift_of_the_weights.png",
    ]
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 3
    assert f"Written: {run / 'report.html'}" in capsys.readouterr().out.replace("\n", "")
    main(["report", str(run / "joint")])
    assert (run / "joint" / "report.html").is_file() and not (run / "joint" / "report.md").exists()
    with pytest.raises(SystemExit):
        main(["report", str(run / "joint"), "--analyses"])
    assert "give the run's folder" in capsys.readouterr().err
    # A stage that has been trained again is not what the pictures show.
    save_file(weights, run / "joint" / "model.safetensors", {"format": "pt"})
    main(["report", str(run)])
    assert "data:image/png;base64," not in (run / "report.html").read_text(encoding="utf-8")


def test_an_alignment_head_that_begins_with_a_stage_has_no_drift(tmp_path, tiny_checkpoint):
    for name in ("encoder", "joint"):
        shutil.copytree(tiny_checkpoint, tmp_path / name)
    weights = load_file(tmp_path / "joint" / "model.safetensors") | {"alignment_head.blank": torch.ones(4)}
    save_file(weights, tmp_path / "joint" / "model.safetensors", {"format": "pt"})
    for after, before in (("joint", "encoder"), ("encoder", "joint")):
        found = weight_drift(tmp_path / after, tmp_path / before)
        assert found["left_out"] == ["alignment_head.blank"] and found["parts"]["adapter"]["changed"] == 0


def test_one_language_has_no_picture_of_languages(tmp_path, tiny_checkpoint, capsys):
    run = tmp_path / "run"
    shutil.copytree(tiny_checkpoint, run / "joint")
    record = {"parent": None, "trainable_parameters": {"adapter": 1}, "data": {"rows": {}}}
    (run / "joint" / "stage.json").write_text(json.dumps(record))
    corpus = tiny.tiny_corpus(tmp_path / "corpus", languages=("fr",), tasks=("asr",), sentences={"test": 3})
    load_corpora([CorpusSpec("manifest", str(corpus["test"]))], RowFilters(), 0.0, run / "data" / "test")
    with torch.random.fork_rng():
        main(["report", str(run), "--analyses", "--device", "cpu"])
    assert [path.name for path in (run / "analyses").glob("*.png")] == ["1_gradients_of_the_adapter.png"]
    assert "All speech is fr" in capsys.readouterr().out


def test_a_run_without_test_data_has_no_analyses(tmp_path, capsys):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "stage.json").write_text("{}")
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path), "--analyses"])
    assert "no dev and test rows" in capsys.readouterr().err
