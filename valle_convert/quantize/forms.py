"""The files that a run leaves beside what it makes: its report in every form, the tool's log.

A report's file tells its form by its extension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from valle_convert.errors import InputError
from valle_convert.files import write_text_atomically
from valle_convert.quantize.html import check_matplotlib, to_html
from valle_convert.quantize.report import EvaluationReport
from valle_convert.strict_json import to_json_text

FORMS: dict[str, Callable[[EvaluationReport], str]] = {
    ".json": lambda report: to_json_text(report.to_json()) + "\n",
    ".md": EvaluationReport.to_markdown,
    ".html": to_html,
}
#: The first line of a log.
LOG_HEAD = "What llama-quantize said to valle-convert:"


def check_reports(targets: Sequence[Path]) -> None:
    """Refuse a report of an unknown form, before an hour of work."""
    for target in targets:
        if target.suffix not in FORMS:
            raise InputError(
                f"The report {target} ends in {target.suffix or 'nothing'!r}, where one of "
                f"{', '.join(FORMS)} tells its form."
            )
        if target.suffix == ".html":
            check_matplotlib()


def write_report(report: EvaluationReport, target: Path, *, force: bool) -> None:
    """Write the report in the form that the target's extension tells."""
    write_text_atomically(target, FORMS[target.suffix](report), force=force)


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
