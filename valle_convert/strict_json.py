"""JSON that every parser takes alike: without NaN and Infinity, and with each key once."""

import json
import math
import os
from typing import Any


def to_json_text(value: Any, *, ascii_only: bool = False) -> str:  # noqa: ANN401 - any JSON
    """A value as indented JSON; a path is a string, a number that is not finite is null."""
    plain = _finite(value)
    return json.dumps(plain, indent=2, ensure_ascii=ascii_only, allow_nan=False, default=os.fspath)


def unique_json(text: str | bytes) -> Any:  # noqa: ANN401 - any JSON
    """JSON read; a key that stands twice in one object is a `ValueError`."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise ValueError(f"it has {key!r:.70} twice in one object")
            found[key] = value
        return found

    return json.loads(text, object_pairs_hook=unique)


def _finite(value: Any) -> Any:  # noqa: ANN401 - any JSON
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
