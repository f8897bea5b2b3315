"""The language of a text and of its sentences."""

import pytest

from valle_convert.errors import InputError
from valle_convert.model.spec import LANGUAGES
from valle_convert.text.languages import (
    detect_language,
    detect_languages,
    known_language,
    sentences_of,
)


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
    found, notices = sentences_of("".join(sentences), None, LANGUAGES)
    assert found == list(zip(sentences, languages, strict=True))
    assert [notice.partition(" may be")[0] for notice in notices] == ([assumed] if assumed else [])


def test_where_a_model_speaks_one_of_the_two_chinese_characters_are_that_one() -> None:
    assert detect_languages(["大丈夫。", "はい。"], ["en", "ja"]) == ["ja", "ja"]
    assert sentences_of("大丈夫。", None, ["en", "ja"]) == ([("大丈夫。", "ja")], ())
    assert detect_languages(["大丈夫。", "天気。"], ["zh"]) == ["zh", "zh"]


@pytest.mark.parametrize("word", ["en", "EN", "en-US", "en_GB"])
def test_a_language_may_have_a_region(word: str) -> None:
    assert known_language(word) == "en"
