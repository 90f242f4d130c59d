# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""WER, CER, BLEU, chrF and COMET as `evaluate` modules."""

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import datasets
import evaluate
import numpy as np
import sacrebleu

from .metrics import bleu_metric, count_edits
from .normalization import normalize_text


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
