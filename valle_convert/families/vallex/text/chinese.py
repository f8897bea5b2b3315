"""Mandarin for VALL-E X: jieba segments, pypinyin reads, and a table spells syllables.

>>> chinese_symbols("我想要零花钱。")[0]
'wo↓↑ ʃiɑŋ↓↑iɑʊ↓ liŋ↑xwa→tʃʰjɛn↑.'
"""

import re
import warnings
from collections.abc import Iterator
from functools import cache, partial
from typing import Any

from valle_convert.extras import require
from valle_convert.families.vallex.text.plain import plain, put_together, table
from valle_convert.text.folding import HAN, signs_in_words
from valle_convert.text.numerals import numbers_in_words

#: Symbols of the parts of a bopomofo syllable.
INITIALS = table(
    """
    ㄅ=p⁼ ㄆ=pʰ ㄇ=m ㄈ=f ㄉ=t⁼ ㄊ=tʰ ㄋ=n ㄌ=l ㄍ=k⁼ ㄎ=kʰ ㄏ=x ㄐ=tʃ⁼
    ㄑ=tʃʰ ㄒ=ʃ ㄓ=ts`⁼ ㄔ=ts`ʰ ㄕ=s` ㄖ=ɹ` ㄗ=ts⁼ ㄘ=tsʰ ㄙ=s
    """
)
FINALS = table(
    """
    ㄚ=a ㄛ=o ㄜ=ə ㄝ=ɛ ㄞ=aɪ ㄟ=eɪ ㄠ=ɑʊ ㄡ=oʊ ㄢ=an ㄣ=ən ㄤ=ɑŋ ㄥ=əŋ ㄦ=əɹ` ㄇ=m ㄧ=i
    ㄧㄚ=ja ㄧㄛ=jo ㄧㄝ=iɛ ㄧㄞ=jaɪ ㄧㄠ=iɑʊ ㄧㄡ=joʊ ㄧㄢ=jɛn ㄧㄣ=in ㄧㄤ=iɑŋ ㄧㄥ=iŋ
    ㄨ=u ㄨㄚ=wa ㄨㄛ=wo ㄨㄞ=waɪ ㄨㄟ=weɪ ㄨㄢ=wan ㄨㄣ=wən ㄨㄤ=uɑŋ ㄨㄥ=ʊŋ ㄩ=ɥ ㄩㄝ=ɥɛ
    ㄩㄢ=ɥæn ㄩㄣ=ɥn ㄩㄥ=jʊŋ
    """
)
#: The vowel of zhi and zi, which bopomofo does not write.
_SYLLABIC = {**dict.fromkeys("ㄓㄔㄕㄖ", "ɹ`"), **dict.fromkeys("ㄗㄘㄙ", "ɹ")}
#: The first tone has no mark in bopomofo; the neutral tone has no symbol.
TONES = {"": "→", "ˊ": "↑", "ˇ": "↓↑", "ˋ": "↓", "˙": ""}
_LABIALS = "ㄅㄆㄇㄈ"

#: The Chinese names of Latin letters.
_LETTERS = table(
    """
    a=ㄟ b=ㄅㄧˋ c=ㄒㄧ d=ㄉㄧˋ e=ㄧˋ f=ㄞˊ_ㄈㄨˊ g=ㄐㄧˋ h=ㄟˊ_ㄑㄩˇ i=ㄞˋ j=ㄓㄟˋ
    k=ㄎㄟˋ l=ㄞˊ_ㄌㄨˊ m=ㄞˊ_ㄇㄨˇ n=ㄣ o=ㄡ p=ㄆㄧˋ q=ㄎㄧㄡ r=ㄚˋ s=ㄞˊ_ㄙ t=ㄊㄧˋ
    u=ㄧㄡ v=ㄨㄟ w=ㄉㄚˊ_ㄅㄨˋ_ㄌㄧㄡˋ x=ㄞˋ_ㄎㄜˋ_ㄙ y=ㄨㄞˋ z=ㄗㄟˋ
    """
)
_SYLLABLE = re.compile(
    rf"(?P<initial>[{''.join(INITIALS)}]?)(?P<final>[ㄚ-ㄩㄇ]*)(?P<tone>[ˊˇˋ˙]?)"
)


def chinese_symbols(text: str) -> tuple[str, list[str]]:
    """Convert text to symbols. Also return the characters that were skipped."""
    text = numbers_in_words(signs_in_words(plain(text, "zh"), "zh"), "zh")
    symbols, unsaid = put_together(_pieces(text))
    return re.sub(r" (?=[~-])", "", symbols), unsaid


def _pieces(text: str) -> Iterator[tuple[str, str | None]]:
    for word in _jieba().cut(text):
        if re.search(f"[{HAN}]", word):
            yield "", " "
        for piece in _readings(word):
            symbols = spell_syllable(piece)
            if symbols is not None:
                yield piece, symbols
                continue
            for character in piece:
                spelled = map(spell_syllable, _LETTERS.get(character.lower(), "").split())
                yield character, "".join(filter(None, spelled)) or None


def spell_syllable(bopomofo: str) -> str | None:
    """The symbols of a syllable in bopomofo with its tone mark; None if it is not one.

    >>> spell_syllable("ㄓㄨㄥ"), spell_syllable("ㄕˋ"), spell_syllable("ㄅㄛˊ")
    ('ts`⁼ʊŋ→', 's`ɹ`↓', 'p⁼wo↑')
    """
    syllable = _SYLLABLE.fullmatch(bopomofo)
    if syllable is None:
        return None
    initial, final, tone = syllable["initial"], syllable["final"], syllable["tone"]
    if initial and not final:
        if initial not in _SYLLABIC:
            return None
        vowel = _SYLLABIC[initial]
    elif final not in FINALS:
        return None
    else:
        vowel = "wo" if final == "ㄛ" and initial in _LABIALS and initial else FINALS[final]
    return INITIALS.get(initial, "") + vowel + TONES[tone]


@cache
def _jieba() -> Any:  # noqa: ANN401 - the package has no types
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports pkg_resources, which is deprecated
        jieba = require("jieba", "Cutting Chinese words", extra="vallex")
    tokenizer = jieba.Tokenizer()
    # By default it unmarshals a cache from the temporary folder, where anyone can write.
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    return tokenizer


def _readings(word: str) -> list[str]:
    """The bopomofo of each Chinese character in a word; other characters are kept."""
    pypinyin = require("pypinyin", "Reading Chinese", extra="vallex")
    read = partial(pypinyin.lazy_pinyin, style=pypinyin.Style.BOPOMOFO)
    readings = list(read(word))
    if re.fullmatch(f"[{HAN}]+", word) and len(readings) != len(word):
        return [reading for one in word for reading in read(one) or [one]]
    return readings
