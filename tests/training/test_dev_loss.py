"""Alignment while training: what trains, what the dev figures say, and the warning of a model that does not listen."""

import copy
import logging
from dataclasses import replace
from itertools import chain

import pytest
import tiny_training
import torch

from modeling_part.data.batches import Progress, plan_batches
from modeling_part.data.collator import PARTCollator
from modeling_part.data.loading import Rows
from modeling_part.data.row_tokens import transcript
from modeling_part.data.transcripts import count_too_long, count_transcript_tokens
from modeling_part.recipes.arguments import DataArguments, ModelArguments, PARTTrainingArguments, Recipe
from modeling_part.recipes.stages import Stage, part_of
from modeling_part.training.dev_loss import DevSums, dev_sums, swap_clips


def aligning_stage(**changes) -> Stage:
    settings = {"tasks": {"asr": 1.0}, "learning_rates": {"adapter": 3e-3}, "losses": {"ctc": 1.0}}
    return Stage("adapter", **settings | {"warmup_ratio": 0.0} | changes)


def make_trainer(folder, stage, **options):
    model, processor = tiny_training.tiny_model(adapter_conv_stride=1)
    dataset = tiny_training.tiny_dataset(count=8, words=(1, 1))
    return tiny_training.make_trainer(
        folder, stage, dataset=dataset, eval_dataset=dataset, model=model, processor=processor, **options
    )


def test_alignment_alone_trains_the_adapter_and_the_blank_and_falls(tmp_path):
    trainer = make_trainer(tmp_path, aligning_stage(), steps=60)
    before = tiny_training.snapshot(trainer.model)
    first = trainer.evaluate()
    trainer.train()
    last = trainer.evaluate()
    moved = tiny_training.changed(before, tiny_training.snapshot(trainer.model))
    assert {part_of(name) for name in moved} == {"adapter"} and "alignment_head.blank" in moved
    assert last["eval_asr_ctc_loss"] < 0.6 * first["eval_asr_ctc_loss"]
    assert last["eval_loss"] == pytest.approx(dev_sums(trainer, trainer.batches, trainer.loss_options)[0].loss())
    assert 0.0 <= last["eval_ctc_error_rate"] and "eval_asr_loss" not in last
    logged = [entry for entry in trainer.state.log_history if "asr_ctc_loss" in entry]
    assert {"asr/en_ctc_loss", "asr/fr_ctc_loss"} <= set(logged[0]) | set(logged[1])


def test_both_losses_with_lora_leave_the_gate_as_it_is(tmp_path):
    stage = tiny_training.joint_stage(losses={"nll": 1.0, "ctc": 0.5}, tasks={"asr": 1.0})
    trainer = make_trainer(tmp_path, stage, steps=3)
    before = tiny_training.snapshot(trainer.model)
    trainer.train()
    moved = tiny_training.changed(before, tiny_training.snapshot(trainer.model))
    assert {part_of(name) for name in moved} == {"adapter", "encoder"}


@pytest.mark.parametrize(
    ("losses", "advice"), [({"nll": 1.0}, "part_aligned"), ({"ctc": 1.0}, "a smaller `adapter_conv_stride`")]
)
def test_a_model_that_ignores_its_audio_is_reported(tmp_path, caplog, losses, advice):
    trainer = make_trainer(tmp_path, aligning_stage(losses=losses))
    trainer.model.model.adapter.output_norm.register_forward_hook(lambda module, arguments, output: 0 * output)
    with caplog.at_level(logging.WARNING):
        found = trainer.check_listening()
    assert found["own_clip_loss"] == pytest.approx(found["other_clip_loss"], abs=5e-2) and not found["listens"]
    assert "does not use its audio" in caplog.text and advice in caplog.text


def test_a_model_that_listens_is_not(tmp_path, caplog):
    trainer = make_trainer(tmp_path, aligning_stage(), steps=120)
    trainer.train()
    with caplog.at_level(logging.WARNING):
        found = trainer.check_listening()
    evaluated = [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert trainer.last_metrics()["eval_loss"] > 0
    assert evaluated == [120] == [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert found["listens"] and found["other_clip_loss"] > found["own_clip_loss"]
    assert "does not use its audio" not in caplog.text


def test_translations_without_transcripts_say_nothing_of_listening_by_alignment(tmp_path, caplog):
    trainer = make_trainer(tmp_path, aligning_stage(tasks={"asr": 1.0, "s2tt": 1.0}), steps=1)
    rows = [{**row, "source_text": None} for row in trainer.eval_dataset if row["task"] == "s2tt"]
    trainer.batches = replace(trainer.batches, eval_rows=rows, eval_batches=[[0, 1], [2, 3]])
    with caplog.at_level(logging.WARNING):
        assert trainer.check_listening() == {} and "eval_loss" not in trainer.last_metrics()
    assert "does not use its audio" not in caplog.text


@pytest.mark.parametrize("losses", [{"nll": 1.0}, {"ctc": 1.0}])
def test_dev_rows_without_a_finite_loss_are_named(tmp_path, caplog, losses):
    trainer = make_trainer(tmp_path, aligning_stage(losses=losses))
    collate, bad = trainer.batches.eval_collator, trainer.eval_dataset[0]["id"]

    def poison(rows):
        batch = collate(rows)
        for place, row in enumerate(rows):
            if row["id"] == bad and "input_features" in batch:
                batch["input_features"][place] = torch.nan
        return batch

    trainer.batches = replace(trainer.batches, eval_collator=poison)
    with caplog.at_level(logging.WARNING):
        trainer.check_listening()
    (named,) = [message for message in caplog.messages if "is not finite" in message]
    assert named.endswith(f"without them: {bad}")


def test_clips_go_one_row_on():
    rows = [{"text": name, "audio": {"path": name}, "duration": float(i)} for i, name in enumerate("abc")]
    swapped = swap_clips(rows)
    assert [row["text"] for row in swapped] == ["a", "b", "c"]
    assert [row["audio"]["path"] for row in swapped] == ["b", "c", "a"]
    assert [row["duration"] for row in swapped] == [1.0, 2.0, 0.0]


def test_the_transcript_is_what_is_said():
    assert transcript("asr", "bonjour", None) == "bonjour"
    assert transcript("s2tt", "hello", "bonjour") == "bonjour"
    assert transcript("s2tt", "hello", None) is None
    assert transcript("mt", "hello", "bonjour") is None


def test_a_batch_holds_the_tokens_of_what_is_said():
    _, processor = tiny_training.tiny_model()
    rows = [row for row in tiny_training.tiny_dataset() if row["task"] == "s2tt"][:2]
    rows[1] = {**rows[1], "source_text": None}
    batch = PARTCollator(processor, with_transcripts=True)(rows)
    ids = processor.tokenizer(rows[0]["source_text"], add_special_tokens=False)["input_ids"]
    assert batch["transcript_ids"].tolist() == [ids, [-100] * len(ids)]
    assert "transcript_ids" not in PARTCollator(processor)(rows)


def test_transcripts_are_counted_and_those_that_do_not_fit_are_found():
    _, processor = tiny_training.tiny_model()
    dataset = tiny_training.tiny_dataset(tasks=("asr",), count=3)
    rows = Rows(train=dataset)
    counts = count_transcript_tokens(rows, processor, 300)
    ids = [processor.tokenizer(text, add_special_tokens=False)["input_ids"] for text in dataset["text"]]
    assert counts.sum() == sum(map(len, ids))
    assert torch.equal(counts, torch.bincount(torch.tensor(list(chain(*ids))), minlength=300))
    assert count_too_long(rows, processor)["en"][1] == 3
    short = dataset.map(lambda row: {"duration": 0.05})
    assert count_too_long(Rows(train=short), processor) == {"en": (3, 3), "fr": (3, 3)}
    assert count_too_long(Rows(train=short), processor, ("s2tt",)) == {}
    whole_window = copy.copy(processor)
    whole_window.variable_length = False
    assert whole_window.silence().shape[-1] > processor.silence().shape[-1]
    assert count_too_long(Rows(train=short), whole_window) == {"en": (0, 3), "fr": (0, 3)}
    assert "eval_loss" not in DevSums().figures("eval_")


def test_the_beginning_of_a_stream_is_fetched_once_for_all_stages():
    _, processor = tiny_training.tiny_model()
    fetched = []

    class Stream:
        def __iter__(self):
            for row in tiny_training.tiny_dataset(tasks=("asr",), count=2):
                fetched.append(row["id"])
                yield row

    rows = Rows(train={"asr": Stream()}, is_streamed=True)
    assert count_transcript_tokens(rows, processor, 300).sum() > 0
    assert count_too_long(rows, processor) == count_too_long(rows, processor) != {}
    assert len(fetched) == len(set(fetched)) > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source_text": None}, "has a transcript: train on asr rows"),
        ({"duration": 0.05}, "fits its clip: .*smaller `adapter_conv_stride`"),
    ],
)
def test_alignment_alone_of_rows_that_cannot_be_aligned_is_refused(tmp_path, change, message):
    _, processor = tiny_training.tiny_model()
    dataset = tiny_training.tiny_dataset(tasks=("s2tt",), count=2)
    dataset = dataset.map(lambda row: change, features=dataset.features)
    args = PARTTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    recipe = Recipe(ModelArguments(checkpoint="tiny"), DataArguments(), args)
    stage = aligning_stage(tasks={"s2tt": 1.0})
    with pytest.raises(ValueError, match=message):
        plan_batches(stage, Rows(train=dataset), processor, recipe, Progress())
    both = replace(stage, losses={"nll": 1.0, "ctc": 1.0})
    assert plan_batches(both, Rows(train=dataset), processor, recipe, Progress()).sampler.num_steps


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ({"ctc": 0.0}, "a positive weight"),
        ({"nll": -1.0}, "a positive weight"),
        ({"cct": 1.0}, "Did you mean 'ctc'"),
    ],
)
def test_losses_that_make_no_sense_are_refused(losses, message):
    with pytest.raises(ValueError, match=message):
        aligning_stage(losses=losses)


def test_a_stage_without_the_answers_loss_cannot_train_the_language_model():
    with pytest.raises(ValueError, match="the language model does not run"):
        tiny_training.joint_stage(losses={"ctc": 1.0})
