"""The collator's literal example, and which prompts name the language."""

import tiny_training
import torch

from modeling_part.data.collator import PARTCollator
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
