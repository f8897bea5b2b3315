"""Shared by all decoders: ranges of options, callbacks, and the result of a stage."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from valle_convert.errors import InputError
from valle_convert.model.spec import Codes
from valle_convert.progress import Progress, silent

#: Called before every step; True ends the decoding, and the result is what exists by then.
ShouldStop = Callable[[], bool]

#: `stop`: the model (or the task) was complete; `limit`: the maximum was reached first;
#: `interrupted`: `ShouldStop` returned True.
End = Literal["stop", "limit", "interrupted"]


@dataclass(frozen=True)
class Callbacks:
    """Callbacks to follow and stop a decoding."""

    progress: Progress = silent  # shows frames, steps and levels
    should_stop: ShouldStop = lambda: False  # called between steps


UNWATCHED = Callbacks()


@dataclass(frozen=True, eq=False)
class Decoded:
    """The codes of a stage, without the stop code; if interrupted, those that are complete."""

    codes: Codes
    end: End


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Reject an option's value outside of `low` to `high`."""
    if not low <= value <= high or math.isinf(value):
        limits = f"{low:g} or more" if math.isinf(high) else f"from {low:g} to {high:g}"
        raise InputError(f"{name} is {value}, expected a number {limits}.")
