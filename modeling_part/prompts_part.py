# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""What the model is asked: tasks, instructions and the names of languages."""

import re
from collections.abc import Iterable, Mapping
from string import Formatter


TASKS = ("asr", "s2tt", "mt", "text")
TEXT_TASKS = ("mt", "text")  # without audio
SURROGATES = re.compile("[\ud800-\udfff]")  # half of a pair is no character

# What the model is asked, per task; `_unnamed` is used when the source language is not given. The wording is saved in
# processor_config.json with the checkpoint: a model must be asked the way it was trained.
INSTRUCTIONS = {
    "asr": "Transcribe the {source} speech.",
    "asr_unnamed": "Transcribe the speech.",
    "s2tt": "Translate the {source} speech into {target}.",
    "s2tt_unnamed": "Translate the speech into {target}.",
    "mt": "Translate the {source} text into {target}.",
    "mt_unnamed": "Translate the text into {target}.",
    "context": "Context: {context}",  # a line after any of these, or after a prompt of the caller's
}

# English names from the Unicode CLDR (Babel's copy; a test compares them) of the languages of Whisper, FLEURS, Common
# Voice and CoVoST 2. Others are given as `language_names`.
# fmt: off
LANGUAGE_NAMES = {
    "ab": "Abkhazian", "af": "Afrikaans", "am": "Amharic", "ar": "Arabic", "as": "Assamese", "ast": "Asturian",
    "az": "Azerbaijani", "ba": "Bashkir", "bas": "Basaa", "be": "Belarusian", "bg": "Bulgarian", "bn": "Bangla",
    "bo": "Tibetan", "br": "Breton", "bs": "Bosnian", "ca": "Catalan", "ceb": "Cebuano", "ckb": "Central Kurdish",
    "cs": "Czech", "cv": "Chuvash", "cy": "Welsh", "da": "Danish", "de": "German", "dv": "Divehi", "dyu": "Dyula",
    "el": "Greek", "en": "English", "eo": "Esperanto", "es": "Spanish", "et": "Estonian", "eu": "Basque",
    "fa": "Persian", "ff": "Fula", "fi": "Finnish", "fil": "Filipino", "fo": "Faroese", "fr": "French",
    "fy": "Western Frisian", "ga": "Irish", "gl": "Galician", "gn": "Guarani", "gu": "Gujarati", "ha": "Hausa",
    "haw": "Hawaiian", "he": "Hebrew", "hi": "Hindi", "hr": "Croatian", "hsb": "Upper Sorbian",
    "ht": "Haitian Creole", "hu": "Hungarian", "hy": "Armenian", "ia": "Interlingua", "id": "Indonesian",
    "ig": "Igbo", "is": "Icelandic", "it": "Italian", "ja": "Japanese", "jv": "Javanese", "ka": "Georgian",
    "kab": "Kabyle", "kam": "Kamba", "kea": "Kabuverdianu", "kk": "Kazakh", "km": "Khmer", "kn": "Kannada",
    "ko": "Korean", "ky": "Kyrgyz", "la": "Latin", "lb": "Luxembourgish", "lg": "Ganda", "lij": "Ligurian",
    "ln": "Lingala", "lo": "Lao", "lt": "Lithuanian", "ltg": "Latgalian", "luo": "Luo", "lv": "Latvian",
    "mdf": "Moksha", "mg": "Malagasy", "mi": "Māori", "mk": "Macedonian", "ml": "Malayalam", "mn": "Mongolian",
    "mr": "Marathi", "mrj": "Western Mari", "ms": "Malay", "mt": "Maltese", "my": "Burmese", "myv": "Erzya",
    "nan": "Min Nan Chinese", "nb": "Norwegian Bokmål", "ne": "Nepali", "nl": "Dutch", "nn": "Norwegian Nynorsk",
    "no": "Norwegian", "nr": "South Ndebele", "nso": "Northern Sotho", "ny": "Nyanja", "oc": "Occitan",
    "om": "Oromo", "or": "Odia", "os": "Ossetic", "pa": "Punjabi", "pl": "Polish", "ps": "Pashto",
    "pt": "Portuguese", "rm": "Romansh", "ro": "Romanian", "ru": "Russian", "rw": "Kinyarwanda", "sa": "Sanskrit",
    "sah": "Yakut", "sat": "Santali", "sc": "Sardinian", "sd": "Sindhi", "si": "Sinhala", "sk": "Slovak",
    "sl": "Slovenian", "sn": "Shona", "so": "Somali", "sq": "Albanian", "sr": "Serbian", "ss": "Swati",
    "st": "Southern Sotho", "su": "Sundanese", "sv": "Swedish", "sw": "Swahili", "ta": "Tamil", "te": "Telugu",
    "tg": "Tajik", "th": "Thai", "ti": "Tigrinya", "tig": "Tigre", "tk": "Turkmen", "tl": "Tagalog", "tn": "Tswana",
    "tok": "Toki Pona", "tr": "Turkish", "ts": "Tsonga", "tt": "Tatar", "tw": "Twi", "ug": "Uyghur",
    "uk": "Ukrainian", "umb": "Umbundu", "ur": "Urdu", "uz": "Uzbek", "ve": "Venda", "vi": "Vietnamese",
    "vot": "Votic", "wo": "Wolof", "xh": "Xhosa", "yi": "Yiddish", "yo": "Yoruba", "yue": "Cantonese",
    "zgh": "Standard Moroccan Tamazight", "zh": "Chinese", "zu": "Zulu", "zza": "Zaza",
}
# fmt: on

TASK_WORDS = {"transcribe": "asr", "translate": "s2tt"}  # Whisper's
_CODES = {name.casefold(): code for code, name in LANGUAGE_NAMES.items()} | {"mandarin": "zh"}


def check_instructions(instructions: Mapping) -> None:
    """Raise ValueError for instructions of no task, that are no text, or hold what their task does not fill in.

    Each may hold the fields of its default in [`INSTRUCTIONS`]: `{source}` in `asr_unnamed` would ask for "the None speech".
    """
    if unknown := set(instructions) - set(INSTRUCTIONS):
        raise ValueError(f"Unknown instructions {sorted(unknown)}; the tasks are {sorted(INSTRUCTIONS)}.")
    if strange := {name: one for name, one in instructions.items() if not isinstance(one, str)}:
        raise ValueError(f"The instructions {strange} are no text; give the wording, such as {INSTRUCTIONS['asr']!r}.")
    for name, wording in instructions.items():
        known = _fields(INSTRUCTIONS[name])
        fix = f"it may hold {' and '.join(f'{{{one}}}' for one in known) or 'no field'}, and a brace is written twice"
        try:
            found = _fields(wording)
        except ValueError as error:
            raise ValueError(f"The instruction {name!r} is {wording!r} ({error}): {fix}.") from None
        if [one for one in found if one not in known] or (name == "context" and not found):
            raise ValueError(f"The instruction {name!r} is {wording!r}: {fix}.")


def _fields(wording: str) -> list[str]:
    return [field for _, field, _, _ in Formatter().parse(wording) if field is not None]


def task_of(word: str) -> str:
    """A task as PART names it, of its own name or Whisper's (`transcribe`, `translate`); anything else as it is."""
    return TASK_WORDS.get(word, word) if isinstance(word, str) else word


def task_of_row(task: str | None, source_lang: str | None, target_lang: str | None) -> str:
    """The task of a row: the one that is named, or transcription.

    Raises:
        ValueError: none is named, but a language to translate into is, which transcription would pass over.
    """
    if task is not None:
        return task_of(task)
    if target_lang is not None and code_of(target_lang) != code_of(source_lang):
        raise ValueError(
            f"`target_lang` is {target_lang!r} and no task is named, which transcribes: give `task='s2tt'` to translate "
            "speech (`'mt'`: text), or leave `target_lang` out."
        )
    return "asr"


def code_of(language: str | None) -> str | None:
    """A language's code, of the code or the English name (`English`, `french`); anything else as it is."""
    return _CODES.get(language.casefold(), language) if isinstance(language, str) else language


def context_of(words: Iterable[str]) -> str | None:
    """Words that may be said as one context, each on a line; None without words."""
    return "\n".join(" ".join(word.split()) for word in words) or None


def one_context(context: str | Iterable[str] | None) -> str | None:
    """A context as text, which may be given as a list of words.

    Raises:
        ValueError: a word is no text, or empty.
    """
    if not isinstance(context, (list, tuple)):
        return context
    if strange := [word for word in context if not isinstance(word, str) or not word.strip()]:
        raise ValueError(f"`context` holds {strange[0]!r}; give text, or a list of words.")
    return context_of(context)


PROMPT_MARK = "<<prompt>>"  # stands for the user's turn while the chat template is rendered
