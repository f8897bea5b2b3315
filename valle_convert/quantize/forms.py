"""The report of a run in every form; a report's file tells its form by its extension."""

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
