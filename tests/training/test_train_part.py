"""train_part.py: all four stages through `accelerate launch`, what a stage leaves behind, and errors before training."""

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import tiny_training
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file, save_file

import train_part
from modeling_part import PARTForSpeechSeq2Seq, PARTProcessor
from modeling_part.recipes.stage_files import checksums, weight_files
from modeling_part.recipes.stages import BUILT_IN_STAGES, part_of
from modeling_part.training.trainer import PARTTrainer


STAGES = list(BUILT_IN_STAGES)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_parts):
    """A whole run by the command that a user types."""
    folder = tmp_path_factory.mktemp("finished")
    corpus = tiny.tiny_corpus(folder / "corpus", sentences={"train": 6, "dev": 2, "test": 1}, words=(1, 2))
    stages = [{"name": name, "max_steps": 2} for name in STAGES]
    stages[-1] |= {"max_steps": 6, "learning_rates": tiny_training.JOINT}
    recipe = tiny_training.write_recipe(folder, tiny_parts, corpus, stages=stages)
    result = tiny_training.execute(tiny_training.launch_command(recipe))
    assert result.returncode == 0, result.stdout[-5000:]
    return SimpleNamespace(folder=folder, run=folder / "run", recipe=recipe, corpus=corpus, output=result.stdout)


def run(recipe: Path, *overrides: str):
    """train_part.py in this process."""
    train_part.main([str(recipe), *overrides])


# ---- a whole run ----


@pytest.mark.timeout(600)
def test_every_stage_folder_is_complete_and_loads(finished):
    for position, name in enumerate(STAGES):
        folder = finished.run / name
        for file in ("config.json", "model.safetensors", "generation_config.json", "processor_config.json",
                     "tokenizer.json", "stage.json", "log_history.json", "predictions.jsonl", "report.json",
                     "report.md"):  # fmt: skip
            assert (folder / file).is_file(), (name, file)
        info = json.loads((folder / "stage.json").read_text())
        assert info["stage"] == name
        assert info["parent"] == (STAGES[position - 1] if position else None)
        assert info["data"]["rows"] and info["data"]["fingerprint"]
        assert info["metrics"]["eval_loss"] > 0
        assert (info["trainable_parameters"]["language_model"] > 0) == (name == "joint")
        model = PARTForSpeechSeq2Seq.from_pretrained(folder)
        processor = PARTProcessor.from_pretrained(folder)
        sound = tiny.word_sound("en", 0)
        inputs = processor(sound, task="asr", source_lang="en", sampling_rate=tiny.SAMPLING_RATE)
        ids = model.generate(**inputs, max_new_tokens=2)
        assert ids.shape[1] > inputs["input_ids"].shape[1]
    for file in ("report.md", "report.html", "report.json", "run.json", "loss.png"):
        assert (finished.run / file).is_file()


def test_each_stage_moves_only_its_parts(finished):
    previous = None
    moved_parts = {"encoder_top": {"adapter", "encoder"}, "encoder": {"adapter", "encoder"}}
    moved_parts["joint"] = {"adapter", "encoder", "language_model"}
    for name in STAGES:
        weights = load_file(finished.run / name / "model.safetensors")
        assert not any("lora" in key or "base_layer" in key for key in weights)
        if previous is not None:
            moved = {part_of(key) for key in tiny_training.changed(previous, weights)}
            assert moved == moved_parts[name]
        previous = weights
    history = json.loads((finished.run / "joint" / "log_history.json").read_text())
    assert {"asr_loss", "s2tt_loss", "mt_loss"} <= {key for entry in history for key in entry}


def test_the_last_stages_lora_is_an_adapter_for_the_language_model_before_it(finished, tmp_path):
    """As modeling_part/recipes/README.md says it; and a copy of the stage has it too."""
    joint, base = (PARTForSpeechSeq2Seq.from_pretrained(finished.run / "joint") for _ in range(2))
    base.model.language_model = PARTForSpeechSeq2Seq.from_pretrained(finished.run / "encoder").model.language_model
    base.tie_weights()
    processor = PARTProcessor.from_pretrained(finished.run / "joint")
    batch = processor(tiny.word_sound("en", 0), source_lang="en")
    with torch.no_grad():
        expected, before = joint(**batch).logits, base(**batch).logits
        adapted = PeftModel.from_pretrained(base, str(finished.run / "joint" / "lora"))
        torch.testing.assert_close(adapted(**batch).logits, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, expected, rtol=1e-4, atol=1e-5)
    assert not (finished.run / "encoder" / "lora").exists()
    run(finished.recipe, "--reuse_runs", str(finished.run), "--output_dir", str(tmp_path / "copy"))
    files = {path.name: path.read_bytes() for path in (finished.run / "joint" / "lora").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} == set(files)
    assert {path.name: path.read_bytes() for path in (tmp_path / "copy" / "joint" / "lora").iterdir()} == files


def test_the_plan_is_said(finished):
    assert "the encoder has 2 layers, fewer than 8: all of them train" in finished.output
    assert "parameters train" in finished.output


def test_finished_stages_are_not_run_again(finished, caplog):
    before = {path: path.stat().st_mtime_ns for path in finished.run.rglob("model.safetensors")}
    with caplog.at_level(logging.INFO):
        run(finished.recipe)
    assert sum("is finished" in message and "--force" in message for message in caplog.messages) == len(STAGES)
    assert {path: path.stat().st_mtime_ns for path in finished.run.rglob("model.safetensors")} == before


def test_one_stage_can_be_forced_and_gives_the_same_weights(finished):
    files = {name: finished.run / name / "model.safetensors" for name in STAGES}
    times = {name: path.stat().st_mtime_ns for name, path in files.items()}
    weights = load_file(files["encoder"])
    run(finished.recipe, "--stage", "encoder", "--force")
    assert not tiny_training.changed(weights, load_file(files["encoder"]))
    assert [name for name, path in files.items() if path.stat().st_mtime_ns != times[name]] == ["encoder"]


def test_a_stage_that_another_run_trained_alike_is_copied(finished, tmp_path, caplog, monkeypatch):
    trained, train = [], PARTTrainer.train
    monkeypatch.setattr(
        PARTTrainer, "train", lambda self, **kwargs: trained.append(self.stage.name) or train(self, **kwargs)
    )
    recipe = yaml.safe_load(finished.recipe.read_text())
    recipe["stages"][2]["max_steps"] = 3  # the encoder stage differs, and so does what follows it
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(recipe | {"output_dir": str(tmp_path / "other")}))
    with caplog.at_level(logging.INFO):
        run(other, "--reuse_runs", str(tmp_path / "nothing"), str(finished.run))
    assert trained == ["encoder", "joint"]
    for name in ("adapter", "encoder_top"):
        assert f"Stage {name} was trained alike in {finished.run / name}: copied" in caplog.messages
        for file in ("model.safetensors", "stage.json", "predictions.jsonl", "log_history.json"):
            assert (tmp_path / "other" / name / file).read_bytes() == (finished.run / name / file).read_bytes()
    for change in (("--seed", "1"), ("--adam_beta2", "0.9")):
        trained.clear()
        run(other, "--stage", "adapter", "--reuse_runs", str(finished.run), *change,
            "--output_dir", str(tmp_path / change[0]))  # fmt: skip
        assert trained == ["adapter"]


def test_why_no_other_runs_stage_was_taken_is_said(finished, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        run(finished.recipe, "--stage", "adapter", "--seed", "1", "--output_dir", str(tmp_path / "new"),
            "--reuse_runs", str(tmp_path), str(finished.run))  # fmt: skip
    there = finished.run / "adapter"
    assert f"Stage adapter was trained alike in no other run; in {there}: seed was 42, now 1" in caplog.messages
    caplog.clear()
    with caplog.at_level(logging.INFO):
        run(finished.recipe, "--stage", "adapter", "--force", "--output_dir", str(tmp_path / "new"),
            "--reuse_runs", str(tmp_path))  # fmt: skip
    assert "Stage adapter is in none of the runs to reuse" in caplog.messages


def test_only_the_last_stage_predicts_where_that_is_asked_for(finished, tmp_path):
    recipe = yaml.safe_load(finished.recipe.read_text()) | {"predict_last_stage_only": True}
    recipe |= {"output_dir": str(tmp_path / "run"), "stages": recipe["stages"][:2]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run(tmp_path / "recipe.yaml")
    reports = {name: (tmp_path / "run" / name / "report.json").is_file() for name in STAGES[:2]}
    assert reports == {"adapter": False, "encoder_top": True}
    stages = json.loads((tmp_path / "run" / "report.json").read_text())["stages"]
    assert [stage["report"] is not None for stage in stages] == [False, True]
    assert all(stage["dev_loss"]["all"] > 0 for stage in stages)


def test_a_checkpoint_is_trained_further(finished, tmp_path):
    """As new_language.yaml does: from a PART checkpoint, in one stage of its own, to a report and a card."""
    recipe = yaml.safe_load(finished.recipe.read_text())
    for key in ("audio_model", "language_model", "adapter"):
        del recipe[key]
    stage = {"name": "further", "max_steps": 2, "tasks": {"asr": 1.0, "s2tt": 1.0}}
    stage |= {"learning_rates": tiny_training.JOINT, "losses": {"nll": 1.0, "ctc": 0.5}}
    start = str(finished.run / "joint")
    recipe |= {"checkpoint": start, "output_dir": str(tmp_path / "run"), "stages": [stage]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run(tmp_path / "recipe.yaml")
    info = json.loads((tmp_path / "run" / "further" / "stage.json").read_text())
    assert (info["parent"], info["base_models"]) == (None, {"checkpoint": start})
    assert json.loads((tmp_path / "run" / "report.json").read_text())["stages"][0]["report"]["groups"]
    assert PARTForSpeechSeq2Seq.from_pretrained(tmp_path / "run" / "further").alignment_head is not None
    assert (tmp_path / "run" / "further" / "README.md").is_file()

    # The recipe's checkpoint scored by mistake would replace the run's report.
    (tmp_path / "run" / "further" / "predictions.jsonl").unlink()
    report = (tmp_path / "run" / "report.json").read_bytes()
    run(tmp_path / "recipe.yaml", "--do_predict", "--stage", "further")
    assert (tmp_path / "run" / "further" / "predictions.jsonl").is_file()
    assert (tmp_path / "run" / "report.json").read_bytes() == report
    with pytest.raises(ValueError, match=r"is the folder of a run, .* one of its stages \(further\) with `--stage`"):
        run(tmp_path / "recipe.yaml", "--do_predict")
    with pytest.raises(FileNotFoundError, match="nothing"):
        run(tmp_path / "recipe.yaml", "--do_predict", "--stage", "nothing")


def test_other_weights_in_the_place_of_a_checkpoint_are_seen(finished, tmp_path):
    start = tmp_path / "start"
    shutil.copytree(finished.run / "adapter", start)
    recipe = yaml.safe_load(finished.recipe.read_text())
    for key in ("audio_model", "language_model", "adapter"):
        del recipe[key]
    stage = {"name": "further", "max_steps": 2, "tasks": {"asr": 1.0}, "learning_rates": {"adapter": 1e-3}}
    recipe |= {"checkpoint": str(start), "output_dir": str(tmp_path / "run"), "stages": [stage], "test_data": None}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({key: one for key, one in recipe.items() if one is not None}))
    run(tmp_path / "recipe.yaml", "--save_strategy", "steps", "--save_steps", "1")
    run(tmp_path / "recipe.yaml", "--save_strategy", "steps", "--save_steps", "1")

    weights = load_file(start / "model.safetensors")
    save_file({name: tensor + 0.01 for name, tensor in weights.items()}, start / "model.safetensors", {"format": "pt"})
    record = json.loads((start / "stage.json").read_text())
    record["files"] = checksums(weight_files(start), start)
    (start / "stage.json").write_text(json.dumps(record))
    with pytest.raises(
        ValueError, match=r"was trained from other weights of 'start' than are there now: --resume trains it again"
    ):
        run(tmp_path / "recipe.yaml")
    new = tmp_path / "new"
    run(tmp_path / "recipe.yaml", "--output_dir", str(new), "--reuse_runs", str(tmp_path / "run"))
    before, now = (load_file(folder / "further" / "model.safetensors") for folder in (tmp_path / "run", new))
    assert tiny_training.changed(before, now)
    (tmp_path / "run" / "further" / "stage.json").unlink()
    shutil.rmtree(tmp_path / "run" / "further" / "checkpoint-2")
    with pytest.raises(ValueError, match="parent_files"):  # LoRA of the old weights does not fit the new ones
        run(tmp_path / "recipe.yaml", "--resume", "true")


def test_predicting_with_a_finished_stage(finished):
    predictions = finished.run / "adapter" / "predictions.jsonl"
    before = predictions.read_text()
    predictions.unlink()
    run(finished.recipe, "--do_predict", "--stage", "adapter")
    texts = [[json.loads(line) for line in content.splitlines()] for content in (before, predictions.read_text())]
    assert texts[0] == texts[1] and len(texts[0]) == 4
    other = finished.folder / "elsewhere"
    run(finished.recipe, "--do_predict", "--checkpoint", str(finished.run / "encoder"), "--output_dir", str(other))
    assert (other / "predictions.jsonl").is_file() and (other / "report.md").is_file()


def test_a_dry_run_shows_the_plan_and_leaves_no_stage(finished, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        run(finished.recipe, "--dry_run", "--output_dir", str(tmp_path))
    assert sum("dry run: loss" in message for message in caplog.messages) == len(STAGES)
    assert not [name for name in STAGES if (tmp_path / name / "model.safetensors").exists()]


def test_a_dry_run_computes_in_the_precision_of_training(finished, tmp_path, caplog):
    """LoRA in float32 on a language model in bfloat16, which no layer mixes by itself."""
    options = ["--precision", "bf16", "--frozen_dtype", "auto", "--stage", "joint"]
    with caplog.at_level(logging.INFO):
        run(finished.recipe, "--dry_run", "--output_dir", str(tmp_path), *options)
    assert sum("dry run: loss" in message for message in caplog.messages) == 1


# ---- what stops before training ----


def without(row: dict, column: str) -> dict:
    return {key: value for key, value in row.items() if key != column}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_row": 4}, "Unknown key 'max_row'. Did you mean 'max_rows'"),
        ({"stages": [{"name": "adapter", "max_step": 2}]}, "Did you mean 'max_steps'"),
        ({"audio_model": None}, "Name `audio_model` and `language_model`"),
        ({"train_data": None}, "no training rows"),
        ({"train_data": [{"reader": "manifst", "path": "x"}]}, "manifst"),
        ({"remove_unused_columns": True}, "remove_unused_columns"),
        ({"ddp_static_graph": True}, "ddp_static_graph"),
    ],
)
def test_a_wrong_recipe_is_one_clear_error(finished, tmp_path, change, message):
    recipe = yaml.safe_load(finished.recipe.read_text()) | {"output_dir": str(tmp_path / "run")} | change
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in recipe.items() if value is not None}))
    with pytest.raises(ValueError, match=message):
        run(path)
    assert not (tmp_path / "run" / "adapter").exists()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda row: without(row, "text"), "text"),
        (lambda row: without(row, "audio") | {"duration": None}, "audio"),
        (lambda row: row | {"source_lang": "qqq", "target_lang": "qqq"}, "qqq"),
    ],
)
def test_wrong_data_is_one_clear_error(finished, tmp_path, edit, message):
    path = edited_recipe(finished, tmp_path, lambda rows: [edit(row) for row in rows])
    with pytest.raises(ValueError, match=message):
        run(path)
    assert not (tmp_path / "run" / "adapter").exists()


def edited_recipe(finished, tmp_path, edit) -> Path:
    """The recipe of the finished run, in another folder, on its edited transcription rows."""
    rows = [json.loads(line) for line in finished.corpus["train"].read_text().splitlines()]
    manifest = finished.corpus["train"].with_name(f"{tmp_path.name}.jsonl")  # beside the audio
    manifest.write_text("\n".join(map(json.dumps, edit([row for row in rows if row["task"] == "asr"]))))
    recipe = yaml.safe_load(finished.recipe.read_text())
    recipe |= {"output_dir": str(tmp_path / "run"), "train_data": [{"reader": "manifest", "path": str(manifest)}]}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def test_a_language_without_a_name_is_told_before_training_and_the_recipe_can_name_it(finished, tmp_path):
    """Acehnese has a script, and so a normaliser, but no name that the prompts know."""
    path = edited_recipe(
        finished, tmp_path, lambda rows: [*rows[:-1], rows[-1] | {"source_lang": "ace", "target_lang": "ace"}]
    )
    with pytest.raises(ValueError, match=r"Unknown language 'ace'.*language_names"):
        run(path, "--stage", "adapter")
    assert not (tmp_path / "run" / "adapter").exists()
    recipe = yaml.safe_load(path.read_text()) | {"language_names": {"ace": "Acehnese"}}
    path.write_text(yaml.safe_dump(recipe))
    run(path, "--stage", "adapter")
    folder = tmp_path / "run" / "adapter"
    assert PARTProcessor.from_pretrained(folder).language_name("ace") == "Acehnese"
    assert json.loads((folder / "stage.json").read_text())["hyperparameters"]["language_names"] == {"ace": "Acehnese"}


def test_a_stage_that_does_not_exist_or_has_no_parent(finished, tmp_path):
    with pytest.raises(ValueError, match=r"Unknown stage 'adaptor'; the recipe's stages are \['adapter'"):
        run(finished.recipe, "--stage", "adaptor")
    with pytest.raises(FileNotFoundError, match="run that stage first"):
        run(finished.recipe, "--stage", "encoder", "--output_dir", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="is no checkpoint"):
        run(finished.recipe, "--do_predict", "--output_dir", str(tmp_path))


def test_an_error_reaches_the_shell(finished):
    result = tiny_training.execute(tiny_training.launch_command(finished.recipe, "--stage", "adaptor"))
    assert result.returncode != 0
    assert result.stdout.count("train_part.py: Unknown stage 'adaptor'") == 1


def test_warm_up_and_length_come_from_the_stage(finished, tmp_path):
    args = train_part.parse_recipe([str(finished.recipe)]).training
    stage = BUILT_IN_STAGES["joint"]
    batches = SimpleNamespace(sampler=SimpleNamespace(num_steps=30), is_streamed=False)
    stage_args = train_part.stage_arguments(stage, tmp_path, batches, args)
    assert (stage_args.max_steps, stage_args.warmup_steps) == (30, 2)  # 5 % of 30, rounded up
    batches.sampler.num_steps = 1  # which would pass with a learning rate of 0
    assert train_part.stage_arguments(stage, tmp_path, batches, args).warmup_steps == 0
    assert stage_args.output_dir == str(tmp_path) and args.output_dir == str(finished.run)


def test_the_adapter_only_stage_keeps_the_pretrained_parts(finished, tiny_parts):
    from transformers import AutoModelForCausalLM, WhisperModel

    model = PARTForSpeechSeq2Seq.from_pretrained(finished.run / "adapter")
    language_model = AutoModelForCausalLM.from_pretrained(tiny_parts.language_model).model.state_dict()
    ours = model.model.language_model.state_dict()
    for name, tensor in language_model.items():
        assert torch.equal(ours[name][: len(tensor)], tensor), name
    encoder = WhisperModel.from_pretrained(tiny_parts.audio_model).encoder.state_dict()
    assert not tiny_training.changed(encoder, model.model.audio_tower.state_dict())
