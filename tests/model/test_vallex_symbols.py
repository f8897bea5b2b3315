"""The 70 symbols of VALL-E X against what its project wrote."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valle_convert.families.vallex.symbols import (
    N_SPECIAL_SYMBOLS,
    UNKNOWN_SYMBOL,
    VALLEX_LANGUAGES,
    VALLEX_SYMBOLS,
    VOICE_FILE_LANGUAGES,
    symbol_ids,
    unknown_symbols,
)
from valle_convert.model.spec import UNKNOWN_PHONEME


def test_there_are_70_different_symbols_in_code_point_order() -> None:
    characters = VALLEX_SYMBOLS[N_SPECIAL_SYMBOLS:]
    assert len(VALLEX_SYMBOLS) == 70
    assert all(len(one) == 1 for one in characters)
    assert list(characters) == sorted(set(characters))


@pytest.mark.parametrize(
    ("symbol", "i"),
    [("!", 5), ("_", 16), ("`", 17), ("a", 18), ("b", 19), ("d", 20), ("~", 41), ("→", 68)],
)
def test_symbols_have_the_ids_of_the_original_vocabulary(symbol: str, i: int) -> None:
    assert symbol_ids(symbol) == [i]
    assert VALLEX_SYMBOLS[i] == symbol


@pytest.mark.parametrize(
    "symbols",
    [
        "ðɛɹ_wɪɫ_bi_ˈwaɪdˈspɹɛd_səˈpɔɹt_ɔn_ɔɫ_saɪdz.",
        "wo↓↑_ʃiɑŋ↓↑iɑʊ↓_liŋ↑xwa→tʃʰjɛn↑.",
        "a↑kaɾi↓kaN_ɾe↓beɾɯga_a↑gat#ta_so↑ode↓sɯ*_",
    ],
)
def test_the_voices_of_the_original_project_are_spelled_without_an_unknown_symbol(
    symbols: str,
) -> None:
    assert UNKNOWN_SYMBOL not in symbol_ids(symbols)
    assert "".join(VALLEX_SYMBOLS[i] for i in symbol_ids(symbols)) == symbols


def test_what_is_no_symbol_is_the_unknown_one_and_is_told_once() -> None:
    assert symbol_ids("c r.") == [0, 0, 0, VALLEX_SYMBOLS.index(".")]
    assert unknown_symbols("cat crew.") == ["c", " ", "r"]
    assert unknown_symbols("[UNK]") == ["[", "U", "K", "]"]
    assert UNKNOWN_SYMBOL == UNKNOWN_PHONEME


@given(st.text())
def test_every_character_has_one_id_and_known_ones_come_back(text: str) -> None:
    ids = symbol_ids(text)
    assert len(ids) == len(text)
    unknown = unknown_symbols(text)
    assert unknown == list(dict.fromkeys(c for c, i in zip(text, ids, strict=True) if i == 0))
    known = "".join(one for one in text if one not in unknown)
    assert "".join(VALLEX_SYMBOLS[i] for i in symbol_ids(known)) == known


def test_the_network_and_the_voice_files_number_the_same_languages_differently() -> None:
    assert sorted(VALLEX_LANGUAGES) == sorted(VOICE_FILE_LANGUAGES)
    assert all(a != b for a, b in zip(VALLEX_LANGUAGES, VOICE_FILE_LANGUAGES, strict=True))
