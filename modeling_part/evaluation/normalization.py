# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Text normalisation before error rates are counted: which normaliser, which unit, which script, per language.

| language | normaliser | unit |
|---|---|---|
| en | Whisper's English normaliser with its list of British spellings | words |
| zh, yue, ja, ko | basic | characters, spaces removed (the PART paper's rule) |
| th, lo, my, km | basic | characters, spaces removed (written without spaces between words, as in Whisper's paper) |
| all others whose script CLDR knows | basic | words |

"Basic" is Whisper's `BasicTextNormalizer` (lower case, bracketed remarks removed, NFKC, punctuation and symbols
become spaces) with these differences, which change nothing in the ten languages of the paper:

- Combining marks stay. Whisper's turns each into a space, which deletes the vowels of Thai and of every Indic script
  and cuts their words in pieces. Marks that only annotate a letter are removed without a space: Arabic and Hebrew
  pointing, Cyrillic stress accents, variation selectors, enclosing marks.
- Invisible format characters (zero-width joiners, soft hyphens, direction marks) are removed.
- Turkish and Azerbaijani letters are lowered by their own rule (I to ı, İ to i).

Whisper's English normaliser leaves the last point of an ellipsis as a word of its own ("Hello..." becomes "hello .");
here a symbol that stands alone is removed.

NFKC makes full-width and half-width forms equal (ＡＢＣ and ABC, ｶﾅ and カナ) and composes Korean syllables.
Traditional and simplified Chinese are *different* characters unless `simplify_chinese=True` (needs the `chinese`
extra). Numbers are not spelled out except in English: "2" for "二" or "deux" is an error.

Sources: `openai/whisper`, `whisper/normalizers` (MIT; `english_spelling.json` is its `english.json`), as carried
by `transformers.models.whisper.english_normalizer`; Unicode CLDR through Babel for the script of a language.
"""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from collections.abc import Iterable
from importlib import resources
from typing import TYPE_CHECKING

import regex
from babel.core import get_global
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer


if TYPE_CHECKING:
    from opencc import OpenCC


# zh, yue, ja, ko by the paper; the other four are written without spaces between words.
CHARACTER_LANGUAGES = frozenset({"zh", "yue", "ja", "ko", "th", "lo", "my", "km"})

# What CLDR's composite script codes stand for, in Unicode script names.
COMPOSITE_SCRIPTS = {
    "Hans": {"Hani"},
    "Hant": {"Hani"},
    "Jpan": {"Hani", "Hira", "Kana"},
    "Kore": {"Hang", "Hani"},
}

# Languages in everyday use with a second script that CLDR's most likely script leaves out.
SECOND_SCRIPTS = {
    "az": {"Cyrl"},
    "bs": {"Cyrl"},
    "kk": {"Latn"},
    "ku": {"Arab"},
    "mn": {"Mong"},
    "sr": {"Latn"},
    "uz": {"Cyrl"},
}

# Marks that annotate a letter instead of being one: Arabic and Hebrew pointing (with Syriac), a stress accent on a
# Cyrillic letter, variation selectors, enclosing marks. Yiddish points are letters and stay.
ARABIC_AND_SYRIAC_MARKS = regex.compile(
    r"[\p{Mn}&&[\u0610-\u061A\u064B-\u065F\u0670\u06D6-\u06ED\u0711\u0730-\u074A]]", regex.V1
)
HEBREW_MARKS = regex.compile(r"[\p{Mn}&&[\u0591-\u05C7]]", regex.V1)
CYRILLIC_STRESS = regex.compile(r"(?<=\p{Script=Cyrillic})[\u0300\u0301]")
NEVER_LETTERS = regex.compile(r"[\p{Me}\p{Variation_Selector}]")
FORMAT_CHARACTERS = regex.compile(r"[\p{Cf}\p{Default_Ignorable_Code_Point}--\p{Variation_Selector}]", regex.V1)
PUNCTUATION_AND_SYMBOLS = regex.compile(r"[\p{P}\p{S}]")
MARKS_WITHOUT_LETTER = regex.compile(r"(?<![\p{L}\p{M}\p{N}])\p{M}+")
SYMBOLS_ALONE = re.compile(r"(?<!\S)[.%$¢€£]+(?!\S)")
IN_BRACKETS = re.compile(r"[<\[][^>\]]*[>\]]|\([^)]+?\)")


def primary_language(code: str) -> str:
    """The language of a BCP 47 code in its modern form: `"zh-TW"` and `"cmn"` give `"zh"`, `"iw"` `"he"`."""
    language = code.replace("_", "-").split("-")[0].lower()
    return get_global("language_aliases").get(language, language)


def language_scripts(code: str) -> frozenset[str]:
    """The Unicode scripts (ISO 15924 names, e.g. `{"Latn"}`) a language is written in.

    A script in the code itself counts alone (`"sr-Latn"`); otherwise CLDR's likely script for the code, and the
    second script of the few languages that use two.

    Raises:
        ValueError: CLDR knows no script for `code`.
    """
    subtags = code.replace("_", "-").split("-")
    language = primary_language(code)
    explicit = [subtag.title() for subtag in subtags[1:] if len(subtag) == 4 and subtag.isalpha()]
    if explicit:
        return frozenset(COMPOSITE_SCRIPTS.get(explicit[0], {explicit[0]}))
    likely_subtags = get_global("likely_subtags")
    region = [subtag.upper() for subtag in subtags[1:] if len(subtag) == 2]
    likely = likely_subtags.get("_".join([language, *region[:1]])) or likely_subtags.get(language)
    if likely is None or language == "und":
        raise ValueError(
            f"There is no text normaliser for language {code!r}: it is not a BCP 47 language whose script CLDR knows; "
            "use the language's code, such as 'en', 'zh' or 'pt-BR'."
        )
    script = likely.split("_")[1]
    return frozenset(COMPOSITE_SCRIPTS.get(script, {script}) | SECOND_SCRIPTS.get(language, set()))


def check_languages(codes: Iterable[str]) -> None:
    """Checks before training that every language can be scored afterwards.

    Raises:
        ValueError: lists all codes (BCP 47) without a text normaliser.
    """
    unknown = []
    for code in sorted(set(codes)):
        try:
            language_scripts(code)
        except ValueError:
            unknown.append(code)
    if unknown:
        raise ValueError(
            f"There is no text normaliser for {', '.join(map(repr, unknown))}: not BCP 47 languages whose script CLDR knows; "
            "correct the code in the recipe or the manifest (such as 'en', 'zh' or 'pt-BR') or leave the language out."
        )


def counts_characters(language: str) -> bool:
    """True where the character error rate is the measure, False where the word error rate is (the module's table)."""
    return primary_language(language) in CHARACTER_LANGUAGES


@functools.cache
def _english_normalizer() -> EnglishTextNormalizer:
    spelling = resources.files(__package__).joinpath("english_spelling.json").read_text(encoding="utf-8")
    return EnglishTextNormalizer(json.loads(spelling))


@functools.cache
def _chinese_converter() -> OpenCC:
    try:
        import opencc
    except ImportError as error:
        raise ImportError(
            "simplify_chinese=True converts traditional to simplified characters with OpenCC, which is not installed; "
            "run `pip install modeling-part[chinese]`, or score without the conversion."
        ) from error
    return opencc.OpenCC("t2s")


def _normalize_basic(text: str, language: str) -> str:
    text = FORMAT_CHARACTERS.sub("", text)
    if language in ("tr", "az"):
        text = text.replace("I", "ı").replace("İ", "i")
    text = IN_BRACKETS.sub("", text.lower())
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).lower())
    text = CYRILLIC_STRESS.sub("", NEVER_LETTERS.sub("", ARABIC_AND_SYRIAC_MARKS.sub("", text)))
    if language != "yi":
        text = HEBREW_MARKS.sub("", text)
    text = PUNCTUATION_AND_SYMBOLS.sub(" ", FORMAT_CHARACTERS.sub("", text))
    # NFKC splits the Thai and Lao vowel "am", which nobody writes in two characters.
    text = text.replace("\u0e4d\u0e32", "\u0e33").replace("\u0ecd\u0eb2", "\u0eb3")
    return MARKS_WITHOUT_LETTER.sub(" ", text)


def normalize_text(text: str, language: str, *, simplify_chinese: bool = False) -> str:
    """The form of `text` in which errors are counted.

    Args:
        text: a reference or a hypothesis.
        language: BCP 47 code of the text's language.
        simplify_chinese: write Chinese and Cantonese in simplified characters (needs the `chinese` extra).

    Returns:
        Units separated by single spaces; without spaces where characters are counted.

    Raises:
        ValueError: no normaliser for `language`.
        ImportError: `simplify_chinese` without OpenCC.
    """
    language_scripts(language)
    language = primary_language(language)
    if language == "en":
        text = SYMBOLS_ALONE.sub(" ", _english_normalizer()(text))
    else:
        text = _normalize_basic(text, language)
    if simplify_chinese and language in ("zh", "yue"):
        text = _chinese_converter().convert(text)
    joined = ("" if language in CHARACTER_LANGUAGES else " ").join(text.split())
    return unicodedata.normalize("NFC", joined)  # what was removed may have kept a letter and its mark apart


def scored_units(normalized_text: str, language: str) -> list[str]:
    """The words, or the characters of a character language, of a text that :func:`normalize_text` returned."""
    return list(normalized_text) if counts_characters(language) else normalized_text.split()


def script_share(text: str, scripts: Iterable[str]) -> float | None:
    """The share of the letters of `text` (0 to 1) that belong to `scripts`; None for a text without letters."""
    letters = regex.findall(r"\p{L}", text)
    if not letters:
        return None
    pattern = regex.compile("|".join(rf"\p{{Script={script}}}" for script in sorted(scripts)))
    return sum(pattern.match(letter) is not None for letter in letters) / len(letters)
