"""All that is wrong with a file, in one message."""

from __future__ import annotations

from collections.abc import Sequence

from valle_convert.errors import InputError

# More would hide the advice at the end of the message; the rest is counted.
MAX_SHOWN = 12


def listing(problems: Sequence[str]) -> str:
    """The problems one after the other, the first dozen of them and the number of the rest."""
    shown = list(problems[:MAX_SHOWN])
    if len(problems) > MAX_SHOWN:
        shown.append(f"and {len(problems) - MAX_SHOWN} more")
    return "; ".join(shown)


def refusal(what: str, problems: Sequence[str], remedy: str) -> InputError:
    """Build the error for a file with these problems: what, the list, what to do."""
    return InputError(f"{what}: {listing(problems)}. {remedy}")


def short(value: object) -> str:
    """Show a value from a file in at most 60 characters."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
