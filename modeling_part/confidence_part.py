# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""How sure a model is of a text: by its language model, by its alignment head, and by both."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from .alignment_part import AlignedText
from .windows_part import split_units


# Answer tokens whose logits are computed at a time.
CHUNK_SIZE = 1024


@torch.no_grad()
def text_log_probs(model, processor, inputs: Mapping, texts: Sequence[str]) -> list[np.ndarray]:
    """What the language model gives each token of a text, by one forward pass over prompts and texts.

    Not what `generate` has chosen by: logits processors, temperature and beams have no part in it.

    Args:
        model: a `PARTForSpeechSeq2Seq`.
        processor: its [`PARTProcessor`].
        inputs: prompts `(B, L)`, padded on the left, with their features or encoded audio, as for `generate`.
        texts: B answers.

    Returns:
        Per text the log-probabilities of its tokens (see `PARTProcessor.text_ids`) and of its end, `(tokens + 1,)`; NaN of
        what is past the positions that the language model has learned.
    """
    device, width = model.device, inputs["input_ids"].shape[1]
    answers = [[*processor.text_ids(text), processor.tokenizer.eos_token_id] for text in texts]
    sizes = [len(answer) for answer in answers]
    if (limit := model.model.position_limit) is not None:  # as long an answer has no place for its end
        answers = [answer[: max(1, limit - width)] for answer in answers]
    longest = max(map(len, answers))
    ids = torch.full((len(texts), width + longest), processor.tokenizer.pad_token_id, device=device)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    ids[:, :width], mask[:, :width] = inputs["input_ids"].to(device), inputs["attention_mask"].to(device)
    for row, answer in enumerate(answers):
        place = slice(width, width + len(answer))
        ids[row, place] = labels[row, place] = torch.tensor(answer, device=device)
        mask[row, place] = 1
    others = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        labels=labels,
        loss_chunk_size=CHUNK_SIZE,
        use_cache=False,
        **others,
    )
    found = np.split(-output.token_losses.cpu().numpy(), np.cumsum([len(answer) for answer in answers])[:-1])
    return [np.pad(one, (0, size - len(one)), constant_values=np.nan) for one, size in zip(found, sizes, strict=True)]


def answer_confidence(
    model, processor, inputs: Mapping, aligned: Sequence[AlignedText]
) -> list[list[tuple[float, float, int]]]:
    """[`unit_confidence`] of each answer of a batch, see [`text_log_probs`] and `align_answers`."""
    of_tokens = text_log_probs(model, processor, inputs, [one.text for one in aligned])
    return [
        unit_confidence(
            one.text, one.offsets, log_probs[:-1], path_log_probs(one.log_probs, one.path, len(one.offsets))
        )
        for one, log_probs in zip(aligned, of_tokens, strict=True)
    ]


def path_log_probs(log_probs: np.ndarray | None, path: Sequence[int] | None, tokens: int) -> np.ndarray:
    """`(tokens,)` log-probabilities of a text's tokens by CTC, each where it is emitted most clearly; NaN without path."""
    best = np.full(tokens, np.nan)
    for at, token in enumerate(path or ()):
        if token >= 0:
            best[token] = np.fmax(best[token], log_probs[at, 1 + token])
    return best


def unit_confidence(
    text: str, offsets: Sequence[tuple[int, int]], language_model: np.ndarray, ctc: np.ndarray
) -> list[tuple[float, float, int]]:
    """Log-probabilities of each unit of a text (see [`split_units`]), mean over its tokens, and how many these are.

    A token is of the unit of its last character.
    """
    units = split_units(text)
    ends = np.cumsum([len(unit) for unit in units])
    of_unit: list[list[int]] = [[] for _ in units]
    for token, (first, last) in enumerate(offsets):
        if last > first:
            of_unit[int(np.searchsorted(ends, last - 1, side="right"))].append(token)
    return [
        (float(np.mean(language_model[tokens])), float(np.mean(ctc[tokens])), len(tokens))
        if tokens
        else (math.nan, math.nan, 0)
        for tokens in of_unit
    ]


def overall(units: Sequence[tuple[float, float, int]]) -> dict[str, float | None]:
    """Confidence of a word, or of all words of an utterance: the geometric mean of the probabilities of their tokens.

    Returns:
        `language_model`; `ctc`, None where the alignment head has not found the text, or there is none; `product` of the
        two, or of the one there is. All None for no tokens.
    """
    units = [unit for unit in units if unit[2]]
    weights = np.array([count for _, _, count in units], dtype=float)
    means = [
        float(np.dot([unit[kind] for unit in units], weights) / weights.sum()) if units else None for kind in (0, 1)
    ]
    both = [None if mean is None or math.isnan(mean) else math.exp(mean) for mean in means]
    known = [one for one in both if one is not None]
    product = math.prod(known) if known else None
    named = {"language_model": both[0], "ctc": both[1], "product": product}
    return {name: None if one is None else round(one, 4) for name, one in named.items()}


__all__ = ["answer_confidence", "overall", "path_log_probs", "text_log_probs", "unit_confidence"]
