"""Fixtures that several test modules use; the builders themselves are in tiny.py."""

import clean_environment  # noqa: F401, I001  before torch is imported

import os
from pathlib import Path

import pytest
import tiny
import torch
from tiny import REPOSITORY


torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of small real corpora: `PART_SHARED_DATA`, or `../shared/data` beside the repository."""
    folder = Path(os.environ.get("PART_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real speech not found in {folder}; set PART_SHARED_DATA to the folder that holds it")
    return folder


@pytest.fixture
def tokenizer():
    """Byte-level tokenizer with Qwen2.5's special tokens."""
    return tiny.tiny_tokenizer()


@pytest.fixture
def feature_extractor():
    """Whisper's feature extractor with 20 mel bins and a window of 4 s."""
    return tiny.tiny_feature_extractor()


@pytest.fixture(scope="session")
def tiny_parts(tmp_path_factory) -> tiny.TinyParts:
    """Checkpoint folders of a tiny Whisper and a tiny Qwen2; not to be written to."""
    return tiny.tiny_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory) -> dict[str, Path]:
    """Manifests "train", "dev" and "test" of generated speech in two languages; not to be written to."""
    return tiny.tiny_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory, tiny_parts) -> Path:
    """Folder of a whole tiny PART model and its processor, as a stage leaves it; not to be written to."""
    from modeling_part import PARTForSpeechSeq2Seq

    folder = tmp_path_factory.mktemp("checkpoint")
    with torch.random.fork_rng():
        torch.manual_seed(0)  # the adapter is new: the same in every run, whatever ran before
        model, processor = PARTForSpeechSeq2Seq.from_pretrained_parts(
            str(tiny_parts.audio_model),
            str(tiny_parts.language_model),
            adapter_hidden_size=32,
            adapter_num_attention_heads=2,
        )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
