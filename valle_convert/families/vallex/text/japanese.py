"""Japanese for VALL-E X: OpenJTalk tells phones and accents.

>>> japanese_symbols("レベルが上がったそうです。")[0]
'ɾe↓beɾɯga a↑gat#taso↑ode↓sɯ*.'

Accents are arrows: up after the first mora of a phrase that rises, down at its fall. Phrases are
parted by blanks.
"""

from __future__ import annotations

import contextlib
import io
import re
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from valle_convert.extras import require

#: OpenJTalk's phones that are written otherwise; capitals are devoiced vowels.
PHONES = {
    "u": "ɯ",
    "U": "ɯ*",
    "I": "i*",
    "A": "a",
    "E": "e",
    "O": "o",
    "r": "ɾ",
    "ry": "ɾj",
    "f": "ɸ",
    "fy": "ɸj",
    "y": "j",
    "ky": "kj",
    "gy": "gj",
    "by": "bj",
    "py": "pj",
    "my": "mj",
    "ty": "tj",
    "dy": "dj",
    "vy": "vj",
    "j": "dʑ",
    "ch": "tʃ",
    "sh": "ʃ",
    "ny": "n^",
    "hy": "ç",
}
#: Consonants that another phone makes different: before i, voiced or not.
_BEFORE_I = {"n": "n^", "h": "ç"}
_I = ("i", "I")
#: The first half of a double consonant, by the first letter of what follows; else Q.
_DOUBLED = {
    **dict.fromkeys(("k", "ky", "g", "gy"), "k#"),
    **dict.fromkeys(("t", "ty", "ts", "d", "dy", "j", "ch"), "t#"),
    **dict.fromkeys(("p", "py", "b", "by"), "p#"),
    **dict.fromkeys(("s", "sh"), "s"),
}
#: The syllabic nasal, by what follows; else N.
_NASALS = {
    **dict.fromkeys(("m", "my", "p", "py", "b", "by"), "m"),
    **dict.fromkeys(("ch", "j"), "n^"),
    **dict.fromkeys(("t", "ty", "ts", "d", "dy", "n", "ny"), "n"),
    **dict.fromkeys(("k", "ky", "g", "gy"), "ŋ"),
}

#: Punctuation: what it becomes.
_PUNCTUATION = {
    **{mark: mark for mark in ".,!?-~…"},
    **dict.fromkeys("。．｡", "."),
    **dict.fromkeys("、，；：;:､", ","),
    "！": "!",
    "？": "?",
    **dict.fromkeys("—–―−", "-"),
    **dict.fromkeys("～〜", "~"),
    **dict.fromkeys("\"'“”‘’「」『』（）()《》〈〉【】〔〕[]{}«»・·_/\\|*^`｢｣", ""),
}
_SIGNS = {
    "&": "アンド",
    "%": "パーセント",
    "+": "プラス",
    "=": "イコール",
    "@": "アットマーク",
    "$": "ドル",
    "€": "ユーロ",
    "£": "ポンド",
    "¥": "円",
    "℃": "度",
    "°": "度",
    "#": "シャープ",
}
_SCRIPTS = ("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "CJK", "IDEOGRAPHIC")


@dataclass(frozen=True)
class Phone:
    """A phone, and where its mora stands in its accent phrase.

    Attributes:
        name: OpenJTalk's.
        to_accent: of moras, from the accented one; 0 on it.
        place: of the mora in its phrase, from 1.
        left: moras to the end of the phrase, this one included.
    """

    name: str
    to_accent: int = 1
    place: int = 0
    left: int = 0


def japanese_symbols(text: str) -> tuple[str, list[str]]:
    """A text in the network's symbols, with blanks between phrases.

    Returns:
        The symbols, and the characters of the text that cannot be said in Japanese.

    Raises:
        EnvironmentFault: pyopenjtalk is not installed.
    """
    parts: list[str] = []
    unsaid: list[str] = []
    for is_read, characters in _stretches(_plain(text)):
        if is_read:
            spelled = _phrases(characters)
            if not spelled:
                unsaid.extend(characters)
            parts.append(spelled if not parts or not spelled else f" {spelled}")
            continue
        for character in characters:
            if character in _PUNCTUATION:
                parts.append(_PUNCTUATION[character])
            elif not character.isspace():
                unsaid.append(character)
    symbols = re.sub(r"\.{3,}", "…", re.sub(r"\s+", " ", "".join(parts)))
    return symbols.strip(), list(dict.fromkeys(unsaid))


def spell_phones(phones: Sequence[Phone]) -> str:
    """Phones with their accents, in the network's symbols."""
    parts: list[str] = []
    for i, phone in enumerate(phones):
        following = phones[i + 1] if i + 1 < len(phones) else Phone("")
        ends_phrase = phone.left == 1 and following.place == 1
        parts.append(_letter(phone.name, "" if ends_phrase else following.name))
        if ends_phrase:
            parts.append(" ")
        elif phone.to_accent == 0 and following.place == phone.place + 1:
            parts.append("↓")
        elif phone.place == 1 and following.place == 2:
            parts.append("↑")
    return "".join(parts)


def _letter(phone: str, following: str) -> str:
    if phone == "cl":
        return _DOUBLED.get(following, "Q")
    if phone == "N":
        return _NASALS.get(following, "N")
    if phone in _BEFORE_I and following in _I:
        return _BEFORE_I[phone]
    return PHONES.get(phone, phone)


def _plain(text: str) -> str:
    """Signs in words, and letters and digits of the usual width."""
    plain = []
    for character in unicodedata.normalize("NFC", text):
        category = unicodedata.category(character)
        if category == "Nd":
            plain.append(str(unicodedata.decimal(character)))
        elif category == "Cc":
            plain.append(" ")
        elif unicodedata.name(character, "").startswith("LATIN"):
            folded = unicodedata.normalize("NFKD", character)
            plain.append("".join(one for one in folded if not unicodedata.combining(one)))
        elif category != "Cf":
            is_narrowed = character.isalnum() or character in "％＆＋＝＠＄￥＃"
            plain.append(unicodedata.normalize("NFKC", character) if is_narrowed else character)
    return "".join(_SIGNS.get(one, one) for one in "".join(plain))


def _stretches(text: str) -> Iterable[tuple[bool, str]]:
    """What can be read, and what is between it, in turn."""
    pieces: list[tuple[bool, str]] = []
    for i, character in enumerate(text):
        if character == ".":
            is_read = text[max(i - 1, 0) : i].isdigit() and text[i + 1 : i + 2].isdigit()
        elif character.isascii():
            is_read = character.isalnum()
        else:
            script = unicodedata.name(character, "").partition(" ")[0]
            is_read = script in _SCRIPTS and character not in _PUNCTUATION
        if pieces and pieces[-1][0] == is_read:
            pieces[-1] = (is_read, pieces[-1][1] + character)
        else:
            pieces.append((is_read, character))
    return pieces


def _phrases(text: str) -> str:
    openjtalk = _openjtalk()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls sudachipy in a way that is deprecated
        labels = openjtalk.extract_fullcontext(text, predict_nani=False)
    return spell_phones([_phone(label) for label in labels])


@cache
def _openjtalk() -> Any:  # noqa: ANN401 - imported late
    with contextlib.redirect_stdout(io.StringIO()):  # it greets on stdout
        return require("pyopenjtalk", "Reading Japanese for VALL-E X", extra="japanese")


#: The phone, and the fields A1 to A3 of a full-context label of HTS.
_LABEL = re.compile(r"-(?P<phone>[^+]*)\+.*?/A:(?P<a1>-?\d+|xx)\+(?P<a2>\d+|xx)\+(?P<a3>\d+|xx)/")


def _phone(label: str) -> Phone:
    found = _LABEL.search(label)
    if found is None or "xx" in found.groups():
        return Phone("")
    return Phone(found["phone"], int(found["a1"]), int(found["a2"]), int(found["a3"]))
