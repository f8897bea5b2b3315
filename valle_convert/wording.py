"""How counts and durations are written in messages."""

from __future__ import annotations

import math
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


def duration(seconds: float) -> str:
    """A time, rounded up: `40 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = math.ceil(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
