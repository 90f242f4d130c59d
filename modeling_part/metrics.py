# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Error rates, BLEU and chrF, their bootstrap, and the same as ``evaluate`` modules that need no network.

The modules are used like every other one, but are built by their class instead of being fetched by name::

    WordErrorRate().compute(predictions=["a b"], references=["a c"], language="fr")
    Bleu().compute(predictions=["..."], references=["..."], target_lang="ja")
"""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import evaluate
import jiwer
import numpy as np
import sacrebleu

from .normalization import normalize_text, primary_language


CONFIDENCE = 0.95

# "char" for languages written without spaces between words, where 13a would see one word per sentence.
BLEU_TOKENIZERS = {
    "zh": "zh",
    "yue": "zh",
    "ja": "ja-mecab",
    "ko": "ko-mecab",
    "th": "char",
    "lo": "char",
    "my": "char",
    "km": "char",
}


@dataclass(frozen=True)
class EditCounts:
    """A minimal alignment of one hypothesis with its reference, in units (words or characters)."""

    hits: int
    substitutions: int
    deletions: int
    insertions: int

    @property
    def reference_units(self) -> int:
        return self.hits + self.substitutions + self.deletions

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions


def count_edits(reference: Sequence[str], hypothesis: Sequence[str]) -> EditCounts:
    """Aligns two sequences of units (no unit holds a space) with jiwer; either may be empty."""
    output = jiwer.process_words(" ".join(reference), " ".join(hypothesis))
    return EditCounts(output.hits, output.substitutions, output.deletions, output.insertions)


def bleu_metric(target_lang: str, tokenizer: str | None = None) -> sacrebleu.BLEU:
    """sacrebleu's corpus BLEU (cased, detokenised text) with the tokenizer of the target language.

    Args:
        target_lang: BCP 47 code. 13a, except zh and yue: zh; ja: ja-mecab; ko: ko-mecab; th, lo, my, km: char.
        tokenizer: sacrebleu's name of another tokenizer for every language, such as ``"flores200"`` (spBLEU;
            sacrebleu fetches its sentencepiece model once, which needs the network).

    Raises:
        ImportError: the tokenizer needs a package that is not installed; names the extra.
        ValueError: sacrebleu knows no such tokenizer.
    """
    tokenizer = tokenizer or BLEU_TOKENIZERS.get(primary_language(target_lang), "13a")
    if tokenizer not in sacrebleu.BLEU.TOKENIZERS:
        raise ValueError(f"no BLEU tokenizer {tokenizer!r}; sacrebleu has {', '.join(sacrebleu.BLEU.TOKENIZERS)}")
    extras = {"ja-mecab": "ja", "ko-mecab": "ko", "flores200": "flores200", "flores101": "flores200"}
    try:
        return sacrebleu.BLEU(tokenize=tokenizer)
    # sacrebleu raises RuntimeError where MeCab is missing, ImportError where sentencepiece is.
    except (ImportError, RuntimeError) as error:
        if tokenizer not in extras:
            raise
        raise ImportError(
            f"BLEU into {target_lang!r} needs sacrebleu's tokenizer {tokenizer!r}, whose packages are not installed; "
            f"run `pip install modeling-part[{extras[tokenizer]}]`"
        ) from error


def sufficient_statistics(
    metric: sacrebleu.metrics.base.Metric, hypotheses: Sequence[str], references: Sequence[str]
) -> np.ndarray:
    """Per-sentence counts ``(sentences, statistics)`` whose sums determine the corpus score of ``metric``.

    sacrebleu's own significance test takes the same road; the two methods are private there (2.4 to 2.6).
    """
    return np.array(metric._extract_corpus_statistics(hypotheses, [references]), dtype=np.int64)


def score_statistics(metric: sacrebleu.metrics.base.Metric, sums: np.ndarray) -> np.ndarray:
    """The corpus scores ``(samples,)``, 0 to 100, of summed statistics ``(samples, statistics)``."""
    return np.array([metric._compute_score_from_stats(row).score for row in sums.tolist()])


def ratio_statistics(sums: np.ndarray) -> np.ndarray:
    """Error rates ``(samples,)`` of ``(samples, 2)`` summed errors and reference units; NaN without units."""
    errors, units = sums[:, 0].astype(float), sums[:, 1].astype(float)
    return np.divide(errors, units, out=np.full(len(sums), np.nan), where=units > 0)


def _resample_weights(utterances: int, samples: int, seed: int | Sequence[int]) -> Iterator[np.ndarray]:
    """How often each utterance is drawn, ``(samples in this chunk, utterances)``; chunks bound the memory."""
    generator = np.random.default_rng(seed)
    probabilities = np.full(utterances, 1 / utterances)
    chunk = max(1, 4_000_000 // utterances)
    for start in range(0, samples, chunk):
        yield generator.multinomial(utterances, probabilities, size=min(chunk, samples - start))


def bootstrap_sums(statistics: np.ndarray, *, samples: int = 1000, seed: int | Sequence[int] = 0) -> np.ndarray:
    """Sums of ``statistics`` over resampled utterances.

    Args:
        statistics: ``(utterances, statistics)``, one row per utterance.
        samples: how many times as many utterances as there are get drawn with replacement.
        seed: the same seed draws the same utterances, so two systems on the same utterances are resampled in pairs.

    Returns:
        ``(samples, statistics)``.
    """
    return np.concatenate([weights @ statistics for weights in _resample_weights(len(statistics), samples, seed)])


def interval(values: np.ndarray) -> list[float] | None:
    """The central 95 % ``[low, high]`` of bootstrap values (percentile method); None where no sample has a value."""
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    tail = (1 - CONFIDENCE) / 2
    return [float(bound) for bound in np.quantile(values, [tail, 1 - tail])]


def paired_p_value(difference: float, resampled_differences: np.ndarray) -> float:
    """How likely a difference at least this large is if the systems are equal (two-sided).

    The share of resampled differences that lie, centred on their mean, as far out on either side as the measured one
    (Efron and Tibshirani 1993, chapter 16), with one added to both counts so that it never is 0. It agrees with
    sacrebleu's approximate randomisation; sacrebleu's paired bootstrap counts one side only and gives about half.
    """
    centred = np.abs(resampled_differences - resampled_differences.mean())
    return float((np.sum(centred >= abs(difference)) + 1) / (len(centred) + 1))


TEXT_PAIR = {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
INPUTS = "predictions and references: lists of strings of the same length"


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
            text = normalize_text(text, language)
        return [character for character in text if not character.isspace()] if self.by_character else text.split()

    def _compute(self, predictions: list[str], references: list[str], language: str | None = None) -> dict:
        counts = [
            count_edits(self._units(reference, language), self._units(prediction, language))
            for prediction, reference in zip(predictions, references, strict=True)
        ]
        units = sum(count.reference_units for count in counts)
        if units == 0:
            raise ValueError("no reference has a word or character left, so there is no error rate")
        return {
            self.name_of_value: sum(count.errors for count in counts) / units,
            "substitutions": sum(count.substitutions for count in counts),
            "deletions": sum(count.deletions for count in counts),
            "insertions": sum(count.insertions for count in counts),
            "reference_units": units,
        }


class WordErrorRate(_ErrorRate):
    """``evaluate`` module: word error rate ``wer`` (1.0 = as many errors as reference words) and the error counts."""

    name_of_value = "wer"
    by_character = False


class CharacterErrorRate(_ErrorRate):
    """``evaluate`` module: character error rate ``cer``, white space left out, and the error counts."""

    name_of_value = "cer"
    by_character = True


class Bleu(evaluate.Metric):
    """``evaluate`` module: sacrebleu's corpus BLEU (0 to 100), tokenised for ``target_lang``, and its signature."""

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
        score = metric.corpus_score(predictions, [references]).score
        return {"bleu": score, "signature": str(metric.get_signature())}


class ChrF(evaluate.Metric):
    """``evaluate`` module: sacrebleu's chrF2 (0 to 100) and its signature."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Corpus chrF2 by sacrebleu.",
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(TEXT_PAIR),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict:
        metric = sacrebleu.CHRF()
        score = metric.corpus_score(predictions, [references]).score
        return {"chrf": score, "signature": str(metric.get_signature())}


class Comet(evaluate.Metric):
    """``evaluate`` module: COMET (higher is better) by the ``comet-score`` command of another environment.

    The package ``unbabel-comet`` demands transformers 4, so it cannot share an environment with this package: install
    it in one of its own and see that its ``comet-score`` is on the PATH, or name the command.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="COMET through Unbabel's comet-score command.",
            citation="",
            inputs_description=f"{INPUTS}; sources: the sentences translated from. model: COMET model; command: path.",
            features=datasets.Features({"sources": datasets.Value("string"), **TEXT_PAIR}),
        )

    def _compute(
        self,
        sources: list[str],
        predictions: list[str],
        references: list[str],
        model: str = "Unbabel/wmt22-comet-da",
        command: str = "comet-score",
        gpus: int = 0,
    ) -> dict:
        if shutil.which(command) is None:
            raise ImportError(
                f"COMET needs the command {command!r}, which is not on the PATH; install `unbabel-comet` in an "
                "environment of its own (it demands transformers 4) and give the path of its comet-score as command="
            )
        with tempfile.TemporaryDirectory() as folder:
            texts = {"sources": sources, "translations": predictions, "references": references}
            arguments = [command, "--model", model, "--to_json", "scores.json", "--gpus", str(gpus)]
            for name, lines in texts.items():
                content = "".join(" ".join(line.split()) + "\n" for line in lines)
                Path(folder, f"{name}.txt").write_text(content, encoding="utf-8")
                arguments += [f"--{name}", f"{name}.txt"]
            finished = subprocess.run([*arguments, "--quiet"], check=False, cwd=folder, capture_output=True, text=True)
            if finished.returncode:
                raise RuntimeError(f"{command} ended with status {finished.returncode}:\n{finished.stderr[-2000:]}")
            scores = [row["COMET"] for row in json.loads(Path(folder, "scores.json").read_text())["translations.txt"]]
        return {"comet": float(np.mean(scores)), "scores": scores, "model": model}
