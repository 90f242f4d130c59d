"""One rule for all languages: what is written in several ways is one text, and who says the reference makes no error."""

import json
import string
import unicodedata
from importlib import resources

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

from modeling_part.evaluation.evaluate_modules import Bleu, CharacterErrorRate, WordErrorRate
from modeling_part.evaluation.metrics import bleu_tokenizer
from modeling_part.evaluation.normalization import (
    NORMALIZATION,
    counts_characters,
    language_scripts,
    normalize_text,
    normalizer_name,
    primary_language,
    scored_units,
)
from modeling_part.evaluation.reports import report_rows, write_report
from modeling_part.evaluation.scoring import annotate, score
from modeling_part.prompts_part import LANGUAGE_NAMES


# Every language that the processor can name, and some whose code, script or spelling is special.
LANGUAGES = sorted(
    {*LANGUAGE_NAMES, "bo", "dz", "nan-TW", "wuu", "hak", "shn", "uz-Cyrl", "zh-Latn", "haw", "br", "sh"}
)
SCRIPTS = {
    "Arab": "\u0627\u0628\u062a\u064a\u0649\u0643\u0640\u064b\u0670\u0623\u0660\u0661",
    "Cyrl": "абвёїґўӏ",
    "Deva": "कखड़ाि्१२",
    "Grek": "αάβςϐ",
    "Hang": "가나한",
    "Hani": "我食飯你",
    "Hebr": "אבגשׁ",
    "Hira": "あがぱー",
    "Thai": "กขำ้แ๑",
    "Tibt": "བོད་",
}
TYPOGRAPHY = "'’‘`´ʻʼʹ′＇\"“”«»-‐–—…,.!?()（）[]<>ＡａＺ１９ｶﾞﬁ①²½\u00a0\u00ad\u200b\u200d\u3000"
SPOKEN = [
    "one",
    "two",
    "oh",
    "zero",
    "double",
    "point",
    "twenty",
    "nineteen",
    "hundred",
    "and",
    "minus",
    "7",
    "12",
    "%",
]


@st.composite
def texts(draw, size: int = 20) -> tuple[str, str]:
    """A language and a text of its own letters, Latin ones, digits and every kind of typography."""
    language = draw(st.sampled_from(LANGUAGES))
    own = "".join(SCRIPTS.get(script, "") for script in sorted(language_scripts(language)))
    alphabet = own + string.ascii_letters + "éñçşţİıßœ" + string.digits + "  " + TYPOGRAPHY
    return language, draw(st.text(alphabet, max_size=size))


def row(language: str, reference: str, hypothesis: str, number: object = "1", **more) -> dict:
    names = {"source_lang": language, "target_lang": language, "reference": reference, "hypothesis": hypothesis}
    return {"id": f"{number}", "corpus": "made", "task": "asr", **names, **more}


# ----------------------------------------------------------------------------------------------------------------------
# Ways to write one text
# ----------------------------------------------------------------------------------------------------------------------


def widen(text: str) -> str:
    """ASCII as East Asian keyboards write it."""
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else "\u3000" if c == " " else c for c in text)


@settings(deadline=None)  # the first call of all reads tables
@given(texts())
@example(("tr", "I\u0307stanbul İ I"))
@example(("en", "ｗｏｎ＇ｔ １２"))
def test_composed_decomposed_and_wide_forms_are_one_text(sample):
    language, text = sample
    expected = normalize_text(text, language)
    for form in ("NFC", "NFD"):
        assert normalize_text(unicodedata.normalize(form, text), language) == expected
    assert normalize_text(widen(text), language) == expected


@settings(deadline=None)  # the first call of all reads tables
@given(st.sampled_from(LANGUAGES), st.text(max_size=10))
@example("fr", "\U00010d40")  # a digit that regex knows and Python 3.11 does not
def test_any_text_is_its_composed_and_decomposed_form(language, text):
    expected = normalize_text(text, language)
    for form in ("NFC", "NFD"):
        assert normalize_text(unicodedata.normalize(form, text), language) == expected


@settings(deadline=None)  # the first call of all reads tables
@given(texts(), st.sampled_from("’‘‛ʼʻ`´′＇ʹʾ"))
def test_all_apostrophes_are_one(sample, other):
    language, text = sample
    assert normalize_text(text.replace("'", other), language) == normalize_text(text, language)


@settings(deadline=None)  # the first call of all reads tables
@given(texts(), st.sampled_from(["“”", "„“", "«»", "＂＂", "″″"]))
def test_all_quotation_marks_are_one(sample, quotes):
    language, text = sample
    text = text.replace('"', " ")
    assert normalize_text(quotes[0] + text + quotes[1], language) == normalize_text(f'"{text}"', language)


@settings(deadline=None)  # the first call of all reads tables
@given(texts(), st.integers(0, 20), st.sampled_from("\u200b\u200e\u2060\ufeff\u00ad"))
def test_invisible_characters_are_nothing(sample, position, invisible):
    language, text = sample
    assert normalize_text(text[:position] + invisible + text[position:], language) == normalize_text(text, language)


@settings(deadline=None)  # the first call of all reads tables
@given(st.text("0123456789 ", max_size=12), st.sampled_from(LANGUAGES))
def test_digits_of_all_scripts_are_one(text, language):
    for zero in (0x660, 0x6F0, 0x966, 0x9E6, 0xE50, 0xF20, 0x1040, 0x17E0, 0xFF10, 0x1D7CE):
        other = "".join(chr(zero + int(c)) if c.isdecimal() else c for c in text)
        assert normalize_text(other, language) == normalize_text(text, language)


@pytest.mark.parametrize(
    ("language", "one", "other", "units"),
    [
        ("en", "I don’t know, it’s fine", "I don't know, it's fine", 7),
        ("fr", "l’homme d’aujourd’hui", "l'homme d'aujourd'hui", 5),
        ("uk", "п’ять об’єктів", "пʼять об'єктів", 2),
        ("uz", "oʻzbek togʻ ma’no", "o‘zbek tog' maʼno", 3),
        ("haw", "ka ʻōlelo Hawaiʻi", "ka 'ōlelo Hawai‘i", 3),
        ("br", "c’hoazh", "c'hoazh", 1),
        ("he", "צה״ל צ׳יפס", "צה\"ל צ'יפס", 2),
        ("ar", "الســـلام عليكم", "السلام عليكم", 2),
        ("ar", "السَّلَامُ", "السلام", 1),
        ("fa", "كتاب يك", "کتاب یک", 2),
        ("ro", "şi ţară", "și țară", 2),
        ("tr", "İstanbul'da İYİ", "i\u0307stanbul'da i\u0307yi\u0307", 3),
        ("az", "İlk", "i\u0307lk", 1),
        ("de", "İstanbul", "istanbul", 1),
        ("lt", "i\u0307\u0301 j\u0307\u0303 į\u0307\u0303", "í j\u0303 į\u0303", 3),
        ("hy", "ինչո՞ւ", "ինչու", 1),
        ("ml", "അവന്\u200d", "അവൻ", 1),
        ("th", "เเม่ น้ํา", "แม่น้ำ", 6),
        ("bo", "བོད་སྐད་", "བོད་ སྐད", 6),
        ("nan-TW", "我 食 飯。", "我食飯", 3),
        ("yue", "我（笑）食飯", "我(笑)食飯", 3),
    ],
)
def test_spellings_that_are_one(language, one, other, units):
    assert normalize_text(one, language) == normalize_text(other, language)
    assert len(scored_units(normalize_text(one, language), language)) == units


def test_an_apostrophe_that_is_a_letter_can_be_missing():
    (missing,) = annotate([row("uk", "п'ять слів", "пять слів")])
    assert (missing["substitutions"], missing["error_rate"]) == (1, 0.5)


# ----------------------------------------------------------------------------------------------------------------------
# What says the reference is right
# ----------------------------------------------------------------------------------------------------------------------


@settings(deadline=None)  # the first call of all reads tables
@given(st.lists(texts(size=30), min_size=1, max_size=4), st.sampled_from(["NFC", "NFD"]))
def test_who_says_the_reference_makes_no_error(samples, form):
    rows = [
        row(language, text, unicodedata.normalize(form, text), number)
        for number, (language, text) in enumerate(samples)
    ]
    for annotated in annotate([*rows, row("en", "yes", "yes", "en"), row("ru", "да", "да", "ru")]):
        assert annotated["error_rate"] == 0
        assert not (annotated["empty"] or annotated["looping"] or annotated["wrong_language"])


@pytest.mark.parametrize(
    ("language", "reference", "hypothesis", "wrong"),
    [
        ("zh", "我 love 你", "我 love 你", False),
        ("zh", "我 love 你", "我 love 他", False),
        ("zh", "我love你们", "我 love 你", False),
        ("ru", "это iPhone Pro Max", "это iPhone Pro", False),
        ("ru", "это iPhone Pro Max", "эта iphone pro max", False),
        ("zh", "OK Google", "OK Google please", False),
        ("zh", "我 love 你", "I love you so very much", True),
        ("ru", "это iPhone Pro Max", "it is the new mobile phone", True),
        ("ja", "スーパーマーケットー", "スーパーー", False),
        ("haw", "ʻaʻā ʻoʻo", "ʻaʻa ʻo", False),
        ("hi", "मुझे WhatsApp पर call करो please", "मुझे WhatsApp पे call करो please", False),
    ],
)
def test_words_of_another_language_inside_a_sentence(language, reference, hypothesis, wrong):
    others = [row("en", "yes", "yes", "en"), row("fr", "oui", "oui", "fr")]
    assert annotate([row(language, reference, hypothesis), *others])[0]["wrong_language"] is wrong


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize(
    ("languages", "own", "other"),
    [
        ("hi mr", ["आज मौसम बहुत अच्छा है", "यह किताब मेरी है", "घर में लोग हैं", "मल गल कल"], "तो घरी गेला"),
        ("de fr", ["guten Tag", "schönes Wetter heute", "so geht es"], "déjà très tôt"),
    ],
)
def test_words_are_whole_in_every_script(languages, own, other, form):
    target, source = languages.split()
    answer = unicodedata.normalize(form, other)
    rows = [row(target, own[0], answer), *(row(target, text, text, text) for text in own[1:])]
    assert annotate([*rows, row(source, other, other)])[0]["wrong_language"]


def test_a_sentence_that_is_taken_for_another_language_is_no_sign_where_its_reference_is_too():
    english = "the server does not answer this morning at all"
    others = [row("fr", "oui", "oui", "fr"), row("en", "yes", "yes", "en")]
    assert annotate([row("fr", english, english.replace("all", "noon")), *others])[0]["wrong_language"] is False
    assert annotate([row("fr", "le serveur ne répond pas", english), *others])[0]["wrong_language"] is True


def test_a_reference_without_words_is_not_answered_emptily():
    assert annotate([row("fr", "(rires)", "")])[0]["empty"] is False
    assert annotate([row("fr", "bonjour", "(rires)")])[0]["empty"] is True


# ----------------------------------------------------------------------------------------------------------------------
# Units
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", ["zh", "yue", "nan", "nan-TW", "wuu", "hak", "gan", "lzh", "ja", "ko"])
def test_all_that_is_written_in_han_is_counted_by_character(language):
    report = score([row(language, "我食飯", "我 食 飯。")], bootstrap_samples=2)
    group = report["groups"][f"asr/{language}"]
    assert (group["error_metric"], group["error_rate"], group["hits"]) == ("CER", 0, 3)
    assert bleu_tokenizer(language) == {"ja": "ja-mecab", "ko": "ko-mecab"}.get(language, "zh")


def test_the_script_decides_how_a_language_is_counted():
    for language in ("th", "lo", "km", "my", "shn", "bo", "dz", "tts"):
        assert counts_characters(language) and bleu_tokenizer(language) == "char"
    for language in ("zh-Latn", "nan-Latn", "vi", "sr-Latn", "sh", "en", "hi", "ar", "id"):
        assert not counts_characters(language) and bleu_tokenizer(language) == "13a"
    assert primary_language("prs") == "fa" and primary_language("sh") == "sr" and language_scripts("sh") == {"Latn"}


def test_a_word_error_rate_of_characters_is_refused():
    pair = {"predictions": ["我食飯"], "references": ["我食麵"]}
    with pytest.raises(ValueError, match=r"'yue' is counted by characters.*use CharacterErrorRate"):
        WordErrorRate().compute(**pair, language="yue")
    assert CharacterErrorRate().compute(**pair, language="yue")["cer"] == pytest.approx(1 / 3)


def test_bleu_does_not_depend_on_composition():
    text = "Ça a déjà été répété à l’été"
    decomposed = unicodedata.normalize("NFD", text)
    assert Bleu().compute(predictions=[decomposed], references=[text])["bleu"] == pytest.approx(100)
    translation = row("fr", text, decomposed) | {"task": "s2tt", "source_lang": "en"}
    group = score([translation], bootstrap_samples=2)["groups"]["s2tt/en-fr"]
    assert group["bleu"] == pytest.approx(100) and group["chrf"] == pytest.approx(100)


# ----------------------------------------------------------------------------------------------------------------------
# Digits
# ----------------------------------------------------------------------------------------------------------------------


DIGITS = {
    "en": "zero one two three four five six seven eight nine".split(),
    "fr": "zéro un deux trois quatre cinq six sept huit neuf".split(),
    "ru": "ноль один два три четыре пять шесть семь восемь девять".split(),
    "es": "cero uno dos tres cuatro cinco seis siete ocho nueve".split(),
}


@settings(deadline=None)  # the first call of all reads tables
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=8),
    st.lists(st.integers(0, 9), min_size=1, max_size=8),
)
def test_strings_of_digits_have_the_same_rate_in_every_language(said, heard):
    rows = [
        row(language, " ".join(words[digit] for digit in said), " ".join(words[digit] for digit in heard), language)
        for language, words in DIGITS.items()
    ]
    counts = {(one["substitutions"], one["deletions"], one["insertions"], one["hits"]) for one in annotate(rows)}
    assert len(counts) == 1
    assert sum(next(iter(counts))[position] for position in (0, 1, 3)) == len(said)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one two three", "one 2 3"),
        ("1 2 three", "one 2 3"),
        ("nine oh five", "9 0 5"),
        ("call double four one", "call 4 4 one"),
        ("triple seven", "7 7 7"),
        ("twenty three", "23"),
        ("twenty one two", "21 2"),
        ("nineteen ninety", "1990"),
        ("nineteen oh five", "1905"),
        ("three point one four", "3.14"),
        ("two thousand and one", "2001"),
        ("two hundred five dollars", "$205"),
        ("double trouble", "double trouble"),
    ],
)
def test_spoken_numbers(text, expected):
    assert normalize_text(text, "en") == expected


@settings(deadline=None)  # the first call of all reads tables
@given(st.lists(st.sampled_from([*SPOKEN, "the", "cat", "isn't", "colour", "Mr."]), max_size=8))
def test_english_is_whispers_but_for_digits_in_a_row(words):
    text = " and so ".join(words)  # no digit stands beside another
    spelling = json.loads(resources.files("modeling_part.evaluation").joinpath("english_spelling.json").read_text())
    whisper = " ".join(word for word in EnglishTextNormalizer(spelling)(text).split() if word not in ("%", "."))
    assert normalize_text(text, "en") == whisper


@settings(deadline=None)  # the first call of all reads tables
@given(st.lists(st.sampled_from(SPOKEN), max_size=10))
@example(["1" * 9000])
def test_whatever_is_counted_in_english_can_be_scored(words):
    text = " ".join(words)
    assert annotate([row("en", text, text)])[0]["error_rate"] == 0


def test_a_report_names_the_normaliser_of_each_figure(tmp_path):
    report = score([row("en", "one two", "one"), row("fr", "un deux", "un")], bootstrap_samples=2)
    assert {name: group["normalizer"] for name, group in report["groups"].items()} == {
        "asr/en": "english",
        "asr/fr": "basic",
    }
    assert report["settings"]["normalization"] == NORMALIZATION
    header, rows = report_rows(report)
    column = header.index("normaliser")
    assert [line[column] for line in rows] == ["", "english", "basic"] and all(
        len(line) == len(header) for line in rows
    )
    write_report(report, tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "normaliser english (en): Whisper's" in text and "normaliser basic (fr): " in text
    del report["groups"]["asr/en"]["normalizer"]
    write_report(report, tmp_path)
    assert "normaliser an earlier one (en)" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert normalizer_name("en-GB") == "english" and normalizer_name("enm") == "basic"
