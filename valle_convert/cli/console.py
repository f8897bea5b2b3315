"""The one place that prints: results go to stdout, logs and progress to stderr."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from valle_convert.progress import Advance
from valle_convert.strict_json import to_json_text


def data(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def data_json(value: Any) -> None:  # noqa: ANN401 - whatever JSON holds
    text = to_json_text(value)
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        text = to_json_text(value, ascii_only=True)
    data(text)


def log(text: str) -> None:
    sys.stderr.write(text + "\n")


def notes(texts: Iterable[str]) -> None:
    for text in texts:
        log(f"note: {text}")


def error(text: str) -> None:
    log(f"error: {text}")


@contextmanager
def progress_bar(label: str, total: int, unit: str) -> Iterator[Advance]:
    """A `progress.Progress` that draws a bar on stderr if that is a terminal."""
    from tqdm import tqdm

    scaled = unit == "B" or total >= 100_000
    with tqdm(
        total=total,
        desc=label,
        unit=unit if unit == "B" else f" {unit}",
        unit_scale=scaled,
        file=sys.stderr,
        disable=None,  # no bar unless stderr is a terminal
        leave=False,
    ) as bar:
        yield bar.update


def table(rows: Sequence[Sequence[str]], *, header: Sequence[str] | None = None) -> str:
    """Aligned columns; numbers to the right."""
    lines = [list(header), *map(list, rows)] if header else [list(row) for row in rows]
    if not lines:
        return ""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    right = [all(_is_number(row[i]) for row in rows) and bool(rows) for i in range(len(widths))]
    shown = [
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    ]
    if header:
        shown.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(shown)


def data_table(rows: Sequence[Sequence[str]], *, header: Sequence[str] | None = None) -> None:
    data(table(rows, header=header))


def n_bytes(n: int) -> str:
    """A size such as `437.2 MiB`."""
    size = float(n)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError


def _is_number(text: str) -> bool:
    return text.replace(",", "").replace(".", "").replace("%", "").strip().isdigit()
