"""Progress reporting, independent of how it is shown.

A `Progress` is called with a label, a total and a unit, and returns a context manager that yields
`advance(n)`. The command line draws a bar on stderr; by default nothing is shown.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], object]


class Progress(Protocol):
    """`with progress("writing", total, "B") as advance: advance(n)`."""

    def __call__(self, label: str, total: int, unit: str) -> AbstractContextManager[Advance]:
        """Start `total` units (`B` for bytes) of work under a label."""
        ...


@contextmanager
def silent(label: str, total: int, unit: str) -> Iterator[Advance]:
    del label, total, unit
    yield lambda _n: None
