"""All that is wrong with a file, in one message."""

from __future__ import annotations

from collections.abc import Sequence

from valle_convert.errors import InputError
from valle_convert.wording import listing

# More would hide the advice at the end of the message; the rest is counted.
MAX_SHOWN = 12


def refusal(what: str, problems: Sequence[str], remedy: str) -> InputError:
    """Build the error for a file with these problems: what, the list, what to do."""
    return InputError(f"{what}: {listing(problems, MAX_SHOWN, '; ')}. {remedy}")


def short(value: object) -> str:
    """Show a value from a file in at most 60 characters."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
