"""Texts to compare two tokenizers on, from real phonemes to random characters.

In: the strings of a vocabulary and a number. Out: that many different texts, in the same order
every time:

1. phonemes that espeak-ng made of sentences in some twenty languages (`data/ipa.txt`);
2. awkward texts, `AWKWARD`;
3. every pair of vocabulary strings, if there are few enough;
4. random mixtures of vocabulary strings, unknown characters, special texts, marks, digits,
   and characters from anywhere in Unicode, up to the requested number.

The random ones end in their own number, spelled in vocabulary characters, so they differ without a
set of a million texts in memory.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, product
from pathlib import Path

IPA_FILE = Path(__file__).with_name("data") / "ipa.txt"

AWKWARD: tuple[str, ...] = (
    "",
    " ",
    "  ",
    " " * 50,
    "\n",
    "\r\n \t\n",
    "\0",
    "a\0b",
    "\x7f\x80\xa0\xad",
    "'",
    "''s",
    # Some splitters take 's, 't, 'm, 'd, 're, 've, 'll for a word and split sˈɛ, tə ... .
    "'tə",
    "i'sˈɛd n'tə o'mˈɪ a'dˈɪ l'ɹeɪ j'vɚ a'llˈɛ",
    "it's ˈɪts don't 'sɛ 'lˈɛ 'ɹe 'vˈɛ 'mˈɪ 'dˈɪ 'tə",
    "IT'S 'S 'T 'LL",
    "ɔ̃ ɛ̃ ɑ̃ n̩ l̩ o̞ e̞",
    "\u0303",
    " \u0303a",
    "\u0303\u0329\u031e",
    "a\u0300\u0301\u0302",
    "1",
    "11",
    "1234567890",
    "wˈʌn1wˈʌn",
    "1ˈʌn",
    "<unk>",
    "<bos></eos>",
    "<mask>",
    "<<mask>>",
    "<mas<mask>k>",
    "<mask ><Mask>< mask>",
    "ˈ<mask>ɛ",
    "<unk>'<unk>'s<bos>'",
    "▁a▁▁b",
    "<0x41><s></s>",
    "ᵝᵝ ᵝ",
    '“ˇ"” … ——  -',
    "Съешь ещё этих булок",
    "漢字かなカナ한국어",
    "मानक हिन्दी",
    "العربية",
    "ไทย",
    "👩‍👩‍👧‍👦🏳️‍🌈🇩🇪",
    "\ufeffa",
    "\uffff\ufffe\ufffd",
    "\U0010ffff\U00010000",
    "\u2028\u2029\u200b\u200d",
    "a" * 500,
    "ˈ" * 500,
    "ː" * 500,
    "'" * 500,
    "7" * 500,
    "sˈɛ" * 300,
    "ʁ" * 500,
)
# Beyond this many strings, pairs are drawn at random.
MAX_STRINGS_FOR_PAIRS = 512
N_RANDOM = 10**8
_SPECIAL = ("<unk>", "<bos>", "</eos>", "<mask>", "<s>", "</s>", "<", ">", "</")
_MARKS = "\u0300\u0301\u0303\u0308\u031e\u0325\u0329\u032f\u0361\u20dd\ufe0f"
_COMMON = " '’ʼ0123456789\t\n\r\0.,!?~|\\/@#$%^&*=+ABCXYZéñßłğ€漢か한क์👍🏽\u200d"


def ipa_lines() -> list[str]:
    """The lines of espeak-ng, all different."""
    return list(dict.fromkeys(IPA_FILE.read_text(encoding="utf-8").splitlines()))


def texts(strings: Iterable[str], n: int, *, seed: int = 0) -> Iterator[str]:
    """Yield `n` different texts in the order of the module's docstring."""
    vocabulary = sorted(set(strings))
    known: set[str] = set()
    lists = [ipa_lines(), AWKWARD]
    if len(vocabulary) <= MAX_STRINGS_FOR_PAIRS:
        lists.append([left + right for left, right in product(vocabulary, vocabulary)])
    for text in chain(*lists):
        if len(known) >= n:
            return
        if text not in known:
            known.add(text)
            yield text
    n_left = n - len(known)
    for text in _random_texts(vocabulary, seed):
        if n_left <= 0:
            return
        if text not in known:
            n_left -= 1
            yield text


def _random_texts(strings: Sequence[str], seed: int) -> Iterator[str]:
    """Yield a hundred million different random texts of up to some forty parts."""
    draw = random.Random(seed)  # noqa: S311 - must be repeatable, not secret
    # All numbers have the same length; otherwise a short one could end like a longer one.
    characters = dict.fromkeys([*"abcdefghij", *(one for one in strings if len(one) == 1)])
    digits = str.maketrans("0123456789", "".join(characters)[-10:])
    for number in range(N_RANDOM):
        parts = [_random_part(draw, strings) for _ in range(draw.choice(_LENGTHS))]
        yield "".join(parts) + f"{number:08}".translate(digits)


_LENGTHS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 40)


def _random_part(draw: random.Random, strings: Sequence[str]) -> str:
    kind = draw.random()
    if kind < 0.75:
        return draw.choice(strings)
    if kind < 0.85:
        return draw.choice(_COMMON)
    if kind < 0.90:
        return draw.choice(_SPECIAL)
    if kind < 0.94:
        return draw.choice(_MARKS)
    if kind < 0.97:
        # A neighbour of a known character shares its lead byte with it.
        code = ord(draw.choice(draw.choice(strings))) + draw.randrange(-64, 64)
        return _character(max(code, 0))
    return _character(draw.randrange(0x110000))


def _character(code: int) -> str:
    """A character; surrogates are replaced."""
    return chr(code + 0x800 if 0xD800 <= code < 0xE000 else code)
