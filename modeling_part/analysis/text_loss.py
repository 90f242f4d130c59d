# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""What a checkpoint's language model has kept of plain text: the task gate is there to protect it.

`part analyze text-loss runs/part/joint --since runs/part/encoder --texts english.txt french.txt --output runs/part/analysis`
"""

from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerBase

from ..data.files import text_lines
from ..modeling_part import PARTForSpeechSeq2Seq
from .files import load_checkpoint, write_result


LONGEST = 512  # tokens of one text that count


@torch.inference_mode()
def text_loss(
    model: PARTForSpeechSeq2Seq, tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]
) -> tuple[float, int]:
    """The loss of plain texts, without audio, instruction or chat template.

    Args:
        model: whose language model reads them.
        tokenizer: its own; a token that it puts before a text is read and not scored.
        texts: each counts from its second token on, up to 512 tokens.

    Returns:
        Nats per token over all texts, and the number of tokens that were scored.

    Raises:
        ValueError: no text has two tokens.
    """
    nats, tokens = 0.0, 0
    for text in texts:
        ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=LONGEST)["input_ids"].to(model.device)
        if ids.shape[1] < 2:
            continue
        logits = model(input_ids=ids).logits[0, :-1]
        nats += float(F.cross_entropy(logits.float(), ids[0, 1:], reduction="sum"))
        tokens += ids.shape[1] - 1
    if not tokens:
        raise ValueError("No text has two tokens, so there is nothing to score; give a file with a text on each line.")
    return nats / tokens, tokens


def analyze_text_loss(
    checkpoint: str | Path,
    texts: Iterable[str | Path],
    output: str | Path,
    since: str | Path | None = None,
    device: str | None = None,
) -> dict:
    """`STAGE_text_loss.json` in the folder `output`.

    Args:
        checkpoint: folder of a stage or a checkpoint.
        texts: UTF-8 files, a text on each line that is not empty.
        since: a checkpoint to compare with, mostly the stage before.
        device: None takes the first accelerator.

    Returns:
        By file `tokens`, `loss` and, with `since`, `loss_since`, all in nats per token.

    Raises:
        CorpusError: a file cannot be opened, or is no text.
    """
    lines = {str(path): [line for _, line in text_lines(Path(path)) if line.strip()] for path in texts}
    result: dict[str, dict[str, float]] = {name: {} for name in lines}
    for key, folder in (("loss_since", since), ("loss", checkpoint)):
        if folder is None:
            continue
        model, processor = load_checkpoint(folder, device)
        for name, of_file in lines.items():
            result[name][key], result[name]["tokens"] = text_loss(model, processor.tokenizer, of_file)
    write_result(checkpoint, "text_loss", output, result)
    for name, found in result.items():
        before = f", {found['loss_since']:.4f} in {since}" if since is not None else ""
        print(f"{name}: {found['loss']:.4f} nats per token over {found['tokens']:,} tokens{before}")
    return result
