"""Normalisers: Whisper's where it is right, marks kept where they are letters, one script table for all languages."""

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

from modeling_part.evaluation.normalization import (
    check_languages,
    counts_characters,
    language_scripts,
    normalize_text,
    primary_language,
    scored_units,
    script_share,
)
from modeling_part.prompts_part import LANGUAGE_NAMES


# A greeting or a plain word; all of them hold vowel signs, viramas, tone marks or nasal dots.
MARKED_WORDS = {
    "th": "สวัสดี",
    "lo": "ສະບາຍດີ",
    "my": "မင်္ဂလာပါ",
    "km": "សួស្តី",
    "hi": "हिन्दी",
    "mr": "मराठी",
    "ne": "नेपाली",
    "ta": "தமிழ்",
    "te": "తెలుగు",
    "kn": "ಕನ್ನಡ",
    "ml": "മലയാളം",
    "bn": "বাংলা",
    "gu": "ગુજરાતી",
    "pa": "ਪੰਜਾਬੀ",
    "or": "ଓଡ଼ିଆ",
    "si": "සිංහල",
    "dv": "ދިވެހި",
    "bo": "བོད",
    "yo": "ẹ̀kọ́",
}


@pytest.mark.parametrize(("language", "word"), MARKED_WORDS.items())
def test_marks_that_are_letters_stay(language, word):
    assert any(unicodedata.category(character).startswith("M") for character in unicodedata.normalize("NFD", word))
    assert unicodedata.normalize("NFKC", normalize_text(f"«{word}!»", language)) == unicodedata.normalize("NFKC", word)
    if language in MARKED_WORDS and language not in ("yo",):
        assert BasicTextNormalizer()(word).strip() != normalize_text(word, language)  # Whisper's cuts the word up


def test_thai_vowel_am_is_one_character_however_it_is_typed():
    typed_in_one, typed_in_two = "น้ำ", "น้ํา"
    assert typed_in_one != typed_in_two
    assert normalize_text(typed_in_two, "th") == normalize_text(typed_in_one, "th") == typed_in_one


# Letters as the ten languages of the paper write them, digits, spaces and punctuation.
PAPER_LETTERS = "".join(
    chr(code)
    for first, last in (
        (0x20, 0x7E),
        (0xC0, 0x17F),
        (0x410, 0x44F),
        (0x4E00, 0x4E40),
        (0x3041, 0x3096),
        (0xAC00, 0xAC20),
    )
    for code in range(first, last + 1)
)


@given(st.text(PAPER_LETTERS + "ёЁ«»。，！？—…’ＡＢ１", max_size=30), st.sampled_from(["fr", "de", "es", "it", "ru"]))
def test_equals_whispers_basic_normalizer_where_no_marks_are_left(text, language):
    text = re.sub("[İŉ]", "", text)  # the lower case of one has a mark, the other holds an apostrophe
    assert normalize_text(text, language) == BasicTextNormalizer()(text).strip()


@given(st.text(max_size=25), st.sampled_from(["fr", "ru", "hi", "th", "ta", "ar", "he", "yi", "tr", "zh", "ja", "ko"]))
def test_normalising_twice_changes_nothing(text, language):
    once = normalize_text(text, language)
    assert normalize_text(once, language) == once
    assert once == " ".join(once.split())


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("en", "Mr. Smith's favourite colour ISN'T grey.", "mister smith is favorite color is not gray"),
        ("en", "twenty-one (laughs) dollars", "$21"),
        ("en", "Hello... 5% of $20 $", "hello 5% of $20"),
        ("en", "...", ""),
        ("fr", "L’été, [bruit] déjà !", "l été déjà"),
        ("de", "Straße 12", "straße 12"),
        ("ru", "за́мок и Ёлка", "замок и ёлка"),
        ("ru", "бе\u0300рег и\u0300дти \u0450 \u045d", "берег идти е и"),
        ("mk", "\u045d и\u0300 се гледа \u0450", "\u045d \u045d се гледа \u0450"),
        ("tr", "IŞIK İstanbul", "ışık istanbul"),
        ("ar", "السَّلَامُ", "السلام"),
        ("he", "שָׁלוֹם", "שלום"),
        ("fa", "می\u200cخواهم", "میخواهم"),
        ("zh", "你好， ＡＢＣ １２！", "你好abc12"),
        ("ja", "ｶﾀｶﾅ と ガ", "カタカナとガ"),
        ("ko", "안녕 하세요.", "안녕하세요"),
        ("yue-Hant-HK", "你 食咗飯未？", "你食咗飯未"),
        ("fr", "", ""),
        ("zh", "……", ""),
    ],
)
def test_examples(language, text, expected):
    assert normalize_text(text, language) == expected


def test_hebrew_points_are_letters_in_yiddish():
    word = unicodedata.normalize("NFC", "ייִדיש")
    assert normalize_text(word, "yi") == word
    assert normalize_text(word, "he") != word


def test_traditional_chinese_differs_from_simplified_unless_asked():
    pytest.importorskip("opencc")
    assert normalize_text("漢語", "zh") != normalize_text("汉语", "zh")
    assert normalize_text("漢語", "zh", simplify_chinese=True) == "汉语"
    assert normalize_text("漢語", "ja", simplify_chinese=True) == "漢語"


def test_conversion_without_opencc_names_the_extra(monkeypatch):
    from modeling_part.evaluation import normalization

    monkeypatch.setitem(__import__("sys").modules, "opencc", None)
    normalization._chinese_converter.cache_clear()
    with pytest.raises(ImportError, match=r"modeling-part\[chinese\]"):
        normalize_text("漢語", "zh", simplify_chinese=True)
    normalization._chinese_converter.cache_clear()


def test_characters_are_counted_in_languages_without_spaces_and_korean():
    for language in ("zh", "zh-TW", "cmn-Hans-CN", "yue", "ja", "ko-KR", "th", "lo", "my", "km"):
        assert counts_characters(language)
    for language in ("en", "de", "fr", "ru", "es", "it", "vi", "hi", "pt-BR"):
        assert not counts_characters(language)
    assert scored_units("你好", "zh") == ["你", "好"]
    assert scored_units("le chat", "fr") == ["le", "chat"]


def test_languages_without_normaliser_are_listed_in_one_error():
    check_languages(LANGUAGE_NAMES)  # whatever the processor can name can be scored
    check_languages(["pt-BR", "sv-SE", "zh-HK", "sr-Latn", "cmn-Hans-CN"])
    with pytest.raises(ValueError, match=r"'qqq', 'xx'"):
        check_languages(["en", "xx", "qqq", "fr"])
    with pytest.raises(ValueError, match="There is no text normaliser for language 'xx'"):
        normalize_text("a", "xx")


def test_scripts():
    assert language_scripts("fr") == {"Latn"}
    assert language_scripts("ja") == {"Hani", "Hira", "Kana"}
    assert language_scripts("ko") == {"Hang", "Hani"}
    assert language_scripts("zh-TW") == language_scripts("yue") == {"Hani"}
    assert language_scripts("sr") == {"Cyrl", "Latn"}
    assert language_scripts("sr-Latn-RS") == {"Latn"}
    assert language_scripts("pa-PK") == {"Arab"}
    assert primary_language("iw") == "he"
    assert script_share("Привет, мир! 42", language_scripts("ru")) == 1.0
    assert script_share("ab вг", language_scripts("ru")) == 0.5
    assert script_share("42 …", language_scripts("ru")) is None
