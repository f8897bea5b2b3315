"""`valle-convert merge`."""

from pathlib import Path

from valle_convert.cli import console
from valle_convert.cli.judging import LimitOptions, ReportOptions
from valle_convert.cli.options import arg
from valle_convert.wording import plural


def merge(
    *,
    folders: list[Path] = arg("DIR...", "Output folders of `quantize`, for one model."),
    out: Path = arg("OUTDIR", "A new folder, or an earlier one of `merge` to add to."),
    limits: LimitOptions,
    output: ReportOptions,
) -> None:
    """Merge folders of separate jobs, and judge the result.

    Each has some types of one model. Files are linked if the file system supports it. Folders of
    different checkpoints, tools or options are rejected. Without limits, the verdicts of `evaluate`
    are kept.
    """
    from valle_convert.quantize.merge import merge as merge_folders

    output.check([*folders, limits.earlier[0]])
    result = merge_folders(
        folders,
        out,
        limits.gates() if any(vars(limits).values()) else None,
        reports=output.report or [],
        has_report=bool(output.report) or output.json_,
        force=output.force,
        progress=console.progress_bar,
    )
    console.log(f"merged {plural(len(result.files), 'file')} into {out}")
    console.notes(result.notes)
    if result.report is not None:
        output.finish(result.report)
