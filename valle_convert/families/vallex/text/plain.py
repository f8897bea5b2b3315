"""What the three readers share: characters made plain, the symbols of marks, and blanks."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from valle_convert.text.folding import SIGNS, fold

#: Punctuation: what it becomes. Of the rest, what no reader says is named.
PUNCTUATION = {
    **{mark: mark for mark in ".,!?-~…"},
    **dict.fromkeys(";:、，；：､", ","),
    **dict.fromkeys("‐‑‒–—―−", "-"),
    **dict.fromkeys("。．｡", "."),
    **dict.fromkeys("～〜", "~"),
    "！": "!",
    "？": "?",
    **dict.fromkeys("¡¿\"'`´‘’‚‛“”„‟«»‹›「」『』《》〈〉【】〔〕｢｣（）()[]{}", ""),
    **dict.fromkeys("_/\\|*^•·・", " "),
}
#: Latin letters that have no decomposition.
_LETTERS = {
    "ß": "ss",
    "æ": "ae",
    "œ": "oe",
    "ø": "o",
    "đ": "d",
    "ł": "l",
    "ð": "th",
    "þ": "th",
    "ı": "i",
}
_LETTERS |= {one.upper(): two.capitalize() for one, two in _LETTERS.items() if one != "ı"} | {
    "ẞ": "SS"
}


def plain(text: str, language: str) -> str:
    """A folded text whose Latin letters have no accents; the signs of the language stay."""
    return "".join(map(_without_accent, fold(text, SIGNS[language].__contains__)))


def _without_accent(character: str) -> str:
    if character in _LETTERS:
        return _LETTERS[character]
    if character.isascii() or not unicodedata.name(character, "").startswith("LATIN"):
        return character
    return "".join(
        one for one in unicodedata.normalize("NFKD", character) if not unicodedata.combining(one)
    )


def joined(parts: Iterable[str]) -> str:
    """Symbols with single blanks, none before a mark that ends something or at either end."""
    symbols = re.sub(r"\.{3,}", "…", re.sub(r"\s+", " ", "".join(parts)))
    return re.sub(r" (?=[.,!?…])", "", symbols).strip()
