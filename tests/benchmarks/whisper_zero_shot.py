"""Whisper itself on a recipe's test data, zero-shot and greedy, scored as PART's stages are.

    python tests/benchmarks/whisper_zero_shot.py part --model openai/whisper-base --output runs/whisper-base/zero_shot
    python tests/benchmarks/whisper_zero_shot.py part data/sentences --output runs/sentences/whisper-base/zero_shot
    part compare runs/part-42/joint/report.json runs/whisper-base/zero_shot/report.json

Whisper transcribes, and translates into English only: rows of other directions are left out, with their number. It
writes spoken digits as figures ("4 7 2"); PART learns to spell them. Whisper's English normaliser, which the scoring
uses, makes figures of English number words on both sides; no such rule is there for other languages. So
`--spell_digits` writes single figures out as the training data does before scoring: the fairer comparison on the
digits.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from modeling_part.audio_part import load_audio
from modeling_part.data.corpora import read_corpora
from modeling_part.evaluation.reports import write_report
from modeling_part.evaluation.scoring import annotate, score, write_predictions
from modeling_part.recipes.arguments import parse_recipe


task_and_language = itemgetter("task", "source_lang")  # Whisper's prompt holds both


def digit_words(rows: Sequence[Mapping]) -> dict[str, dict[str, str]]:
    """Language -> figure -> word, read off rows whose id begins with the figures that their text spells."""
    words: dict[str, dict[str, str]] = {}
    for row in rows:
        words.setdefault(row["target_lang"], {}).update(zip(row["id"].split("/")[0], row["text"].split(), strict=True))
    return words


def spell_digits(text: str, words: Mapping[str, str]) -> str:
    """`"4-72"` -> `"four seven two"`: every figure as a word of its own."""
    return " ".join(re.sub(r"\d", lambda figure: f" {words.get(figure[0], figure[0])} ", text).split())


@torch.inference_mode()
def transcribe(model, processor, rows: Sequence[Mapping], max_new_tokens: int) -> list[str]:
    """Hypotheses of rows of one task and one source language."""
    rate = processor.feature_extractor.sampling_rate
    sounds = [load_audio(row["audio"], rate, row.get("start"), row.get("end")) for row in rows]
    features = processor(sounds, sampling_rate=rate, return_tensors="pt").input_features
    ids = model.generate(
        features,
        language=rows[0]["source_lang"],
        task="transcribe" if rows[0]["task"] == "asr" else "translate",
        max_new_tokens=max_new_tokens,
        num_beams=1,
        do_sample=False,
    )
    return [text.strip() for text in processor.batch_decode(ids, skip_special_tokens=True)]


def main(argv: Sequence[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="+", help="a recipe, and what is laid over it: whose test_data is used")
    parser.add_argument("--model", default="openai/whisper-base", help="Hub id or folder")
    parser.add_argument("--output", type=Path, required=True, help="gets predictions.jsonl, report.json, report.md")
    parser.add_argument("--batch_size", type=int, default=12)
    parser.add_argument("--max_new_tokens", type=int, default=60)
    parser.add_argument("--spell_digits", action="store_true", help="write figures out before scoring")
    args = parser.parse_args(argv)
    recipe = parse_recipe([*args.recipes, "--output_dir", str(args.output), "--use_cpu"])
    dataset, _ = read_corpora(recipe.data.test_data)
    rows = [row for row in dataset if row["task"] == "asr" or (row["task"] == "s2tt" and row["target_lang"] == "en")]
    print(f"{len(rows)} rows; {len(dataset) - len(rows)} of directions that Whisper does not know are left out")
    model = WhisperForConditionalGeneration.from_pretrained(args.model, use_safetensors=True).eval()
    processor = WhisperProcessor.from_pretrained(args.model)
    words = digit_words(rows) if args.spell_digits else {}
    predictions = []
    progress = tqdm(total=len(rows), unit="row")
    for _, same in groupby(sorted(rows, key=task_and_language), key=task_and_language):
        same = list(same)
        for start in range(0, len(same), args.batch_size):
            batch = same[start : start + args.batch_size]
            for row, text in zip(batch, transcribe(model, processor, batch, args.max_new_tokens), strict=True):
                text = spell_digits(text, words[row["target_lang"]]) if args.spell_digits else text
                known = {name: row[name] for name in ("id", "corpus", "task", "source_lang", "target_lang")}
                predictions.append({**known, "reference": row["text"], "hypothesis": text})
            progress.update(len(batch))
    args.output.mkdir(parents=True, exist_ok=True)
    predictions = annotate(predictions)
    write_predictions(predictions, args.output / "predictions.jsonl")
    report = score(predictions)
    write_report(report, args.output)
    return report


if __name__ == "__main__":
    main()
