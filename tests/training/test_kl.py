"""The KL term of text tasks: against a reference written from the formula, in training, and where it cannot be."""

import copy
import math
from types import SimpleNamespace

import pytest
import tiny_training
import torch

from modeling_part.data.collator import PARTCollator
from modeling_part.training.lora import add_lora, without_lora


@pytest.fixture(scope="module")
def shared():
    model, processor = tiny_training.tiny_model()
    return SimpleNamespace(model=model, processor=processor, dataset=tiny_training.tiny_dataset())


@pytest.fixture(scope="module")
def tuned(shared):
    """The shared model with LoRA that has learned something."""
    model = copy.deepcopy(shared.model)
    add_lora(tiny_training.joint_stage(), model)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def reference(start, tuned, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log-likelihood and `KL(start || now)`, row by row and token by token, of a model that never had LoRA."""
    likelihood, divergence = torch.zeros(()), torch.zeros(())
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        ids, labels = ids[mask.bool()][None], labels[mask.bool()]
        now = tuned(input_ids=ids).logits[0].softmax(-1)
        with torch.no_grad():
            before = start(input_ids=ids).logits[0].softmax(-1)
        for position in (labels != -100).nonzero().flatten().tolist():
            p, q = before[position - 1], now[position - 1]  # what predicts the token
            likelihood = likelihood - q[labels[position]].log()
            divergence = divergence + (p * (p / q).log()).sum()
    return likelihood, divergence


@pytest.mark.parametrize("options", [{}, {"loss_chunk_size": 3}, {"padding_free": True, "loss_chunk_size": 1024}])
def test_loss_and_gradients_are_those_of_the_formula(shared, tuned, options):
    rows = [row for row in shared.dataset if row["task"] == "mt"][:4]
    batch = PARTCollator(shared.processor)(rows)
    batch.pop("batch_info")
    likelihood, divergence = reference(shared.model, copy.deepcopy(tuned).eval(), batch)
    expected = copy.deepcopy(tuned).eval()
    sum_of = reference(shared.model, expected, batch)
    ((sum_of[0] + 0.7 * sum_of[1]) / 11).backward()
    model = copy.deepcopy(tuned).train()
    language_model = model.model.language_model
    outputs = model(
        **batch,
        **options,
        kl_weight=0.7,
        at_start=lambda: without_lora(language_model),
        num_items_in_batch=11,
        use_cache=False,
    )
    outputs.loss.backward()
    assert divergence > 0.1
    assert outputs.kl_divergences.sum().item() == pytest.approx(divergence.item(), rel=1e-4)
    assert outputs.loss.item() == pytest.approx(((likelihood + 0.7 * divergence) / 11).item(), rel=1e-5)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert gradients and all(".lora_" in name for name in gradients)
    for name, parameter in expected.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_without_lora_the_language_model_is_what_it_was(shared, tuned):
    ids = torch.tensor([[5, 6, 7, 8]])
    language_model = tuned.model.language_model.train()
    trains = [parameter.requires_grad for parameter in language_model.parameters()]
    with torch.no_grad():
        with without_lora(language_model):
            assert not language_model.training
            inside = language_model(input_ids=ids).last_hidden_state
        after = language_model(input_ids=ids).last_hidden_state
        before = shared.model.model.language_model(input_ids=ids).last_hidden_state
    assert torch.equal(inside, before) and not torch.allclose(after, before)
    assert language_model.training and trains == [one.requires_grad for one in language_model.parameters()]


def trained(shared, folder, weight, **options):
    """A trainer after some steps of all tasks, and its log."""
    losses = {"nll": 1.0, **({"kl": weight} if weight else {})}
    trainer = tiny_training.make_trainer(
        folder,
        tiny_training.joint_stage(losses=losses),
        dataset=shared.dataset,
        model=copy.deepcopy(shared.model),
        processor=shared.processor,
        **options,
    )
    trainer.train()
    return trainer, [entry for entry in trainer.state.log_history if "loss" in entry]


def drift(shared, trainer) -> float:
    """`KL(start || now)` over the text rows, by the reference."""
    rows = [row for row in shared.dataset if row["task"] == "mt"]
    batch = PARTCollator(shared.processor)(rows)
    with torch.no_grad():
        return reference(shared.model, trainer.model.eval(), batch)[1].item()


def test_training_holds_the_language_model_to_its_start_and_logs_how_far_it_is(shared, tmp_path):
    options = {"steps": 12, "accumulation": 2, "max_rows": 2}
    free, without = trained(shared, tmp_path / "free", 0.0, **options)
    held, log = trained(shared, tmp_path / "held", 20.0, **options)
    assert not any("mt_kl" in entry for entry in without)
    told = [entry["mt_kl"] for entry in log if "mt_loss" in entry]
    assert len(told) > 2 and max(told[1:]) > 0 and all(math.isfinite(value) for value in told)
    assert any("mt/en-fr_kl" in entry for entry in log)
    assert not any("mt_kl" in entry for entry in log if "asr_loss" in entry or "s2tt_loss" in entry)
    assert 0 < drift(shared, held) < 0.7 * drift(shared, free)


@pytest.mark.parametrize("options", [{"padding_free": True}, {"gradient_checkpointing": True}, {"accumulation": 2}])
def test_other_ways_to_run_train_the_same_weights(shared, tmp_path, options):
    """A batch is cut in two for accumulation: the same rows are in each step."""
    rows = [row for row in shared.dataset if row["task"] == "mt"][:4]
    dataset = type(shared.dataset).from_list(rows, features=tiny_training.FEATURES)
    weights = []
    for name, more in (("plain", {}), ("other", options)):
        stage = tiny_training.joint_stage(tasks={"mt": 1.0}, losses={"nll": 1.0, "kl": 5.0})
        settings = {"steps": 4, "max_rows": 4, "adam_epsilon": 1e-4, **more}
        if more.get("accumulation"):
            settings["max_rows"] = 2
        model = copy.deepcopy(shared.model)
        trainer = tiny_training.make_trainer(
            tmp_path / name, stage, dataset=dataset, model=model, processor=shared.processor, **settings
        )
        trainer.train()
        weights.append(tiny_training.snapshot(trainer.model))
    moved = [name for name in weights[0] if ".lora_B." in name and weights[0][name].abs().max() > 0]
    assert moved
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tuning": "full"}, "only with LoRA"),
        ({"learning_rates": {"adapter": 1e-3}, "tasks": {"asr": 1.0}}, "learning rate for `language_model`"),
        ({"gate": "frozen", "tasks": {"asr": 1.0, "s2tt": 1.0}}, "leave `kl` out"),
        ({"tasks": {"asr": 1.0, "s2tt": 1.0}}, "add mt or text to `tasks`"),
    ],
)
def test_where_there_is_no_start_or_no_text_it_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_training.joint_stage(losses={"nll": 1.0, "kl": 0.1}, **changes)
