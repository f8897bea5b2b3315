"""All faults of a file in one message."""

from __future__ import annotations

from collections.abc import Sequence

from valle_convert.errors import InputError
from valle_convert.wording import listing


def refusal(what: str, problems: Sequence[str], remedy: str) -> InputError:
    """The error for a file: what failed, the problems, the remedy."""
    return InputError(f"{what}: {listing(problems, separator='; ')}. {remedy}")


def short(value: object) -> str:
    """A value from a file in at most 60 characters."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
