"""Shared by all decoders: ranges of options, and how decoding stops or ends."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from valle_convert.errors import InputError

#: Called before every step; True ends the decoding, and the result is what exists by then.
ShouldStop = Callable[[], bool]

#: `stop`: the model (or the task) was complete; `limit`: the maximum was reached first;
#: `interrupted`: `ShouldStop` returned True.
End = Literal["stop", "limit", "interrupted"]


def never() -> bool:
    """A `ShouldStop` that never stops the decoding."""
    return False


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Reject an option's value outside of `low` to `high`."""
    if not low <= value <= high or math.isinf(value):
        limits = f"{low:g} or more" if math.isinf(high) else f"from {low:g} to {high:g}"
        raise InputError(f"{name} is {value}, expected a number {limits}.")
