"""An evaluation's report in every form; the extension of the report's file selects the form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from valle_convert.errors import InputError
from valle_convert.files import write_text_atomically
from valle_convert.quantize import tables
from valle_convert.quantize.html import page_values
from valle_convert.quantize.plots import check_matplotlib
from valle_convert.quantize.render import render
from valle_convert.quantize.report import EvaluationReport
from valle_convert.strict_json import to_json_text


def to_markdown(report: EvaluationReport) -> str:
    return render("report.md.jinja", _values(report))


def to_html(report: EvaluationReport) -> str:
    return render("report.html.jinja", _values(report) | page_values(report))


def _values(report: EvaluationReport) -> dict[str, Any]:
    """What all templates show."""
    return {
        "report": report,
        "answer": tables.answer(report),
        "details": tables.details(report),
        "legend": tables.legend(report),
        "heard": list(tables.heard(report)),
        "heard_legend": list(tables.heard_legend(report)),
        "by_head": list(tables.by_head(report)),
    }


FORMS: dict[str, Callable[[EvaluationReport], str]] = {
    ".json": lambda report: to_json_text(report.to_json()) + "\n",
    ".md": to_markdown,
    ".html": to_html,
}


def check_reports(targets: Sequence[Path]) -> None:
    """Refuse a report of an unknown form, before an hour of work."""
    for target in targets:
        if target.suffix not in FORMS:
            raise InputError(
                f"The report {target} ends in {target.suffix or 'nothing'!r}; expected one of "
                f"{', '.join(FORMS)}."
            )
        if target.suffix == ".html":
            check_matplotlib()


def write_report(report: EvaluationReport, target: Path, *, force: bool) -> None:
    """Write the report in the form of the target's extension."""
    write_text_atomically(target, FORMS[target.suffix](report), force=force)
