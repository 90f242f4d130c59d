# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Where things lie in a batch: known to the collator on the CPU, so that no step waits for a GPU to count them.

`hidden_states[mask]` asks the device how many positions the mask holds, and Python waits for all that the device has
still to do. Positions that come with the batch have their number in their shape.

Shapes are written with B rows or clips, L positions of the language model's sequence, U tokens of a transcript.
"""

from typing import TypedDict

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.masking_utils import create_causal_mask

from .configuration_part import ENCODER_CONVOLUTIONS, convolved_length


# Language models of which it is known that a mask `(B, 1, L, L)` is all that they make of one `(B, L)`.
TAKE_PREPARED_MASKS = ("llama", "qwen2", "qwen3")

OTHER_AUDIO_TOKENS = (
    "The audio gives another number of audio tokens than its `layout` says, which is the number of placeholders. Build "
    "both with the model's own PARTProcessor; its `audio_token_convolutions` must be those of the model's config."
)


class BatchLayout(TypedDict, total=False):
    """What [`batch_layout`] finds. Tensors go to the device with the batch, arrays and numbers stay where Python is.

    Positions count the `(B, L)` positions of the batch row after row.

    Attributes:
        positions: `(valid,)`, those that are not padding.
        predicting: `(targets,)`, those whose hidden state predicts a label.
        targets: `(targets,)` token ids of these labels.
        placeholders: `(sum of A,)`, those of the audio. This and the next five: with audio.
        feature_lengths: `(B,)` array, input steps of each clip.
        has_padded_clips: whether one is shorter than the batch's T.
        audio_lengths: `(B,)` array, audio tokens of each clip.
        longest_clip: the most of them.
        packed_frames: frames of all clips where Whisper's kind of encoder attends to them.
        tokens: `(K,)` distinct token ids of the transcripts. This and the next three: with audio and transcripts.
        classes: `(B, U)`, the place of each transcript's tokens in `tokens`.
        transcript_lengths: `(B,)` array.
        is_counted: `(B,)`, true for clips whose transcript can be aligned (see [`transcript_layout`]).
    """

    positions: torch.Tensor
    predicting: torch.Tensor
    targets: torch.Tensor
    placeholders: torch.Tensor
    feature_lengths: np.ndarray
    has_padded_clips: bool
    audio_lengths: np.ndarray
    longest_clip: int
    packed_frames: int
    tokens: torch.Tensor
    classes: torch.Tensor
    transcript_lengths: np.ndarray
    is_counted: torch.Tensor


def batch_layout(batch: dict, audio_token_id: int) -> BatchLayout:
    """The layout of a batch of the processor with labels, on the CPU.

    Args:
        batch: `input_ids`, `attention_mask` and `labels`, `(B, L)`; with audio, `input_features_mask` `(B, T)`; maybe
            `transcript_ids` `(B, U)`. Every row has a clip, or none has.
        audio_token_id: the placeholder's.

    Raises:
        ValueError: some rows have a clip and others have none.
    """
    layout = BatchLayout(positions=true_positions(batch["attention_mask"] != 0))
    layout["predicting"], layout["targets"] = predicting_positions(batch["labels"])
    if "input_features_mask" not in batch:
        return layout
    placeholders = batch["input_ids"] == audio_token_id
    audio_lengths = placeholders.sum(-1)
    clips = batch["input_features_mask"]
    if len(clips) != len(placeholders):
        raise ValueError(
            f"The batch has {len(placeholders)} rows and {len(clips)} clips; give a clip to each or none."
        )
    feature_lengths = clips.sum(-1)
    frames = convolved_length(feature_lengths, ENCODER_CONVOLUTIONS["whisper"])
    layout |= {
        "placeholders": true_positions(placeholders),
        "feature_lengths": feature_lengths.numpy(),
        "has_padded_clips": int(feature_lengths.min()) < clips.shape[1],
        "audio_lengths": audio_lengths.numpy(),
        "longest_clip": int(audio_lengths.max()),
        "packed_frames": int(frames.sum()),
    }
    if "transcript_ids" in batch:
        layout |= transcript_layout(batch["transcript_ids"], audio_lengths)
    return layout


def check_labels(labels: torch.Tensor, prompt: torch.Tensor) -> None:
    """Refuse labels that do not lie on the prompt's positions: theirs would be positions of other rows.

    Raises:
        ValueError: they are not `(B, L)` as the prompt's ids, or the embeddings `(B, L, H)`, are.
    """
    if labels.shape != prompt.shape[:2]:
        raise ValueError(
            f"`labels` are of shape {tuple(labels.shape)} and the prompt of {tuple(prompt.shape[:2])}: they lie on the same "
            "positions, -100 on all but the answer and its end token, and are not the answer alone as an encoder-decoder's. "
            "The processor makes both: `model(**processor(audio, text=answer))`."
        )


def predicting_positions(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`(B, L)` labels -> positions `(targets,)` whose hidden state predicts one, and these labels `(targets,)`."""
    # Position i predicts label i + 1.
    targets = nn.functional.pad(labels, (0, 1), value=-100)[:, 1:].flatten()
    predicting = true_positions(targets != -100)
    return predicting, targets[predicting]


def answer_positions(
    labels: torch.Tensor, layout: BatchLayout | None, among: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """[`predicting_positions`] of `(B, L)` labels, by the batch's layout where there is one.

    Args:
        labels: -100 where there is none.
        layout: of the batch.
        among: `(B, L)` attention mask whose valid positions alone are counted; None: all positions are.
    """
    predicting, targets = predicting_positions(labels) if layout is None else (layout["predicting"], layout["targets"])
    if among is not None:
        predicting = (among.flatten().cumsum(0) - 1)[predicting]
    return predicting, targets


def transcript_layout(transcript_ids: torch.Tensor, audio_lengths: torch.Tensor) -> BatchLayout:
    """What the alignment of `(B, U)` transcripts, -100 where there is none, to so many audio tokens `(B,)` needs.

    Clips are counted that have a transcript that fits: one audio token for each of its tokens and one more between two
    that are the same.
    """
    given = transcript_ids != -100
    lengths = given.sum(-1)
    repeats = (transcript_ids[:, 1:] == transcript_ids[:, :-1]) & given[:, 1:]
    tokens, classes = torch.unique(transcript_ids.clamp(min=0), return_inverse=True)
    return {
        "tokens": tokens,
        "classes": classes,
        "transcript_lengths": lengths.cpu().numpy(),
        "is_counted": (lengths > 0) & (lengths + repeats.sum(-1) <= audio_lengths),
    }


def true_positions(mask: torch.Tensor) -> torch.Tensor:
    """Positions where a mask of any shape is true, counted through all its dimensions; waits for the device."""
    return mask.flatten().nonzero().squeeze(-1)


def clip_positions(lengths: torch.Tensor, size: int, total: int | None = None) -> torch.Tensor:
    """Positions of the first `lengths` `(B,)` of each row of `(B, size)`, counted row after row.

    Args:
        lengths: of each clip.
        size: of a row.
        total: the sum of the lengths; None: the device is asked for it.

    Returns:
        `(total,)`.

    Raises:
        RuntimeError: `total` is not the sum; on a GPU, whose answer is not waited for, at a later operation.
    """
    if total is None:
        return true_positions(torch.arange(size, device=lengths.device) < lengths[:, None])
    torch._assert_async(lengths.sum() == total, OTHER_AUDIO_TOKENS)
    firsts = torch.arange(len(lengths), device=lengths.device) * size  # the position where each row begins
    before = lengths.cumsum(0) - lengths  # of the clips before
    shifts = torch.repeat_interleave(firsts - before, lengths, output_size=total)
    return shifts + torch.arange(total, device=lengths.device)


def take_positions(values: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """`(B, size, ...)` and positions `(n,)` counted row after row -> `(n, ...)`."""
    return values.flatten(0, 1).index_select(0, positions)


def put_positions(values: torch.Tensor, positions: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """`(B, size, ...)` with `new` `(n, ...)` at the positions `(n,)`, counted row after row; the rest as it was."""
    return values.flatten(0, 1).index_copy(0, positions, new).view_as(values)


def row_bounds(lengths: torch.Tensor, size: int) -> dict:
    """Where rows of these lengths `(B,)` begin and end when they are packed into one, as flash attention's kernels ask.

    Left to find them from positions that begin again, transformers asks the device, in every layer.

    Args:
        lengths: of the rows.
        size: no row is longer; the kernels need no exact maximum.
    """
    ends = nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": size, "max_length_k": size}


def prepared_mask(
    config: PreTrainedConfig, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor, layout: BatchLayout
) -> torch.Tensor:
    """The mask `(B, L)` as the language model's layers get it, `(B, 1, L, L)`, where some position is padding.

    transformers makes the same, but first asks the device whether any is: the batch knows. Where none is, and where the
    language model may do more with its mask, it stays as it is.
    """
    is_padded = len(layout["positions"]) < attention_mask.numel()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    is_known = config.model_type in TAKE_PREPARED_MASKS and kinds == {"full_attention"}
    if not is_padded or not is_known or config._attn_implementation not in ("sdpa", "eager"):
        return attention_mask
    return create_causal_mask(config, inputs_embeds, attention_mask, None, allow_is_causal_skip=False)
