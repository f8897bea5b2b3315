"""What all decoders share: how they are asked to stop, and how they ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

#: Asked before every step; True ends the decoding, with what there is so far as the result.
ShouldStop = Callable[[], bool]

#: `stop`: the model (or the task) said that it is complete; `limit`: the given maximum was
#: reached first; `interrupted`: `ShouldStop` said so.
End = Literal["stop", "limit", "interrupted"]


def never() -> bool:
    """A `ShouldStop` that never stops the decoding."""
    return False
