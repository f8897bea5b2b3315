"""The 70 symbols of VALL-E X against what its project wrote."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valle_convert.families.vallex.symbols import (
    N_SPECIAL_SYMBOLS,
    VALLEX_SYMBOLS,
    symbol_ids,
    unknown_symbols,
)


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


@given(st.text())
def test_every_character_has_one_id_and_known_ones_come_back(text: str) -> None:
    ids = symbol_ids(text)
    assert len(ids) == len(text)
    unknown = unknown_symbols(text)
    assert unknown == list(dict.fromkeys(c for c, i in zip(text, ids, strict=True) if i == 0))
    known = "".join(one for one in text if one not in unknown)
    assert "".join(VALLEX_SYMBOLS[i] for i in symbol_ids(known)) == known
