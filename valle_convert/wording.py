"""How counts, durations and tables are written."""

import math
import re
from collections.abc import Iterable, Sequence
from itertools import accumulate

#: `-3`, `1,024.5 MiB`, `3e-5`, `97 %` and `3.22 (3.11 to 3.33)`; an empty cell is one, too.
_NUMBER = re.compile(r"([+-]?\d[\d.,]*(e[+-]?\d+)?( ?(%|\w+))?( \(.*\))?)?")

#: Characters of a list in a message, and of one thing in it.
_MAX_LISTED, _MAX_THING = 300, 200


def plural(n: int, thing: str, things: str = "") -> str:
    """A number of things: `1 file`, `2 files`, `1,000 matrices`."""
    return f"{n:,} {thing if n == 1 else things or f'{thing}s'}"


def listing(items: Iterable[object], at_most: int = 5, separator: str = ", ") -> str:
    """The first few of several things, and how many more there are."""
    words = map(str, items)
    shown = [one if len(one) <= _MAX_THING else f"{one[:_MAX_THING]}..." for one in words]
    ends = accumulate(len(one) + len(separator) for one in shown)
    n_shown = min(at_most, max(1, sum(end <= _MAX_LISTED for end in ends)))
    if len(shown) > n_shown:
        shown[n_shown:] = [f"and {len(shown) - n_shown:,} more"]
    return separator.join(shown)


def duration(seconds: float) -> str:
    """A time, rounded up: `40 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = math.ceil(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; columns of numbers are aligned right."""
    lines = [[str(cell).replace("|", "\\|") for cell in row] for row in (header, *rows)]
    columns = zip(*lines[1:], strict=True) if lines[1:] else [("",)] * len(header)
    rules = ["---:" if all(map(_NUMBER.fullmatch, cells)) else "---" for cells in columns]
    shown = [" ".join(f"| {' | '.join(line)} |".splitlines()) for line in lines]
    return "\n".join([shown[0], f"|{'|'.join(rules)}|", *shown[1:]])
