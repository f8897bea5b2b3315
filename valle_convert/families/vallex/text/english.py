"""English for VALL-E X: the CMU dictionary of `eng_to_ipa`, and espeak-ng for other words.

>>> english_symbols("There will be widespread support on all sides.")[0]
'ðɛɹ wɪɫ bi ˈwaɪdˈspɹɛd səˈpɔɹt ɔn ɔɫ saɪdz.'

The network was trained on the dictionary's notation: no length marks, stress marks before the
syllable, but not in words of one syllable. espeak-ng's phonemes are rewritten to match it.
"""

import re
from collections.abc import Iterable
from functools import cache
from typing import Any

from valle_convert.errors import InputError
from valle_convert.extras import require
from valle_convert.families.vallex.text.plain import plain, put_together, table
from valle_convert.text.folding import signs_in_words
from valle_convert.text.phonemes import to_phonemes

#: The dictionary already has "mr", "mrs", "dr" and months.
_ABBREVIATIONS = table(
    """
    st.=saint co.=company jr.=junior sr.=senior maj.=major gen.=general rev.=reverend
    lt.=lieutenant hon.=honorable sgt.=sergeant capt.=captain esq.=esquire ltd.=limited
    col.=colonel prof.=professor vs.=versus etc.=et_cetera e.g.=for_example i.e.=that_is
    approx.=approximately dr.=doctor mr.=mister mrs.=missis ms.=miz
    """
)
#: Currencies: singular and plural of the unit and its hundredth.
_CURRENCIES = {
    "$": (("dollar", "dollars"), ("cent", "cents")),
    "€": (("euro", "euros"), ("cent", "cents")),
    "£": (("pound", "pounds"), ("penny", "pence")),
}
_MAGNITUDES = ("hundred", "thousand", "million", "billion", "trillion")

_NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?"
_MONEY = re.compile(rf"([{''.join(_CURRENCIES)}])\s?({_NUMBER})(?:\s({'|'.join(_MAGNITUDES)})\b)?")
#: Other dotted abbreviations, such as U.S.
_LETTER_NAMES = re.compile(r"(?<![\w.])(?:[A-Za-z]\.){2,}")
_TIME = re.compile(r"\b([01]?\d|2[0-4]):([0-5]\d)\b")
_ORDINAL = re.compile(r"\b(\d+(?:,\d{3})*)(?:st|nd|rd|th)\b")
_PLAIN = re.compile(_NUMBER)
#: Longer numbers are read digit by digit.
_MAX_DIGITS = 15

_WORD = re.compile(r"[A-Za-z]+(?:['-][A-Za-z]+)*")
_TOKEN = re.compile(rf"{_WORD.pattern}|\s+|.", re.DOTALL)

#: Letters that eng_to_ipa and the model write differently.
_DICTIONARY_LETTERS = str.maketrans({"r": "ɹ", "ʤ": "dʒ", "ʧ": "tʃ"})
#: An l is dark unless a vowel follows in its word.
_DARK_L = re.compile(r"l(?=[^aeiouæɑɔəɛɪʊ\s]*(?:\s|$))")

#: espeak-ng's phonemes of American English in the dictionary's notation.
ESPEAK_VOWELS = table(
    """
    aɪ=aɪ aʊ=aʊ eɪ=eɪ oʊ=oʊ ɔɪ=ɔɪ i=i u=u ɛ=ɛ ɪ=ɪ ʊ=ʊ ə=ə æ=æ iː=i uː=u ɑː=ɑ ɔː=ɔ oː=ɔ aː=ɑ ɑ=ɑ ɔ=ɔ
    ɜː=əɹ ɜ=əɹ ɚ=əɹ ɚɹ=əɹ ɜːɹ=əɹ ʌ=ə ɐ=ə ᵻ=ɪ a=æ o=oʊ e=ɛ n̩=ən m̩=əm l̩=əl ɔ̃=ɔn ɑ̃=ɑn
    """
)
ESPEAK_CONSONANTS = {
    **{one: one for one in "bdfhjklmnpstvwzðŋɹʃʒθ"},
    **table("dʒ=dʒ tʃ=tʃ ɡ=g ɾ=t ʔ=t x=k r=ɹ ɬ=l ɹɹ=ɹ"),
}
_ESPEAK = {**ESPEAK_VOWELS, **ESPEAK_CONSONANTS}
_PHONE = re.compile("|".join(sorted(map(re.escape, _ESPEAK), key=len, reverse=True)) + "|.")
_STRESSES = "ˈˌ"
#: Consonant clusters that can begin a syllable; the stress mark goes before them.
_ONSETS = frozenset(
    """
    pl pɹ pj tɹ tw kl kɹ kw kj bl bɹ bj dɹ dw gl gɹ gw fl fɹ fj vj mj hj θɹ θw ʃɹ
    sp st sk sm sn sl sw sf spl spɹ spj stɹ skɹ skw skl
    """.split()
)


def english_symbols(text: str) -> tuple[str, list[str]]:
    """Convert text to symbols. Also return the characters that were skipped."""
    tokens = _TOKEN.findall(_expanded(plain(text, "en")))
    said = _pronounced(token for token in tokens if _WORD.fullmatch(token))
    symbols, unsaid = put_together((token, said.get(token) or None) for token in tokens)
    return _DARK_L.sub("ɫ", symbols), unsaid


def _expanded(text: str) -> str:
    text = re.sub("[’‘`]", "'", text)
    # Currencies stay for `_money`.
    text = signs_in_words(text, "en", _CURRENCIES.__contains__)
    text = re.sub(
        r"(?<![\w.])[A-Za-z][A-Za-z.]*\.",
        lambda word: _ABBREVIATIONS.get(word[0].lower(), word[0]),
        text,
    )
    text = _LETTER_NAMES.sub(_letter_names, text)
    text = _MONEY.sub(lambda money: f" {_money(money)} ", text)
    text = _TIME.sub(_time_of_day, text)
    text = _ORDINAL.sub(lambda n: f" {_ordinal(n[1].replace(',', ''))} ", text)
    # A letter next to a number is a separate word: mp3, 4K, $5m.
    text = _PLAIN.sub(lambda n: f" {_number(n[0])} ", text)
    return signs_in_words(text, "en")


def _letter_names(found: re.Match[str]) -> str:
    names = " ".join("ay" if one in "aA" else one for one in found[0] if one != ".")
    at_end = not found.string[found.end() :].strip()
    return f"{names}." if at_end else names


def _money(found: re.Match[str]) -> str:
    sign, number, magnitude = found.groups()
    (one, several), (one_hundredth, hundredths) = _CURRENCIES[sign]
    if magnitude:
        return f"{_number(number)} {magnitude} {several}"
    whole, _, fraction = number.replace(",", "").partition(".")
    if len(fraction) > 2:
        return f"{_number(number)} {several}"
    cents = int(fraction.ljust(2, "0")) if fraction else 0
    parts = []
    if whole.strip("0") or not cents:
        parts.append(f"{_cardinal(whole)} {one if whole.lstrip('0') == '1' else several}")
    if cents:
        parts.append(f"{_cardinal(str(cents))} {one_hundredth if cents == 1 else hundredths}")
    return " and ".join(parts)


def _time_of_day(found: re.Match[str]) -> str:
    hour, minute = found.groups()
    if minute == "00":
        return f"{_cardinal(hour.lstrip('0') or '0')} o'clock"
    rest = _cardinal(minute) if minute[0] != "0" else f"oh {_cardinal(minute[1])}"
    return f"{_cardinal(hour.lstrip('0') or '0')} {rest}"


def _number(number: str) -> str:
    """A number in words: 1999 as a year, 007 digit by digit."""
    whole, _, fraction = number.partition(".")
    is_grouped = "," in whole
    whole = whole.replace(",", "")
    if fraction:
        return f"{_cardinal(whole)} point {_digits(fraction)}"
    if is_grouped or len(whole) != 4 or not "1100" <= whole <= "2099" or whole[1:3] == "00":
        return _cardinal(whole)
    century, rest = _cardinal(whole[:2]), whole[2:]
    if rest == "00":
        return f"{century} hundred"
    return f"{century} {_cardinal(rest) if rest[0] != '0' else f'oh {_cardinal(rest[1])}'}"


def _cardinal(digits: str) -> str:
    if len(digits) > _MAX_DIGITS or (len(digits) > 1 and digits[0] == "0"):
        return _digits(digits)
    return str(_inflect().number_to_words(int(digits), andword="")).replace(",", "")


def _ordinal(digits: str) -> str:
    if len(digits) > _MAX_DIGITS:
        return _digits(digits)
    words = _inflect().number_to_words(_inflect().ordinal(int(digits)), andword="")
    return str(words).replace(",", "")


def _digits(digits: str) -> str:
    return " ".join(str(_inflect().number_to_words(int(one))) for one in digits)


@cache
def _inflect() -> Any:  # noqa: ANN401 - its types are outdated
    return require("inflect", "Reading English numbers", extra="vallex").engine()


# ----------------------------------------------------------------------------------- words


def _pronounced(words: Iterable[str]) -> dict[str, str]:
    """Pronunciations: the dictionary for whole words, then for the parts between hyphens."""
    wanted = list(dict.fromkeys(words))
    said = _in_dictionary(wanted)
    parts = {part for word in wanted if word not in said for part in word.split("-")}
    said_parts = _in_dictionary(sorted(parts))
    for word in wanted:
        if word not in said:
            spoken = [said_parts.get(part) or _by_espeak(part) for part in word.split("-")]
            said[word] = " ".join(spoken) if all(spoken) else ""
    return said


def _in_dictionary(words: list[str]) -> dict[str, str]:
    """Words of the dictionary; with several pronunciations, the one eng_to_ipa chooses."""
    dictionary = require("eng_to_ipa", "Reading English words", extra="vallex")
    said: dict[str, str] = {}
    for start in range(0, len(words), 500):  # the limit of SQLite
        some = words[start : start + 500]
        for word, found in zip(
            some,
            dictionary.ipa_list([word.lower() for word in some], keep_punct=False),
            strict=True,
        ):
            if found and not found[-1].endswith("*"):
                said[word] = found[-1].translate(_DICTIONARY_LETTERS)
    return said


@cache
def _by_espeak(word: str) -> str:
    try:
        return from_espeak(to_phonemes(word, "en"))
    except InputError:
        return ""


def from_espeak(phonemes: str) -> str:
    """Rewrite espeak-ng's phonemes of American English in the dictionary's notation.

    >>> from_espeak("vˈeɪpɚwˌɛɹ")
    'ˈveɪpəɹˌwɛɹ'
    """
    return " ".join(_word_from_espeak(word) for word in phonemes.split())


def _word_from_espeak(word: str) -> str:
    phones = [one for one in _PHONE.findall(word) if one in _ESPEAK or one in _STRESSES]
    marks_syllables = sum(one in ESPEAK_VOWELS for one in phones) > 1
    written: list[str] = []
    for phone in phones:
        if phone not in _STRESSES:
            written.append(_ESPEAK[phone])
        elif marks_syllables:
            written.insert(_syllable_begin(written), phone)
    return "".join(written)


def _syllable_begin(before: list[str]) -> int:
    """Where the syllable of the next vowel begins: as early as an onset allows."""
    begin = len(before)
    while begin > 0:
        onset = "".join(before[begin - 1 :])
        is_single = begin == len(before) and before[-1] in ESPEAK_CONSONANTS.values()
        if not (is_single and onset != "ŋ") and onset not in _ONSETS:
            break
        begin -= 1
    return begin
