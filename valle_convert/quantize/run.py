"""The whole command: plan everything, make every file, measure it, judge it.

origin     the source GGUF (a checkpoint is converted first), and the checkpoint
planning   types -> FilePlans, by llama.cpp's own dry run; fallbacks and disk are checked
folder     plans -> files and manifest, each file as soon as it is whole
judge      files -> measured against the checkpoint -> verdicts
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from valle_convert.checkpoint import Checkpoint
from valle_convert.errors import EnvironmentFault, InputError
from valle_convert.llama.library import INSTALL, find_library
from valle_convert.quantize.folder import file_report, make_all, tool_of
from valle_convert.quantize.judge import measure_all
from valle_convert.quantize.limits import limits_for
from valle_convert.quantize.options import Listener, Options
from valle_convert.quantize.origin import Origin, open_origin
from valle_convert.quantize.plan import FilePlan, describe_types
from valle_convert.quantize.planning import plan_all, with_real_imatrix
from valle_convert.quantize.report import FileReport, QuantizeReport
from valle_convert.quantize.tool import Quantizer, find_quantizer


def quantize(
    source: Path,
    out: Path,
    options: Options,
    *,
    checkpoint: Checkpoint | None = None,
    listener: Listener | None = None,
) -> QuantizeReport:
    """Make quantized files and say how good they are.

    Args:
        source: a converted GGUF file, or a checkpoint, which is converted first.
        out: a folder, or one `.gguf` file where `options.types` is one type.
        options: everything else.
        checkpoint: what quality is measured against; a checkpoint as `source` is its own.
        listener: hears of what is done.

    Raises:
        InputError: something given cannot be used.
        EnvironmentFault: no tool, no space, no permission, or the tool failed.
    """
    listener = listener or Listener()
    single = out.suffix == ".gguf"
    folder = out.parent if single else out
    _check_options(out, options, single=single)
    if options.measure:
        for kind in options.types:
            limits_for(kind, options.max_kl, options.min_agreement)  # refused now, if at all
    quantizer = find_quantizer(options.tool)
    with open_origin(source, folder, options, checkpoint, listener) as origin:
        plans = plan_all(quantizer, origin, options, folder, single=single)
        targets = [
            out if single else folder / f"{origin.stem}-{plan.kind.name}.gguf" for plan in plans
        ]
        notes = _notes(origin, plans)
        report = _planned(quantizer, plans, targets, options, notes)
        if options.dry_run:
            return report
        plans = with_real_imatrix(origin, plans, options, folder, single, listener)
        made = list(make_all(quantizer, origin, plans, targets, options, single, listener))
        report = replace(
            report,
            source_sha256=origin.sha256.result(),
            files=tuple(file_report(one) for one in made),
        )
        if options.measure:
            report = measure_all(report, quantizer, origin, made, options, listener)
        return report


def _check_options(out: Path, options: Options, *, single: bool) -> None:
    if single and len(options.types) != 1:
        raise InputError(
            f"{out} is one file, and {len(options.types)} types are asked for; give a folder."
        )
    if single and options.resume:
        raise InputError("--resume goes by the manifest of a folder; give a folder for the output.")
    if options.measure and not options.dry_run and find_library() is None:
        raise EnvironmentFault(
            "llama-cpp-python is not installed, and quality is measured with its llama.cpp; "
            f"{INSTALL}, or give --no-measure."
        )


def _notes(origin: Origin, plans: Sequence[FilePlan]) -> list[str]:
    notes = [plan.kind.note for plan in plans if plan.kind.note]
    if origin.checkpoint is None:
        notes.append(
            "no checkpoint was given, so files are held against the input file on llama.cpp: "
            "what its own number format lost is not seen"
        )
    return notes


def _planned(
    quantizer: Quantizer,
    plans: Sequence[FilePlan],
    targets: Sequence[Path],
    options: Options,
    notes: Sequence[str],
) -> QuantizeReport:
    recipe = options.settings.recipe
    return QuantizeReport(
        source=plans[0].source.name,
        source_sha256=None,
        tool=tool_of(quantizer, plans[0]) | {"found": quantizer.how},
        recipe={"name": recipe.name, "reason": recipe.reason},
        tensor_types=options.settings.tensor_types,
        reference="",
        sequences="",
        baseline=None,
        files=tuple(
            FileReport(
                name=target.name,
                kind=plan.kind.name,
                status="planned",
                n_bytes=plan.n_bytes,
                bits_per_weight=plan.bits_per_weight,
                weights=describe_types(plan.tensors),
                fallbacks=plan.fallbacks,
                imatrix=plan.imatrix.name if plan.imatrix else None,
            )
            for plan, target in zip(plans, targets, strict=True)
        ),
        notes=tuple(notes),
    )
