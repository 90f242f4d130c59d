# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Which audio token was aligned with which token of the transcript, for the pictures of a report (`alignments.json`)."""

import logging
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from ..audio_part import AudioError, load_clip
from ..data.collator import transcript
from ..recipes.files import write_json
from .run_files import ALIGNMENTS_FILE


logger = logging.getLogger(__name__)
MAX_CLIPS = 6
LONGEST_CLIP = 12.0  # seconds: a picture of more cannot be read


def best_path(log_probs: np.ndarray, targets: Sequence[int]) -> list[int]:
    """The most probable CTC path (Viterbi) of a transcript through the audio tokens of its clip.

    Args:
        log_probs: `(A, classes)`, the blank first.
        targets: class of each token of the transcript.

    Returns:
        Per audio token the position in `targets`, -1 for the blank.

    Raises:
        ValueError: the transcript does not fit: it needs an audio token each, and one more between two that are the same.
    """
    repeats = sum(one == other for one, other in pairwise(targets))
    if not targets or len(targets) + repeats > len(log_probs):
        raise ValueError(
            f"{len(targets)} tokens with {repeats} repeats do not fit into {len(log_probs)} audio tokens."
        )
    classes = [0] + [state for target in targets for state in (target, 0)]  # blanks around every token
    scores = np.full(len(classes), -np.inf)
    scores[:2] = log_probs[0, classes[:2]]
    came_from = np.zeros((len(log_probs), len(classes)), dtype=int)
    can_skip = np.array([at > 1 and one != 0 and one != classes[at - 2] for at, one in enumerate(classes)])
    for step in range(1, len(log_probs)):
        before = np.stack([scores, np.r_[-np.inf, scores[:-1]], np.r_[-np.inf, -np.inf, scores[:-2]]])
        before[2, ~can_skip] = -np.inf
        came_from[step] = before.argmax(0)
        scores = before.max(0) + log_probs[step, classes]
    state = len(classes) - 2 + int(scores[-1] > scores[-2])
    path = []
    for step in range(len(log_probs) - 1, -1, -1):
        path.append((state - 1) // 2 if state % 2 else -1)
        state -= int(came_from[step, state])
    return path[::-1]


@torch.inference_mode()
def align_clip(model, processor, row: Mapping) -> dict:
    """The alignment of one row's transcript with its audio tokens.

    Returns:
        `id`, `language`, `text`, `seconds`; `tokens`, the transcript's; `probabilities` `(A, 1 + tokens)` of the blank and
        of each of them, among the whole vocabulary; `path`, see [`best_path`].

    Raises:
        ValueError: the clip cannot be read, or the transcript does not fit into it.
    """
    text = transcript(row["task"], row["text"], row["source_text"])
    waveform = load_clip(row, processor.sampling_rate)
    inputs = processor(waveform, task="asr", source_lang=row["source_lang"]).to(model.device, model.dtype)
    embeds = model.get_audio_features(inputs["input_features"], inputs.get("input_features_mask")).pooler_output
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    tokens = torch.tensor(ids, device=model.device)
    embeddings = model.get_input_embeddings().weight
    log_probs = model.alignment_head.log_probs(embeds, tokens, embeddings).float().cpu().numpy()
    # Classes by kind of token, so that two that are the same are known to be.
    kinds = {token: 1 + ids.index(token) for token in ids}
    return {
        "id": row["id"],
        "language": row["source_lang"],
        "text": text,
        "seconds": len(waveform) / processor.sampling_rate,
        "tokens": [processor.tokenizer.decode([token]) for token in ids],
        "probabilities": np.exp(log_probs.astype(float)).round(3).tolist(),
        "path": best_path(log_probs, [kinds[token] for token in ids]),
    }


def choose_clips(rows: Sequence[Mapping], count: int = MAX_CLIPS) -> list[int]:
    """Indices of rows to show: transcription, the first clip of up to `LONGEST_CLIP` of each language in turn."""
    by_language: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        if row["task"] == "asr" and 0 < (row["duration"] or 0) <= LONGEST_CLIP:
            by_language.setdefault(row["source_lang"], []).append(index)
    return [indices[0] for _, indices in sorted(by_language.items())][:count]


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
