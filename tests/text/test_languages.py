"""The language of a text and of its sentences."""

import builtins
import sys

import pytest

from valle_convert.errors import EnvironmentFault, InputError
from valle_convert.extras import require
from valle_convert.model.spec import LANGUAGES
from valle_convert.text.languages import (
    detect_language,
    detect_languages,
    known_language,
    sentences_of,
)
from valle_convert.text.phonemes import VOICES, check_phonemes, to_phonemes


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


# Phonemes by real espeak-ng


@pytest.mark.parametrize(
    ("language", "text", "phonemes"),
    [
        ("en", "Hello, world! It's 5 o'clock.", "həlˈoʊ, wˈɜːld! ɪts fˈaɪv əklˈɑːk."),
        ("en", "Dr. Lee paid 3.50.", "dˈɑːktɚ. lˈiː pˈeɪd θɹˈiː pɔɪnt fˈaɪv zˈiəɹoʊ."),
        ("en", "1.5 to 2.5", "wˈʌn pɔɪnt fˈaɪv tə tˈuː pɔɪnt fˈaɪv"),
        ("de", "Guten Tag.", "ɡˈuːtən tˈɑːk."),
        ("de", "3,14 Meter.", "dɾˈaɪ kɔmɑː ˈaɪns fˈiːɾ mˈeːtɜ."),
        ("fr", "Ça va, l'été ?", "sa vˈa, letˈe ?"),
        ("ko", "안녕하세요, 세계!", "ˈɐnnjʌŋhˌɐsejˌo, sˈeqje!"),
        ("ja", "いいてんきですね。", "ˌiːte̞ŋkˌide̞sˈɯᵝne̞"),
        ("zh", "你好，世界。", "niˉχˈɑuˉ, s.ˈi._ tɕˈiɛ_"),
    ],
)
def test_text_becomes_ipa_with_stress_and_punctuation(
    language: str, text: str, phonemes: str
) -> None:
    assert to_phonemes(text, language) == phonemes


def test_words_of_another_language_leave_no_flags() -> None:
    phonemes = to_phonemes("Er sagte rendez-vous und New York, c'est la vie.", "de")
    assert "(" not in phonemes


@pytest.mark.parametrize("text", ["", "   ", "...", "\x00", "?!", "—", "「」"])
@pytest.mark.parametrize("language", list(VOICES))
def test_text_with_nothing_to_say_is_refused(text: str, language: str) -> None:
    with pytest.raises(InputError, match="nothing to say"):
        to_phonemes(text, language)


def test_marks_alone_are_no_phonemes() -> None:
    with pytest.raises(InputError, match="nothing to say"):
        check_phonemes("ˈˌː. ˇ_")


def test_an_unsupported_language_is_refused_with_those_that_are() -> None:
    with pytest.raises(InputError, match=r"'tlh' is not supported.*en, de, fr, ja, zh, ko"):
        to_phonemes("nuqneH", "tlh")


def test_a_library_that_does_not_load_is_told_like_a_missing_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: object, **kwargs: object) -> object:
        if name == "_soundfile":
            raise OSError("cannot load library 'libsndfile.so'")
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    for name in ("soundfile", "_soundfile"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(EnvironmentFault, match=r"soundfile.*cannot load library"):
        require("soundfile", "Reading audio files")
