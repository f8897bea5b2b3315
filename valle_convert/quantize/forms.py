"""The files that a run leaves beside what it makes: its report in every form, the tool's log.

A report's file tells its form by its extension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from valle_convert.errors import InputError, ValleConvertError
from valle_convert.files import check_outputs, read_json_object, write_text_atomically
from valle_convert.quantize.html import check_matplotlib, to_html
from valle_convert.quantize.report import QuantizeReport
from valle_convert.strict_json import to_json_text

FORMS: dict[str, Callable[[QuantizeReport], str]] = {
    ".json": lambda report: to_json_text(report.to_json()) + "\n",
    ".md": QuantizeReport.to_markdown,
    ".html": to_html,
}
#: The first line of a log.
LOG_HEAD = "What llama-quantize said to valle-convert:"
_OF_A_REPORT = {"schema_version", "verdict", "source", "tool", "sequences", "files"}
_MAX_REPORT = 64 << 20
_MAX_START = 1 << 16


def check_reports(targets: Sequence[Path], *, force: bool) -> None:
    """Refuse a report that cannot be written, before an hour of work."""
    for target in targets:
        if target.suffix not in FORMS:
            raise InputError(
                f"The report {target} ends in {target.suffix or 'nothing'!r}, where one of "
                f"{', '.join(FORMS)} tells its form."
            )
        check_outputs([target], force=force)
        if target.suffix == ".html":
            check_matplotlib()


def write_report(report: QuantizeReport, target: Path, *, force: bool) -> None:
    """Write the report in the form that the target's extension tells."""
    write_text_atomically(target, FORMS[target.suffix](report), force=force)


def remove_old(targets: Sequence[Path], earlier: Path | None) -> None:
    """Remove the reports and logs of an earlier run, which would be stale if this one fails."""
    for target in targets:
        with suppress(OSError, ValleConvertError):
            is_read = earlier is not None and earlier.exists() and target.samefile(earlier)
            if target.is_file() and not target.is_symlink() and not is_read and _is_ours(target):
                target.unlink()


def _is_ours(path: Path) -> bool:
    if path.suffix == ".json":
        return read_json_object(path, "report", _MAX_REPORT).keys() >= _OF_A_REPORT
    with path.open("rb") as file:
        start = file.read(_MAX_START).decode("utf-8", "replace")
    heads = {".md": "# Quantized: ", ".html": "<!doctype html>\n"}
    if not start.startswith(heads.get(path.suffix, LOG_HEAD)):
        return False
    return path.suffix != ".html" or "<title>Quantized: " in start


class LogFile:
    """Keeps what llama-quantize said, run after run, until it is written."""

    def __init__(self, target: Path | None, *, force: bool) -> None:
        self._target = target
        self._force = force
        self._lines: list[str] = []

    def keep(self, lines: list[str]) -> None:
        self._lines += lines

    def write(self) -> None:
        """Write what was taken since the last time, if there is anything."""
        if self._target is not None and self._lines:
            text = "\n".join([LOG_HEAD, *self._lines, ""])
            self._lines.clear()
            write_text_atomically(self._target, text, force=self._force)
