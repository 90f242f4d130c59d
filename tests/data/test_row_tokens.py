"""Tokens of rows: counted as the tokenizer counts them one by one, once for a run."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import tiny_training
from datasets import concatenate_datasets

from modeling_part.data import row_tokens as module
from modeling_part.data.row_tokens import count_row_tokens, row_tokens, transcript


@pytest.fixture(scope="module")
def processor():
    return tiny_training.tiny_model()[1]


@pytest.fixture
def dataset():
    rows = tiny_training.tiny_dataset(words=(1, 4))
    rows = rows.map(lambda row: {name: row[name] and f"ooo {row[name]}" for name in ("text", "source_text")})
    silent = rows.filter(lambda row: row["task"] == "s2tt").map(
        lambda row: {"source_text": None, "id": f"{row['id']}-x"}
    )
    return concatenate_datasets([rows, silent.cast(rows.features)])


def test_counts_are_those_of_each_row_alone(dataset, processor, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 5)  # several batches
    found = row_tokens(dataset, processor, with_transcripts=True)
    said = [transcript(row["task"], row["text"], row["source_text"]) for row in dataset]
    ids = [processor.tokenizer(text, add_special_tokens=False)["input_ids"] if text else [] for text in said]
    assert found.answers.tolist() == [count_row_tokens(row, processor) for row in dataset]
    assert found.transcripts.tolist() == [len(one) + sum(a == b for a, b in pairwise(one)) for one in ids]
    assert sum(one is None for one in said) > 0 and not all(found.transcripts == [len(one) for one in ids])
    occurrences = Counter(token for one in ids for token in one)
    assert {index: int(count) for index, count in enumerate(found.occurrences) if count} == occurrences


def test_what_is_counted_is_kept_for_these_rows_and_this_tokenizer(dataset, processor, tmp_path, monkeypatch):
    found = row_tokens(dataset, processor, True, tmp_path)
    answers = row_tokens(dataset, processor, False, tmp_path)
    assert answers.transcripts is None and len(list(tmp_path.iterdir())) == 2
    with monkeypatch.context() as patch:
        patch.setattr(module, "_encoded", lambda *_: pytest.fail("tokenised again"))
        again = row_tokens(dataset, processor, True, tmp_path)
        assert all(np.array_equal(getattr(again, name), array) for name, array in vars(found).items())
    other = dataset.map(lambda row: {"text": f"{row['text']} more"})
    assert row_tokens(other, processor, True, tmp_path).answers.sum() > found.answers.sum()
    assert len(list(tmp_path.iterdir())) == 3


def test_no_rows_have_no_tokens(dataset, processor):
    found = row_tokens(dataset.select([]), processor, True)
    assert len(found.answers) == len(found.transcripts) == found.occurrences.sum() == 0
