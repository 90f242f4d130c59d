"""Do lists of words raise the recall of words that training did not hold?

    python tests/benchmarks/recall.py prepare data/asterisk/prompts data/recall
    part train data/recall/recipe.yaml --checkpoint runs/four_languages/joint
    python tests/benchmarks/recall.py score runs/recall/recall data/recall

`prepare` takes the prompts that are a single word (names of letters, months, days, numbers, ...), in the languages of the
checkpoint, and keeps some of each language out of the training. The other words are trained on with lists of six words that
hold the one that is said. `score` asks for each word that was kept out: without a list, with a list of six such words that
holds it, and with one that does not. A list is of use if the word is written more often with it than without and more often
than one time in six, which a model that cannot hear would reach by reading the list; and if it is not written what is only
listed.
"""

import argparse
import json
import random
from pathlib import Path

import yaml
from side_by_side import show, write
from transformers import pipeline

from modeling_part.evaluation.normalization import normalize_text


LANGUAGES = ("en", "es", "fr", "it")
KEPT_OUT, LISTED, LISTS = 15, 6, 3  # words of each language, words of a list, lists of each word in training
LEAST_LETTERS = 4
STAGE = {
    "name": "recall",
    "max_steps": 80,
    "tasks": {"asr": 1.0},
    "gate": "always",  # copying from the prompt is the language model's work
    "learning_rates": {"adapter": 2e-4, "encoder": 1e-4, "language_model": 1e-3},
    "losses": {"nll": 1.0, "ctc": 0.3},
}
COLUMNS = {
    "": "{label}",
    "words written rightly, %": "{recall:.1f}",
    "a word that is only listed, %": "{only_listed:.1f}",
    "clips": "{clips}",
}


def words_of(folder: Path, language: str) -> dict[str, dict]:
    """Word -> a row that says it alone."""
    found: dict[str, dict] = {}
    for name in ("train", "dev", "test"):
        for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            word = normalize_text(row["text"], language)
            if (
                row["task"] == "asr"
                and row["source_lang"] == language
                and word.isalpha()
                and len(word) >= LEAST_LETTERS
            ):
                found.setdefault(word, row | {"text": word, "audio": str((folder / row["audio"]).resolve())})
    return found


def listed(word: str, others: list[str], generator: random.Random, has_it: bool) -> list[str]:
    """A list of words in any order."""
    chosen = generator.sample([one for one in others if one != word], LISTED - has_it) + [word] * has_it
    return generator.sample(chosen, len(chosen))


def prepare(args: argparse.Namespace) -> None:
    generator = random.Random(args.seed)
    rows: dict[str, list[dict]] = {"train": [], "test": []}
    for language in LANGUAGES:
        words = words_of(args.prompts, language)
        names = generator.sample(sorted(words), len(words))
        for split, own in (("test", names[:KEPT_OUT]), ("train", names[KEPT_OUT:])):
            for word in own:
                for number in range(LISTS if split == "train" else 1):
                    row = {key: words[word][key] for key in ("task", "source_lang", "text", "duration", "audio")}
                    row |= {"id": f"{word}/{language}/{number}", "context": listed(word, own, generator, True)}
                    rows[split].append(row | {"others": listed(word, own, generator, False)})
    args.folder.mkdir(parents=True, exist_ok=True)
    for split, of_split in rows.items():
        if split == "train":
            of_split = [{key: value for key, value in row.items() if key != "others"} for row in of_split]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in of_split)
        (args.folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    recipe = {
        "output_dir": "runs/recall",
        "checkpoint": "runs/four_languages/joint",
        "frozen_dtype": "auto",
        "attn_implementation": "eager",
        "train_data": [{"reader": "manifest", "path": str(args.folder / "train.jsonl")}],
        "max_audio_seconds": 48,
        "max_rows": 8,
        "pad_seconds_multiple": 0.5,
        "stages": [STAGE],
        "precision": "auto",
        "save_strategy": "no",
    }
    (args.folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    print({split: len(of_split) for split, of_split in rows.items()})


def score(args: argparse.Namespace) -> None:
    rows = [json.loads(line) for line in (args.folder / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    pipe = pipeline("speech-to-text", model=str(args.checkpoint), device=args.device)
    ways = {"no list": None, "a list with the word": "context", "a list without it": "others"}
    results = []
    for label, field in ways.items():
        options = {} if field is None else {"context": ["\n".join(row[field]) for row in rows]}
        clips, languages = [row["audio"] for row in rows], [row["source_lang"] for row in rows]
        answers = pipe(clips, source_lang=languages, batch_size=8, max_new_tokens=12, **options)
        texts = [normalize_text(one["text"], row["source_lang"]) for one, row in zip(answers, rows, strict=True)]
        right = [text == row["text"] for text, row in zip(texts, rows, strict=True)]
        wrong = [
            field is not None and text in row[field] and text != row["text"]
            for text, row in zip(texts, rows, strict=True)
        ]
        shares = {"recall": 100 * sum(right) / len(rows), "only_listed": 100 * sum(wrong) / len(rows)}
        results.append({"label": label, **shares, "clips": len(rows), "texts": texts})
        print(label, shares, flush=True)
    show("recall of words that training did not hold", results, COLUMNS)
    write(args.output, {"words": [row["text"] for row in rows], "ways": results})


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(required=True)
    verb = verbs.add_parser("prepare")
    verb.add_argument("prompts", type=Path, help="folder of `part quickstart speech`'s manifests")
    verb.add_argument("folder", type=Path, help="for manifests and the recipe")
    verb.add_argument("--seed", type=int, default=0)
    verb.set_defaults(run=prepare)
    verb = verbs.add_parser("score")
    verb.add_argument("checkpoint", type=Path)
    verb.add_argument("folder", type=Path)
    verb.add_argument("--device", default="cpu")
    verb.add_argument("--output", type=Path, help="JSON file for the figures")
    verb.set_defaults(run=score)
    args = parser.parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    main()
