"""Text to IPA with espeak-ng, as for the models' training data.

Punctuation and stress marks are kept. Kanji become hiragana first; tone digits become the marks of
the models' vocabulary. Characters that a language cannot read are skipped; `unsaid_characters`
lists them.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial
from itertools import groupby
from typing import Any

from valle_convert.errors import InputError
from valle_convert.extras import require
from valle_convert.model.spec import UNKNOWN_PHONEME
from valle_convert.text.espeak import MARKS, is_sound, names_code_point, read, says
from valle_convert.text.folding import HAN, fold, shortened, signs_in_words, unsaid_notice
from valle_convert.text.languages import script_of
from valle_convert.text.numerals import numbers_in_words

#: espeak-ng's voice for each language.
VOICES = {"en": "en-us", "de": "de", "fr": "fr-fr", "ja": "ja", "zh": "cmn-latn-pinyin", "ko": "ko"}

#: The models' vocabulary has these marks for espeak-ng's tone digits of Mandarin.
_TONE_MARKS = str.maketrans({"1": "ˇ", "2": "ˉ", "3": "ˊ", "4": "ˋ", "5": "_"})

_KANA = "ぁ-ゖァ-ヺー"
#: Longer words of kana get a space; espeak-ng drops what exceeds 80.
_MAX_KANA = 60
_JAPANESE = re.compile(rf"[{HAN}{_KANA}々〆]+")
#: Small kana that form a syllable with the kana before; others are read like large ones.
_SYLLABLE = re.compile(
    "[きぎしじちぢにひびぴみりゔ][ゃゅょ]|[うゔふつくぐ][ぁぃぇぉ]|[てで][ぃゅ]|[とど]ぅ"
    "|[しじち]ぇ|いぇ|[すず]ぃ|ふゅ|[ぁぃぅぇぉゃゅょゎゕゖ]"
)
_LARGE = str.maketrans("ぁぃぅぇぉゃゅょゎゕゖ", "あいうえおやゆよわかけ")
_SIGNS = {"sign", "Po", "Pd", "Ps", "Pe", "Pc", "Pi", "Pf"}
_FLAG = "[\U0001f1e6-\U0001f1ff]"
_FLAG_OR_CHARACTER = re.compile(f"{_FLAG}{{2}}|.", re.DOTALL)
#: Signs that separate words or modify a letter.
_SILENT = f"{MARKS}|^`"


def to_phonemes(text: str, language: str) -> str:
    """The phonemes of a text in one of the `VOICES`' languages."""
    readable, unsaid = _readable(text, language)
    phonemes = read(readable, VOICES[language]).strip()
    if language == "zh":
        phonemes = phonemes.translate(_TONE_MARKS)
    check_phonemes(phonemes, text, [unsaid_notice(unsaid[:5], language)] if unsaid else ())
    return phonemes


def unsaid_characters(text: str, language: str) -> list[str]:
    return list(_readable(text, language)[1])


def check_phonemes(phonemes: str, text: str = "", reasons: Sequence[str] = ()) -> None:
    """Raise InputError if phonemes have no sound; the message quotes their text."""
    if any(map(is_sound, phonemes)):
        return
    why = ": it has no letters or numbers."
    if reasons:
        why = f", since {'; '.join(reasons)}; pass --language if it is in another one."
    raise InputError(f"There is nothing to say in the text {shortened(text or phonemes)}{why}")


def unknown_phonemes(phonemes: str, tokenize: Callable[[str], Sequence[int]]) -> list[str]:
    """The characters with the id `UNKNOWN_PHONEME`, without duplicates."""
    if UNKNOWN_PHONEME not in tokenize(phonemes):
        return []
    return [one for one in dict.fromkeys(phonemes) if UNKNOWN_PHONEME in tokenize(one)]


@lru_cache(maxsize=64)
def _readable(text: str, language: str) -> tuple[str, tuple[str, ...]]:
    """The text as its voice can read it, and the characters that it cannot read."""
    voice = VOICES.get(language)
    if voice is None:
        raise InputError(f"The language {language!r} is not supported, only {', '.join(VOICES)}.")
    said = partial(says, voice=voice)
    if language in ("ja", "ko", "zh"):  # whose voices read signs in English
        text = numbers_in_words(signs_in_words(fold(text), language), language)
    else:
        text = signs_in_words(fold(text, said), language, said)
    if language == "ja":
        text = _SYLLABLE.sub(
            lambda kana: kana[0] if kana[0][1:] else kana[0].translate(_LARGE), _to_hiragana(text)
        )
    text = _parted(text)
    readable: list[str] = []
    unsaid: list[str] = []
    for character in _FLAG_OR_CHARACTER.findall(text):
        kind = unicodedata.category(character[0])
        is_kana = language == "ja" and re.match(f"[{_KANA}]", character)
        if character in _SILENT or kind[0] in "MZ" or is_kana or said(character):
            readable.append(character)
        elif kind[0] == "P":
            readable.append(" " if names_code_point(character, voice) else character)
        else:
            readable.append(" ")
            if kind != "Sk":
                unsaid += character
    return "".join(readable), tuple(dict.fromkeys(unsaid))


def _parted(text: str) -> str:
    """Separate what a voice may drop: letters of another script, and signs beside each other."""
    parted = before = last_script = last_kind = ""
    for character in text:
        kind = unicodedata.category(character)
        if kind in ("No", "Sc", "Sm", "So") and not re.match(_FLAG, character):
            kind = "sign"
        # Not in 5 µm and nº.
        is_letter = kind in ("Lu", "Ll", "Lo") and "<" not in unicodedata.decomposition(character)
        script = script_of(character) if is_letter else ""
        is_beside = "sign" in (kind, last_kind) and {kind, last_kind} <= _SIGNS
        if (script and last_script and script != last_script) or (
            is_beside and not {character, before} & set(MARKS)
        ):
            parted += " "
        parted += character
        before, last_kind = character, kind
        if kind != "Lm" and kind[0] != "M":
            last_script = script
    return parted


@cache
def _kakasi() -> Any:  # noqa: ANN401 - the package has no types
    return require("pykakasi", "Reading kanji").kakasi()


def _to_hiragana(text: str) -> str:
    """Kanji as hiragana. pykakasi drops what it does not know, and some of what follows."""
    hiragana = _converted(text)
    if hiragana is None:
        hiragana = _JAPANESE.sub(lambda run: _converted(run[0]) or _one_by_one(run[0]), text)
    return hiragana


def _one_by_one(text: str) -> str:
    """Convert the words between characters that pykakasi does not know."""
    written = []
    for is_known, group in groupby(text, lambda one: _converted(one) is not None):
        stretch = "".join(group)
        written.append(_converted(stretch) or stretch if is_known else stretch)
    return "".join(written)


def _converted(text: str) -> str | None:
    """A text in hiragana; None if a part would be lost."""
    words = [(word["orig"], word["hira"]) for word in _kakasi().convert(text)]
    if "".join(orig for orig, _ in words) != text or any(o.strip() and not h for o, h in words):
        return None
    line, size = "", 0
    for _, hiragana in words:
        size = 0 if hiragana[-1:].isspace() else size + len(hiragana)
        if size > _MAX_KANA:
            line, size = f"{line} ", len(hiragana)
        line += hiragana
    return line
