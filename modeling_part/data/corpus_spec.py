# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""One entry of `train_data`, `eval_data` or `test_data`: which corpus, and what of it."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from ..prompts_part import TASKS
from .rows import SPLITS, CorpusError, check_language


READER_SETTINGS = {
    "columns": ("dataset", "text_pairs"),
    "streaming": ("dataset",),
    "config": ("dataset",),
    "revision": ("dataset", "fleurs"),
    "common_voice": ("covost2",),
    "subset": ("wenetspeech",),
    "min_confidence": ("wenetspeech",),
}


@dataclass(frozen=True)
class CorpusSpec:
    """One entry of a recipe's list of corpora: what to read, and which part of it.

    Args:
        reader: manifest, asterisk, common_voice, fleurs, covost2, wenetspeech, tuxpaint, dataset or text_pairs.
        path: folder or file; for dataset and fleurs also a Hub id ("google/fleurs").
        split: train, dev or test; for common_voice also validated. Of no use to manifest and text_pairs, where a file
            is one split.
        name: the `corpus` of the rows. Default: the reader's name; for manifests what the rows say.
        tasks: tasks to keep. Default: all that the corpus offers.
        languages: BCP 47 codes of the source languages to keep. Default: all that are found.
        target_languages: of s2tt and mt. Default: all; in asterisk, fleurs and tuxpaint, where every language can be
            translated into every other, `languages`.
        weight: how often the rows are drawn in an epoch, for the sampler. Default: 1.0, once.
        columns: canonical column -> column of the file, for dataset and text_pairs.
        streaming: read while training instead of before; dataset only.
        config, revision: of a Hub dataset.
        common_voice: folder of the Common Voice release whose clips CoVoST 2 translates. Default: `path`.
        subset: of WenetSpeech. Default: "L" for train, "DEV", "TEST_NET".
        min_confidence: of WenetSpeech segments. Default: all.
    """

    reader: str
    path: str
    split: str = "train"
    name: str | None = None
    tasks: tuple[str, ...] | None = None
    languages: tuple[str, ...] | None = None
    target_languages: tuple[str, ...] | None = None
    weight: float = 1.0
    columns: Mapping[str, str] | None = None
    streaming: bool = False
    config: str | None = None
    revision: str | None = None
    common_voice: str | None = None
    subset: str | None = None
    min_confidence: float | None = None

    @classmethod
    def from_dict(cls, entry: Mapping) -> "CorpusSpec":
        """Check one mapping of a recipe. Raises `CorpusError` for anything unknown, missing or not of that reader."""
        known = [field.name for field in fields(cls)]
        for key in entry:
            if key not in known:
                guess = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {guess[0]!r}?" if guess else f"it has {', '.join(known)}"
                raise CorpusError(f"a corpus of the recipe has no setting {key!r}; {hint}")
        for key in ("reader", "path"):
            if not entry.get(key):
                raise CorpusError(f"the corpus {dict(entry)} of the recipe lacks {key!r}")
        reader = entry["reader"]
        for key, readers in READER_SETTINGS.items():
            if entry.get(key) and reader not in readers:
                raise CorpusError(f"{key!r} is a setting of {' and '.join(readers)}, not of the reader {reader!r}")
        lists = {key: tuple(entry[key]) for key in ("tasks", "languages", "target_languages") if entry.get(key)}
        for task in lists.get("tasks", ()):
            if task not in TASKS:
                raise CorpusError(f"{reader} at {entry['path']}: task {task!r} is none of {', '.join(TASKS)}")
        for code in (*lists.get("languages", ()), *lists.get("target_languages", ())):
            check_language(code, f"{reader} at {entry['path']}")
        weight = entry.get("weight", 1.0)
        if not isinstance(weight, int | float) or weight <= 0:
            raise CorpusError(f"{reader} at {entry['path']}: weight {weight!r} is no number above 0")
        splits = (*SPLITS, "validated") if reader == "common_voice" else SPLITS
        if entry.get("split", "train") not in splits:
            raise CorpusError(f"{reader} at {entry['path']}: split {entry['split']!r} is none of {', '.join(splits)}")
        return cls(**{**entry, **lists, "path": str(entry["path"])})

    @property
    def corpus(self) -> str:
        """The `corpus` column of the rows."""
        return self.name or self.reader

    def folder(self) -> Path:
        """`path` as a folder or file that exists; else `CorpusError`."""
        folder = Path(self.path).expanduser()
        if not folder.exists():
            raise CorpusError(f"{self.reader}: {self.path} does not exist; give the folder of the corpus as `path`")
        return folder

    def wants(self, task: str, source_lang: str | None = None, target_lang: str | None = None) -> bool:
        """Whether rows of this task and direction are asked for; a language of None stands for any."""
        if self.tasks and task not in self.tasks:
            return False
        if self.languages and source_lang and source_lang not in self.languages:
            return False
        translated = target_lang and source_lang != target_lang
        return not (translated and self.target_languages and target_lang not in self.target_languages)


def chosen(found: dict[str, str], spec: CorpusSpec) -> dict[str, str]:
    """Of the languages `found` (the corpus's own name -> BCP 47 code) those of `spec.languages`, in order of name.

    Raises:
        `CorpusError`: one that is asked for is not there, or none is.
    """
    missing = sorted(set(spec.languages or ()) - set(found.values()))
    if missing or not found:
        there = ", ".join(sorted(set(found.values()))) or f"nothing in the layout of {spec.reader}"
        raise CorpusError(f"{spec.reader} at {spec.path}: no {', '.join(missing) or 'language'} there; found {there}")
    wanted = spec.languages or tuple(found.values())
    return {name: code for name, code in sorted(found.items()) if code in wanted}
