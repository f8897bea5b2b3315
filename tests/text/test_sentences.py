"""A text becomes sentences that fit, in time that grows with the text and not with its square."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from valle_convert.text.sentences import speaking_size, split_sentences


@given(st.text("ab ,;.:\u2013\n\u4f60\u3001\uff0c\u3002!?\u00a0", max_size=120), st.integers(3, 40))
def test_nothing_is_lost_but_space_and_every_piece_fits(text: str, max_size: int) -> None:
    pieces = split_sentences(text, max_size=max_size)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(piece == piece.strip() != "" for piece in pieces)
    assert all(speaking_size(piece) <= max_size for piece in pieces)


def test_a_word_of_a_megabyte_is_cut_in_seconds() -> None:
    started = time.process_time()
    pieces = split_sentences("a" * 1_000_000)
    assert time.process_time() - started < 10
    assert sum(map(len, pieces)) == 1_000_000
