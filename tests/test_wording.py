"""Numbers of things are said as people say them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from valle_convert.wording import plural


@given(st.integers(0, 10**9))
def test_one_is_singular_and_everything_else_plural(n: int) -> None:
    assert plural(n, "file") == (f"{n:,} file" if n == 1 else f"{n:,} files")
    assert plural(n, "matrix", "matrices").endswith("matrix" if n == 1 else "matrices")
