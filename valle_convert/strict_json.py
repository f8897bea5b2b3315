"""JSON that every parser takes: Python's own has NaN and Infinity, which JSON has not."""

from __future__ import annotations

import json
import math
from typing import Any


def to_json_text(value: Any, *, ascii_only: bool = False) -> str:  # noqa: ANN401 - any JSON
    """A value as indented JSON; a number that is not finite is null."""
    return json.dumps(_finite(value), indent=2, ensure_ascii=ascii_only, allow_nan=False)


def _finite(value: Any) -> Any:  # noqa: ANN401 - any JSON
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
