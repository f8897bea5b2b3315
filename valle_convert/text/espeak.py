"""Phonemes from espeak-ng, without losing a word or a punctuation mark.

phonemizer may lose words when it splits a text at punctuation, so it gets the text between two
marks at a time. The result is compared with the words; if one is missing, they are read one by one.

    Dr. Smith paid 3.50    "Dr" "Smith paid 3.50", and between them ". "
"""

import logging
import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from valle_convert.errors import EnvironmentFault
from valle_convert.extras import require
from valle_convert.text.folding import HAN

#: Marks of the training data; between digits they belong to the number.
MARKS = ';:,.!?¡¿—…"«»“”(){}[]'
_MARK = re.compile(rf"((?<!\s)\s*(?:(?!(?<=\d)[.,:](?=\d))[{re.escape(MARKS)}]\s*)+)")
#: Numbers, pinyin with its tone, Chinese, words, signs.
_WORD = re.compile(
    rf"\d+(?:[.,:]\d+)*|[a-zü]+[1-5](?!\w)|[{HAN}]+"
    rf"|(?:(?![{HAN}])[^\W\d_])+(?:['’](?:(?![{HAN}])[^\W\d_])+)*|[^\w\s]"
)
#: espeak-ng drops text after 800 bytes of a clause, decomposed, or 100 phonemes of a word.
_MAX_BYTES = 700
_MAX_SOUNDS = 90
#: A character without script: espeak-ng reads it as "letter" and its code point.
_NO_SCRIPT, _NO_SCRIPT_DIGIT = "\u0800", "8"
_STRESS = re.compile("[ˈˌ]")

_log = logging.getLogger(__name__)
_log.setLevel(logging.ERROR)  # it warns about word counts and removed flags


def read(text: str, voice: str) -> str:
    """Read a folded text with an espeak-ng voice; marks stay where they are."""
    stretches = _MARK.split(text)
    return "".join(
        stretch if i % 2 else " ".join(_read_all(piece, voice) for piece in _pieces(stretch, voice))
        for i, stretch in enumerate(stretches)
    )


def says(word: str, voice: str) -> bool:
    return bool(_sounds(_ask(word, voice))) and not names_code_point(word, voice)


@lru_cache(maxsize=8192)
def names_code_point(character: str, voice: str) -> bool:
    """Whether a voice only says "letter" and the code point, or "Chinese letter"."""
    return _letter(voice) in _STRESS.sub("", _ask(character, voice))


def is_sound(character: str) -> bool:
    """Whether it is a letter of IPA, not a mark of stress, length or tone (category Lm)."""
    category = unicodedata.category(character)
    return category.startswith("L") and category != "Lm"


def _pieces(stretch: str, voice: str) -> Iterator[str]:
    """Cut a stretch at spaces into pieces that fit espeak-ng's buffers."""
    piece = ""
    for word in stretch.split():
        for part in _parts(word, voice):
            longer = f"{piece} {part}" if piece else part
            if piece and _n_bytes(longer) > _MAX_BYTES:
                yield piece
                longer = part
            piece = longer
    if piece:
        yield piece


def _parts(word: str, voice: str) -> Iterator[str]:
    is_chinese = re.search(f"[{HAN}]", word)  # each character is a word to espeak-ng
    fits = is_chinese or len(_sounds(_ask(word, voice))) <= _MAX_SOUNDS
    if len(word) == 1 or (fits and _n_bytes(word) <= _MAX_BYTES):
        yield word
    else:
        for half in (word[: len(word) // 2], word[len(word) // 2 :]):
            yield from _parts(half, voice)


def _n_bytes(text: str) -> int:
    return len(unicodedata.normalize("NFD", text).encode())


def _read_all(piece: str, voice: str) -> str:
    words = [word for word in _WORD.findall(piece) if _must_be_said(word, voice)]
    expected = re.findall(rf"[{HAN}]|[^{HAN}\s]+", " ".join(words))
    phonemes = _ask(piece, voice)
    if _has_all(_sounds(phonemes), [_sounds(_ask(word, voice)) for word in expected]):
        return phonemes
    return " ".join(_ask(word, voice) for word in words)


def _must_be_said(word: str, voice: str) -> bool:
    is_word = word[0].isalnum() or unicodedata.category(word[0]).startswith("S")
    return is_word and bool(_sounds(_ask(word, voice)))


def _has_all(phonemes: str, words: list[str]) -> bool:
    """Whether no word is missing from phonemes: aligned by edit distance, none is fully deleted.

    In context a word may sound different, but then other sounds take its place.
    """
    place = 0
    for word in words:
        place = phonemes.find(word, place) + len(word)
        if place < len(word):
            break
    else:
        return True
    expected = [(sound, i) for i, word in enumerate(words) for sound in word]
    found, columns = np.array(list(phonemes)), np.arange(len(phonemes) + 1)
    rows = [columns]
    for n, (sound, _) in enumerate(expected, 1):  # a row at a time: 700 bytes may have 2,000 sounds
        above = rows[-1]
        row = np.append(n, np.minimum(above[:-1] + (found != sound), above[1:] + 1))
        rows.append(np.minimum.accumulate(row - columns) + columns)
    n, k = len(expected), len(phonemes)
    present: set[int] = set()
    while n and k:
        sound, i = expected[n - 1]
        if rows[n][k] == rows[n - 1][k - 1] + (sound != phonemes[k - 1]):
            present.add(i)
            n, k = n - 1, k - 1
        elif rows[n][k] == rows[n - 1][k] + 1:
            n -= 1
        else:
            k -= 1
    return len(present) == len(words)


def _sounds(phonemes: str) -> str:
    return "".join(filter(is_sound, phonemes))


@lru_cache
def _letter(voice: str) -> str:
    """What a voice says before the code point of an unknown character."""
    said, digit = (_STRESS.sub("", _ask(one, voice)) for one in (_NO_SCRIPT, _NO_SCRIPT_DIGIT))
    return said.partition(digit)[0]


@lru_cache(maxsize=8192)
def _ask(text: str, voice: str) -> str:
    """espeak-ng's output, without flags around words of another language."""
    said = _backend(voice).phonemize([text], strip=True)
    if len(said) > 1:
        raise EnvironmentFault(
            f"phonemizer returned {len(said)} lines for {text[:40]!r}; install another version."
        )
    return str(said[0]).strip() if said else ""


@lru_cache
def _backend(voice: str) -> Any:  # noqa: ANN401 - the package has no types
    loader = require("espeakng_loader", "Turning text into phonemes")
    wrapper = require("phonemizer.backend.espeak.wrapper", "Turning text into phonemes")
    espeak = require("phonemizer.backend.espeak.espeak", "Turning text into phonemes")
    wrapper.EspeakWrapper.set_library(loader.get_library_path())
    wrapper.EspeakWrapper.set_data_path(loader.get_data_path())
    try:
        return espeak.EspeakBackend(
            voice,
            punctuation_marks=re.compile("(?!)"),  # none
            with_stress=True,
            language_switch="remove-flags",
            logger=_log,
        )
    except (RuntimeError, OSError) as error:
        raise EnvironmentFault(
            f"espeak-ng has no usable voice {voice} ({error}); run pip install --force-reinstall "
            "espeakng-loader phonemizer."
        ) from error
