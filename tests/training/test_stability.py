"""The fourth failure sign: unstable training is warned of, with the learning rates named, and steady training is not."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_part.evaluation.failure_signs import instability
from modeling_part.recipes.stages import BUILT_IN_STAGES
from modeling_part.training.stability import StabilityCallback


def log_of(losses, norms=None, task="s2tt"):
    """Entries every ten steps."""
    norms = [1.0] * len(losses) if norms is None else norms
    return [
        {"step": 10 * number, "loss": loss, f"{task}_loss": loss, f"{task}/en-fr_loss": 9.0, "grad_norm": norm}
        for number, (loss, norm) in enumerate(zip(losses, norms, strict=True), start=1)
    ]


def falling(count: int, noise: float = 0.1, seed: int = 0) -> list[float]:
    """A loss that falls from 3 to 1 nats with noise."""
    generator = np.random.default_rng(seed)
    return list(1 + 2 * np.exp(-np.arange(count) / count * 4) + noise * generator.standard_normal(count))


def test_a_loss_that_spikes_and_stays_is_a_sign():
    signs = instability(log_of([*falling(30, 0), *[2.4, 2.6, 2.5, 2.7, 2.6]]))
    assert set(signs) == {"loss", "s2tt_loss"}
    assert signs["loss"] == "loss was 1.06 around step 300 and is 2.56"


def test_a_long_log_is_read_for_what_may_be_a_sign_alone():
    """It is looked at with each new line: at 10,000 lines of a dozen languages all of it took two seconds."""
    asked = set()

    class Entry(dict):
        def get(self, name, default=None):
            asked.add(name)
            return super().get(name, default)

    instability([Entry(entry) for entry in log_of(falling(30, 0))])
    assert asked == {"loss", "s2tt_loss", "grad_norm"}


def test_one_odd_entry_is_none():
    assert instability(log_of([*falling(30, 0), 4.0, 1.0, 1.0, 1.0, 1.0])) == {}
    assert instability(log_of([*falling(30, 0), float("nan"), *[1.0] * 5])) == {}


def test_gradients_that_keep_growing_are_a_sign_and_large_ones_are_not():
    steady = [*falling(15), *[1.1] * 15]
    assert instability(log_of(steady, [10.0] * 30)) == {}
    growing = [1.0] * 15 + [2.0] * 5 + [4.0] * 5 + [8.0] * 5
    assert instability(log_of(falling(30, 0), growing)) == {}, "the loss falls all the same"
    signs = instability(log_of(steady, growing))
    assert list(signs) == ["grad_norm"] and "grows: 2, 4, 8" in signs["grad_norm"]
    assert instability(log_of(steady, growing), warm_up=250) == {}, "too little after the warm-up"


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10_000), noise=st.floats(0, 0.15), count=st.integers(1, 120))
def test_noise_is_no_instability(seed, noise, count):
    generator = np.random.default_rng(seed)
    norms = np.exp(0.3 * generator.standard_normal(count))
    log = log_of(falling(count, noise, seed), list(norms))
    assert all(instability(log[:end]) == {} for end in range(0, count + 1, 13))


def test_the_warning_names_the_rates_and_comes_once(caplog):
    stage = BUILT_IN_STAGES["joint"]
    callback = StabilityCallback(stage)
    log = log_of([*falling(30, 0), *[2.6] * 8])
    with caplog.at_level(logging.WARNING):
        for end in range(1, len(log) + 1):
            state = SimpleNamespace(
                is_world_process_zero=True, log_history=log[:end], max_steps=100, global_step=log[end - 1]["step"]
            )
            callback.on_log(None, state, None, logs=log[end - 1])
    assert [record.getMessage() for record in caplog.records] == [
        f"Step 350: {name} was 1.06 around step 300 and is 2.60. Training is unstable: lower the learning rates of stage "
        "'joint' (adapter 0.0002, encoder 5e-05, language_model 0.0002), or raise its `warmup_ratio` (0.05)"
        for name in ("loss", "s2tt_loss")
    ]


@pytest.mark.parametrize("log", [[], log_of([1.0])])
def test_a_short_log_says_nothing(log):
    assert instability(log) == {}
