# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Which audio token was aligned with which token of the transcript, for the pictures of a report (`alignments.json`)."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from ..alignment_part import align_tokens
from ..audio_part import AudioError, load_clip
from ..data.row_tokens import transcript
from ..recipes.files import write_json
from .run_files import ALIGNMENTS_FILE


logger = logging.getLogger(__name__)
MAX_CLIPS = 6
LONGEST_CLIP = 12.0  # seconds: a picture of more cannot be read


@torch.inference_mode()
def align_clip(model, processor, row: Mapping) -> dict:
    """The alignment of one row's transcript with its audio tokens.

    Returns:
        `id`, `language`, `text`, `seconds`; `tokens`, the transcript's; `probabilities` `(A, 1 + tokens)` of the blank and
        of each of them, among the whole vocabulary; `path`, see `alignment_part.best_path`.

    Raises:
        ValueError: the clip cannot be read, or the transcript does not fit into it.
    """
    text = transcript(row["task"], row["text"], row["source_text"])
    waveform = load_clip(row, processor.sampling_rate)
    inputs = processor(waveform, task="asr", source_lang=row["source_lang"]).to(model.device, model.dtype)
    embeds = model.get_audio_features(inputs["input_features"], inputs.get("input_features_mask")).pooler_output
    ids = processor.text_ids(text)
    with model.loaded_alignment_head() as (head, embeddings):
        log_probs, path = align_tokens(head, embeds, ids, embeddings)
    return {
        "id": row["id"],
        "language": row["source_lang"],
        "text": text,
        "seconds": len(waveform) / processor.sampling_rate,
        "tokens": [processor.tokenizer.decode([token]) for token in ids],
        "probabilities": np.exp(log_probs.astype(float)).round(3).tolist(),
        "path": path,
    }


def choose_clips(rows: Sequence[Mapping]) -> list[int]:
    """Indices of rows to show: transcription, of each of up to `MAX_CLIPS` languages the first clip of up to `LONGEST_CLIP`."""
    by_language: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        if row["task"] == "asr" and 0 < (row["duration"] or 0) <= LONGEST_CLIP:
            by_language.setdefault(row["source_lang"], []).append(index)
    return [indices[0] for _, indices in sorted(by_language.items())][:MAX_CLIPS]


def write_alignments(model, processor, dataset, folder: str | Path) -> list[dict]:
    """`alignments.json` in a stage's folder: [`align_clip`] of a few clips; nothing where the model has no alignment head.

    Args:
        model: a `PARTForSpeechSeq2Seq` on its device.
        processor: its processor.
        dataset: canonical rows, a `datasets.Dataset`.
        folder: of the stage.
    """
    if model.alignment_head is None:
        return []
    alignments = []
    for index in choose_clips(dataset.select_columns(["task", "source_lang", "duration"])):
        row = dataset[index]
        try:
            alignments.append(align_clip(model, processor, row))
        except (AudioError, OSError, ValueError) as error:  # a picture less, which is said
            logger.warning("Row %r has no picture of its alignment: %s", row["id"], error)
    write_json(Path(folder) / ALIGNMENTS_FILE, alignments)
    return alignments
