# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Which language is spoken: how well each language's prompt explains what was heard."""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from .alignment_part import heard_text
from .confidence_part import text_log_probs
from .outputs_part import PARTAudioOutput
from .prompts_part import code_of


# A language is named to the model where it is as probable as this: told a wrong one, it writes worse than told none.
SURE = 0.9


def known_languages(processor, languages: Iterable[str]) -> tuple[str, ...]:
    """The codes of the languages that may be spoken, given as codes or English names.

    Raises:
        ValueError: they are not two or more, or the prompts know no name for one.
    """
    is_list = isinstance(languages, Iterable) and not isinstance(languages, str)
    names = list(languages) if is_list else languages
    codes = tuple(dict.fromkeys(processor.language_code(code_of(one)) for one in names)) if is_list else ()
    if len(codes) < 2:
        raise ValueError(f"`languages` is {names!r}; give the codes of two languages or more, such as ['en', 'fr'].")
    return codes


def language_log_probs(
    model, processor, audio_embeds: torch.Tensor, feature_steps: int, text: str | None, languages: Sequence[str]
) -> dict[str, float]:
    """Log-probability of a transcript by the prompt that names each language: one forward pass over all of them.

    Args:
        model: a `PARTForSpeechSeq2Seq`.
        processor: its [`PARTProcessor`].
        audio_embeds: `(A, H)` of a window.
        feature_steps: of the window.
        text: what the model has written without being told the language; for models without an alignment head. With one it
            (None then) it is what greedy CTC writes, which is of the spoken language where the language model rather translates.
        languages: BCP-47 codes.
    """
    if model.alignment_head is not None:
        text = heard_text(model, processor, audio_embeds)
    row = dict.fromkeys(("target_lang", "source_text", "text", "prompt", "context"))
    rows = [{**row, "task": "asr", "audio": True, "source_lang": one} for one in languages]
    prompts = processor.assemble_prompts(rows, [feature_steps] * len(rows), "left")
    audio = PARTAudioOutput(pooler_output=audio_embeds.repeat(len(rows), 1))
    prompts |= {"mm_encoder_outputs": {"audio": audio}}
    log_probs = text_log_probs(model, processor, prompts, [text] * len(rows))
    return {code: float(np.nansum(one)) for code, one in zip(languages, log_probs, strict=True)}


def spoken_language(of_windows: Sequence[Mapping[str, float]]) -> dict:
    """The language of a recording, where each is as likely as any other before it is heard.

    Args:
        of_windows: [`language_log_probs`] of each window.

    Returns:
        `language`; `language_scores`, probabilities that add up to 1.
    """
    total = {code: sum(window[code] for window in of_windows) for code in of_windows[0]}
    best = max(total, key=total.__getitem__)
    shares = {code: math.exp(score - total[best]) for code, score in total.items()}
    scores = {code: round(share / sum(shares.values()), 4) for code, share in shares.items()}
    return {"language": best, "language_scores": scores}


def language_to_name(of_window: Mapping[str, float]) -> str | None:
    """The language that the prompt of a window is to name, by its [`language_log_probs`]; None where none is probable enough."""
    found = spoken_language([of_window])
    return found["language"] if found["language_scores"][found["language"]] >= SURE else None


__all__ = ["known_languages", "language_log_probs", "language_to_name", "spoken_language"]
