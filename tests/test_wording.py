"""Counts and durations in messages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valle_convert.wording import duration, plural


@given(st.integers(0, 10**9))
def test_one_is_singular_and_everything_else_plural(n: int) -> None:
    assert plural(n, "file") == (f"{n:,} file" if n == 1 else f"{n:,} files")
    assert plural(n, "matrix", "matrices").endswith("matrix" if n == 1 else "matrices")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (59, "59 s"), (60, "1 min 0 s"), (3599.5, "1 h 0 min"), (7500, "2 h 5 min")],
)
def test_durations_are_rounded_up(seconds: float, words: str) -> None:
    assert duration(seconds) == words
