"""Words that every sentence of the program has in common."""

from __future__ import annotations

from collections.abc import Iterable


def plural(n: int, thing: str, things: str = "") -> str:
    """A number of things: `1 file`, `2 files`, `1,000 matrices`."""
    return f"{n:,} {thing if n == 1 else things or f'{thing}s'}"


def listing(items: Iterable[object], at_most: int = 5, separator: str = ", ") -> str:
    """The first ones of several things, and how many more there are."""
    shown = list(map(str, items))
    if len(shown) > at_most:
        shown[at_most:] = [f"and {len(shown) - at_most:,} more"]
    return separator.join(shown)
