"""Rows that are longer than encoder or language model have positions for are named before the first step."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import tiny_training
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers import AutoModelForCausalLM, GPT2Config, OPTConfig, Qwen2Config

from modeling_part import PARTForSpeechSeq2Seq
from modeling_part.data.collator import PARTCollator
from modeling_part.data.loading import Rows
from modeling_part.recipes.arguments import DataArguments, ModelArguments, PARTTrainingArguments, Recipe
from modeling_part.training.limits import RowLengths, TooLongError, _durations, check_lengths, has_learned_positions


def recipe(tmp_path, **data):
    training = PARTTrainingArguments(output_dir=str(tmp_path), use_cpu=True, max_new_tokens=data.pop("new", 4))
    return Recipe(ModelArguments(checkpoint="tiny"), DataArguments(**data), training)


@pytest.fixture(scope="module")
def with_language_model(tmp_path_factory, tiny_parts):
    """PART around a random language model with so many positions."""

    def build(kind, positions):
        folder = tmp_path_factory.mktemp(kind)
        sizes = {"vocab_size": 259, "bos_token_id": 1, "eos_token_id": 2}
        config = {
            "gpt2": lambda: GPT2Config(n_positions=positions, n_embd=32, n_layer=1, n_head=2, **sizes),
            "opt": lambda: OPTConfig(max_position_embeddings=positions, hidden_size=32, word_embed_proj_dim=32,
                                     num_hidden_layers=1, num_attention_heads=2, ffn_dim=32, pad_token_id=0, **sizes),
            "qwen2": lambda: Qwen2Config(max_position_embeddings=positions, hidden_size=32, num_hidden_layers=1,
                                         num_attention_heads=2, num_key_value_heads=2, intermediate_size=32, **sizes),
        }[kind]()  # fmt: skip
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        tiny.tiny_tokenizer().save_pretrained(folder)
        settings = {"adapter_hidden_size": 32, "adapter_num_attention_heads": 2}
        return PARTForSpeechSeq2Seq.from_pretrained_parts(str(tiny_parts.audio_model), str(folder), **settings)

    return build


@pytest.mark.parametrize("tasks", [("asr",), ("mt",), ("asr", "s2tt", "mt")])
@pytest.mark.parametrize("multiple", [1, 8])
def test_the_length_of_the_longest_row_is_that_of_its_batch(tasks, multiple):
    dataset = tiny_training.tiny_dataset(tasks, count=8, words=(1, 5), seed=3)
    _, processor = tiny_training.tiny_model()
    collator = PARTCollator(processor, 0.2, multiple)
    actual = [collator([row])["input_ids"].shape[1] for row in dataset]
    seconds = np.array([row["duration"] if row["task"] != "mt" else 0.0 for row in dataset])
    row, positions = RowLengths(dataset, seconds, processor, 0).longest_above(1, multiple)
    assert abs(positions - max(actual)) <= multiple and abs(actual[row] - max(actual)) <= multiple
    assert RowLengths(dataset, seconds, processor, 0).longest_above(max(actual) + multiple, multiple) == (None, 0)


def test_answers_that_will_be_cut_off_are_counted(tmp_path, caplog):
    model, processor = tiny_training.tiny_model()
    dataset = tiny_training.tiny_dataset(("asr", "mt"), count=4).map(
        lambda row, i: {"context": "x" * 99}, with_indices=True
    )
    longest = max(len(processor.tokenizer(text)["input_ids"]) + 1 for text in dataset["text"])
    check_lengths(model, processor, Rows(test=dataset), recipe(tmp_path, new=longest))
    assert "are cut off" not in caplog.text
    check_lengths(model, processor, Rows(test=dataset), recipe(tmp_path, new=2))
    assert "8 of 8 texts of `test_data` have more tokens than `max_new_tokens` (2)" in caplog.text


def test_a_token_without_an_embedding_is_refused(tmp_path):
    model, processor = tiny_training.tiny_model()
    known = model.get_input_embeddings().num_embeddings
    processor.tokenizer.add_tokens([f"<new {number}>" for number in range(known)])
    with pytest.raises(ValueError, match=rf"Token '<new \d+>' .* has embeddings of {known}: call"):
        check_lengths(model, processor, Rows(test=tiny_training.tiny_dataset(("asr",))), recipe(tmp_path))


@pytest.mark.parametrize("unknown", ["<|endoftext|>", None])
def test_characters_that_the_tokenizer_cannot_write_are_told(tmp_path, caplog, unknown):
    model, processor = tiny_training.tiny_model()
    texts = ["un œuf", "un", "\u0065\u0301te\u0301", "ça"]
    dataset = tiny_training.tiny_dataset(("asr",), count=2).map(lambda _, i: {"text": texts[i]}, with_indices=True)
    dataset = dataset.map(lambda row: {"source_text": row["text"]})
    check_lengths(model, processor, Rows(train=dataset), recipe(tmp_path))
    assert "cannot write" not in caplog.text  # in bytes everything can
    backend = processor.tokenizer.backend_tokenizer
    known = sorted({*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ .,\né"})
    backend.model = models.BPE({token: number for number, token in enumerate(["<|endoftext|>", *known])}, [])
    backend.model.unk_token = unknown
    backend.normalizer, backend.decoder = normalizers.NFC(), decoders.Fuse()
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    check_lengths(model, processor, Rows(train=dataset), recipe(tmp_path))
    assert f"2 of 4 rows of `train_data`, the first is {dataset[0]['id']!r}, hold characters" in caplog.text
    assert "learn without them: œ ç." in caplog.text


@pytest.mark.parametrize("new_tokens", [0, 7])
def test_the_words_that_a_row_is_asked_with_count(new_tokens):
    dataset = tiny_training.tiny_dataset(("asr",), count=4)
    _, processor = tiny_training.tiny_model()
    names = " ".join(f"name{number}" for number in range(50))  # one line: lines are joined by commas
    rows = dataset.map(lambda row, index: {"context": names if index == 2 else None}, with_indices=True)
    seconds = np.array(rows["duration"])
    long = len(processor.tokenizer(names)["input_ids"])
    row, positions = RowLengths(rows, seconds, processor, new_tokens).longest_above(long, 1)
    _, without = RowLengths(dataset, seconds, processor, new_tokens).longest_above(1, 1)
    assert row == 2 and long < positions <= without + long
    if not new_tokens:
        assert abs(positions - PARTCollator(processor, 0.2, 1)([rows[2]])["input_ids"].shape[1]) <= 16


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_a_row_beyond_learned_positions_is_refused(with_language_model, tmp_path, kind):
    dataset = tiny_training.tiny_dataset(("asr",), count=4)
    model, processor = with_language_model(kind, 40)
    assert has_learned_positions(model.model.language_model)
    for rows in (Rows(train=dataset), Rows(test=dataset), Rows(eval=dataset)):
        name = next(iter(rows.datasets))
        with pytest.raises(TooLongError, match=rf"Row '\S+' of `{name}_data` takes \d+ positions .* has 40: lower"):
            check_lengths(model, processor, rows, recipe(tmp_path))
    model, processor = with_language_model(kind, 200)
    check_lengths(model, processor, Rows(train=dataset, test=dataset), recipe(tmp_path))
    with pytest.raises(TooLongError, match="or `max_new_tokens`"):
        check_lengths(model, processor, Rows(test=dataset), recipe(tmp_path, new=190))


def test_rotated_positions_are_a_warning(with_language_model, tmp_path, caplog):
    model, processor = with_language_model("qwen2", 40)
    assert not has_learned_positions(model.model.language_model)
    with caplog.at_level(logging.WARNING):
        check_lengths(model, processor, Rows(train=tiny_training.tiny_dataset(("asr",))), recipe(tmp_path))
    assert "has 40: beyond those it was not trained" in caplog.text


def test_a_row_is_as_long_as_the_slowest_speed_that_may_be_drawn_makes_it(tmp_path):
    dataset = tiny_training.tiny_dataset(("asr",), count=1).map(lambda row: {"duration": 28.0})
    settings = recipe(tmp_path, augmentation={"speeds": [0.5, 0.95, 1.0, 1.1]})
    assert _durations(dataset, settings) == pytest.approx(28.0 / 0.95)


@pytest.mark.parametrize(("speeds", "is_refused"), [((), False), ((0.5, 1.0), True)])
def test_a_row_beyond_the_encoders_window_is_refused(tmp_path, speeds, is_refused):
    model, processor = tiny_training.tiny_model()
    window = processor.feature_extractor.n_samples / processor.sampling_rate
    dataset = tiny_training.tiny_dataset(("asr", "mt"), count=2)
    longer = dataset.map(lambda row: {"duration": window * 0.6 if row["task"] == "asr" else None})
    settings = recipe(tmp_path, augmentation={"speeds": list(speeds), "max_seconds": 2 * window} if speeds else None)
    if is_refused:
        with pytest.raises(TooLongError, match=r"of `train_data` has .* s, and 3 more like it.*lower `max_duration`"):
            check_lengths(model, processor, Rows(train=longer), settings)
    else:
        check_lengths(model, processor, Rows(train=longer), settings)


def test_streams_cannot_be_looked_into(tmp_path):
    model, processor = tiny_training.tiny_model()
    check_lengths(model, processor, Rows(train={"asr": SimpleNamespace()}, is_streamed=True), recipe(tmp_path))
