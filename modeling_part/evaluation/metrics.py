# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""What is measured: edits by jiwer, BLEU by sacrebleu with each target language's tokenizer."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import jiwer
import sacrebleu

from .normalization import counts_characters, is_chinese, normalize_text, primary_language, scored_units


# Other languages: "zh" where only Han is written, "char" where no spaces are, since 13a would see one word per sentence.
BLEU_TOKENIZERS = {"ja": "ja-mecab", "ko": "ko-mecab"}


@dataclass(frozen=True)
class EditCounts:
    """A minimal alignment of one hypothesis with its reference, in units (words or characters)."""

    hits: int
    substitutions: int
    deletions: int
    insertions: int

    @property
    def reference_units(self) -> int:
        """Length of the reference."""
        return self.hits + self.substitutions + self.deletions

    @property
    def errors(self) -> int:
        """Units of the hypothesis that are wrong, missing or too many."""
        return self.substitutions + self.deletions + self.insertions


def count_edits(reference: Sequence[str], hypothesis: Sequence[str]) -> EditCounts:
    """Aligns two sequences of units (no unit holds a space) with jiwer; either may be empty."""
    output = jiwer.process_words(" ".join(reference), " ".join(hypothesis))
    return EditCounts(output.hits, output.substitutions, output.deletions, output.insertions)


def count_text_edits(reference: str, hypothesis: str, language: str) -> EditCounts:
    """Aligns two texts as they are scored in a language (BCP 47): normalised, by words or characters."""
    return count_edits(*(scored_units(normalize_text(text, language), language) for text in (reference, hypothesis)))


def composed(texts: Sequence[str]) -> list[str]:
    """Texts as BLEU and chrF compare them: as they are, but for letters in two code points, which are made one."""
    return [unicodedata.normalize("NFC", text) for text in texts]


def bleu_tokenizer(language: str) -> str:
    """Sacrebleu's name of the tokenizer of a language (BCP 47): that of [`bleu_metric`]."""
    if not counts_characters(language):
        return "13a"
    return BLEU_TOKENIZERS.get(primary_language(language), "zh" if is_chinese(language) else "char")


def bleu_metric(target_lang: str, tokenizer: str | None = None) -> sacrebleu.BLEU:
    """Sacrebleu's corpus BLEU (cased, detokenised text) with the tokenizer of the target language.

    Args:
        target_lang: BCP 47 code. 13a, except where characters are counted (see `normalization.py`): ja-mecab for ja,
            ko-mecab for ko, zh for the languages that are written in Han alone, char for th, lo, my, km, bo and the like.
        tokenizer: sacrebleu's name of another tokenizer for every language, such as `"flores200"` (spBLEU;
            sacrebleu fetches its sentencepiece model once, which needs the network).

    Raises:
        ImportError: the tokenizer needs a package that is not installed; names the extra.
        ValueError: sacrebleu knows no such tokenizer.
    """
    tokenizer = tokenizer or bleu_tokenizer(target_lang)
    if tokenizer not in sacrebleu.BLEU.TOKENIZERS:
        raise ValueError(
            f"There is no BLEU tokenizer {tokenizer!r}; sacrebleu has {', '.join(sacrebleu.BLEU.TOKENIZERS)}."
        )
    extras = {"ja-mecab": "ja", "ko-mecab": "ko", "flores200": "flores200", "flores101": "flores200"}
    try:
        return sacrebleu.BLEU(tokenize=tokenizer)
    # sacrebleu raises RuntimeError where MeCab is missing, ImportError where sentencepiece is.
    except (ImportError, RuntimeError) as error:
        if tokenizer not in extras:
            raise
        raise ImportError(
            f"BLEU into {target_lang!r} needs sacrebleu's tokenizer {tokenizer!r}, whose packages are not installed; "
            f"run `pip install modeling-part[{extras[tokenizer]}]`."
        ) from error
