"""Limits and reports, which `evaluate` and `merge` share."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING

import typer

from valle_convert.cli import console
from valle_convert.cli.options import FORCE, JSON, OUTPUT, opt
from valle_convert.errors import EXIT_ENVIRONMENT, ValleConvertError

if TYPE_CHECKING:
    from valle_convert.quantize.limits import Gates
    from valle_convert.quantize.report import EvaluationReport

_LIMITS = "Limits (exit code 1 beyond them)"


@dataclass(frozen=True)
class LimitOptions:
    max_kl: list[str] | None = opt(
        "Mean KL divergence in nats: 0.01, or Q8_0=1e-3,Q4_K_M=1e-2. Limits are repeatable.",
        "LIMIT|TYPE=LIMIT,...",
        _LIMITS,
    )
    min_agreement: list[str] | None = opt(
        "Top-1 agreement, such as 0.97.", "SHARE|TYPE=SHARE,...", _LIMITS
    )
    max_nll: list[str] | None = opt(
        "How much less likely the true codes may be than for F16, in nats per code.",
        "LIMIT|TYPE=LIMIT,...",
        _LIMITS,
    )
    min_retrieval: list[str] | None = opt(
        "Share of the sentences that are closest to their own recording.",
        "SHARE|TYPE=SHARE,...",
        _LIMITS,
    )
    max_wer: list[str] | None = opt("Word error rate.", "RATE|TYPE=RATE,...", _LIMITS)
    no_worse_than: str | None = opt(
        "An earlier report as limits; divergence and the share of changed codes may be FACTOR "
        "(1.1) times as large.",
        "REPORT.json[@FACTOR]",
        _LIMITS,
    )

    @property
    def earlier(self) -> tuple[Path | None, float]:
        """The report of an earlier run, and the factor."""
        from valle_convert.quantize.limits import MARGIN

        given = self.no_worse_than
        if given is None:
            return None, MARGIN
        name, at, number = given.rpartition("@")
        if not at or Path(given).exists():
            return Path(given), MARGIN
        try:
            factor = float(number)
        except ValueError:
            factor = math.nan
        if not 1 <= factor < math.inf:
            raise typer.BadParameter(
                f"the factor is {number}, expected at least 1.", param_hint="--no-worse-than"
            )
        return Path(name), factor

    def gates(self) -> Gates:
        from valle_convert.quantize.limits import gates_of

        limits = {name: text for name, text in vars(self).items() if name != "no_worse_than"}
        return gates_of(limits, *self.earlier)


@dataclass(frozen=True)
class ReportOptions:
    report: list[Path] | None = opt(
        "Write the report as .json, .md or .html; repeatable.", "FILE", OUTPUT
    )
    json_: bool = JSON
    force: bool = FORCE

    def check(self, inputs: Sequence[Path | None]) -> None:
        """Refuse reports that cannot be written, before an hour of work."""
        from valle_convert.files import check_outputs
        from valle_convert.quantize.forms import check_reports

        check_reports(self.report or [])
        targets = {f"--report {one}": one for one in self.report or []}
        check_outputs(targets, inputs=inputs, force=self.force)

    def finish(self, result: EvaluationReport) -> None:
        """Print a result, write its reports, and exit with its code unless that is 0."""
        from valle_convert.files import valid_utf8
        from valle_convert.quantize.forms import write_report

        command = shlex.join(["valle-convert", *sys.argv[1:]])
        result = replace(result, command=valid_utf8(command))
        if self.json_:
            console.data_json(result.to_json())
        else:
            _show(result)
        code = result.exit_code
        for one in self.report or []:
            try:
                write_report(result, one, force=self.force)
            except ValleConvertError as error:
                console.error(str(error))
                code = code or EXIT_ENVIRONMENT
        if code:
            raise typer.Exit(code)


def _show(result: EvaluationReport) -> None:
    from valle_convert.quantize.tables import answer, heard, summary

    header, rows = summary(result)
    width = max(map(len, console.table(rows, header=header).splitlines()))
    if sys.stdout.isatty() and width > get_terminal_size().columns:
        header, rows = answer(result)  # the first columns; a pipe gets all
    console.data_table(rows, header=header)
    for title, (columns, cells) in list(heard(result))[:1]:  # a report has all of them
        console.log(f"{title}:\n{console.table(cells, header=columns)}")
    for line in result.facts():
        console.log(line)
    if result.recommendation():
        console.data(result.recommendation())
    console.data(result.verdict())
