"""`valle-convert merge`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from valle_convert.cli import console
from valle_convert.cli.evaluate import (
    MarginOption,
    MaxKlOption,
    MaxNllOption,
    MaxWerOption,
    MinAgreementOption,
    MinRetrievalOption,
    NoWorseThanOption,
    ReportsOption,
    finish,
)
from valle_convert.cli.options import ForceOption, JsonOption, requires


def register(app: typer.Typer) -> None:
    app.command("merge")(merge)


def merge(
    context: typer.Context,
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="DIR...", help="Folders of `quantize`, for one model."),
    ],
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUTDIR", help="A new folder, or an earlier one of `merge` to add to."
        ),
    ],
    max_kl: MaxKlOption = None,
    min_agreement: MinAgreementOption = None,
    max_nll: MaxNllOption = None,
    min_retrieval: MinRetrievalOption = None,
    max_wer: MaxWerOption = None,
    no_worse_than: NoWorseThanOption = None,
    margin: MarginOption = 1.1,
    report: ReportsOption = None,
    json_: JsonOption = False,
    force: ForceOption = False,
) -> None:
    """Merge folders of separate jobs, each with some types of one model, and judge the result.

    Files are linked if the file system supports it. Folders of different checkpoints, tools or
    options are rejected. Without a limit, the verdicts of `evaluate` stay.
    """
    from valle_convert.files import check_outputs
    from valle_convert.quantize.forms import check_reports
    from valle_convert.quantize.limits import gates_of
    from valle_convert.quantize.merge import merge as merge_folders
    from valle_convert.wording import plural

    requires(context, {"margin": "no_worse_than"})
    limits = {
        "max_kl": max_kl,
        "min_agreement": min_agreement,
        "max_nll": max_nll,
        "min_retrieval": min_retrieval,
        "max_wer": max_wer,
    }
    is_judged = no_worse_than is not None or any(limits.values())
    reports = report or []
    check_reports(reports)
    inputs = [*folders, no_worse_than]
    check_outputs({f"--report {one}": one for one in reports}, inputs=inputs, force=force)
    result = merge_folders(
        folders,
        out,
        gates_of(limits, no_worse_than, margin) if is_judged else None,
        reports=reports,
        has_report=bool(reports) or json_,
        command=shlex.join(["valle-convert", *sys.argv[1:]]),
        force=force,
        progress=console.progress_bar,
    )
    console.log(f"merged {plural(len(result.files), 'file')} into {out}")
    if result.report is not None:
        finish(result.report, reports, as_json=json_, force=force)
