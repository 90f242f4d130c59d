"""Audio that turns out broken while training: left out of the loss, reported, counted, and too much of it stops the run."""

import copy
import json
import logging
from dataclasses import replace

import pytest
import tiny
import tiny_training
import torch
from datasets import Dataset

import train_part
from modeling_part.data.collator import PARTCollator
from modeling_part.data.encoder_cache import write_encoder_outputs
from modeling_part.recipes.stages import BUILT_IN_STAGES
from modeling_part.training import broken_rows
from modeling_part.training.broken_rows import TooManyBrokenRowsError
from modeling_part.training.checkpoints import last_checkpoint


@pytest.fixture(scope="module")
def shared():
    return tiny_training.tiny_model()


def broken(row: dict) -> dict:
    """The row with a file that stops after its header, as an interrupted download leaves it."""
    return {**row, "audio": {"path": None, "bytes": row["audio"]["bytes"][:40]}}


def rows_with_broken(count: int, bad: set[int]) -> Dataset:
    rows = tiny_training.tiny_dataset(("asr",), count=count).to_list()
    rows = [broken(row) if index in bad else row for index, row in enumerate(rows)]
    return Dataset.from_list(rows, features=tiny_training.FEATURES)


def make_trainer(folder, shared, dataset, **options):
    """As train_part.py builds it, on a copy of the shared model."""
    model, processor = copy.deepcopy(shared)
    made = tiny_training.make_trainer(
        folder, BUILT_IN_STAGES["adapter"], dataset=dataset, model=model, processor=processor, **options
    )
    made.data_collator = PARTCollator(processor, skip_broken=True)
    made.batches = replace(made.batches, collator=made.data_collator, eval_collator=made.data_collator)
    return made


def test_a_broken_row_changes_nothing_for_the_rows_beside_it(shared):
    model, processor = shared
    rows = tiny_training.tiny_dataset(("s2tt",), count=2).to_list()
    with pytest.raises(ValueError, match=rf"Row '{rows[1]['id']}' .* Cannot decode"):
        PARTCollator(processor)([rows[0], broken(rows[1]), rows[2]])
    collator = PARTCollator(processor, skip_broken=True)
    batch, whole = collator([rows[0], broken(rows[1]), rows[2]]), collator([rows[0], rows[2]])
    (fault,) = batch["batch_info"]["broken"]
    assert f"Row '{rows[1]['id']}'" in fault and "Cannot decode" in fault
    assert whole.pop("batch_info")["broken"] == []
    assert batch.pop("batch_info")["ids"] == [rows[index]["id"] for index in range(3)]
    assert (batch["labels"][1] == -100).all()

    losses, gradients = [], []
    for inputs in (batch, whole):
        model.zero_grad()
        outputs = model(**inputs, loss_chunk_size=64)
        outputs.loss.backward()
        losses.append(outputs.token_losses)
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(losses[0], losses[1], atol=1e-5, rtol=1e-5)
    assert gradients[0].keys() == gradients[1].keys() != set()
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], gradient, atol=1e-5, rtol=1e-3, msg=name)


def test_a_broken_row_and_a_transcript_that_does_not_fit_are_no_part_of_the_alignment(shared):
    """Neither of its loss nor of the tokens that the log divides it by."""
    _, processor = shared
    whole, bad, long = tiny_training.tiny_dataset(("asr",), count=2, words=(1, 1)).to_list()[:3]
    rows = [whole, broken(bad), {**long, "text": "x" * 500}]
    batch = PARTCollator(processor, skip_broken=True, with_transcripts=True)(rows)
    ids = processor.tokenizer(whole["text"], add_special_tokens=False)["input_ids"]
    assert [int((row != -100).sum()) for row in batch["transcript_ids"]] == [len(ids), 0, 500]
    fits = len(ids) <= int(batch["layout"]["audio_lengths"][0])
    assert batch["layout"]["is_counted"].tolist() == [fits, False, False] and fits
    assert batch["batch_info"]["transcript_counts"] == [len(ids), 0, 0]


def test_training_counts_broken_rows_and_reports_each_once(shared, tmp_path, caplog):
    dataset = rows_with_broken(4, bad={5})
    name = dataset[5]["id"]
    trainer = make_trainer(tmp_path, shared, dataset, eval_dataset=dataset, steps=6)  # three epochs
    with caplog.at_level(logging.WARNING):
        trainer.train()
    drawn = [dataset[row]["id"] for batch in trainer.batches.sampler for row in batch]
    assert drawn.count(name) > 1
    counts = [entry["broken_rows"] for entry in trainer.state.log_history if "loss" in entry]
    assert counts == sorted(counts) and counts[-1] == drawn.count(name)
    assert sum(f"Row '{name}'" in line and "Left out of the loss" in line for line in caplog.messages) == 1

    # The dev loss is that of the other rows.
    whole = dataset.select([index for index in range(len(dataset)) if index != 5])
    other = make_trainer(tmp_path, (trainer.model, shared[1]), whole, eval_dataset=whole)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(other.evaluate()["eval_loss"], rel=1e-5)


def test_a_step_of_broken_rows_alone_has_no_gradient(shared, tmp_path):
    trainer = make_trainer(tmp_path, shared, rows_with_broken(1, bad={0, 1}), steps=2, weight_decay=0.0)
    before = tiny_training.snapshot(trainer.model)
    trainer.train()
    assert not tiny_training.changed(before, tiny_training.snapshot(trainer.model))
    assert trainer.state.log_history[-2]["grad_norm"] == 0.0
    assert not [line for line in trainer.state.log_history if "loss" in line], "nothing was learned, and no loss is 0"


def test_a_step_of_broken_rows_alone_counts_for_nothing_in_the_loss_that_is_logged(shared, tmp_path):
    trainer = make_trainer(tmp_path, shared, rows_with_broken(1, bad={0}), steps=2, max_rows=1, logging_steps=2)
    trainer.train()
    (line,) = (line for line in trainer.state.log_history if "loss" in line)
    assert line["broken_rows"] == 1 and line["loss"] == pytest.approx(line["asr_loss"], rel=1e-4)


def test_too_many_stop_with_a_checkpoint_from_which_fixed_data_goes_on(shared, tmp_path, monkeypatch):
    monkeypatch.setattr(broken_rows, "ROWS_BEFORE_JUDGEMENT", 10)
    bad = {0, 3}
    options = {"steps": 8, "max_rows": 2, "max_bad_fraction": 0.1}
    trainer = make_trainer(tmp_path, shared, rows_with_broken(4, bad), **options)
    with pytest.raises(
        TooManyBrokenRowsError, match=r"2 of 10 rows drawn .* max_bad_fraction = 0\.1 .* Cannot decode"
    ):
        trainer.train()
    checkpoint = last_checkpoint(tmp_path)
    assert checkpoint.name == "checkpoint-5"
    fixed = make_trainer(tmp_path, shared, rows_with_broken(4, set()), **options)
    fixed.train(resume_from_checkpoint=str(checkpoint))
    assert fixed.state.global_step == 8

    within = make_trainer(tmp_path / "within", shared, rows_with_broken(4, bad), **options | {"max_bad_fraction": 0.3})
    within.train()
    assert within.state.global_step == 8


def test_encoder_outputs_leave_broken_clips_out_within_the_limit(shared, tmp_path):
    model, processor = shared
    rows = rows_with_broken(2, bad={1}).to_list()

    def write(limit):
        settings = {"max_audio_seconds": 30.0, "max_bad_fraction": limit}
        return write_encoder_outputs(model, processor, rows, range(4), tmp_path / "outputs", **settings)

    with pytest.raises(ValueError, match=rf"1 of 4 clips .* max_bad_fraction = 0\.2 .* Row '{rows[1]['id']}'"):
        write(0.2)
    for _ in range(2):  # the second time the other clips are there already
        outputs = write(0.25)
        cached = PARTCollator(processor, encoder_outputs=outputs)(rows)
        plain = PARTCollator(processor, skip_broken=True)(rows)
        assert cached.pop("batch_info") == plain.pop("batch_info")
        assert torch.equal(cached["labels"], plain["labels"]) and (plain["labels"][1] == -100).all()
        with torch.no_grad():
            torch.testing.assert_close(model(**cached).loss, model(**plain).loss, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cached", [False, True])
def test_a_run_goes_through_with_files_that_broke_after_they_were_listed(tmp_path, tiny_parts, cached, caplog):
    corpus = tiny.tiny_corpus(tmp_path / "corpus")
    for split in ("train", "dev"):
        row = json.loads(corpus[split].read_text().splitlines()[0])
        assert row["duration"] > 0  # nobody opens the file before it is decoded
        path = corpus[split].parent / row["audio"]
        path.write_bytes(path.read_bytes()[:40])
    stages = [{"name": "adapter", "epochs": 1}]
    settings = {"cache_encoder_outputs": True} if cached else {}
    recipe = tiny_training.write_recipe(
        tmp_path,
        tiny_parts,
        corpus,
        stages=stages,
        max_bad_fraction=0.5,
        max_eval_rows=None,
        test_data=None,
        **settings,
    )
    with caplog.at_level(logging.WARNING):
        train_part.main([str(recipe)])
    history = json.loads((tmp_path / "run/adapter/log_history.json").read_text())
    assert max(entry.get("broken_rows", 0) for entry in history) >= 1
    assert sum("Left out of the loss" in line for line in caplog.messages) >= 2
    assert (tmp_path / "run/adapter/stage.json").is_file()
