"""Tokens of rows: counted as the tokenizer counts them one by one, once for a run."""

import random
from collections import Counter
from importlib import import_module
from itertools import pairwise

import numpy as np
import pyarrow
import pytest
import tiny_training
from datasets import concatenate_datasets
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from modeling_part.data import row_tokens as module
from modeling_part.data.collator import PARTCollator
from modeling_part.data.row_tokens import count_row_tokens, row_tokens, transcript
from modeling_part.data.rows import canonical_features
from modeling_part.data.text_pieces import splits_at_spaces, text_tokens


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
    monkeypatch.setattr(module, "TOGETHER", 2)
    found = row_tokens(dataset, processor, with_transcripts=True)
    said = [transcript(row["task"], row["text"], row["source_text"]) for row in dataset]
    ids = [processor.tokenizer(text, add_special_tokens=False)["input_ids"] if text else [] for text in said]
    assert found.answers.tolist() == [count_row_tokens(row, processor) for row in dataset]
    assert found.transcripts.tolist() == [len(one) + sum(a == b for a, b in pairwise(one)) for one in ids]
    assert sum(one is None for one in said) > 0 and not all(found.transcripts == [len(one) for one in ids])
    occurrences = Counter(token for one in ids for token in one)
    assert {index: int(count) for index, count in enumerate(found.occurrences) if count} == occurrences


def test_what_looks_like_a_special_token_is_counted_as_the_text_that_it_is(dataset, processor):
    row = next(row for row in dataset if row["task"] == "asr")
    row = {**row, "text": f"one {processor.tokenizer.eos_token} {processor.audio_token} two"}
    batch = PARTCollator(processor, with_transcripts=True)([row])
    answer = batch["labels"][batch["labels"] != -100].tolist()
    assert batch["transcript_ids"].tolist() == [answer[:-1]]
    rows = type(dataset).from_list([row], features=dataset.features)
    found = row_tokens(rows, processor, with_transcripts=True)
    assert found.answers.tolist() == [len(answer)] == [count_row_tokens(row, processor)]
    assert found.occurrences.sum() == len(answer) - 1


def test_what_rows_are_asked_in_words_of_their_own_counts_against_the_budget(dataset, processor, tmp_path):
    """A long list of names takes memory as an answer does; what is said stays what it is."""
    own = [
        {"context": "Anna Maria\nBerta", "prompt": "Write it down."},
        {"context": "Cara"},
        {"prompt": "Listen."},
        {},
    ]
    rows = [{**row, "prompt": None, "context": None, **own[number % 4]} for number, row in enumerate(dataset)]
    asked = type(dataset).from_list(rows, features=canonical_features())
    plain, found = (row_tokens(one, processor, True, tmp_path) for one in (dataset, asked))
    more = [
        len(processor.tokenizer(" ".join(words), add_special_tokens=False)["input_ids"])
        for words in (["Write it down.", "Anna Maria\nBerta"], ["Cara"], ["Listen."], [])
    ]
    assert (found.answers - plain.answers).tolist() == [more[number % 4] for number in range(len(rows))]
    assert found.answers.tolist() == [count_row_tokens(row, processor) for row in rows] and more[0] > more[1] > 0
    assert np.array_equal(found.transcripts, plain.transcripts)
    assert np.array_equal(found.occurrences, plain.occurrences)
    assert row_tokens(asked, processor, False).answers.tolist() == found.answers.tolist()


def test_what_is_counted_is_kept_for_these_rows_and_this_tokenizer(dataset, processor, tmp_path, monkeypatch):
    answers = row_tokens(dataset, processor, False, tmp_path)
    found = row_tokens(dataset, processor, True, tmp_path)
    assert answers.transcripts is None and len(list(tmp_path.iterdir())) == 2
    for path in tmp_path.glob("*[!s].npz"):  # a stage without alignment takes what one with it has counted
        path.unlink()
    assert len(list(tmp_path.iterdir())) == 1
    with monkeypatch.context() as patch:
        patch.setattr(module, "text_tokens", lambda *_: pytest.fail("tokenised again"))
        assert np.array_equal(row_tokens(dataset, processor, False, tmp_path).answers, answers.answers)
        again = row_tokens(dataset, processor, True, tmp_path)
        assert all(np.array_equal(getattr(again, name), array) for name, array in vars(found).items())
    other = dataset.map(lambda row: {"text": f"{row['text']} more"})
    assert row_tokens(other, processor, True, tmp_path).answers.sum() > found.answers.sum()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "damage", [lambda data: data[:200], lambda data: b"", lambda data: data.replace(b"\1", b"\2")]
)
def test_tokens_whose_file_is_damaged_are_counted_again(dataset, processor, tmp_path, caplog, damage):
    found = row_tokens(dataset, processor, True, tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    again = row_tokens(dataset, processor, True, tmp_path)
    assert all(np.array_equal(getattr(again, name), array) for name, array in vars(found).items())
    assert f"{path} is damaged" in caplog.text


def test_no_rows_have_no_tokens(dataset, processor):
    found = row_tokens(dataset.select([]), processor, True)
    assert len(found.answers) == len(found.transcripts) == found.occurrences.sum() == 0


TEXTS = (
    *(
        "",
        " ",
        "a",
        "a b",
        " a",
        "a ",
        "a  b",
        "it's John's  o'clock",
        "x\u00a0y z",
        "e\u0301 \u0301 e",
        "a\nb c\td",
        "12 34 5",
    ),
    *(
        "<|x|> a <|x|>",
        "a<|x|>b c",
        "早上好 窗户 开着",
        "это книга",
        "a\u200b b",
        "  ",
        "aa aa a aa",
        "- a -b c- d",
        "½ ⅷ a½",
    ),
)
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
QWEN = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
)
DIGITS = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2])


def trained(pre_tokenizer, normalizer=None, **of_token):
    """A tokenizer whose vocabulary has pieces of many bytes, spaces in front among them."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.normalizer = pre_tokenizer, normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([*TEXTS, "a b a b it's John's o'clock this is a book"] * 20, trainer)
    backend.add_special_tokens([AddedToken("<|x|>", **of_token)])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.mark.parametrize(
    "tokenizer, by_words",
    [
        (trained(GPT2), True),
        (trained(QWEN, normalizers.NFC()), True),
        (trained(DIGITS), True),
        (trained(GPT2, lstrip=True), False),  # an added token takes the space before it
        (trained(GPT2, normalizers.Prepend("x")), False),
        (trained(pre_tokenizers.ByteLevel(add_prefix_space=True)), False),
        (trained(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)), False),  # pieces of several words
        (trained(pre_tokenizers.Metaspace()), False),
    ],
)
def test_tokens_of_texts_are_those_of_the_tokenizer(tokenizer, by_words):
    assert splits_at_spaces(tokenizer) == by_words
    generator = random.Random(0)
    alphabet = "".join(TEXTS) + " " * 40
    texts = [*TEXTS, *("".join(generator.choices(alphabet, k=generator.randint(1, 30))) for _ in range(500))]
    expected = tokenizer(texts, add_special_tokens=False)["input_ids"]
    texts += texts[:40]
    expected += expected[:40]
    other, found = text_tokens(
        [pyarrow.array(["", None, "b a", *texts]).slice(1, 90), pyarrow.array(texts)], tokenizer
    )
    pieces = np.split(found.ids, found.bounds[1:-1])
    of_different = [
        [int(token) for code in codes for token in pieces[code]] for codes in np.split(found.codes, found.pieces[1:-1])
    ]
    assert [of_different[which] for which in found.which] == expected
    assert len(of_different) < len(texts)
    assert other.lengths[2:].tolist() == [len(one) for one in expected[:88]] and other.lengths[0] == 0
    assert found.lengths.tolist() == [len(one) for one in expected]
    assert found.repeats.tolist() == [sum(a == b for a, b in pairwise(one)) for one in expected]
    chosen = np.arange(len(texts)) % 2 == 0
    counts = Counter(token for one in expected[::2] for token in one)
    assert {t: int(n) for t, n in enumerate(found.occurrences(chosen, len(tokenizer))) if n} == counts
    assert len(found.bounds) - 1 < len(found.codes) + len(other.codes)  # what stands there twice was tokenised once


def test_the_known_patterns_are_those_of_the_tokenizers_of_transformers():
    for module_name in ("qwen2", "qwen3_5"):
        source = import_module(f"transformers.models.{module_name}.tokenization_{module_name}")
        split = pre_tokenizers.Split(Regex(source.PRETOKENIZE_REGEX), "isolated")
        assert splits_at_spaces(
            trained(pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, True, False)]))
        )
