"""What all decoders share: ranges of options, how they are asked to stop, and how they ended."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from valle_convert.errors import InputError

#: Asked before every step; True ends the decoding, with what there is so far as the result.
ShouldStop = Callable[[], bool]

#: `stop`: the model (or the task) said that it is complete; `limit`: the given maximum was
#: reached first; `interrupted`: `ShouldStop` said so.
End = Literal["stop", "limit", "interrupted"]


def never() -> bool:
    """A `ShouldStop` that never stops the decoding."""
    return False


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Refuse a value of an option, by the option's name, that is not from `low` to `high`."""
    if not low <= value <= high or math.isinf(value):
        limits = f"{low:g} or more" if math.isinf(high) else f"from {low:g} to {high:g}"
        raise InputError(f"The option {name} is {value}, where a number {limits} is expected.")
