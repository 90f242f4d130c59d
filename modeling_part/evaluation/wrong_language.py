# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Whether an answer is written in another language than it was asked for: a sign of a broken model."""

from __future__ import annotations

import functools
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import regex

from .metrics import count_edits
from .normalization import language_scripts, normalize_text, primary_language, script_share, words_of_other_scripts


if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier


# So many words, all known from texts of another language and most of them not from those of its own, are that language.
TELLING_WORDS = 3
WORD = regex.compile(r"[\p{L}\p{M}]+")  # Python's \w would cut Hindi, Arabic and Thai at each mark

# Below this many letters identification by letter sequences errs too often (see is_wrong_language).
IDENTIFIABLE_LETTERS = 25
IDENTIFICATION_PROBABILITY = 0.9

# A translation this close to the source sentence, in errors per source character, is the source sentence.
SOURCE_COPY_RATE = 0.2


@functools.cache
def _language_identifier(languages: frozenset[str]) -> LanguageIdentifier | None:
    """py3langid restricted to those of `languages` that it knows; None where fewer than two are left to tell apart."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    known = sorted(languages & set(identifier.labels))
    if len(known) < 2:
        return None
    identifier.set_languages(known)
    return identifier


def vocabularies_of(rows: Iterable[Mapping]) -> dict[str, set[str]]:
    """The words of all texts that were given, by primary language."""
    vocabularies = defaultdict(set)
    for row in rows:
        vocabularies[primary_language(row["target_lang"])].update(_words(row["reference"]))
        vocabularies[primary_language(row["source_lang"])].update(_words(row.get("source_text") or ""))
    return vocabularies


def _words(text: str) -> list[str]:
    return WORD.findall(unicodedata.normalize("NFC", text.casefold()))


def is_wrong_language(row: Mapping, vocabularies: Mapping[str, set[str]]) -> bool:
    """Whether a hypothesis is written in another language than `row["target_lang"]`.

    Four signs, from the sure to the less sure: most letters are of another script; a translation is the source
    sentence again; its words, `TELLING_WORDS` or more, are all words of another language's texts and most of them in
    none of its own; a text of at least `IDENTIFIABLE_LETTERS` letters is identified (py3langid, restricted to the
    languages of `vocabularies`) as another language with a probability of `IDENTIFICATION_PROBABILITY` or more. Other
    short texts in the wrong language but the right script go unseen, and so do Cantonese for Chinese and kanji-only
    Japanese.

    What the reference shows as well is no sign: its own words of another script ("это iPhone Pro Max") are left out of
    the count, and a language that it, too, is identified as is not wrong.

    Args:
        row: a prediction with `normalized_hypothesis` and `normalized_reference`.
        vocabularies: words by primary language, of the whole set of predictions.
    """
    hypothesis, reference, target = row["normalized_hypothesis"], row["normalized_reference"], row["target_lang"]
    if hypothesis == reference:
        return False
    share = _share_of_target_script(row["hypothesis"], row["reference"], language_scripts(target))
    if share is None:
        return False
    if share < 0.5:
        return True
    if row["task"] != "asr" and row.get("source_text"):
        source = list(normalize_text(row["source_text"], row["source_lang"]).replace(" ", ""))
        letters = list(hypothesis.replace(" ", ""))
        from_source = count_edits(source, letters).errors
        from_reference = count_edits(list(reference.replace(" ", "")), letters).errors
        if from_source < from_reference and from_source <= SOURCE_COPY_RATE * len(source):
            return True
    language = primary_language(target)
    if _is_of_another_vocabulary(_words(row["hypothesis"]), language, vocabularies):
        return True
    if sum(map(str.isalpha, hypothesis)) < IDENTIFIABLE_LETTERS:
        return False
    identifier = _language_identifier(frozenset(vocabularies) | {language})
    if identifier is None or language not in identifier.labels:
        return False
    identified, probability = identifier.classify(hypothesis)
    if identified == language or probability < IDENTIFICATION_PROBABILITY:
        return False
    return identifier.classify(reference)[0] != identified


def _is_of_another_vocabulary(words: Sequence[str], language: str, vocabularies: Mapping[str, set[str]]) -> bool:
    own = sum(word in vocabularies.get(language, ()) for word in words)
    if len(words) < TELLING_WORDS or 2 * own >= len(words):
        return False
    return any(known.issuperset(words) for other, known in vocabularies.items() if other != language)


def _share_of_target_script(hypothesis: str, reference: str, scripts: frozenset[str]) -> float | None:
    """The share of letters in `scripts`, or in words of other scripts that the reference has as well.

    None where it says nothing: no letters, or a reference that is wholly in another script itself.
    """
    share = script_share(hypothesis, scripts)
    if share is None or share >= 0.5:
        return share
    if script_share(reference, scripts) == 0:
        return None
    foreign = Counter(words_of_other_scripts(hypothesis, scripts))
    strange = foreign - Counter(words_of_other_scripts(reference, scripts))
    letters, strange_letters = (sum(map(str.isalpha, "".join(words.elements()))) for words in (foreign, strange))
    return 1 - (1 - share) * strange_letters / letters
