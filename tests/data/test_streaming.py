"""StreamingTaskBatches: ranks that never talk agree on the task, and a resumed stream goes on where it was."""

from collections import Counter
from dataclasses import fields

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from modeling_part.data.budget import Budget
from modeling_part.data.streaming import StreamingTaskBatches, read_share


WEIGHTS = {"asr": 2.0, "s2tt": 1.0, "mt": 1.0}


def make_rows(task: str, number: int) -> list[dict]:
    return [
        {
            "id": f"{task}-{i}",
            "task": task,
            "duration": 0.0 if task == "mt" else 1.0 + (i * 37 % 100) / 10,
            "text": "x" * (1 + i * 13 % 40),
            "audio": None if task == "mt" else {"path": f"{i}.mp3", "bytes": None},
        }
        for i in range(number)
    ]


STREAMS = {task: make_rows(task, 300) for task in WEIGHTS}


def make_stream(**kwargs) -> StreamingTaskBatches:
    limits = {field.name: kwargs.pop(field.name) for field in fields(Budget) if field.name in kwargs}
    steps = range(kwargs.pop("first_step", 0), kwargs.pop("num_steps", 12))
    kwargs = {"steps": steps, "buffer_rows": 50} | kwargs
    budget = Budget(**{"max_audio_seconds": 60.0, "max_tokens": 400} | limits)
    streams = kwargs.pop("streams", STREAMS)
    weights = kwargs.pop("task_weights", WEIGHTS)
    return StreamingTaskBatches(streams, weights, lambda row: len(row["text"]), budget, **kwargs)


def load(stream: StreamingTaskBatches, num_workers: int = 0) -> list[list[dict]]:
    return list(DataLoader(stream, batch_size=None, num_workers=num_workers, collate_fn=list))


@settings(deadline=None, max_examples=40)
@given(
    world_size=st.integers(1, 4),
    gradient_accumulation_steps=st.integers(1, 3),
    num_steps=st.integers(1, 15),
    seed=st.integers(0, 2**20),
    buffer_rows=st.integers(1, 80),
    max_rows=st.one_of(st.none(), st.integers(1, 8)),
)
def test_one_task_per_global_step_equal_ranks_and_budgets(
    world_size, gradient_accumulation_steps, num_steps, seed, buffer_rows, max_rows
):
    stream = {
        "gradient_accumulation_steps": gradient_accumulation_steps,
        "num_steps": num_steps,
        "seed": seed,
        "buffer_rows": buffer_rows,
        "max_rows": max_rows,
    }
    ranks = [load(make_stream(rank=rank, world_size=world_size, **stream)) for rank in range(world_size)]
    assert {len(batches) for batches in ranks} == {num_steps * gradient_accumulation_steps}
    steps_of = Counter()
    for step in range(num_steps):
        micro = slice(step * gradient_accumulation_steps, (step + 1) * gradient_accumulation_steps)
        batches = [batch for rank in ranks for batch in rank[micro]]
        assert all(batches)
        tasks = {row["task"] for batch in batches for row in batch}
        assert len(tasks) == 1
        steps_of.update(tasks)
        for batch in batches:
            assert len(batch) * max(row["duration"] for row in batch) <= 60.0 + 1e-3
            assert len(batch) * max(len(row["text"]) for row in batch) <= 400
            assert len(batch) <= (max_rows or len(batch))
    for task, weight in WEIGHTS.items():
        assert steps_of[task] == pytest.approx(num_steps * weight / 4, abs=1)


def test_a_pass_gives_every_row_of_a_share_once_and_the_next_pass_is_counted():
    # two ranks share 300 rows, 150 each; steps of at most 10 rows
    streams = {"asr": STREAMS["asr"]}
    stream = make_stream(
        streams=streams, task_weights={"asr": 1.0}, world_size=2, rank=1, num_steps=60, max_rows=10, buffer_rows=20
    )
    rows = [row["id"] for batch in load(stream) for row in batch]
    read = len(rows) + 20  # what waits in the buffer was read too
    assert stream.passes["asr"] == -(-read // 150) > 1
    assert set(rows) == {row["id"] for row in STREAMS["asr"][1::2]}
    assert max(Counter(rows).values()) <= stream.passes["asr"]


@pytest.mark.parametrize("num_workers", [0, 2, 3])
@pytest.mark.parametrize("kind", ["list", "datasets"])
def test_resumed_stream_equals_the_uninterrupted_one(num_workers, kind):
    streams = STREAMS
    if kind == "datasets":
        streams = {task: Dataset.from_list(rows).to_iterable_dataset(num_shards=4) for task, rows in STREAMS.items()}
    whole = load(make_stream(streams=streams, gradient_accumulation_steps=2, world_size=2, rank=1), num_workers)
    assert whole == load(
        make_stream(streams=streams, gradient_accumulation_steps=2, world_size=2, rank=1), num_workers
    )
    assert [{row["batch_number"] for row in batch} for batch in whole] == [{number} for number in range(24)]
    for first_step in (1, 5, 12):
        resumed = make_stream(
            streams=streams, gradient_accumulation_steps=2, world_size=2, rank=1, first_step=first_step
        )
        assert load(resumed, num_workers) == whole[2 * first_step :]


@pytest.mark.parametrize("num_shards", [1, 4])
@pytest.mark.parametrize("kind", ["list", "datasets"])
def test_shares_of_ranks_and_workers_are_disjoint_and_complete(kind, num_shards):
    """A `datasets.IterableDataset` divides itself among workers on its own; done twice, that loses rows."""
    rows = make_rows("asr", 41)
    stream = rows if kind == "list" else Dataset.from_list(rows).to_iterable_dataset(num_shards=num_shards)
    seen = Counter()
    for rank in range(2):
        batches = make_stream(
            streams={"asr": stream},
            task_weights={"asr": 1.0},
            world_size=2,
            rank=rank,
            num_steps=42,
            max_rows=1,
            buffer_rows=1,
        )
        # 42 single-row batches of two workers: each worker reads its ten or eleven rows at least once
        seen.update(row["id"] for batch in load(batches, num_workers=2) for row in batch)
    assert set(seen) == {row["id"] for row in rows}
    assert max(seen.values()) <= 3


def test_reading_a_share_keeps_the_canonical_row():
    rows = make_rows("asr", 4)
    stream = Dataset.from_list(rows).to_iterable_dataset()
    assert list(read_share(stream, 1, 2)) == rows[1::2]


def test_lengths_of_the_ranks_go_together():
    ranks = [load(make_stream(rank=rank, world_size=2, num_steps=40, task_weights={"asr": 1.0})) for rank in range(2)]
    longest = [[max(row["duration"] for row in batch) for batch in rank] for rank in ranks]
    apart = sum(abs(a - b) for a, b in zip(*longest, strict=True)) / 40
    assert apart < 1.0, "lengths are uniform from 1 to 11 s: ranks that draw on their own are 3.3 s apart"


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"task_weights": {"asr": 1.0, "tts": 1.0}}, "tts"),
        ({"streams": {"asr": []}, "task_weights": {"mt": 1.0}}, r"without a stream \['mt'\]"),
        ({"rank": 2, "world_size": 2}, "rank is 2"),
        ({"streams": {"asr": []}, "task_weights": {"asr": 1.0}}, "gave no rows to share 1 of 1"),
        ({"streams": {"asr": make_rows("mt", 3)}, "task_weights": {"asr": 1.0}}, "row mt-0 .*task mt"),
        ({"max_audio_seconds": 5.0, "task_weights": {"asr": 1.0}}, r"row asr-\d+ .*raise max_audio_seconds=5.0"),
        (
            {"streams": {"asr": [make_rows("asr", 1)[0] | {"duration": None}]}, "task_weights": {"asr": 1.0}},
            "row asr-0 has no duration",
        ),
    ],
)
def test_streams_that_cannot_be_batched_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        load(make_stream(**kwargs))


def test_a_text_that_is_too_long_is_left_out_and_counted(caplog):
    rows = make_rows("mt", 20)
    for row in rows[::4]:
        row["text"] = "x" * 500
    batches = load(make_stream(streams={"mt": rows}, task_weights={"mt": 1.0}))
    assert {row["id"] for batch in batches for row in batch} == {row["id"] for row in rows if len(row["text"]) < 500}
    assert "mt stream: 1 rows so far alone have more tokens than a batch may (max_tokens: 400)" in caplog.text
    with pytest.raises(ValueError, match="gave no rows to share"):
        load(make_stream(streams={"mt": rows[:1]}, task_weights={"mt": 1.0}))
