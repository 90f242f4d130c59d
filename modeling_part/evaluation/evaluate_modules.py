# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""WER, CER, BLEU and chrF as modules of `evaluate`, for a `compute_metrics` or a notebook of one's own.

They count as `scoring.py` does, with its normaliser and tokenizers, and need no network: each is built by its class
instead of being fetched by name. `WordErrorRate().compute(predictions=["a b"], references=["a c"], language="fr")`.

Reports do not go through them: their intervals need the counts of every utterance (`bootstrap.py`), not one figure per
corpus. COMET is not among them: `unbabel-comet` demands transformers 4, so that it cannot be installed beside PART.
"""

import datasets
import evaluate
import sacrebleu

from .metrics import bleu_metric, composed, count_edits
from .normalization import counts_characters, normalize_text


TEXT_PAIR = {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
INPUTS = "predictions and references: lists of strings of the same length"


def _pairs(predictions: list[str], references: list[str]) -> tuple[list[str], list[list[str]]]:
    """As sacrebleu takes them; it would fall over a corpus without a sentence."""
    if not references:
        raise ValueError("There are no predictions and references, so there is no score.")
    return composed(predictions), [composed(references)]


class _ErrorRate(evaluate.Metric):
    name_of_value: str
    by_character: bool

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=f"{type(self).__name__} through jiwer: errors over reference units, summed over the corpus.",
            citation="",
            inputs_description=f"{INPUTS}. language: BCP 47 code whose normaliser is applied; None: text as it is.",
            features=datasets.Features(TEXT_PAIR),
        )

    def _units(self, text: str, language: str | None) -> list[str]:
        if language is not None:
            if counts_characters(language) and not self.by_character:
                raise ValueError(
                    f"Language {language!r} is counted by characters, since it is written without spaces between words "
                    "(Korean by the paper's rule); use CharacterErrorRate."
                )
            text = normalize_text(text, language)
        return [character for character in text if not character.isspace()] if self.by_character else text.split()

    def _compute(self, predictions: list[str], references: list[str], language: str | None = None) -> dict:
        counts = [
            count_edits(self._units(reference, language), self._units(prediction, language))
            for prediction, reference in zip(predictions, references, strict=True)
        ]
        units = sum(count.reference_units for count in counts)
        if units == 0:
            raise ValueError("No reference has a word or character left, so there is no error rate.")
        return {
            self.name_of_value: sum(count.errors for count in counts) / units,
            "substitutions": sum(count.substitutions for count in counts),
            "deletions": sum(count.deletions for count in counts),
            "insertions": sum(count.insertions for count in counts),
            "reference_units": units,
        }


class WordErrorRate(_ErrorRate):
    """Module of `evaluate`: word error rate `wer` (1.0 = as many errors as reference words) and the error counts."""

    name_of_value = "wer"
    by_character = False


class CharacterErrorRate(_ErrorRate):
    """Module of `evaluate`: character error rate `cer`, white space left out, and the error counts."""

    name_of_value = "cer"
    by_character = True


class Bleu(evaluate.Metric):
    """Module of `evaluate`: sacrebleu's corpus BLEU (0 to 100), tokenised for `target_lang`, and its signature."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Corpus BLEU by sacrebleu, tokenised for the target language.",
            citation="",
            inputs_description=f"{INPUTS}. target_lang: BCP 47 code; tokenizer: sacrebleu's name of another.",
            features=datasets.Features(TEXT_PAIR),
        )

    def _compute(
        self, predictions: list[str], references: list[str], target_lang: str = "en", tokenizer: str | None = None
    ) -> dict:
        metric = bleu_metric(target_lang, tokenizer)
        score = metric.corpus_score(*_pairs(predictions, references)).score
        return {"bleu": score, "signature": str(metric.get_signature())}


class ChrF(evaluate.Metric):
    """Module of `evaluate`: sacrebleu's chrF2 (0 to 100) and its signature."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Corpus chrF2 by sacrebleu.",
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(TEXT_PAIR),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict:
        metric = sacrebleu.CHRF()
        score = metric.corpus_score(*_pairs(predictions, references)).score
        return {"chrf": score, "signature": str(metric.get_signature())}
