"""TaskBatchSampler against its definition, through accelerate's own sharding and skipping."""

from collections import Counter

import numpy as np
from accelerate.data_loader import BatchSamplerShard, skip_first_batches
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from modeling_part.sampling import TASKS, Mixture, RowTable, TaskBatchSampler


GROUPS = (("asr", "sv", "sv"), ("asr", "en", "en"), ("s2tt", "en", "sv"), ("mt", "en", "sv"))
ALL_TASKS = {"asr": 1.0, "s2tt": 1.0, "mt": 1.0}


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
    return TaskBatchSampler(table, **{"max_audio_seconds": 60.0, "max_tokens": 160} | kwargs)


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
