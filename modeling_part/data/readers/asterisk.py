# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""The Asterisk core sounds: recorded prompts in five languages."""

import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..checking import DataReport
from ..corpus_spec import CorpusSpec
from ..rows import CorpusError, audio_durations, direction, speech_row, split_of, text_row


LANGUAGES = ("en", "es", "fr", "it", "ru")
CORPUS = "asterisk"
MOST_CHARACTERS_PER_SECOND = 30  # nobody speaks faster: the text is not what was recorded


def clean_text(prompt_id: str, text: str) -> str:
    """The words that are spoken in one line of a core-sounds text file.

    Quotation marks, ellipses, glosses of symbols ("equals [=]") and a repeated identifier go; casing, accents and
    punctuation stay as written.

    Raises:
        CorpusError: nothing is spoken ("[ascending tones]"), or notes and symbols leave open what is.
    """
    text = re.split(r"\s+[a-z]+(?:[-/][\w-]+)+:\s", text.removeprefix(f"{prompt_id}:"))[0]
    if re.fullmatch(r"\s*(\[.*\]|\(.*\)|<.*>)\s*", text):
        raise CorpusError("a sound, not speech")
    text = re.sub(r"\[[^\w\]]*\]", " ", text)
    if re.search(r"[\[\]()<>]", text):
        raise CorpusError("a note in brackets leaves open what is spoken")
    if re.search(r"[*#/@$=+]", text):
        raise CorpusError("a symbol leaves open what is spoken")
    text = re.sub(r"[\"“”„«»]|\.{2,}|…", " ", text)
    text = re.sub(r"\s+([.,;:!?])", r"\1", " ".join(text.split())).lstrip(".,;: ").rstrip(",;: ")
    if not re.search(r"\w", text):
        raise CorpusError("no text")
    return text


def read_texts(path: Path, language: str, report: DataReport) -> dict[str, str | None]:
    """The cleaned text of every prompt identifier in a `core-sounds-LANG.txt[.gz]` file.

    None stands for a text that cannot be used; why goes to `report`.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig") as lines:
            entries = [line.partition(":")[::2] for line in lines if ":" in line and not line.startswith(";")]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise CorpusError(f"{path} could not be read as UTF-8 text ({error}); unpack it again") from error
    texts: dict[str, str | None] = {}
    for prompt_id, text in entries:
        if prompt_id in texts:
            report.drop(CORPUS, f"{language}/{prompt_id}", "identifier listed before with another text")
            continue
        try:
            texts[prompt_id] = clean_text(prompt_id, text)
        except CorpusError as error:
            texts[prompt_id] = None
            report.drop(CORPUS, f"{language}/{prompt_id}", str(error))
    return texts


def language_files(root: Path, language: str) -> tuple[Path, Path]:
    """The folder of the recordings and the text file of one language, in unpacked Debian packages or tarballs.

    Debian: `usr/share/asterisk/sounds/LANG_COUNTRY_SEX_NAME/` and `usr/share/doc/…/core-sounds-LANG.txt.gz`.
    Tarball: `core-sounds-LANG.txt` beside the recordings.
    """
    texts = sorted(root.rglob(f"core-sounds-{language}.txt*"))
    if not texts:
        raise CorpusError(
            f"No core-sounds-{language}.txt[.gz] under {root}: is asterisk-core-sounds-{language} unpacked?"
        )
    voices = [path for path in sorted(root.rglob(f"sounds/{language}_*")) if path.is_dir()]
    sounds = voices[0] if voices else texts[0].parent
    if not any(sounds.rglob("*.wav")):
        raise CorpusError(f"No .wav files under {sounds}: is asterisk-core-sounds-{language}-wav unpacked?")
    return sounds, texts[0]


def prompt_splits(texts: dict[str, dict[str, str]]) -> dict[str, str]:
    """The split of every prompt identifier, given `texts[language][prompt_id]`.

    Prompts that read the same in some language ("invalid" and "pbx-invalid") follow the first of them by name, so
    that no transcript of dev or test is in train. What reads the same depends on the languages that are read: prepare
    all languages of an experiment together.
    """
    leader: dict[str, str] = {}

    def lead(prompt_id: str) -> str:
        while leader.setdefault(prompt_id, prompt_id) != prompt_id:
            prompt_id = leader[prompt_id]
        return prompt_id

    for by_id in texts.values():
        first_with_words: dict[str, str] = {}
        for prompt_id, text in sorted(by_id.items()):
            words = " ".join(re.findall(r"\w+", text.casefold()))
            pair = sorted((lead(prompt_id), lead(first_with_words.setdefault(words, prompt_id))))
            leader[pair[1]] = pair[0]
    return {prompt_id: split_of(lead(prompt_id)) for prompt_id in list(leader)}


def read_asterisk(spec: CorpusSpec, report: DataReport) -> Iterator[dict]:
    """Canonical asr, s2tt and mt rows of one split: the reader behind `reader: asterisk`.

    `path` is the folder given to `prepare`, or any folder with unpacked packages or tarballs of the languages.
    """
    sources = spec.languages or LANGUAGES
    targets = spec.target_languages or sources
    for split, row in read_prompts(spec.folder(), report, list(dict.fromkeys((*sources, *targets)))):
        wanted = spec.wants(row["task"], row["source_lang"]) and row["target_lang"] in (row["source_lang"], *targets)
        if split == spec.split and wanted:
            yield {**row, "corpus": spec.corpus}


def read_prompts(root: Path, report: DataReport, languages: Sequence[str]) -> Iterator[tuple[str, dict]]:
    """(split, canonical row) of every asr, s2tt and mt row in unpacked packages or tarballs.

    Every ordered pair of `languages` is a direction of translation. A row needs a cleaned text and, for asr and s2tt,
    a recording; what has not is counted in `report`.
    """
    files = {language: language_files(root, language) for language in languages}
    listed = {language: read_texts(files[language][1], language, report) for language in languages}
    texts = {language: {key: text for key, text in listed[language].items() if text} for language in languages}
    splits = prompt_splits(texts)
    for source in languages:
        sounds = files[source][0]
        for path in sorted(sounds.rglob("*.wav")):
            prompt_id = path.relative_to(sounds).with_suffix("").as_posix()
            if prompt_id not in listed[source]:
                report.drop(CORPUS, f"{source}/{prompt_id}", "recording without a text")
        paths = [sounds / f"{prompt_id}.wav" for prompt_id in texts[source]]
        durations = audio_durations(paths)
        for (prompt_id, text), path, duration in zip(texts[source].items(), paths, durations, strict=True):
            fault = None
            if isinstance(duration, CorpusError):
                fault = f"text without a recording: {duration}"
            elif len(text) > MOST_CHARACTERS_PER_SECOND * duration:
                fault = "text too long for its recording"
            if fault:
                report.drop(CORPUS, f"{source}/{prompt_id}", fault)
            audio = None if fault else path
            for row in parallel_rows(CORPUS, prompt_id, source, texts, audio, duration):
                yield splits[prompt_id], row


def parallel_rows(
    corpus: str,
    key: str,
    source: str,
    texts: dict[str, dict[str, str]],
    audio: Path | None,
    duration: float,
) -> Iterator[dict]:
    """The asr row, and the s2tt and mt row into every other language, of the sentence `texts[language][key]`."""
    source_text = texts[source][key]
    for target, by_key in texts.items():
        if key not in by_key:
            continue
        row_id = f"{key}/{direction(source, target)}"
        if audio is not None:
            yield speech_row(row_id, corpus, source, target, by_key[key], source_text, duration, audio)
        if source != target:
            yield text_row(row_id, corpus, source, target, by_key[key], source_text)
