"""Phonemes by real espeak-ng."""

import builtins
import sys

import pytest

from valle_convert.errors import EnvironmentFault, InputError
from valle_convert.extras import require
from valle_convert.text.phonemes import VOICES, check_phonemes, to_phonemes


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
