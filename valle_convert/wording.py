"""Words that every sentence of the program has in common."""

from __future__ import annotations


def plural(n: int, thing: str, things: str = "") -> str:
    """A number of things: `1 file`, `2 files`, `1,000 matrices`."""
    return f"{n:,} {thing if n == 1 else things or f'{thing}s'}"
