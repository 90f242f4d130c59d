# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Texts of files."""

import argparse
from pathlib import Path

from .options import add_device, add_verb, add_window, at_least, chosen


def transcribe(options: argparse.Namespace) -> None:
    """Texts of files."""
    from transformers import pipeline

    from ..demo_checkpoint import find_checkpoint, to_tell_apart
    from ..evaluation.transcription import find_files, transcribe_files
    from ..prompts_part import code_of, task_of
    from ..subtitles_part import FORMATS

    if task_of(options.task) not in ("asr", "s2tt"):
        raise ValueError(f"--task is {options.task!r}; it is transcribe or translate.")
    target = code_of(options.target_language) or ("en" if options.task == "translate" else None)
    task = "s2tt" if target else task_of(options.task)
    if task == "s2tt" and target is None:
        raise ValueError("A translation needs --target_language, such as fr or French.")
    if task == "s2tt" and options.languages:
        raise ValueError("--languages is for transcription; of a translation, name what is spoken with --language.")
    if options.language and options.languages:
        raise ValueError("--languages has no effect beside --language, which names what is spoken: leave one out.")
    files = find_files(options.files)
    checkpoint = find_checkpoint(options.checkpoint)
    pipe = pipeline("speech-to-text", model=checkpoint.source, device=options.device, chunk_length_s=options.window)
    if task == "asr" and not options.language and not options.languages:
        options.languages = to_tell_apart(pipe, checkpoint)
    settings = {"task": task, "source_lang": code_of(options.language), "target_lang": target}
    if options.output_format and task == "asr" and pipe.model.alignment_head is not None:
        settings["return_timestamps"] = "word"
    if options.languages:
        settings["languages"] = options.languages
    settings |= chosen(options, "max_new_tokens") | ({"voice_activity": True} if options.voice_activity else {})
    formats = list(FORMATS) if "all" in options.output_format else options.output_format
    settings |= {"formats": formats, "folder": options.output_dir, "batch_size": options.batch_size}
    failed = transcribe_files(pipe, files, overwrite=options.overwrite, **settings)
    if failed:
        raise ValueError(f"{len(failed)} of {len(files)} files could not be read; the others are done.")


def add_transcribe(verbs: argparse._SubParsersAction) -> None:
    """Add `transcribe`."""
    verb = add_verb(
        verbs,
        transcribe,
        "print what is said in files, or its translation",
        only_beside={"output_dir": "output_format", "overwrite": "output_format"},
        goes_on=lambda options: bool(options.output_format) and not options.overwrite,
    )
    verb.add_argument("checkpoint", help="folder of a run (its last stage) or of a stage, or Hub repository")
    verb.add_argument("files", nargs="+", metavar="FILE", help="audio of any length; folders and patterns too")
    verb.add_argument("--language", help="spoken, such as fr or French; without, one of --languages")
    verb.add_argument(
        "--languages", nargs="+", metavar="LANGUAGE", help="of which one is spoken; those it was trained on by default"
    )
    verb.add_argument("--task", default="transcribe", help="transcribe (default), or translate: into English")
    verb.add_argument("--target_language", help="translate into it")
    formats = ("srt", "vtt", "tsv", "txt", "json", "all")
    verb.add_argument("--output_format", nargs="+", choices=formats, default=[], help="write files; print without it")
    verb.add_argument("--output_dir", type=Path, help="for these files; beside each recording by default")
    verb.add_argument("--overwrite", action="store_true", help="write anew the files that are there already")
    add_window(verb)
    verb.add_argument(
        "--max_new_tokens", type=at_least(1), help="of a window's text; as the checkpoint says by default"
    )
    verb.add_argument("--voice_activity", action="store_true", help="leave out what is no speech (extra `vad`)")
    verb.add_argument("--batch_size", type=at_least(1), default=1, help="windows decoded at once (default 1)")
    add_device(verb)
