"""TaskBatchSampler against its definition, through accelerate's own sharding and skipping."""

from collections import Counter
from dataclasses import fields

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard, prepare_data_loader, skip_first_batches
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from modeling_part.data.budget import Budget, round_up
from modeling_part.data.mixture import Mixture, RowTable, largest_remainder
from modeling_part.data.sampling import TaskBatchSampler, leave_out_long_texts, split_batches
from modeling_part.prompts_part import TASKS


GROUPS = (("asr", "sv", "sv"), ("asr", "en", "en"), ("s2tt", "en", "sv"), ("mt", "en", "sv"))


def make_table(rows: list[tuple[int, float, int]], weight=1.0) -> RowTable:
    """`rows` are (index into GROUPS, seconds, tokens); the seconds of text rows are ignored."""
    group = np.array([row[0] for row in rows], dtype=np.int32)
    task = np.array([TASKS.index(GROUPS[g][0]) for g in group], dtype=np.int8)
    seconds = np.array([row[1] for row in rows], dtype=np.float32) * (task != TASKS.index("mt"))
    return RowTable(
        task=task,
        group=group,
        audio_seconds=seconds.astype(np.float32),
        target_tokens=np.array([row[2] for row in rows], dtype=np.int32),
        weight=np.broadcast_to(np.float32(weight), len(rows)).copy(),
        groups=GROUPS,
    )


def tasks_present(table: RowTable) -> dict[str, float]:
    return {TASKS[code]: 1.0 for code in np.unique(table.task)}


@st.composite
def tables(draw, max_rows=60):
    row = st.tuples(st.integers(0, 3), st.floats(0.1, 30.0), st.integers(1, 60))
    return make_table(draw(st.lists(row, min_size=1, max_size=max_rows)))


settings_of_a_run = {
    "world_size": st.integers(1, 5),
    "gradient_accumulation_steps": st.integers(1, 4),
    "max_rows": st.one_of(st.none(), st.integers(1, 9)),
    "seed": st.integers(0, 2**32),
}


def make_sampler(table, **kwargs):
    kwargs.setdefault("mixture", Mixture(tasks_present(table)))
    limits = {field.name: kwargs.pop(field.name) for field in fields(Budget) if field.name in kwargs}
    budget = Budget(**{"max_audio_seconds": 60.0, "max_tokens": 160} | limits)
    return TaskBatchSampler(table, budget=budget, **kwargs)


def shard(sampler, world_size):
    return [list(BatchSamplerShard(sampler, world_size, rank, even_batches=False)) for rank in range(world_size)]


@settings(deadline=None, max_examples=150)
@given(table=tables(), epochs=st.integers(1, 3), **settings_of_a_run)
def test_global_steps_ranks_budgets_and_coverage(
    table, epochs, world_size, gradient_accumulation_steps, max_rows, seed
):
    sampler = make_sampler(
        table,
        world_size=world_size,
        gradient_accumulation_steps=gradient_accumulation_steps,
        max_rows=max_rows,
        epochs=epochs,
        seed=seed,
    )
    ranks = shard(sampler, world_size)
    assert {len(batches) for batches in ranks} == {sampler.num_steps * gradient_accumulation_steps}
    assert sum(len(batches) for batches in ranks) == len(sampler)

    for step in range(sampler.num_steps):
        micro = slice(step * gradient_accumulation_steps, (step + 1) * gradient_accumulation_steps)
        batches = [batch for rank in ranks for batch in rank[micro]]
        assert all(batches), "an empty batch"
        assert len({int(table.task[row]) for batch in batches for row in batch}) == 1
        for batch in batches:
            padded = np.ceil(table.audio_seconds[batch].max() / 0.2 - 1e-4) * 0.2
            assert len(batch) * padded <= 60.0 + 1e-6
            assert len(batch) * 8 * np.ceil(table.target_tokens[batch].max() / 8) <= 160
            assert len(batch) <= (max_rows or len(batch))

    drawn = Counter(row for rank in ranks for batch in rank for row in batch)
    reports = [sampler.epoch_report(epoch) for epoch in range(epochs)]
    repeated = sum(report["repeated_rows"] for report in reports)
    assert all(drawn[row] >= epochs for row in range(len(table))), "a row was lost"
    assert sum(drawn.values()) == epochs * len(table) + repeated
    # repeats are for tasks that cannot fill a step, so fewer than a step's batches per task, and only at the end
    assert repeated < world_size * gradient_accumulation_steps * len(tasks_present(table))
    assert [report["repeated_rows"] for report in reports[:-1]] == [0] * (epochs - 1)
    assert sum(sum(report["rows"].values()) for report in reports) == sum(drawn.values())


@settings(deadline=None, max_examples=50)
@given(table=tables(), num_steps=st.integers(1, 12), skipped=st.integers(0, 12), **settings_of_a_run)
def test_resume_gives_the_batches_an_uninterrupted_run_would_have_seen(
    table, num_steps, skipped, world_size, gradient_accumulation_steps, max_rows, seed
):
    kwargs = {
        "world_size": world_size,
        "gradient_accumulation_steps": gradient_accumulation_steps,
        "max_rows": max_rows,
        "num_steps": num_steps,
        "seed": seed,
    }
    skipped = min(skipped, num_steps) * gradient_accumulation_steps

    def loader(rank):
        batches = BatchSamplerShard(make_sampler(table, **kwargs), world_size, rank, even_batches=False)
        return DataLoader(list(range(len(table))), batch_sampler=batches, collate_fn=list)

    for rank in range(world_size):
        whole = list(loader(rank))
        assert len(whole) == num_steps * gradient_accumulation_steps
        assert list(skip_first_batches(loader(rank), skipped)) == whole[skipped:]


@settings(deadline=None, max_examples=50)
@given(table=tables(), parts=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=1, max_size=3))
def test_resuming_with_another_number_of_ranks_loses_and_doubles_nothing(table, parts):
    history, trained = [], []
    for batches_per_step, wanted_steps in parts:
        sampler = make_sampler(table, world_size=batches_per_step, epochs=2, history=history)
        steps_before = sum(steps for _, steps in history)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        assert not any(batches[: steps_before * batches_per_step]) and all(batches[steps_before * batches_per_step :])
        steps = min(wanted_steps, sampler.num_steps - steps_before)
        trained += batches[steps_before * batches_per_step : (steps_before + steps) * batches_per_step]
        history.append((batches_per_step, steps))
    sampler = make_sampler(table, world_size=3, epochs=2, history=history)
    trained += [batch for batch in sampler if batch]
    drawn = Counter(row for batch in trained for row in batch)
    assert all(drawn[row] >= 2 for row in range(len(table))), "a row was lost"
    # only steps that nothing else could fill repeat rows: fewer than one step per task and part
    widths = [batches_per_step for batches_per_step, _ in history] + [3]
    assert sum(drawn.values()) - 2 * len(table) <= sum(width - 1 for width in widths) * len(tasks_present(table))


def test_rows_that_were_waiting_when_the_number_of_ranks_changed_come_still():
    # four ranks: two steps of transcription per epoch, and three text rows that cannot fill a step and wait
    table = make_table([(0, 1.0, 8)] * 8 + [(3, 0.0, 8)] * 3)
    before = make_sampler(table, world_size=4, max_rows=1, epochs=2)
    assert before.epoch_report(0)["steps"] == 2 and before.epoch_report(0)["carried_rows"] == 3
    after = make_sampler(table, world_size=1, max_rows=1, epochs=2, history=[(4, 1)])
    drawn = Counter(row for batch in [*list(before)[:4], *after] for row in batch)
    assert drawn == dict.fromkeys(range(11), 2)


def test_lengths_that_are_whole_multiples_are_not_rounded_up_again():
    seconds = np.array([0.2, 0.6, 1.0, 1.21, 0.0], dtype=np.float32)
    assert round_up(seconds, 0.2).tolist() == [1, 3, 5, 7, 0]
    assert Budget(0.6, 24, pad_seconds_multiple=0.2).limits == (3, 3, None)  # 0.6 / 0.2 is less than 3 in float64


def test_ranks_and_accumulation_matter_by_their_product_only():
    table = make_table([(i % 4, 1 + i % 7, 5 + i % 11) for i in range(200)])
    one = make_sampler(table, world_size=6, gradient_accumulation_steps=1, epochs=2)
    other = make_sampler(table, world_size=2, gradient_accumulation_steps=3, epochs=2)
    assert list(one) == list(other)


def test_same_arguments_same_batches_and_epochs_differ():
    table = make_table([(0, 2.0, 8)] * 100)
    batches = list(make_sampler(table, world_size=2, epochs=2, seed=3))
    assert batches == list(make_sampler(table, world_size=2, epochs=2, seed=3))
    assert batches != list(make_sampler(table, world_size=2, epochs=2, seed=4))
    half = len(batches) // 2
    assert batches[:half] != batches[half:]


def test_tasks_and_lengths_come_in_any_order():
    """Rows are sorted to be cut into batches; the steps are not: all of one task first would be another training."""
    table = make_table([(i % 4, 1 + i % 20, 5 + i % 11) for i in range(400)])
    sampler = make_sampler(table, world_size=2, epochs=2)
    for epoch in range(2):
        plan = sampler.plan(epoch)
        assert sorted(plan.step_order.tolist()) == list(range(len(plan.step_order)))
        firsts = plan.rows[plan.bounds[plan.step_order * 2]]
        assert np.count_nonzero(np.diff(table.task[firsts])) > len(firsts) / 3
        lengths = table.audio_seconds[firsts[table.task[firsts] == TASKS.index("asr")]]
        longer, shorter = ((np.diff(sign * lengths) > 0).sum() for sign in (1, -1))
        assert min(longer, shorter) > len(lengths) / 4


def test_through_accelerate_every_rank_gets_its_share_and_the_loader_keeps_its_length():
    table = make_table([(i % 3, 1 + i % 9, 4 + i % 20) for i in range(300)])

    def loader(rank):
        sampler = make_sampler(table, world_size=4, gradient_accumulation_steps=2, epochs=1)
        data = DataLoader(list(range(len(table))), batch_sampler=sampler, collate_fn=list)
        return prepare_data_loader(data, num_processes=4, process_index=rank, even_batches=False)

    loaders = [loader(rank) for rank in range(4)]
    batches = [list(loader) for loader in loaders]
    assert {len(rank) for rank in batches} == {len(loader) for loader in loaders}
    assert sorted(row for rank in batches for batch in rank for row in batch) == list(range(300))
    resumed = [list(skip_first_batches(loader(rank), 4)) for rank in range(4)]
    assert resumed == [rank[4:] for rank in batches]


def greedy_reference(lengths: list[tuple[float, int]], max_seconds: float, max_tokens: int) -> list[int]:
    """Batch sizes by taking row after row as long as the budgets allow."""
    sizes, batch = [], []
    for row in lengths:
        longer = [*batch, row]
        seconds, tokens = max(r[0] for r in longer), max(r[1] for r in longer)
        if len(longer) * seconds > max_seconds + 1e-6 or len(longer) * tokens > max_tokens:
            sizes.append(len(batch))
            longer = [row]
        batch = longer
    return [*sizes, len(batch)] if batch else sizes


@settings(deadline=None, max_examples=100)
@given(table=tables(max_rows=200), max_seconds=st.integers(30, 120), max_tokens=st.integers(64, 400))
def test_batches_are_as_large_as_the_budgets_allow(table, max_seconds, max_tokens):
    sampler = make_sampler(table, epochs=1, max_audio_seconds=max_seconds, max_tokens=max_tokens)
    plan = sampler.plan(0)
    expected = []
    for task in range(len(TASKS)):
        rows = plan.rows[table.task[plan.rows] == task]
        padded = [
            (0.2 * np.ceil(table.audio_seconds[row] / 0.2 - 1e-4), 8 * int(np.ceil(table.target_tokens[row] / 8)))
            for row in rows
        ]
        assert [seconds for seconds, _ in padded] == sorted((seconds for seconds, _ in padded), reverse=True)
        expected += greedy_reference(padded, max_seconds, max_tokens)
    assert np.diff(plan.bounds).tolist() == expected


def test_texts_of_one_length_of_audio_are_sorted_so_that_neighbours_fit():
    """Down in one and up in the next: a batch over the seam pads the least."""
    table = make_table([(0, seconds, tokens) for seconds in (0.2, 0.4, 0.6) for tokens in (16, 8, 24)])
    plan = make_sampler(table, epochs=1).plan(0)
    assert table.audio_seconds[plan.rows].tolist() == sorted(table.audio_seconds.tolist(), reverse=True)
    tokens = table.target_tokens[plan.rows].tolist()
    assert tokens == [8, 16, 24, 24, 16, 8, 8, 16, 24]


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=12), data=st.data())
def test_split_batches_gives_the_number_asked_for_and_halves_the_largest(sizes, data):
    total = data.draw(st.integers(len(sizes), sum(sizes)))
    pieces = split_batches(np.array(sizes), total)
    assert len(pieces) == total and pieces.min() >= 1
    ends = set(np.cumsum(pieces).tolist())
    assert set(np.cumsum(sizes).tolist()) <= ends, "a piece reaches over the end of a batch"
    # no way of splitting has a smaller largest piece: with one less, the batches would need more than `total`
    smaller = pieces.max() - 1
    assert smaller == 0 or sum(-(-size // smaller) for size in sizes) > total


@given(st.lists(st.floats(0, 1000), min_size=1, max_size=20))
def test_largest_remainder_rounds_to_the_sum_and_by_less_than_one(shares):
    shares = np.array(shares)
    counts = largest_remainder(shares)
    assert counts.sum() == pytest.approx(shares.sum(), abs=0.5 + 1e-6)
    assert np.abs(counts - shares).max() < 1 + 1e-6
    missed = shares - counts  # what was rounded up had no smaller remainder than what was rounded down
    assert missed.max() <= missed.min() + 1 + 1e-6


def draws(sampler, table, epoch=0):
    return Counter(table.group[sampler.plan(epoch).rows].tolist())


def test_temperature_by_hand():
    # 900 Swedish and 100 English transcriptions; T = 2 draws as the square roots, 30 : 10
    table = make_table([(0, 1.0, 8)] * 900 + [(1, 1.0, 8)] * 100)
    flat = make_sampler(table, mixture=Mixture({"asr": 1.0}, temperature=2.0), epochs=1)
    assert draws(flat, table) == {0: 750, 1: 250}
    counts = np.bincount(flat.plan(0).rows, minlength=1000)
    assert counts[:900].max() == 1, "a Swedish row came twice before all of them came once"
    assert set(counts[900:]) == {2, 3}, "English rows must be used up evenly"
    as_is = make_sampler(table, mixture=Mixture({"asr": 1.0}), epochs=1)
    assert draws(as_is, table) == {0: 900, 1: 100}


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 80), min_size=2, max_size=2),
    temperature=st.floats(1.0, 20.0),
    task_weight=st.floats(0.5, 3.0),
    raised=st.floats(0.5, 4.0),
)
def test_mixture_against_the_formula(sizes, temperature, task_weight, raised):
    table = make_table([(0, 1.0, 8)] * sizes[0] + [(1, 1.0, 8)] * sizes[1] + [(2, 1.0, 8)] * 50)
    mixture = Mixture({"asr": task_weight}, temperature, {"en": raised})
    sampler = make_sampler(table, mixture=mixture, epochs=1)
    powers = [n ** (1 / temperature) for n in sizes]
    expected = [task_weight * sum(sizes) * power / sum(powers) for power in powers]
    got = draws(sampler, table)
    assert got[0] == pytest.approx(expected[0], abs=1)
    assert got[1] == pytest.approx(expected[1] * raised, abs=1)
    assert set(got) <= {0, 1}, "translation was not asked for"


def test_rows_are_used_up_across_epochs_before_one_comes_again():
    table = make_table([(0, 1.0, 8)] * 10)
    sampler = make_sampler(table, mixture=Mixture({"asr": 0.3}), epochs=10)
    drawn = [sampler.plan(epoch).rows.tolist() for epoch in range(10)]
    assert [len(rows) for rows in drawn] == [3] * 10
    in_order = [row for rows in drawn for row in rows]
    assert sorted(in_order[:9]) == sorted(set(in_order[:9]))
    assert Counter(in_order) == dict.fromkeys(range(10), 3)
    halves = make_sampler(table, mixture=Mixture({"asr": 0.5}), epochs=8)
    firsts = {frozenset(halves.plan(epoch).rows.tolist()) for epoch in range(0, 8, 2)}
    assert len(firsts) > 1, "each time through, the rows are in another order"


def test_corpus_weights_count_per_row():
    table = make_table([(0, 1.0, 8)] * 40)
    table.weight[:10] = 2.0
    table.weight[30:] = 0.0
    counts = np.bincount(make_sampler(table, epochs=1).plan(0).rows, minlength=40)
    assert counts.tolist() == [2] * 10 + [1] * 20 + [0] * 10


def test_rows_that_cannot_fill_a_step_wait_for_the_next_epoch():
    table = make_table([(0, 1.0, 8)] * 5)
    sampler = make_sampler(table, world_size=4, max_rows=1, epochs=3)
    reports = [sampler.epoch_report(epoch) for epoch in range(3)]
    assert [(r["steps"], r["carried_rows"], r["repeated_rows"]) for r in reports] == [(1, 1, 0), (1, 2, 0), (2, 0, 1)]
    few = make_sampler(make_table([(0, 1.0, 8)] * 3), world_size=4, epochs=2)
    assert few.epoch_report(0)["steps"] == 0
    assert few.epoch_report(1)["steps"] == 1 and few.epoch_report(1)["repeated_rows"] == 0


def test_no_row_has_to_wait_in_every_epoch():
    table = make_table([(0, 1.0 + i, 8) for i in range(5)])
    sampler = make_sampler(table, world_size=4, max_rows=1, num_steps=1)
    waiting = [sampler.plan(epoch).carried.tolist() for epoch in range(30)]
    assert {row for rows in waiting for row in rows} == set(range(5))


def test_a_task_without_rows_is_said_and_left_out(caplog):
    table = make_table([(0, 1.0, 8)] * 3)
    table = RowTable(**{**vars(table), "groups": GROUPS[:1]})
    sampler = make_sampler(table, mixture=Mixture({"asr": 1.0, "mt": 1.0}), epochs=1)
    assert draws(sampler, table) == {0: 3}
    assert "no rows of mt" in caplog.text


def test_a_language_of_which_no_row_is_ever_drawn_is_said(caplog):
    table = make_table([(0, 1.0, 8)] * 5 + [(1, 1.0, 8)])
    sampler = make_sampler(table, mixture=Mixture({"asr": 0.4}), num_steps=20)
    assert {int(table.group[row]) for batch in sampler for row in batch} == {0}
    assert "Some rows of asr/en are never drawn" in caplog.text
    caplog.clear()
    rare = make_table([(0, 1.0, 8)] * 6)
    rare.weight[5] = 0.2  # beside rows of the same language that are drawn
    make_sampler(rare, epochs=1)
    assert "Some rows of asr/sv are never drawn" in caplog.text
    caplog.clear()
    make_sampler(table, epochs=1)
    table.weight[:3] = 0.0
    make_sampler(table, epochs=1)
    assert "never drawn" not in caplog.text


def test_epoch_report_by_hand():
    table = make_table([(0, 1.0, 8), (0, 0.5, 8), (2, 2.0, 8), (3, 0.0, 8)])
    report = make_sampler(table, epochs=1).epoch_report(0)
    assert report["rows"] == {"asr/sv": 2, "s2tt/en-sv": 1, "mt/en-sv": 1}
    assert report["hours"] == {"asr/sv": pytest.approx(1.5 / 3600), "s2tt/en-sv": 2 / 3600, "mt/en-sv": 0.0}
    assert report["steps"] == 3
    # padded: two rows of 1.0 s and one of 2.0 s, for 3.5 s of audio
    assert report["padding_share"] == pytest.approx(1 - 3.5 / 4.0)


def test_a_row_over_the_budget_is_named_with_the_setting_to_raise():
    table = make_table([(0, 3.0, 8), (0, 61.0, 8)])
    with pytest.raises(ValueError, match=r"1 rows.*row 1 \(asr/sv, 61\.00 s, 8 tokens\).*raise max_audio_seconds"):
        make_sampler(table, epochs=1)
    table = make_table([(0, 3.0, 8), (3, 0.0, 161)])
    with pytest.raises(ValueError, match=r"row 1 \(mt/en-sv.*161 tokens\).*raise max_tokens"):
        make_sampler(table, epochs=1)
    # rows of a task that is not trained do not matter
    make_sampler(table, mixture=Mixture({"asr": 1.0}), epochs=1)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"epochs": 1, "num_steps": 1}, "either `epochs` or `num_steps`"),
        ({}, "either `epochs` or `num_steps`"),
        ({"epochs": 0}, "`epochs` is 0"),
        ({"epochs": 1, "world_size": 0}, "`world_size` is 0"),
        ({"epochs": 1, "mixture": Mixture({"mt": 1.0})}, "no row at all"),
        ({"epochs": 1, "mixture": Mixture({"asr": 1.0}, 1.0, {"en-fi": 2.0})}, "en-fi"),
        ({"epochs": 1, "mixture": Mixture({"asr": 0.0})}, "no row at all"),
    ],
)
def test_contradictory_settings_are_refused(change, message):
    table = make_table([(0, 1.0, 8)] * 3)
    table = RowTable(**{**vars(table), "groups": GROUPS[:1]})
    with pytest.raises(ValueError, match=message):
        make_sampler(table, **change)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"task_weights": {"tts": 1.0}}, "tts"),
        ({"temperature": 0.5}, "temperature is 0.5"),
        ({"task_weights": {"asr": -1.0}}, "not negative"),
        ({"direction_weights": {"sv": float("inf")}}, "finite"),
    ],
)
def test_mixtures_that_cannot_be_meant_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Mixture(**kwargs)


def make_dataset(rows):
    from datasets import Dataset

    names = ("task", "source_lang", "target_lang", "duration", "corpus")
    return Dataset.from_list([{"id": str(i), **dict(zip(names, row, strict=True))} for i, row in enumerate(rows)])


def test_row_table_reads_a_dataset_with_and_without_an_index_mapping():
    rows = [
        ("asr", "sv", "sv", 1.5, "fleurs"),
        ("s2tt", "en", "zh-CN", 2.5, "covost"),
        ("mt", "en", "sv", 0.0, "covost"),
        ("asr", "sv", "sv", 3.5, "fleurs"),
    ]
    order = [3, 1, 0, 2, 1]
    for dataset, picked in (
        (make_dataset(rows), rows),
        (make_dataset(rows).select(order), [rows[i] for i in order]),
    ):
        table = RowTable.from_dataset(dataset, np.arange(len(picked)), {"covost": 0.5})
        assert [(TASKS[t], *table.groups[g][1:]) for t, g in zip(table.task, table.group, strict=True)] == [
            row[:3] for row in picked
        ]
        assert table.audio_seconds.tolist() == [row[3] for row in picked]
        assert table.target_tokens.tolist() == list(range(len(picked)))
        assert table.weight.tolist() == [0.5 if row[4] == "covost" else 1.0 for row in picked]
        assert {str(array.dtype) for array in (table.task, table.group, table.audio_seconds)} == {
            "int8", "int32", "float32",
        }  # fmt: skip


@pytest.mark.parametrize(
    "row, message",
    [
        (("tts", "sv", "sv", 1.0, "x"), "tts"),
        (("asr", "sv", None, 1.0, "x"), "1 rows without"),
        (("asr", "sv", "sv", 0.0, "x"), "row 1"),
        (("s2tt", "sv", "en", None, "x"), "row 1"),
    ],
)
def test_row_table_refuses_rows_it_cannot_batch(row, message):
    with pytest.raises(ValueError, match=message):
        RowTable.from_dataset(make_dataset([("asr", "sv", "sv", 1.0, "x"), row]), [1, 1])


def test_padding_and_idle_time_stay_small_at_a_small_scale():
    rng = np.random.default_rng(0)
    seconds = np.clip(rng.lognormal(np.log(5), 0.5, 40_000), 1, 20)
    table = make_table(list(zip(rng.integers(0, 3, 40_000), seconds, (seconds * 4).astype(int), strict=True)))
    sampler = make_sampler(table, max_audio_seconds=200, max_tokens=4000, world_size=16, epochs=1)
    assert sampler.epoch_report(0)["padding_share"] < 0.05
    plan = sampler.plan(0)
    longest = np.maximum.reduceat(table.audio_seconds[plan.rows], plan.bounds[:-1]) * np.diff(plan.bounds)
    per_step = longest.reshape(-1, 16)
    assert 1 - per_step.mean() / per_step.max(axis=1).mean() < 0.06


def test_a_text_that_is_too_long_is_left_out_and_speech_is_an_error(caplog):
    table = make_table([(3, 0.0, 20), (3, 0.0, 161), (3, 0.0, 160), (3, 0.0, 400)])
    leave_out_long_texts(table, Budget(60.0, 160))
    assert table.weight.tolist() == [1, 0, 1, 0]
    assert "2 rows of text tasks alone have more tokens than a batch may (max_tokens: 160)" in caplog.text
    assert "row 3, has 400" in caplog.text
    assert {row for batch in make_sampler(table, epochs=1) for row in batch} == {0, 2}
    speech = make_table([(0, 1.0, 400), (0, 1.0, 4)])
    leave_out_long_texts(speech, Budget(60.0, 160))
    with pytest.raises(ValueError, match="1 rows are over the budget alone"):
        make_sampler(speech, epochs=1)


def test_an_epoch_that_would_not_end_is_refused():
    table = make_table([(0, 1.0, 4)] * 10, weight=50.0)
    with pytest.raises(ValueError, match=r"An epoch would draw 50,000 rows of 10, each more than 1000 times: lower"):
        make_sampler(table, mixture=Mixture({"asr": 100.0}), epochs=1)
    make_sampler(table, mixture=Mixture({"asr": 10.0}), epochs=1)
