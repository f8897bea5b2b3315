"""Japanese for VALL-E X: phones and accents from OpenJTalk.

>>> japanese_symbols("レベルが上がったそうです。")[0]
'ɾe↓beɾɯga a↑gat#ta so↑ode↓sɯ*.'

Arrows mark the pitch accent: ↑ after the first mora of a rising phrase, ↓ where the pitch falls.
Spaces separate phrases.
"""

import contextlib
import io
import re
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from valle_convert.errors import InputError
from valle_convert.extras import require
from valle_convert.families.vallex.text.plain import plain, put_together, table
from valle_convert.text.folding import HAN, shortened, signs_in_words

#: Symbols that differ from OpenJTalk's names of phones. Capitals are devoiced vowels.
PHONES = table(
    """
    u=ɯ U=ɯ* I=i* A=a E=e O=o r=ɾ ry=ɾj f=ɸ fy=ɸj y=j ky=kj gy=gj by=bj py=pj my=mj ty=tj
    dy=dj vy=vj j=dʑ ch=tʃ sh=ʃ ny=n^ hy=ç
    """
)
#: Consonants that change before i.
_BEFORE_I = {"n": "n^", "h": "ç"}
_I = ("i", "I")
#: The first half of a geminate by the phone that follows; Q if it is not listed.
_DOUBLED = {
    **dict.fromkeys(("k", "ky", "g", "gy"), "k#"),
    **dict.fromkeys(("t", "ty", "ts", "d", "dy", "j", "ch"), "t#"),
    **dict.fromkeys(("p", "py", "b", "by"), "p#"),
    **dict.fromkeys(("s", "sh"), "s"),
}
#: The moraic nasal by the phone that follows; N if it is not listed.
_NASALS = {
    **dict.fromkeys(("m", "my", "p", "py", "b", "by"), "m"),
    **dict.fromkeys(("ch", "j"), "n^"),
    **dict.fromkeys(("t", "ty", "ts", "d", "dy", "n", "ny"), "n"),
    **dict.fromkeys(("k", "ky", "g", "gy"), "ŋ"),
}

_KANA = "ぁ-ゖゝゞァ-ヺヽヾー"
#: Text for OpenJTalk, split every 500 characters because its buffer holds 8 kB.
_READABLE = re.compile(rf"(?:[A-Za-z0-9{_KANA}{HAN}々〆]|(?<=\d)\.(?=\d)){{1,500}}")
#: Characters that OpenJTalk leaves unchanged, except for numbers and kana such as いち (一).
_WRITTEN = re.compile(rf"[{_KANA}{HAN}々〆]")
_NUMERALS = re.compile("[〇一二三四五六七八九十百千万億兆]")
_TO_KATAKANA = {code: code + 0x60 for code in range(ord("ぁ"), ord("ゖ") + 1)}


@dataclass(frozen=True)
class Phone:
    """A phone and the position of its mora in the accent phrase."""

    name: str
    to_accent: int = 1  # moras after the accented one, which has 0
    place: int = 0  # index of the mora in its phrase, from 1
    left: int = 0  # moras to the end of the phrase, including this one


def japanese_symbols(text: str) -> tuple[str, list[str]]:
    """Convert text to symbols. Also return the characters that were skipped.

    Raises InputError if OpenJTalk drops part of the text.
    """
    return put_together(_pieces(signs_in_words(plain(text, "ja"), "ja")))


def _pieces(text: str) -> Iterator[tuple[str, str | None]]:
    for is_read, characters in _stretches(text):
        if is_read:
            symbols, unread = _phrases(characters)
            yield characters, f" {symbols}"
            yield unread, None
        else:
            yield "".join(characters.split()), None


def spell_phones(phones: Sequence[Phone]) -> str:
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


def _stretches(text: str) -> Iterator[tuple[bool, str]]:
    """Split text into parts, each with whether OpenJTalk can read it."""
    start = 0
    for stretch in _READABLE.finditer(text):
        if between := text[start : stretch.start()]:
            yield False, between
        yield True, stretch[0]
        start = stretch.end()
    if start < len(text):
        yield False, text[start:]


def _phrases(text: str) -> tuple[str, str]:
    """Convert a part to symbols. Also return the characters that have no reading."""
    openjtalk = _openjtalk()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls a deprecated function of sudachipy
        words = openjtalk.run_frontend(text, predict_nani=False)
        is_read = any(map(_has_reading, words))  # make_label warns if nothing has a reading
        labels = openjtalk.make_label(words) if is_read else []
    kana = text.translate(_TO_KATAKANA)
    found = "".join(
        word["read"]
        if _NUMERALS.fullmatch(word["string"]) and word["read"] in kana
        else word["string"]
        for word in words
    )
    if len(_WRITTEN.findall(found)) < len(_WRITTEN.findall(_NUMERALS.sub("", text))):
        raise InputError(
            f"OpenJTalk reads only {shortened(found)} of {shortened(text)}; rewrite the "
            "text, or write it in kana."
        )
    unread = "".join(word["string"] for word in words if not _has_reading(word))
    named = filter(str.isalnum, unicodedata.normalize("NFKC", unread))
    return spell_phones([_phone(label) for label in labels]), "".join(named)


def _has_reading(word: dict[str, Any]) -> bool:
    return re.search("[ァ-ヺ]", word["pron"]) is not None


@cache
def _openjtalk() -> Any:  # noqa: ANN401 - imported late
    with contextlib.redirect_stdout(io.StringIO()):  # the import prints to stdout
        return require("pyopenjtalk", "Reading Japanese", extra="japanese")


#: The phone and the fields A1 to A3 of an HTS full-context label.
_LABEL = re.compile(r"-(?P<phone>[^+]*)\+.*?/A:(?P<a1>-?\d+|xx)\+(?P<a2>\d+|xx)\+(?P<a3>\d+|xx)/")


def _phone(label: str) -> Phone:
    found = _LABEL.search(label)
    if found is None or "xx" in found.groups():
        return Phone("")
    return Phone(found["phone"], int(found["a1"]), int(found["a2"]), int(found["a3"]))
