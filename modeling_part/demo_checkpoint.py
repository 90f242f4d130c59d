# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""What the web page knows of the checkpoint that it serves: where it is, its languages, clips to try."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import soundfile
from transformers.utils import cached_file

from .audio_part import AudioError, load_clip
from .data.addresses import HUB_ID
from .data.corpora import kept_rows
from .evaluation.run_files import stage_folders
from .pipeline_part import PARTPipeline
from .prompts_part import LANGUAGE_NAMES, TEXT_TASKS
from .publishing.cards import group_languages
from .recipes.files import CheckpointError, read_json


logger = logging.getLogger(__name__)
MAX_EXAMPLES = 5


@dataclass(frozen=True)
class Checkpoint:
    """What a page knows of the model that it serves.

    Attributes:
        source: folder with the model, or repository on the Hub.
        title: such as "quickstart/joint".
        languages: codes of the languages spoken in its training data; empty where nothing tells them.
        targets: codes of the languages that it was trained to translate into.
        run: folder of its run, whose test data gives examples; None without one.
    """

    source: str
    title: str
    languages: list[str] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    run: Path | None = None


def find_checkpoint(checkpoint: str, revision: str | None = None) -> Checkpoint:
    """The model in the folder of a stage, the last stage of a run's folder, or a repository on the Hub.

    Raises:
        ValueError: a `revision` of a folder.
        FileNotFoundError: there is no such folder, and it is no name of a repository, or nothing in it was trained.
    """
    path = Path(checkpoint).expanduser()
    if not path.is_dir():
        if path.exists() or not HUB_ID.fullmatch(checkpoint):
            raise FileNotFoundError(
                f"There is no folder {checkpoint!r}; give that of a run or a stage, such as runs/quickstart, or USER/NAME "
                "on the Hub."
            )
        return _with_languages(checkpoint, checkpoint, None, revision)
    if revision is not None:
        raise ValueError(
            f"--revision is of a repository on the Hub, and {checkpoint!r} is a folder here: leave it out."
        )
    if (path / "config.json").is_file():
        folder = path.resolve()
    else:
        stages = [stage.resolve() for stage in stage_folders(path) if (stage / "config.json").is_file()]
        if not stages:
            raise FileNotFoundError(
                f"Folder {checkpoint!r} holds neither a model (config.json) nor finished stages (STAGE/stage.json)."
            )
        folder = stages[-1]
    return _with_languages(str(folder), f"{folder.parent.name}/{folder.name}", folder.parent, None)


def _with_languages(source: str, title: str, run: Path | None, revision: str | None) -> Checkpoint:
    """Read from `stage.json`, where it is there, which languages were trained."""
    path = cached_file(source, "stage.json", revision=revision, _raise_exceptions_for_missing_entries=False)
    record = {"data": {"rows": {}}} if path is None else read_json(Path(path))
    data = record.get("data") if isinstance(record, dict) else None
    if not isinstance(data, dict) or not isinstance(data.get("rows"), dict):
        raise CheckpointError(f"{path} has no `data` with `rows`: it is damaged. Fetch it again, or remove it.")
    groups = [(group.partition("/")[0], group_languages(group)) for group in data["rows"]]
    languages = {codes[0] for task, codes in groups if codes and task not in TEXT_TASKS}
    targets = {codes[1] for task, codes in groups if task == "s2tt" and len(codes) == 2}
    return Checkpoint(source, title, sorted(languages), sorted(targets), run)


def language_choices(pipe: PARTPipeline, codes: list[str]) -> list[tuple[str, str]]:
    """(name, BCP-47 code) of languages, by name; of all that the processor can name where `codes` is empty."""
    names = {**LANGUAGE_NAMES, **pipe.processor.language_names}
    return sorted((names.get(code, code), code) for code in codes or names)


def to_tell_apart(pipe: PARTPipeline, checkpoint: Checkpoint) -> list[str]:
    """The languages of which one is spoken where none is named; none where the alignment head could not tell which."""
    can_tell = pipe.model.alignment_head is not None and len(checkpoint.languages) > 1
    return checkpoint.languages if can_tell else []


def asked_of(task: str, source_lang: str | None, target_lang: str | None, languages: Sequence[str]) -> dict:
    """A visitor's choice as the pipeline takes it: `languages` tell apart what is spoken where none is named."""
    asked = {"task": task, "source_lang": source_lang or None}
    if task == "s2tt":
        asked["target_lang"] = target_lang
    elif languages and not source_lang:
        asked["languages"] = languages
    return asked


def find_examples(checkpoint: Checkpoint, folder: Path) -> list[tuple[str, str, str]]:
    """(file, language, what is said) of test clips of the run, one of each language, written into `folder` as WAV."""
    rows = None if checkpoint.run is None else kept_rows(checkpoint.run / "data" / "test")
    if rows is None:
        return []
    first: dict[str, int] = {}
    for index, (task, language) in enumerate(zip(rows["task"][:], rows["source_lang"][:], strict=True)):
        if task == "asr":
            first.setdefault(language, index)
    examples = []
    for language, index in sorted(first.items())[:MAX_EXAMPLES]:
        row = rows[index]
        try:
            waveform = load_clip(row)
        except (AudioError, OSError) as error:
            logger.warning("No example in %s: %s", language, error)
            continue
        file = folder / f"{language}.wav"
        soundfile.write(file, waveform, 16_000)
        examples.append((str(file), language, row["text"]))
    return examples
