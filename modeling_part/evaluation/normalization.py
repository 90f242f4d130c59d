# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Text normalisation before error rates are counted: which normaliser, which unit, which script, per language.

| language | normaliser | unit |
|---|---|---|
| en | english | words |
| written in Han, kana or Hangul (zh, yue, nan, wuu, ja, ko, ...) | basic | characters, spaces removed (the paper's rule) |
| written in Thai, Lao, Khmer, Burmese, Tibetan (th, lo, km, my, shn, bo, dz, ...) | basic | characters, spaces removed |
| all others whose script CLDR knows | basic | words |

The script decides, so that all languages without spaces between words are counted alike, and `zh-Latn` by words.

"Basic" is Whisper's `BasicTextNormalizer` (lower case, bracketed remarks removed, NFKC, punctuation and symbols
become spaces) with these differences:

- NFKC comes first, so that a text equals its composed, decomposed, full-width and half-width forms; with Whisper,
  remarks in full-width brackets stay.
- Combining marks stay. Whisper's turns each into a space, which deletes the vowels of Thai and of every Indic script
  and cuts their words in pieces. Marks that only annotate a letter are removed without a space: Arabic and Hebrew
  pointing, Cyrillic stress accents, variation selectors, enclosing marks; so is the line that fills Arabic words.
- Invisible format characters (zero-width joiners, soft hyphens, direction marks) are removed.
- All apostrophes are one: straight, typographic, modifier letters, accents that stand alone. It is a letter inside the
  words of the languages in `APOSTROPHE_LETTERS` (Ukrainian, Uzbek, Hawaiian, ...) and punctuation in the others.
- All decimal digits are written 0 to 9, whatever the script.
- Turkish and Azerbaijani letters are lowered by their own rule (I to ı, İ to i); the dot that other programs leave on the
  i of İ is removed.
- Letters that keyboards exchange are one: `TYPED_ALIKE`.

"English" is Whisper's English normaliser with its list of British spellings, after the same first steps, and one
difference: it joins digits that are spoken one by one ("one two three" to "123"), which makes one wrong digit of a
string the error of the whole string, while every other language counts its digits one by one. Here they stay apart
("1 2 3"), so that strings of digits are counted alike in all languages; other numbers are Whisper's ("twenty three" is
"23", "nineteen ninety" is "1990", "three point one four" is "3.14"). Its last point of an ellipsis, a word of its own
("Hello..." becomes "hello ."), is removed.

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
from collections.abc import Iterable, Iterator
from importlib import resources
from typing import TYPE_CHECKING

import regex
from babel.core import get_global
from transformers.models.whisper.english_normalizer import EnglishNumberNormalizer, EnglishTextNormalizer


if TYPE_CHECKING:
    from opencc import OpenCC


# The rules of this module by number, which reports state: figures of different ones are not comparable. 1 joined spoken
# digits in English, and kept apart what apostrophes, fillers, digits and widths are here (until November 2026).
NORMALIZATION = 2

# Scripts whose languages are counted by character: Han, kana and Hangul by the paper, the others because they are
# written without spaces between words.
HAN_SCRIPTS = frozenset({"Hani", "Hira", "Kana", "Bopo", "Hang"})
SPACELESS_SCRIPTS = frozenset({"Thai", "Laoo", "Khmr", "Mymr", "Tibt", "Lana", "Talu", "Java", "Bali"})

# What CLDR's composite script codes stand for, in Unicode script names.
COMPOSITE_SCRIPTS = {
    "Hans": {"Hani"},
    "Hant": {"Hani"},
    "Jpan": {"Hani", "Hira", "Kana"},
    "Kore": {"Hang", "Hani"},
    "Hrkt": {"Hira", "Kana"},
    "Hanb": {"Hani", "Bopo"},
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

# What people type for an apostrophe: quotes, primes, accents that stand alone, modifier letters.
APOSTROPHES = regex.compile(
    "['`´\u2018\u2019\u201b\u2032\u2035\u02b9-\u02bf\u02c8\u0374\u0384\u055a\u05f3\u1fbd\u1fbf\u1fef\u1ffd\u1ffe\ua78b\ua78c\uff07]"
)

# Languages in which it is a letter: within a word; in Uzbek and Karakalpak also after the o and g that it changes.
APOSTROPHE_LETTERS = frozenset(
    "ay be br fj gn haw he kaa lg luo mi nv om qu rar rue sm so sw tet to ty uk uz".split()  # by language code
)
APOSTROPHE_IN_WORD = regex.compile(r"(?<=\p{L}\p{M}*)'(?=\p{L})")
APOSTROPHE_AFTER_O_AND_G = regex.compile(r"(?<=[og])'")
LETTER_APOSTROPHE = "\u02bc"
# Hebrew writes double quotes before the last letter of an abbreviation.
GERSHAYIM = regex.compile('(?<=\\p{Script=Hebrew}\\p{M}*)["\u05f4\u201c-\u201f](?=\\p{Script=Hebrew})')

# Letters of one language that keyboards of another put in place of its own (both lower case).
TYPED_ALIKE = {
    "fa": str.maketrans("\u064a\u0649\u0643\u06c0", "\u06cc\u06cc\u06a9\u0647"),
    "ur": str.maketrans("\u064a\u0649\u0643\u0647\u06c0", "\u06cc\u06cc\u06a9\u06c1\u06c1"),
    "ro": str.maketrans("\u015f\u0163", "\u0219\u021b"),
}

# One sign for what older texts write as letter, virama and joiner: Malayalam's chillus and Bengali's khanda ta.
VIRAMA_AND_JOINER = {
    "\u0d23\u0d4d\u200d": "\u0d7a",
    "\u0d28\u0d4d\u200d": "\u0d7b",
    "\u0d30\u0d4d\u200d": "\u0d7c",
    "\u0d32\u0d4d\u200d": "\u0d7d",
    "\u0d33\u0d4d\u200d": "\u0d7e",
    "\u0d15\u0d4d\u200d": "\u0d7f",
    "\u09a4\u09cd\u200d": "\u09ce",
}

# Marks that annotate a letter instead of being one: Arabic and Hebrew pointing (with Syriac), a stress accent on a
# Cyrillic letter, variation selectors, enclosing marks. Yiddish points are letters and stay.
ARABIC_AND_SYRIAC_MARKS = regex.compile(
    r"[\p{Mn}&&[\u0610-\u061A\u064B-\u065F\u0670\u06D6-\u06ED\u0711\u0730-\u074A\u0898-\u089F\u08CA-\u08FF]]", regex.V1
)
HEBREW_MARKS = regex.compile(r"[\p{Mn}&&[\u0591-\u05C7]]", regex.V1)
# A dot on i or j, which have one: what lowering İ leaves where the language is not known, and Lithuanian under accents.
SECOND_DOT = regex.compile("(?<=\\p{Soft_Dotted})\u0307")
# ... of which NFKC makes one sign where the accent is a grave one on е or и: a letter in two languages alone.
STRESSED_LETTERS, LANGUAGES_OF_STRESSED_LETTERS = str.maketrans("\u0450\u045d", "\u0435\u0438"), ("bg", "mk")
CYRILLIC_STRESS = regex.compile(r"(?<=\p{Script=Cyrillic})[\u0300\u0301]")
# ... the lines that stretch a word (Arabic's, N'Ko's, Mongolian's), and Armenian's signs of a question, of stress and of
# exclamation, which stand within the word.
NEVER_LETTERS = regex.compile(r"[\p{Me}\p{Variation_Selector}\u0640\u07fa\u180a\u055b\u055c\u055e]")
FORMAT_CHARACTERS = regex.compile(r"[\p{Cf}\p{Default_Ignorable_Code_Point}--\p{Variation_Selector}]", regex.V1)
PUNCTUATION_AND_SYMBOLS = regex.compile(r"[\p{P}\p{S}]")
OTHER_DIGITS = regex.compile(r"[\p{Nd}--[0-9]]", regex.V1)
LONG_NUMBER = re.compile(r"(\d{100})(?=\d)")
LETTERS = regex.compile(r"[\p{L}--[\p{Script=Common}\p{Script=Inherited}]]", regex.V1)
LETTER_OR_MARK = regex.compile(r"[\p{L}\p{M}]")
MARKS_WITHOUT_LETTER = regex.compile(r"(?<![\p{L}\p{M}\p{N}])\p{M}+")
SYMBOLS_ALONE = re.compile(r"(?<!\S)[.%$¢€£]+(?!\S)")
IN_BRACKETS = re.compile(r"[<\[][^>\]]*[>\]]|\([^)]+?\)")
THAI_AM = re.compile("\u0e4d([\u0e48-\u0e4b]?)\u0e32")
LAO_AM = re.compile("\u0ecd([\u0ec8-\u0ecb]?)\u0eb2")


def primary_language(code: str) -> str:
    """The language of a BCP 47 code in its modern form: `"zh-TW"` and `"cmn"` give `"zh"`, `"iw"` `"he"`."""
    return _modern_code(code)[0]


def _modern_code(code: str) -> list[str]:
    """The subtags of a code, its language in modern form; what that form says more comes last: "prs" -> fa, AF."""
    language, *subtags = code.replace("_", "-").split("-")
    modern, *more = get_global("language_aliases").get(language.lower(), language.lower()).split("_")
    return [modern, *subtags, *more]


def language_scripts(code: str) -> frozenset[str]:
    """The Unicode scripts (ISO 15924 names, e.g. `{"Latn"}`) a language is written in.

    A script in the code itself counts alone (`"sr-Latn"`); otherwise CLDR's likely script for the code, and the
    second script of the few languages that use two.

    Raises:
        ValueError: CLDR knows no script for `code`.
    """
    language, *subtags = _modern_code(code)
    explicit = [subtag.title() for subtag in subtags if len(subtag) == 4 and subtag.isalpha()]
    if explicit:
        return frozenset(COMPOSITE_SCRIPTS.get(explicit[0], {explicit[0]}))
    likely_subtags = get_global("likely_subtags")
    region = [subtag.upper() for subtag in subtags if len(subtag) == 2]
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
    return bool(language_scripts(language) & (HAN_SCRIPTS | SPACELESS_SCRIPTS))


def is_chinese(language: str) -> bool:
    """True of Chinese, Cantonese and the other languages that are written in Han characters alone."""
    return language_scripts(language) == {"Hani"}


def normalizer_name(language: str) -> str:
    """Which normaliser a language has, as reports name it: `"english"` or `"basic"` (the module's table)."""
    return "english" if primary_language(language) == "en" else "basic"


class _DigitsApart(EnglishNumberNormalizer):
    """Whisper's numbers, digits that are spoken one by one left apart."""

    def process_words(self, words: list[str]) -> Iterator[str]:
        """Whisper's method on each piece of `words` within which numbers may join."""
        for piece in self._pieces(self._repeated(words)):
            yield from super().process_words(piece)

    def _is_digit(self, word: str | None) -> bool:
        return word is not None and (word in self.zeros or self.ones.get(word, 10) < 10)

    def _repeated(self, words: list[str]) -> list[str]:
        """The words with `double four` written `four four`."""
        result: list[str] = []
        for position, word in enumerate(words):
            following = words[position + 1] if position + 1 < len(words) else None
            if word in ("double", "triple") and self._is_digit(following):
                result += [following] * (1 if word == "double" else 2)
            else:
                result.append(word)
        return result

    def _pieces(self, words: list[str]) -> list[list[str]]:
        pieces: list[list[str]] = [[]]
        in_decimals = False  # "three point one four" is one number
        for word in words:
            before = pieces[-1][-1] if pieces[-1] else None
            in_decimals = word == "point" or (in_decimals and self._is_digit(word))
            # "nineteen oh five" is one number, too
            year = before in self.zeros and len(pieces[-1]) > 1 and self._joins_zero(pieces[-1][-2])
            if not in_decimals and not year and self._is_digit(word) and self._ends_a_digit(before):
                pieces.append([])
            pieces[-1].append(word)
        return pieces

    def _ends_a_digit(self, word: str | None) -> bool:
        return word is not None and (self._is_digit(word) or word.isdecimal())

    def _joins_zero(self, word: str) -> bool:
        return self.ones.get(word, 0) > 9 or word in self.tens or word in self.multipliers


@functools.cache
def _english_normalizer() -> EnglishTextNormalizer:
    spelling = resources.files(__package__).joinpath("english_spelling.json").read_text(encoding="utf-8")
    normalizer = EnglishTextNormalizer(json.loads(spelling))
    normalizer.standardize_numbers = _DigitsApart()
    return normalizer


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


def _one_form(text: str) -> str:
    """One way of writing for what Unicode and keyboards write in several: the first step for all languages."""
    text = APOSTROPHES.sub("'", text)
    for typed, sign in VIRAMA_AND_JOINER.items():
        text = text.replace(typed, sign)
    text = FORMAT_CHARACTERS.sub("", unicodedata.normalize("NFKC", FORMAT_CHARACTERS.sub("", text)))
    text = APOSTROPHES.sub("'", text)
    text = OTHER_DIGITS.sub(lambda digit: str(unicodedata.decimal(digit[0], digit[0])), text)
    # NFKC splits the Thai and Lao vowel "am", which nobody writes in two characters; two e for ae are seen by nobody.
    text = LAO_AM.sub("\\1\u0eb3", THAI_AM.sub("\\1\u0e33", text))
    return text.replace("\u0e40\u0e40", "\u0e41").replace("\u0ec0\u0ec0", "\u0ec1")


def _normalize_english(text: str) -> str:
    # No number that anybody says is so long; Python refuses to convert those of a model that repeats itself.
    text = LONG_NUMBER.sub(r"\1 ", NEVER_LETTERS.sub("", text))
    return SYMBOLS_ALONE.sub(" ", _english_normalizer()(text))


def _normalize_basic(text: str, language: str) -> str:
    if language in ("tr", "az"):
        text = text.replace("I", "ı").replace("İ", "i")
    text = IN_BRACKETS.sub("", text.lower())
    text = _one_form(_one_form(text).lower())  # what was removed may have kept a letter and its mark apart
    text = unicodedata.normalize("NFC", SECOND_DOT.sub("", text))
    text = CYRILLIC_STRESS.sub("", NEVER_LETTERS.sub("", ARABIC_AND_SYRIAC_MARKS.sub("", text)))
    if language not in LANGUAGES_OF_STRESSED_LETTERS:
        text = text.translate(STRESSED_LETTERS)
    if language != "yi":
        text = HEBREW_MARKS.sub("", text)
    text = GERSHAYIM.sub("", text)
    text = text.translate(TYPED_ALIKE.get(language, {}))
    if language in APOSTROPHE_LETTERS:
        text = APOSTROPHE_IN_WORD.sub(LETTER_APOSTROPHE, text)
        if language in ("uz", "kaa"):
            text = APOSTROPHE_AFTER_O_AND_G.sub(LETTER_APOSTROPHE, text)
    return MARKS_WITHOUT_LETTER.sub(" ", PUNCTUATION_AND_SYMBOLS.sub(" ", text))


def normalize_text(text: str, language: str, *, simplify_chinese: bool = False) -> str:
    """The form of `text` in which errors are counted.

    Args:
        text: a reference or a hypothesis.
        language: BCP 47 code of the text's language.
        simplify_chinese: write Chinese, Cantonese and their like in simplified characters (needs the `chinese` extra).

    Returns:
        Units separated by single spaces; without spaces where characters are counted.

    Raises:
        ValueError: no normaliser for `language`.
        ImportError: `simplify_chinese` without OpenCC.
    """
    separator = "" if counts_characters(language) else " "
    text = _one_form(text)
    if normalizer_name(language) == "english":
        text = _normalize_english(text)
    else:
        text = _normalize_basic(text, primary_language(language))
    if simplify_chinese and is_chinese(language):
        text = _chinese_converter().convert(text)
    joined = separator.join(text.split())
    return unicodedata.normalize("NFC", joined)  # what was removed may have kept a letter and its mark apart


def scored_units(normalized_text: str, language: str) -> list[str]:
    """The words, or the characters of a character language, of a text that :func:`normalize_text` returned."""
    return list(normalized_text) if counts_characters(language) else normalized_text.split()


def script_share(text: str, scripts: Iterable[str]) -> float | None:
    """The share of the letters of `text` (0 to 1) that belong to `scripts`; None for a text without letters.

    Letters that Unicode counts to no script, such as the long vowel of katakana and letter apostrophes, do not count.
    """
    letters = LETTERS.findall(text)
    if not letters:
        return None
    pattern = _script_pattern(frozenset(scripts))
    return sum(pattern.match(letter) is not None for letter in letters) / len(letters)


def words_of_other_scripts(text: str, scripts: Iterable[str]) -> list[str]:
    """The runs of letters, lower case, that do not belong to `scripts`: "love" of "我 love 你" in Chinese."""
    pattern = _script_pattern(frozenset(scripts))
    text = unicodedata.normalize("NFKC", text).lower()
    foreign = "".join(
        character if LETTER_OR_MARK.match(character) and not pattern.match(character) else " " for character in text
    )
    return [word for word in foreign.split() if LETTERS.search(word)]


@functools.cache
def _script_pattern(scripts: frozenset[str]) -> regex.Pattern:
    return regex.compile("|".join(rf"\p{{Script={script}}}" for script in sorted(scripts)))
