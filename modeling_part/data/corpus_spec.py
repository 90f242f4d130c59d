# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""One entry of `train_data`, `eval_data` or `test_data`: which corpus, and what of it."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, get_args, get_origin

from ..prompts_part import TASKS, code_of, task_of
from ..recipes.suggestions import did_you_mean
from ..recipes.values import as_held
from .addresses import errors_at, is_address, path_of
from .readers.registry import FROM_FILES, ONE_SPLIT, READERS, SPLITS_BY_READER, reader_settings, readers_with
from .rows import SPLITS, CorpusError, check_language
from .where_to_get import how_to_get


if TYPE_CHECKING:
    from upath import UPath

HIGHEST_WEIGHT = 1000  # an epoch that draws rows more often than this never ends
LISTS = ("tasks", "languages", "target_languages")


@dataclass(frozen=True)
class CorpusSpec:
    """One entry of a recipe's list of corpora: what to read, and which part of it.

    Args:
        reader: one of `READERS`.
        path: folder or file; for dataset and fleurs also a Hub id ("google/fleurs"). For readers of files and dataset also
            an address that fsspec knows, such as `s3://bucket/train.jsonl`.
        split: train, dev or test; for common_voice also validated, for dataset any that it has. Not for manifest, nemo,
            funasr, lhotse and text_pairs, where a file is one split.
        name: the `corpus` of the rows. Default: the reader's name; for manifests what the rows say.
        tasks: tasks to keep. Default: all that the corpus offers.
        languages: BCP 47 codes of the source languages to keep. Default: all that are found.
        target_languages: of s2tt and mt. Default: all; in asterisk, fleurs and tuxpaint, where every language can be
            translated into every other, `languages`.
        weight: how often the rows are drawn in an epoch, for the sampler. Default: 1.0, once.
        settings: the keyword arguments of the reader, which stand beside the others in a recipe.
    """

    reader: str
    path: str
    split: str = "train"
    name: str | None = None
    tasks: tuple[str, ...] | None = None
    languages: tuple[str, ...] | None = None
    target_languages: tuple[str, ...] | None = None
    weight: float = 1.0
    settings: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, entry: Mapping) -> "CorpusSpec":
        """Check one mapping of a recipe.

        Raises:
            CorpusError: a key is unknown, missing or another reader's, or a value is not as it must be.
        """
        if not isinstance(entry, Mapping):
            raise CorpusError(f"A corpus of the recipe is {entry!r}; it must be a mapping with `reader` and `path`")
        common = {one.name for one in fields(cls)} - {"settings"}
        for key in ("reader", "path"):
            if not entry.get(key):
                raise CorpusError(f"The corpus {dict(entry)} of the recipe lacks {key!r}")
        reader, where = entry["reader"], f"{entry['reader']} at {entry['path']}"
        if reader not in READERS:
            known = ", ".join(READERS)
            raise CorpusError(f"Unknown reader {reader!r}.{did_you_mean(reader, READERS)} The readers are {known}")
        own = reader_settings(reader)
        for key in entry:
            if key not in common and key not in own:
                raise _unknown_key(key, reader, [*common, *own])
        chosen_values = {key: value for key, value in entry.items() if value is not None}
        settings = {key: chosen_values.pop(key) for key in own if key in chosen_values}
        settings |= {key: as_held("", value, bool) for key, value in settings.items() if own[key] is bool}
        for key, value in settings.items():
            if not fits(value, own[key]):
                raise CorpusError(f"{where}: {key!r} must be {described(own[key])}, not {value!r}")
        chosen_values |= {key: names_of(key, chosen_values[key], where) for key in LISTS if key in chosen_values}
        for key in LISTS:
            known = task_of if key == "tasks" else code_of
            if chosen_values.get(key):
                chosen_values[key] = tuple(map(known, chosen_values[key]))
        spec = cls(**{**chosen_values, "path": str(entry["path"])}, settings=settings)
        spec._check(where)
        return spec

    def _check(self, where: str) -> None:
        """Raise `CorpusError` for a value of the common fields that is not as it must be."""
        for task in self.tasks or ():
            if task not in TASKS:
                raise CorpusError(f"{where}: task {task!r} is none of {', '.join(TASKS)}")
        for code in (*(self.languages or ()), *(self.target_languages or ())):
            check_language(code, where)
        if not fits(self.weight, float) or not 0 < self.weight <= HIGHEST_WEIGHT:
            raise CorpusError(f"{where}: weight {self.weight!r} is no number above 0 and up to {HIGHEST_WEIGHT}")
        splits = SPLITS_BY_READER.get(self.reader, SPLITS)
        if not isinstance(self.split, str) or not self.split:
            raise CorpusError(f"{where}: 'split' must be text, not {self.split!r}")
        if splits and self.split not in splits:
            raise CorpusError(f"{where}: split {self.split!r} is none of {', '.join(splits)}")
        if self.reader in ONE_SPLIT:
            refuse_split(self)
        for key, value in {"path": self.path, **self.settings}.items():
            if isinstance(value, str) and is_address(value) and self.reader not in (*FROM_FILES, "dataset"):
                raise CorpusError(
                    f"{where}: {key!r} is the address {value}; this reader's corpora must lie here: copy it and give the folder"
                )
        if not fits(self.name, str | None):
            raise CorpusError(f"{where}: 'name' must be text, not {self.name!r}")

    @property
    def corpus(self) -> str:
        """The `corpus` column of the rows."""
        return self.name or self.reader

    @property
    def place(self) -> dict[str, str]:
        """Reader, path, split and maybe config: what reports name it by."""
        config = self.settings.get("config")
        place = {"reader": self.reader, "path": self.path, "split": self.split}
        return place | ({"config": str(config)} if config else {})

    @property
    def asked_languages(self) -> set[str]:
        """The codes of `languages`, and of `target_languages` where translations are wanted: each must be somewhere."""
        translates = self.wants("s2tt") or self.wants("mt")
        return {*(self.languages or ()), *(self.target_languages or () if translates else ())}

    @property
    def streaming(self) -> bool:
        """Whether the rows are read while training."""
        return bool(self.settings.get("streaming"))

    @property
    def local_path(self) -> Path:
        """`path` on this machine, whether or not it exists; `~` is resolved."""
        return Path(self.path).expanduser()

    def folder(self) -> "Path | UPath":
        """`path` as a folder or file that exists, here or at an address; else `CorpusError`."""
        try:
            with errors_at(self.path):
                folder = path_of(self.path)
                exists = folder.exists()
        except OSError as error:
            raise CorpusError(f"{self.reader}: {error}") from error
        if not exists:
            what = "file or folder" if self.reader in FROM_FILES else "folder"
            where = how_to_get(self.reader)
            raise CorpusError(
                f"{self.reader}: {self.path} does not exist; give the {what} of the corpus as `path`"
                + (f". {where}." if where else "")
            )
        return folder

    def wants(self, task: str, source_lang: str | None = None, target_lang: str | None = None) -> bool:
        """Whether rows of this task and direction are asked for; a language of None stands for any."""
        if self.tasks and task not in self.tasks:
            return False
        if self.languages and source_lang and source_lang not in self.languages:
            return False
        translated = target_lang and source_lang != target_lang
        return not (translated and self.target_languages and target_lang not in self.target_languages)


def _unknown_key(key: str, reader: str, known: list[str]) -> CorpusError:
    """The error for a key that an entry of this reader cannot have."""
    if others := readers_with(str(key)):
        return CorpusError(f"{key!r} is a setting of {' and '.join(others)}, not of the reader {reader!r}")
    hint = did_you_mean(key, known) or f" It has {', '.join(sorted(known))}"
    return CorpusError(f"A corpus of the reader {reader!r} has no setting {key!r}.{hint}")


def refuse_split(spec: CorpusSpec) -> None:
    """Raise `CorpusError` where a split is asked for of what has none."""
    if spec.split != "train":
        raise CorpusError(
            f"{spec.reader}: {spec.path} has no splits, so that {spec.split!r} would be the same rows as 'train': leave `split` "
            "out, or give a file or folder for each split"
        )


def names_of(key: str, value: object, where: str) -> tuple[str, ...] | None:
    """One name or a list of names as a tuple; None for an empty list. YAML 1.1 reads `no`, Norwegian, as False."""
    values = [value] if isinstance(value, (str, bool)) else value
    if not isinstance(values, (list, tuple)):
        raise CorpusError(f"{where}: {key!r} must be a list of names, not {value!r}")
    names = tuple("no" if one is False and key != "tasks" else one for one in values)
    for name in names:
        if not isinstance(name, str):
            raise CorpusError(f"{where}: {key!r} must be a list of names, not {value!r}")
    return names or None


def fits(value: object, kind: object) -> bool:
    """Whether a value is of an annotation such as `float | None` or `Mapping[str, str]`.

    True is no number, nor is an integer that no float can be.
    """
    if isinstance(kind, UnionType):
        return any(fits(value, one) for one in get_args(kind))
    if kind is float:
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        return isinstance(value, float) or (is_integer and abs(value) <= sys.float_info.max)
    return isinstance(value, get_origin(kind) or kind)


def described(kind: object) -> str:
    """An annotation in words, for messages."""
    words = {str: "text", bool: "true or false", float: "a number", Mapping: "a mapping", list: "a list"}
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    return " or ".join(words.get(get_origin(one) or one, str(one)) for one in kinds if one is not NoneType)


def chosen(found: dict[str, str], spec: CorpusSpec) -> dict[str, str]:
    """Of the languages `found` (the corpus's own name -> BCP 47 code) those of `spec.languages`, in order of name.

    Raises:
        CorpusError: one that is asked for is not there, or none is.
    """
    missing = sorted(set(spec.languages or ()) - set(found.values()))
    if missing or not found:
        there = ", ".join(sorted(set(found.values()))) or f"nothing in the layout of {spec.reader}"
        raise CorpusError(f"{spec.reader} at {spec.path}: no {', '.join(missing) or 'language'} there; found {there}")
    wanted = spec.languages or tuple(found.values())
    return {name: code for name, code in sorted(found.items()) if code in wanted}
