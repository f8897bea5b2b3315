"""The files that a run leaves beside what it makes: its report in every form, the tool's log.

A report's file tells its form by its extension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from valle_convert.errors import InputError
from valle_convert.files import check_outputs, write_text_atomically
from valle_convert.quantize.html import check_matplotlib, to_html
from valle_convert.quantize.report import QuantizeReport
from valle_convert.strict_json import to_json_text

FORMS: dict[str, Callable[[QuantizeReport], str]] = {
    ".json": lambda report: to_json_text(report.to_json()) + "\n",
    ".md": QuantizeReport.to_markdown,
    ".html": to_html,
}


def check_reports(targets: Sequence[Path], *, force: bool) -> None:
    """Refuse a report that cannot be written, before an hour of work.

    Raises:
        InputError: the extension is of no form, or the target must not be written.
        EnvironmentFault: matplotlib is missing, or the folder is not writable.
    """
    for target in targets:
        if target.suffix not in FORMS:
            raise InputError(
                f"The report {target} ends in {target.suffix or 'nothing'!r}, where one of "
                f"{', '.join(FORMS)} tells its form."
            )
        check_outputs([target], force=force)
        if target.suffix == ".html":
            check_matplotlib()


def write_reports(report: QuantizeReport, targets: Sequence[Path], *, force: bool) -> None:
    """Write the report in every form asked for."""
    for target in targets:
        write_text_atomically(target, FORMS[target.suffix](report), force=force)


class LogFile:
    """Keeps what llama-quantize said, run after run, and writes it at the end, whatever happens.

    Use it as a context manager; it gives the function that takes the lines of one run.
    """

    def __init__(self, target: Path | None, *, force: bool) -> None:
        self._target = target
        self._force = force
        self._lines: list[str] = []
        if target is not None:
            check_outputs([target], force=force)

    def __enter__(self) -> Callable[[list[str]], object]:
        return self._lines.extend

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._target is not None and self._lines:
            text = "\n".join(self._lines) + "\n"
            write_text_atomically(self._target, text, force=self._force)
