"""From text to IPA with espeak-ng, exactly as the models' training data was made.

Punctuation and stress marks stay. Flags like `(fr)` around a word that espeak-ng finds to be in
another language are taken off: their letters would be spoken. Kanji are turned to hiragana
first, and Chinese tones are remapped to the marks that the models know.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from valle_convert.errors import EnvironmentFault, InputError
from valle_convert.extras import require
from valle_convert.model.spec import UNKNOWN_PHONEME

#: espeak-ng's voice for each language of the models.
VOICES = {
    "en": "en-us",
    "de": "de",
    "fr": "fr-fr",
    "ja": "ja",
    "zh": "cmn-latn-pinyin",
    "ko": "ko",
}

#: espeak-ng writes Mandarin tones as digits; the models' vocabulary has these marks for them.
_TONE_MARKS = str.maketrans({"1": "ˇ", "2": "ˉ", "3": "ˊ", "4": "ˋ", "5": "_"})

_log = logging.getLogger(__name__)
_log.setLevel(logging.ERROR)  # its warnings count words, and tell of flags that are taken off


def to_phonemes(text: str, language: str) -> str:
    """The phonemes of a text in one of the `VOICES`' languages.

    Raises:
        InputError: the language is none of those, or there is nothing to say in the text.
        EnvironmentFault: phonemizer, espeak-ng or pykakasi is not installed.
    """
    voice = VOICES.get(language)
    if voice is None:
        raise InputError(
            f"The language {language!r} is not supported; the languages are {', '.join(VOICES)}."
        )
    cleaned = _clean(text)
    if cleaned and language == "ja":
        cleaned = _to_hiragana(cleaned)
    phonemes = _backend(voice).phonemize([cleaned], strip=True)[0].strip() if cleaned else ""
    if language == "zh":
        phonemes = phonemes.translate(_TONE_MARKS)
    check_phonemes(phonemes, said=text)
    return str(phonemes)


def check_phonemes(phonemes: str, *, said: str | None = None) -> None:
    """Refuse phonemes that have no sound in them, only marks and punctuation.

    Raises:
        InputError: as said; the message quotes `said`, or else the phonemes.
    """
    if any(_is_sound(character) for character in phonemes):
        return
    quoted = _shortened(phonemes if said is None else said)
    raise InputError(
        f"There is nothing to say in the text {quoted}: it has no letters or numbers that can be "
        "read out; give some words."
    )


def unknown_phonemes(phonemes: str, tokenize: Callable[[str], Sequence[int]]) -> list[str]:
    """The characters that the model's vocabulary does not have, each once, in order.

    Args:
        phonemes: IPA.
        tokenize: gives the ids of a string, with `UNKNOWN_PHONEME` for what is unknown.
    """
    if UNKNOWN_PHONEME not in tokenize(phonemes):
        return []
    return [one for one in dict.fromkeys(phonemes) if UNKNOWN_PHONEME in tokenize(one)]


def _is_sound(character: str) -> bool:
    """Whether it is a letter, and no stress, length or tone mark (category Lm)."""
    category = unicodedata.category(character)
    return category.startswith("L") and category != "Lm"


def _clean(text: str) -> str:
    """One line of composed characters without what espeak-ng's C strings cannot hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(
            f"The text {_shortened(text)} has characters that are no valid Unicode; save it as "
            "UTF-8."
        ) from None
    printable = "".join(
        " " if unicodedata.category(character) in {"Cc", "Zl", "Zp"} else character
        for character in unicodedata.normalize("NFC", text)
    )
    return re.sub(r"\s+", " ", printable).strip()


def _shortened(text: str) -> str:
    return ascii(text if len(text) <= 40 else f"{text[:40]}...")


@cache
def _backend(voice: str) -> Any:  # noqa: ANN401 - the package has no types
    loader = require("espeakng_loader", "Turning text into phonemes")
    wrapper = require("phonemizer.backend.espeak.wrapper", "Turning text into phonemes")
    espeak = require("phonemizer.backend.espeak.espeak", "Turning text into phonemes")
    wrapper.EspeakWrapper.set_library(loader.get_library_path())
    wrapper.EspeakWrapper.set_data_path(loader.get_data_path())
    try:
        return espeak.EspeakBackend(
            voice,
            preserve_punctuation=True,
            with_stress=True,
            language_switch="remove-flags",
            logger=_log,
        )
    except (RuntimeError, OSError) as error:
        raise EnvironmentFault(
            f"espeak-ng cannot be used with the voice {voice} ({error}); install it anew with: "
            "pip install --force-reinstall espeakng-loader phonemizer"
        ) from error


@cache
def _kakasi() -> Any:  # noqa: ANN401 - the package has no types
    return require("pykakasi", "Reading kanji").kakasi()


def _to_hiragana(text: str) -> str:
    return "".join(word["hira"] for word in _kakasi().convert(text))
