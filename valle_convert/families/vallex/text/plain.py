"""What the three readers share: plain characters, punctuation and spaces."""

import re
import unicodedata
from collections.abc import Iterable

from valle_convert.text.folding import SIGNS, fold

#: Replacements for punctuation. Other characters that a reader does not know are reported.
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


def table(text: str) -> dict[str, str]:
    """A table written as `key=value` between white space, with `_` for a space in a value."""
    pairs = (entry.partition("=") for entry in text.split())
    return {key: value.replace("_", " ") for key, _, value in pairs}


#: Latin letters without a decomposition.
_SMALL = table("ß=ss æ=ae œ=oe ø=o đ=d ł=l ð=th þ=th")
_CAPITALS = {one.upper(): two.capitalize() for one, two in _SMALL.items()}
_LETTERS = {**_SMALL, **_CAPITALS, "ı": "i", "ẞ": "SS"}


def plain(text: str, language: str) -> str:
    """Fold a text and strip accents from Latin letters; signs that the language reads are kept."""
    return "".join(map(_without_accent, fold(text, SIGNS[language].__contains__)))


def _without_accent(character: str) -> str:
    if character in _LETTERS:
        return _LETTERS[character]
    if character.isascii() or not unicodedata.name(character, "").startswith("LATIN"):
        return character
    return "".join(
        one for one in unicodedata.normalize("NFKD", character) if not unicodedata.combining(one)
    )


def put_together(pieces: Iterable[tuple[str, str | None]]) -> tuple[str, list[str]]:
    """Join pieces of text with their symbols, and list the characters that cannot be read.

    Pieces without symbols are punctuation, spaces, and what cannot be read. Single spaces remain,
    none before a closing mark or at the ends.
    """
    parts: list[str] = []
    unsaid: list[str] = []
    for text, symbols in pieces:
        if symbols is not None:
            parts.append(symbols)
            continue
        for character in text:
            if character in PUNCTUATION:
                parts.append(PUNCTUATION[character])
            elif character.isspace():
                parts.append(" ")
            else:
                unsaid.append(character)
    symbols = re.sub(r"\.{3,}", "…", re.sub(r"\s+", " ", "".join(parts)))
    return re.sub(r" (?=[.,!?…])", "", symbols).strip(), list(dict.fromkeys(unsaid))
