"""Telling the language of a text, and its sentences."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valle_convert.errors import InputError
from valle_convert.text import (
    assumed_language_notices,
    detect_language,
    detect_languages,
    split_sentences,
)
from valle_convert.text.sentences import speaking_size


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Hello world, how are you today?", "en"),
        ("Guten Tag, wie geht es Ihnen?", "de"),
        ("Bonjour, où est la gare ?", "fr"),
        ("今日はいい天気ですね。", "ja"),
        ("カメラ", "ja"),
        ("ﾃﾚﾋﾞ", "ja"),
        ("今天天气很好。", "zh"),
        ("안녕하세요, 세계!", "ko"),
        ("𝐇𝐞𝐥𝐥𝐨 𝐰𝐨𝐫𝐥𝐝", "en"),
        # Characters that are written in one of the two countries alone.
        ("天気予報", "ja"),
        ("我们说话", "zh"),
        ("私はNewYorkとLondonとParisに行った", "ja"),
        ("12345", "en"),
        ("OK", "en"),
        ("", "en"),
    ],
)
def test_a_language_is_told_by_script_and_words(text: str, language: str) -> None:
    assert detect_language(text) == language


def test_a_script_that_no_language_uses_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"script Cyrillic.*--language"):
        detect_language("Привет, мир!")


@pytest.mark.parametrize("text", ["こんにちは", "Hello"])
def test_a_language_that_the_model_does_not_have_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="does not speak"):
        detect_language(text, ["zh", "ko"])


def test_with_one_latin_language_latin_letters_are_that_language() -> None:
    assert detect_language("Hello world, how are you?", ["ja", "fr"]) == "fr"


def test_short_latin_sentences_are_told_together_and_others_by_themselves() -> None:
    sentences = ["Ja.", "OK.", "Wir gehen morgen in den Wald.", "今日は。"]
    assert detect_languages(sentences) == ["de", "de", "de", "ja"]


@pytest.mark.parametrize(
    ("sentences", "languages", "assumed"),
    [
        (["大丈夫。", "はい、元気です。"], ["ja", "ja"], "'大丈夫。'"),
        (["はい。", "大丈夫。", "東京！", "OK."], ["ja", "ja", "ja", "en"], "'大丈夫。', '東京！'"),
        (["大丈夫。", "我们很好。"], ["zh", "zh"], None),
        (["大丈夫。", "東京。"], ["zh", "zh"], None),
        # 你 is no Japanese character, 気 no Chinese one.
        (["你好。", "はい。"], ["zh", "ja"], None),
        (["天気。", "我们。", "说话。"], ["ja", "zh", "zh"], None),
        # Most of the others decide.
        (["大丈夫。", "我们。", "はい。", "ええ。"], ["ja", "zh", "ja", "ja"], "'大丈夫。'"),
    ],
)
def test_chinese_characters_alone_have_the_language_of_the_rest(
    sentences: list[str], languages: list[str], assumed: str | None
) -> None:
    assert detect_languages(sentences) == languages
    notices = assumed_language_notices(sentences, languages)
    assert [notice.partition(" may be")[0] for notice in notices] == ([assumed] if assumed else [])


def test_where_a_model_speaks_one_of_the_two_chinese_characters_are_that_one() -> None:
    assert detect_languages(["大丈夫。", "はい。"], ["en", "ja"]) == ["ja", "ja"]
    assert assumed_language_notices(["大丈夫。"], ["ja"], ["en", "ja"]) == []
    assert detect_languages(["大丈夫。", "天気。"], ["zh"]) == ["zh", "zh"]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("Dr. Smith paid 3.50 for it. Why?", ["Dr. Smith paid 3.50 for it.", "Why?"]),
        ("J. K. Rowling wrote it.", ["J. K. Rowling wrote it."]),
        ("It was e.g. Bob. He left.", ["It was e.g. Bob.", "He left."]),
        ("Am 3. Mai kam Hr. Meier. Er blieb.", ["Am 3. Mai kam Hr. Meier.", "Er blieb."]),
        ("That was in 1999. Then it ended.", ["That was in 1999.", "Then it ended."]),
        ('"Really?" he said. "No."', ['"Really?" he said.', '"No."']),
        ("Well ... maybe. Or not.", ["Well ... maybe.", "Or not."]),
        ("Bonjour ! Ça va ?", ["Bonjour !", "Ça va ?"]),
        ("今日は。元気？「はい。」", ["今日は。", "元気？", "「はい。」"]),
        ("One line\nbroken in two.\n\nTitle\n\nText", ["One line broken in two.", "Title", "Text"]),
        ("", []),
        (" \n\n ", []),
    ],
)
def test_text_is_cut_where_sentences_end(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


def test_a_long_sentence_is_cut_after_a_clause_or_else_between_words() -> None:
    clauses = "the first part of it is this, and the second part is that one"
    assert split_sentences(clauses, max_size=40) == [
        "the first part of it is this,",
        "and the second part is that one",
    ]
    assert split_sentences("word " * 5, max_size=14) == ["word word word", "word word"]


@given(
    text=st.text(alphabet="ab1A .,;!?\"'()\n。、今が日…é", max_size=300),
    max_size=st.integers(3, 60),
)
def test_no_character_is_lost_and_every_piece_fits(text: str, max_size: int) -> None:
    pieces = split_sentences(text, max_size=max_size)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(pieces)
    assert all(speaking_size(piece) <= max_size for piece in pieces)


def test_a_huge_text_without_any_mark_takes_no_time() -> None:
    pieces = split_sentences("x" * 300_000)
    assert sum(map(len, pieces)) == 300_000
