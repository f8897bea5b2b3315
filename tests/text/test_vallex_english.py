"""English in VALL-E X's symbols: the dictionary, espeak-ng beside it, numbers, signs."""

import json
from pathlib import Path

import eng_to_ipa
import numpy as np
import pytest

from valle_convert.families.vallex.symbols import unknown_symbols
from valle_convert.families.vallex.text.english import english_symbols, from_espeak
from valle_convert.text.phonemes import to_phonemes


@pytest.fixture(scope="module")
def dictionary() -> list[str]:
    """All words of the CMU dictionary that are plain letters."""
    path = Path(eng_to_ipa.__file__).parent / "resources" / "CMU_dict.json"
    words = json.loads(path.read_text(encoding="utf-8"))
    return sorted(word for word in words if word.isascii() and word.isalpha())


def test_a_voice_file_of_the_original_project_comes_out_as_it_was_written() -> None:
    said = "There will be widespread support on all sides."
    assert english_symbols(said) == ("ðɛɹ wɪɫ bi ˈwaɪdˈspɹɛd səˈpɔɹt ɔn ɔɫ saɪdz.", [])


@pytest.mark.parametrize(
    ("text", "symbols"),
    [
        # Dictionary, case and accents.
        ("Hello WORLD", "hɛˈloʊ wəɹɫd"),
        ("naïve café", "naɪiv kəˈfeɪ"),
        ("judge, church", "dʒədʒ, tʃəɹtʃ"),
        # l is dark where no vowel follows in its word.
        ("all help lovely", "ɔɫ hɛɫp ˈləvli"),
        # Punctuation.
        ("Wait... what?! “Yes”—no; (maybe): ok", "weɪt… wət?! jɛs-noʊ, ˈmeɪbi, ˈoʊˈkeɪ"),
        ("don't o’clock rock'n'roll", "doʊnt əˈklɑk ˈɹɑkənˈɹoʊɫ"),
        # Hyphens: whole, else the parts.
        ("well-known", "ˈwɛlˈnoʊn"),
        ("cat-lamp", "kæt læmp"),
        # Short forms.
        ("Dr. Smith met Mrs. Jones.", "ˈdɔktəɹ smɪθ mɛt ˈmɪsɪz dʒoʊnz."),
        ("the U.S. army", "ðə ju ɛs ˈɑɹmi"),
        # Numbers.
        ("3", "θɹi"),
        ("1,234", "wən ˈθaʊzənd tu ˈhənəɹd ˈθəɹˌdi fɔɹ"),
        ("in 1999", "ɪn ˈnaɪnˈtin ˈnaɪnti naɪn"),
        ("007", "ˈziɹoʊ ˈziɹoʊ ˈsɛvən"),
        ("3.14", "θɹi pɔɪnt wən fɔɹ"),
        ("-5", "ˈmaɪnəs faɪv"),
        ("2nd", "ˈsɛkənd"),
        ("$1", "wən ˈdɔləɹ"),
        ("£2.01", "tu paʊnz ənd wən ˈpɛni"),
        ("$3 million", "θɹi ˈmɪljən ˈdɔləɹz"),
        ("5:30", "faɪv ˈθəɹˌdi"),
        ("7:00", "ˈsɛvən əˈklɑk"),
        ("½", "wən ˈoʊvəɹ tu"),
        ("５％", "faɪv pəɹˈsɛnt"),
        ("mp3", "ˌɛmˈpi θɹi"),
    ],
)
def test_text_is_read_by_the_rules(text: str, symbols: str) -> None:
    assert english_symbols(text) == (symbols, [])


@pytest.mark.parametrize(
    ("said_by_espeak", "symbols"),
    [
        ("vˈeɪpɚwˌɛɹ", "ˈveɪpəɹˌwɛɹ"),  # marks before the syllable, r-coloured vowels
        ("kˌuːbɚnˈɛɾiz", "ˌkubəɹˈnɛtiz"),  # flaps, lengths
        ("stɹˈæs", "stɹæs"),  # one syllable: no mark
        ("bˈiːʔn̩", "ˈbitən"),  # syllabic consonants
        ("ˌʌndɪtˈɛktəbəl", "ˌəndɪˈtɛktəbəl"),
        ("ɛkstɹˈiːm", "ɛkˈstɹim"),  # the longest onset
        ("sˈɪŋɡɪŋ ŋˈɑː", "ˈsɪŋgɪŋ ŋɑ"),
    ],
)
def test_what_espeak_says_is_rewritten_as_the_dictionary_writes(
    said_by_espeak: str, symbols: str
) -> None:
    assert from_espeak(said_by_espeak) == symbols


def edits(a: str, b: str) -> int:
    """Levenshtein's distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        following = [i]
        for j, y in enumerate(b, 1):
            following.append(min(row[j] + 1, following[-1] + 1, row[j - 1] + (x != y)))
        row = following
    return row[-1]


def test_espeak_rewritten_is_near_the_dictionary(dictionary: list[str]) -> None:
    words = np.random.default_rng(1).choice(dictionary, 600, replace=False).tolist()
    expected = english_symbols(" ".join(words))[0].replace("ɫ", "l").split()
    spoken = [to_phonemes(word, "en") for word in words]
    length = sum(map(len, expected))
    as_it_is = sum(map(edits, expected, spoken)) / length
    rewritten = sum(map(edits, expected, map(from_espeak, spoken))) / length
    # 0.46 and 0.15 were measured on 4,000 words: two pronunciations of names differ as much.
    assert rewritten < 0.2
    assert as_it_is > 0.4


def test_the_dictionary_is_spelled_in_the_symbols(dictionary: list[str]) -> None:
    words = np.random.default_rng(2).choice(dictionary, 8_000, replace=False).tolist()
    said, unsaid = english_symbols(" ".join(words))
    assert unsaid == []
    assert unknown_symbols(said) == [" "]
    assert len(said.split()) == len(words)
