"""The collator's literal example, and which prompts name the language."""

from types import SimpleNamespace

import numpy as np
import pytest
import tiny_training
import torch
from accelerate.utils import send_to_device

from modeling_part.data.augmentation import build_augmentation
from modeling_part.data.collator import PARTCollator
from modeling_part.data.numbered_batches import NumberedBatches, NumberedRows
from modeling_part.recipes.arguments import DataArguments


def test_the_example_of_the_docstring():
    _, processor = tiny_training.tiny_model()
    row = {**tiny_training.tiny_dataset(("asr",), count=1)[1], "id": "a", "text": "bonjour"}
    batch = PARTCollator(processor, with_transcripts=True)([row])
    info = batch.pop("batch_info")
    seconds, padded = info["audio_seconds"].pop(), info.pop("padded_seconds")
    counts = {"target_counts": [8], "transcript_counts": [7], "broken": []}
    assert info == {"task": "asr", "groups": [("asr", "fr", "fr")], "ids": ["a"], "audio_seconds": [], **counts}
    assert seconds == row["duration"] and seconds <= padded < seconds + 0.2
    answer = processor.tokenizer("bonjour", add_special_tokens=False)["input_ids"]
    labels = batch["labels"][0]
    assert labels[labels != -100].tolist() == [*answer, processor.tokenizer.eos_token_id]
    assert batch["transcript_ids"].tolist() == [answer]
    assert batch["input_ids"].shape == batch["attention_mask"].shape == batch["labels"].shape
    assert batch["input_features"].shape[:2] == (1, processor.feature_extractor.feature_size)
    assert batch["input_features_mask"].shape == batch["input_features"].shape[::2]
    layout = batch["layout"]
    assert layout["targets"].tolist() == labels[labels != -100].tolist()
    assert (layout["predicting"] + 1).tolist() == (labels != -100).nonzero().flatten().tolist()
    assert layout["tokens"][layout["classes"]].tolist() == [answer]
    assert (batch["input_ids"][0, layout["placeholders"]] == processor.audio_token_id).all()
    assert layout["audio_lengths"].tolist() == [layout["longest_clip"]] == [len(layout["placeholders"])]
    assert layout["feature_lengths"].tolist() == batch["input_features_mask"].sum(-1).tolist()


@pytest.mark.parametrize("is_cached", [False, True])
def test_a_batch_goes_to_a_device_with_its_layout(is_cached):
    """As accelerate sends it there: the model takes positions from `layout`, on the device of what they are taken from."""
    _, processor = tiny_training.tiny_model()
    rows = tiny_training.tiny_dataset(("asr",), count=2).to_list()
    collator = PARTCollator(processor, with_transcripts=True)
    if is_cached:
        collator.encoder_outputs = SimpleNamespace(frames_or_silence=lambda row: (torch.zeros(30, 16), 60, None))
    sent = send_to_device(collator(rows), torch.device("meta"), non_blocking=True)
    assert ("encoder_frames" in sent) == is_cached
    layout = sent.pop("layout")
    tensors = {name: one for name, one in [*sent.items(), *layout.items()] if isinstance(one, torch.Tensor)}
    assert {"input_ids", "positions", "predicting", "targets", "placeholders", "classes"} <= tensors.keys()
    assert {one.device.type for one in tensors.values()} == {"meta"}
    assert isinstance(layout["audio_lengths"], np.ndarray)


def prompts(share: float, seed: int = 0, count: int = 200) -> list[str]:
    _, processor = tiny_training.tiny_model()
    rows = [row for row in tiny_training.tiny_dataset(("mt",), count=count) if row["task"] == "mt"]
    rows = [{**row, "id": f"{number}"} for number, row in enumerate(rows)]
    collator = PARTCollator(processor, seed=seed, unnamed_share=share)
    texts = []
    for start in range(0, len(rows), 8):
        texts += processor.tokenizer.batch_decode(collator(rows[start : start + 8])["input_ids"])
    return texts


def test_some_prompts_do_not_name_the_source_language():
    named, some, none = (prompts(share) for share in (0.0, 0.15, 1.0))
    is_unnamed = ["Translate the text" in text for text in some]
    assert not any("Translate the text" in text for text in named) and all(
        "Translate the text" in text for text in none
    )
    assert 0.08 < sum(is_unnamed) / len(is_unnamed) < 0.22
    assert some == prompts(0.15) and some != prompts(0.15, seed=1)


class TestDraws:
    """What is drawn for a row is drawn anew each time it comes: in the next stage, the next epoch, and beside itself."""

    @pytest.fixture
    def row(self):
        return tiny_training.tiny_dataset(("asr",), count=1)[0]

    def collated(self, rows, **settings):
        _, processor = tiny_training.tiny_model()
        spec = {"spec_augment": {"max_mel_share": 0.5, "max_time_share": 0.5}}
        collator = PARTCollator(processor, augmentation=build_augmentation(spec), unnamed_share=0.5, **settings)
        return collator(rows)

    def named(self, batch) -> list[bool]:
        lengths = batch["attention_mask"].sum(-1)
        return (lengths == lengths.max()).tolist()

    def test_in_another_stage(self, row):
        first, again, other = (
            self.collated([row], stage=stage)["input_features"] for stage in ("adapter", "adapter", "encoder")
        )
        assert torch.equal(first, again) and not torch.equal(first, other)

    def test_beside_a_copy_of_itself(self, row):
        batch = self.collated([row] * 8)
        features = batch["input_features"]
        assert not any(torch.equal(features[0], one) for one in features[1:])
        assert len(set(self.named(batch))) == 2

    def test_alone_in_its_batch_in_each_epoch(self, row):
        batches = [self.collated([{**row, "batch_number": number}]) for number in range(12)]
        assert len({batch["input_features"].numpy().tobytes() for batch in batches}) == 12
        assert len({int(batch["attention_mask"].sum()) for batch in batches}) == 2
        again = self.collated([{**row, "batch_number": 3}])
        assert torch.equal(again["input_features"], batches[3]["input_features"])

    def test_the_rows_are_told_the_number_of_their_batch(self):
        rows = [{"id": number} for number in range(6)]
        loader = torch.utils.data.DataLoader(
            NumberedRows(rows), batch_sampler=NumberedBatches([[], [4, 2], [0]]), collate_fn=list
        )
        batches = iter(loader.batch_sampler)
        assert next(batches) == []
        assert [loader.dataset.__getitems__(batch) for batch in batches] == [
            [{"id": 4, "batch_number": 1}, {"id": 2, "batch_number": 1}],
            [{"id": 0, "batch_number": 2}],
        ]


def test_it_is_on_unless_it_is_switched_off():
    assert 0 < DataArguments().unnamed_share < 0.5


def test_groups_still_say_which_language_it_is():
    _, processor = tiny_training.tiny_model()
    rows = list(tiny_training.tiny_dataset(("asr",), count=2))[:3]
    batch = PARTCollator(processor, unnamed_share=1.0)(rows)
    assert [group[1] for group in batch["batch_info"]["groups"]] == [row["source_lang"] for row in rows]
    named = PARTCollator(processor)(rows)
    assert batch["input_ids"].shape[1] < named["input_ids"].shape[1] or not torch.equal(
        batch["input_ids"], named["input_ids"]
    )


def asked(words: str | None, *, rate: float | None = None, seed: int = 0, count: int = 200) -> list[str]:
    """The prompts of rows with this context."""
    _, processor = tiny_training.tiny_model()
    rows = [row for row in tiny_training.tiny_dataset(("mt",), count=count) if row["task"] == "mt"]
    rows = [{**row, "id": f"{number}", "context": words} for number, row in enumerate(rows)]
    collator = PARTCollator(processor, seed=seed, context_drop_rate=rate)
    batches = [collator(rows[start : start + 8]) for start in range(0, len(rows), 8)]
    return [text for batch in batches for text in processor.tokenizer.batch_decode(batch["input_ids"])]


def test_the_words_of_some_rows_are_left_out_and_the_others_stand_in_any_order():
    some = asked("Anna\nBerta\nCara", rate=0.25)
    with_words = [text for text in some if "Context: " in text]
    assert 0.65 < len(with_words) / len(some) < 0.85
    orders = {text.split("Context: ")[1].split("\n")[0].split("<")[0] for text in with_words}
    assert len(orders) == 6 and {word.strip() for one in orders for word in one.split(",")} == {
        "Anna",
        "Berta",
        "Cara",
    }
    assert some == asked("Anna\nBerta\nCara", rate=0.25) != asked("Anna\nBerta\nCara", rate=0.25, seed=1)
    assert not any("Context: " in text for text in asked("Anna", rate=1.0))


def test_dev_rows_keep_their_words_in_order_and_rows_without_any_are_as_before():
    assert all("Context: Anna, Berta" in text for text in asked("Anna\nBerta", count=16))
    assert asked(None, rate=0.5, count=16) == asked(None, count=16)


def test_training_asks_as_people_do():
    """A row's words and prompt give the prompt that the processor makes of the same words, token for token."""
    _, processor = tiny_training.tiny_model()
    row = next(iter(tiny_training.tiny_dataset(("asr",), count=2)))
    batch = PARTCollator(processor)([{**row, "context": "Anna\nBerta", "prompt": "Write it down."}])
    audio = row["audio"]["path"] or row["audio"]["bytes"]
    called = processor(audio, text=row["text"], prompt="Write it down.", context="Anna, Berta", task="asr")
    length = called["input_ids"].shape[1]
    assert torch.equal(batch["input_ids"][:, :length], called["input_ids"])
    keywords = processor.apply_transcription_request(audio, keywords=["Anna", "Berta"], prompt="Write it down.")
    assert torch.equal(keywords["input_ids"][0], called["input_ids"][0, : keywords["input_ids"].shape[1]])
