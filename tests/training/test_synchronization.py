"""A training step waits for the device once: where, is found on the CPU by watching what would ask a GPU for a value."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import tiny_training
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask
from waits import Waits

from modeling_part.data.collator import PARTCollator
from modeling_part.recipes.arguments import PARTTrainingArguments
from modeling_part.recipes.stages import BUILT_IN_STAGES, Stage


STEPS, ACCUMULATION = 6, 2


@pytest.fixture(scope="module")
def shared():
    return tiny_training.aligned_model()


@pytest.fixture(scope="module", params=["fun_asr_nano", "sense_voice"])
def san_m(request):
    return tiny_training.aligned_model(audio_kind=request.param)


def waits_of_training(shared, folder, stage, **options) -> Waits:
    """What `STEPS` steps wait for, between two lines of the log."""
    model, processor = shared
    settings = {"steps": STEPS, "accumulation": ACCUMULATION, "max_rows": 3, "logging_steps": 100} | options
    trainer = tiny_training.make_trainer(
        folder,
        stage,
        model=copy.deepcopy(model),
        processor=processor,
        dataset=tiny_training.tiny_dataset(),
        **settings,
    )
    waits = Waits()
    trainer.data_collator = waits.not_counting(trainer.data_collator)
    inner = trainer._run_epoch

    def counted(*args, **kwargs):
        with waits:
            return inner(*args, **kwargs)

    trainer._run_epoch = counted
    trainer.train()
    assert trainer.state.global_step == STEPS
    return waits


@pytest.mark.parametrize(
    ("stage", "options"),
    [
        (BUILT_IN_STAGES["adapter"], {}),
        (BUILT_IN_STAGES["encoder_top"], {"max_grad_norm": 0.0}),
        (tiny_training.joint_stage(), {}),
        (tiny_training.joint_stage(tuning="full"), {}),
        (tiny_training.joint_stage(losses={"nll": 1.0, "ctc": 0.5}), {}),
        (tiny_training.joint_stage(losses={"nll": 1.0, "ctc": 0.5}), {"padding_free": True}),
        (tiny_training.joint_stage(losses={"nll": 1.0, "kl": 0.5}), {}),
        (tiny_training.joint_stage(), {"padding_free": True, "gradient_checkpointing": True}),
        (Stage("adapter", tasks={"asr": 1.0}, learning_rates={"adapter": 1e-3}, losses={"ctc": 1.0}), {}),
    ],
)  # fmt: skip
def test_a_step_waits_once_whatever_the_number_of_its_batches(shared, tmp_path, stage, options):
    """To know whether its gradient is finite."""
    waits = waits_of_training(shared, tmp_path, stage, **options)
    (place,) = waits.ours
    assert "_get_grad_norm" in place and waits.ours[place] == STEPS, waits.ours
    # What is left is transformers' own look at packed rows; how its trainer filters losses is not among it.
    repeated = {place for place, count in waits.theirs.items() if count >= STEPS}
    assert {place.split()[1] for place in repeated} <= {"find_packed_sequence_indices"}, repeated
    assert bool(repeated) == bool(options.get("padding_free"))


@pytest.mark.parametrize("options", [{}, {"padding_free": True, "gradient_checkpointing": True}])
def test_with_a_san_m_encoder_too(san_m, tmp_path, options):
    stage = tiny_training.joint_stage(losses={"nll": 1.0, "ctc": 0.5})
    test_a_step_waits_once_whatever_the_number_of_its_batches(san_m, tmp_path, stage, options)


def test_the_watch_sees_what_it_is_for():
    """Each of the ways to ask is seen, and named by its line."""
    waits = Waits()
    values, mask = torch.arange(6.0, requires_grad=True), torch.arange(6) > 2
    with waits:
        values[mask].sum().backward()
        values.detach().masked_fill_(mask, 1.0)[mask] = 2.0
        bool(mask.any()), float(values.sum()), values.tolist(), mask.nonzero(), torch.unique(mask)
        torch.repeat_interleave(torch.ones(2).long())
    assert sum(waits.theirs.values()) == 8 and all("test_synchronization.py" in place for place in waits.theirs)
    assert not waits.ours or all(place.startswith("backward") for place in waits.ours)


@pytest.mark.parametrize("pins", [True, False])
def test_pinned_batches_are_copied_without_waiting(shared, tmp_path, monkeypatch, pins):
    """Those that accelerate copies, and those of streams and dev data, which the trainer does; by default on a GPU."""
    for on_cpu in (True, False):
        args = PARTTrainingArguments(output_dir=str(tmp_path), use_cpu=on_cpu)
        assert args.accelerator_config.non_blocking is args.dataloader_pin_memory is not on_cpu
    model, processor = shared
    trainer = tiny_training.make_trainer(
        tmp_path,
        BUILT_IN_STAGES["adapter"],
        model=copy.deepcopy(model),
        processor=processor,
        accelerator_config={"non_blocking": pins},
    )
    copies = []
    copy_to = torch.Tensor.to

    def note(tensor, *args, **kwargs):
        if args and isinstance(args[0], torch.device):
            copies.append(kwargs.get("non_blocking", False))
        return copy_to(tensor, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", note)
    batch = next(iter(trainer.get_train_dataloader()))
    of_accelerate = len(copies)
    prepared = trainer._prepare_inputs(batch)
    assert copies == [pins] * len(copies) and 0 < of_accelerate < len(copies)
    assert isinstance(prepared["layout"]["audio_lengths"], np.ndarray), "lengths stay where Python is"


# ---- the layout gives what the model finds without it ----


@pytest.mark.parametrize("padding_free", [False, True])
@pytest.mark.parametrize("task", ["asr", "s2tt", "mt"])
def test_the_layout_changes_no_bit(shared, task, padding_free):
    assert_layout_changes_no_bit(*shared, task, padding_free)


def test_the_layout_changes_no_bit_of_a_san_m_encoder(san_m):
    assert_layout_changes_no_bit(*san_m, "asr", False)


def assert_layout_changes_no_bit(model, processor, task, padding_free):
    rows = [row for row in tiny_training.tiny_dataset() if row["task"] == task][:4]
    batch = PARTCollator(processor, with_transcripts=True)(rows)
    del batch["batch_info"]
    without = {name: value for name, value in batch.items() if name != "layout"}
    options = {"padding_free": padding_free, "ctc_weight": 0.5, "loss_chunk_size": 8}
    found = []
    for inputs in (batch, without):
        model.train().zero_grad()
        output = model(**inputs, **options)
        output.loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        found.append((output, gradients))
    (given, of_given), (asked, of_asked) = found
    assert torch.equal(given.loss, asked.loss) and torch.equal(given.token_losses, asked.token_losses)
    assert of_given.keys() == of_asked.keys()
    assert all(torch.equal(of_given[name], of_asked[name]) for name in of_given)
    assert (given.ctc_losses is None) == (task == "mt")
    if task != "mt":
        assert torch.equal(given.ctc_losses, asked.ctc_losses) and torch.equal(given.ctc_counted, asked.ctc_counted)


def unpacked_attention(module, query, key, value, attention_mask, scaling, cu_seq_lens_q=None, **kwargs):
    """What flash attention's kernels do with the bounds of packed rows, one row after the other."""
    assert attention_mask is None and kwargs["max_length_q"] >= cu_seq_lens_q.diff().max()
    groups = query.shape[1] // key.shape[1]
    key, value = (one.repeat_interleave(groups, 1) for one in (key, value))
    rows = [
        torch.nn.functional.scaled_dot_product_attention(
            *(one[:, :, start:end] for one in (query, key, value)), scale=scaling, is_causal=module.is_causal
        )
        for start, end in pairwise(cu_seq_lens_q.tolist())
    ]
    return torch.cat(rows, 2).transpose(1, 2), None


def test_flash_attention_is_told_where_rows_end(shared):
    """Otherwise transformers asks the device, in every layer; the stand-in computes what sdpa does on padded rows."""
    model, processor = shared
    rows = [row for row in tiny_training.tiny_dataset() if row["task"] == "s2tt"][:4]
    batch = PARTCollator(processor)(rows)
    del batch["batch_info"]
    expected = model.eval()(**batch, loss_chunk_size=8)
    AttentionInterface.register("stand_in", unpacked_attention)
    AttentionMaskInterface.register("stand_in", flash_attention_mask)
    packed = copy.deepcopy(model)
    packed.set_attn_implementation("stand_in")
    waits = Waits()
    with waits:
        found = packed(**batch, loss_chunk_size=8, padding_free=True)
    torch.testing.assert_close(found.token_losses, expected.token_losses, rtol=1e-4, atol=1e-5)
    asked = {place for place in (waits.ours | waits.theirs) if "test_synchronization" not in place}
    assert {place.split()[1] for place in asked} == {"find_packed_sequence_indices"}, asked


@pytest.mark.parametrize("audio_kind", ["whisper", "sense_voice"])
def test_a_batch_without_padding_has_no_masks(audio_kind, monkeypatch):
    """Known from the batch: attention may take the kernels that know no mask; with padding, a mask made once."""
    model, processor = tiny_training.tiny_model(audio_kind=audio_kind, adapter_conv_stride=1)
    rows = [row for row in tiny_training.tiny_dataset() if row["task"] == "asr"][:2]
    for chosen, is_padded in ((rows[:1] * 2, False), (rows, True)):
        batch = PARTCollator(processor, pad_seconds_multiple=0.01, pad_tokens_multiple=1)(chosen)
        del batch["batch_info"]
        assert batch["layout"]["has_padded_clips"] == is_padded
        masks = []
        attention = torch.nn.functional.scaled_dot_product_attention

        def note(*args, attn_mask=None, masks=masks, attention=attention, **kwargs):
            masks.append(attn_mask)
            return attention(*args, attn_mask=attn_mask, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(torch.nn.functional, "scaled_dot_product_attention", note)
            model.eval()(**batch)
        assert len(masks) > 4 and {mask is not None for mask in masks} == {is_padded}


def test_a_processor_that_counts_otherwise_is_refused(shared, tmp_path):
    model, processor = shared
    other = copy.deepcopy(processor)
    other.audio_token_convolutions = [[3, 1, 1], [3, 2, 1], [5, 4, 2]]
    with pytest.raises(ValueError, match="audio_token_convolutions"):
        tiny_training.make_trainer(
            tmp_path, BUILT_IN_STAGES["adapter"], model=model, processor=other, dataset=tiny_training.tiny_dataset()
        )
    rows = [row for row in tiny_training.tiny_dataset() if row["task"] == "asr"][:2]
    batch = PARTCollator(other)(rows)
    del batch["batch_info"]
    with pytest.raises(RuntimeError, match="another number of audio tokens"):
        model(**batch)
