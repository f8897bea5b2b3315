"""How long work tells how far it is, without knowing who watches.

A `Progress` is called with a label, a total and a unit, and gives a context manager
that yields `advance(n)`. The command line passes one that draws a bar on stderr;
everything else passes nothing and stays silent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], object]


class Progress(Protocol):
    """`with progress("writing", total, "B") as advance: advance(n)`."""

    def __call__(self, label: str, total: int, unit: str) -> AbstractContextManager[Advance]:
        """Start to show work of `total` units (`B` for bytes) under a label."""
        ...


@contextmanager
def silent(label: str, total: int, unit: str) -> Iterator[Advance]:
    """The `Progress` that shows nothing."""
    del label, total, unit
    yield lambda _n: None
