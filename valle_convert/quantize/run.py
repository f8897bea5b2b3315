"""The whole command: plan everything, make every file, measure it, judge it.

source    the GGUF file that is quantized (a checkpoint is converted first), and the checkpoint
plan      a FilePlan for each type, by llama.cpp's own dry run; fallbacks and disk are checked
make      files and manifest, each file as soon as it is whole
quality   files measured against the checkpoint, and judged

Which importance matrix there will be decides what llama.cpp does with some tensors, and the
matrix takes minutes to make. So plans are made with a stand-in that has the right entries,
names and sizes; the real one is made when everything else has been checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from valle_convert.checkpoint import Checkpoint
from valle_convert.errors import EnvironmentFault, InputError
from valle_convert.files import check_free_space
from valle_convert.gguf_file.encode import can_decode
from valle_convert.gguf_file.plan import TOKEN_EMBEDDING
from valle_convert.gguf_file.read import GgufFile
from valle_convert.llama.library import INSTALL, find_library
from valle_convert.quantize.imatrix import ImatrixInput, check_fits, made_of, make_imatrix, stand_in
from valle_convert.quantize.limits import judge, limits_for
from valle_convert.quantize.make import Made, make_all, tool_of
from valle_convert.quantize.plan import (
    AUTO,
    NONE,
    FilePlan,
    Listener,
    Options,
    arguments_of,
    bits_per_weight,
    describe_types,
    plan_file,
)
from valle_convert.quantize.report import FileReport, QuantizeReport
from valle_convert.quantize.source import Source, open_source
from valle_convert.quantize.tool import Quantizer, find_quantizer
from valle_convert.quantize.types import FILE_TYPES

if TYPE_CHECKING:
    from valle_convert.network.protocol import Network
    from valle_convert.quantize.quality import Expected, Measured
    from valle_convert.quantize.utterances import Utterances


def quantize(
    path: Path,
    out: Path,
    options: Options,
    *,
    checkpoint: Checkpoint | None = None,
    listener: Listener | None = None,
) -> QuantizeReport:
    """Make quantized files and say how good they are.

    Args:
        path: a converted GGUF file, or a checkpoint, which is converted first.
        out: a folder, or one `.gguf` file where `options.types` is one type.
        options: everything else.
        checkpoint: what quality is measured against; a checkpoint as `path` is its own.
        listener: is told what is done.

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
    with open_source(
        path,
        None if options.dry_run else folder,
        checkpoint,
        measure=options.measure,
        talk=listener.talk,
        progress=listener.progress,
    ) as source:
        plans = plan_all(quantizer, source, options, folder, single=single)
        targets = [
            out if single else folder / f"{source.stem}-{plan.kind.name}.gguf" for plan in plans
        ]
        report = QuantizeReport(
            source=source.name,
            source_sha256=None,
            tool=tool_of(quantizer, plans[0]) | {"found": quantizer.how},
            recipe={"name": options.recipe.name, "reason": options.recipe.reason},
            tensor_types=options.tensor_types,
            reference="",
            utterances="",
            baseline=None,
            files=tuple(map(_planned, plans, targets)),
            notes=tuple(_notes(source, plans)),
        )
        if options.dry_run:
            return report
        plans = _with_real_imatrix(source, plans, options, folder, single, listener)
        made = list(make_all(quantizer, source, plans, targets, options, single, listener))
        report = replace(report, source_sha256=source.sha256, files=tuple(map(_done, made)))
        if options.measure:
            report = measure_all(report, quantizer, source, made, options, listener)
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


def _notes(source: Source, plans: Sequence[FilePlan]) -> list[str]:
    notes = [plan.kind.note for plan in plans if plan.kind.note]
    if source.reference is None:
        notes.append(
            "no checkpoint was given, so files are held against the input file on llama.cpp: "
            "what its own number format lost is not seen"
        )
    return notes


def _planned(plan: FilePlan, target: Path) -> FileReport:
    return FileReport(
        name=target.name,
        kind=plan.kind.name,
        status="planned",
        n_bytes=plan.n_bytes,
        bits_per_weight=plan.bits_per_weight,
        weights=describe_types(plan.tensors),
        fallbacks=plan.fallbacks,
        imatrix=plan.imatrix.name if plan.imatrix else None,
    )


def _done(made: Made) -> FileReport:
    return replace(
        _planned(made.plan, made.path),
        status=made.status,
        n_bytes=made.entry.n_bytes,
        sha256=made.entry.sha256,
        seconds=made.seconds,
    )


# ------------------------------------------------------------------------------ all plans


def plan_all(
    quantizer: Quantizer, source: Source, options: Options, folder: Path, *, single: bool
) -> list[FilePlan]:
    """All plans, with a stand-in for an importance matrix that is still to be made."""
    plans = [plan_file(quantizer, source, kind, options) for kind in options.types]
    needing = [plan.kind.name for plan in plans if plan.needs_imatrix]
    makes = options.imatrix == AUTO and source.reference is not None
    imatrix: ImatrixInput | None = None
    if options.imatrix not in (AUTO, NONE):
        imatrix = ImatrixInput.read(Path(options.imatrix))
        check_fits(imatrix, source)
    elif makes and (needing or options.data):
        description = _calibration(source, options).description
        imatrix = stand_in(source, description, source.scratch / "stand-in.gguf")
    elif needing:
        raise InputError(
            f"{', '.join(needing)} cannot be made without an importance matrix; "
            "give --imatrix FILE, or --checkpoint so that one can be made."
        )
    if imatrix is not None:
        everywhere = not makes or options.data is not None
        plans = [
            plan_file(quantizer, source, plan.kind, options, imatrix)
            if plan.needs_imatrix or (everywhere and plan.kind.is_quantized)
            else plan
            for plan in plans
        ]
    fallbacks = [(plan.kind.name, one) for plan in plans for one in plan.fallbacks]
    if fallbacks and not options.allow_fallback:
        shown = "; ".join(f"{name}: {one}" for name, one in fallbacks[:5])
        raise InputError(
            f"{len(fallbacks)} tensors cannot have the type asked for, and --no-fallback was "
            f"given: {shown}{' ...' if len(fallbacks) > 5 else ''}. Choose types whose blocks the "
            "rows divide into (Q8_0, Q5_0, Q4_0: 32; K and IQ types: 256)."
        )
    if not options.dry_run:
        # Every file, and the unnamed one that the largest is copied from.
        sizes = [plan.n_bytes for plan in plans]
        name = plans[0].kind.name if single else f"the {len(plans)} files"
        check_free_space(folder / name, sum(sizes) + max(sizes))
    return plans


def _calibration(source: Source, options: Options) -> Utterances:
    """The utterances of an importance matrix; only a checkpoint has one made."""
    from valle_convert.quantize.utterances import choose

    if source.reference is None:
        raise AssertionError("an importance matrix is made of a checkpoint")
    count = 0 if options.data else options.n_imatrix
    return choose(source.reference.description.model, options.data, count, seed=options.seed)


def _with_real_imatrix(
    source: Source,
    plans: list[FilePlan],
    options: Options,
    folder: Path,
    single: bool,
    listener: Listener,
) -> list[FilePlan]:
    """Make the importance matrix that stands in so far, unless the user gave one."""
    planned = next((plan.imatrix for plan in plans if plan.imatrix), None)
    if planned is None or options.imatrix != AUTO or source.reference is None:
        return plans
    checkpoint, description = source.reference.checkpoint, source.reference.description
    utterances = _calibration(source, options)
    path = (source.scratch if single else folder) / planned.name
    if options.resume and path.exists() and made_of(path, checkpoint, utterances):
        listener.talk(f"kept {path.name}")
    else:
        listener.talk(f"importance matrix of {utterances.description}")
        make_imatrix(
            checkpoint,
            description,
            utterances,
            path,
            resume=options.resume,
            force=options.force or options.resume,
            progress=listener.progress,
        )
    real = ImatrixInput.read(path)
    return [replace(plan, imatrix=real) if plan.imatrix else plan for plan in plans]


# ------------------------------------------------------------------------------ quality


def measure_all(
    report: QuantizeReport,
    quantizer: Quantizer,
    source: Source,
    made: Sequence[Made],
    options: Options,
    listener: Listener,
) -> QuantizeReport:
    """The report with quality, speed and verdict of every file.

    Args:
        report: of the files as they were made.
        quantizer: makes the F16 file that speeds stand beside, where the input is none.
        source: the input and the checkpoint.
        made: the files, in the order of the report.
        options: utterances, limits, threads.
        listener: is told of each pass.

    Raises:
        InputError: given utterances are not of the format or not of this model.
        EnvironmentFault: llama.cpp does not work on this machine.
    """
    expected, utterances = _expected(source, options, listener)
    base_path, base_kind = _baseline(quantizer, source, options)
    tensors = tuple(GgufFile(base_path).tensors.values())
    measured, _ = _measure(base_path, base_kind, expected, options, listener)
    baseline = FileReport(
        name=source.name if base_path == source.path else f"{source.stem}-F16.gguf",
        kind=base_kind,
        status="input",
        n_bytes=base_path.stat().st_size,
        bits_per_weight=bits_per_weight(tensors),
        weights=describe_types(tensors),
        measured=measured,
    )
    files: list[FileReport] = []
    for one, file in zip(made, report.files, strict=True):
        limits = limits_for(one.plan.kind, options.max_kl, options.min_agreement)
        measured, note = _measure(one.path, one.plan.kind.name, expected, options, listener)
        verdict = judge(measured, limits) if measured and limits else None
        if measured and not limits:
            note = "not judged: no limits were measured for it; give --max-kl or --min-agreement"
        files.append(replace(file, measured=measured, verdict=verdict, note=note))
    return replace(
        report,
        reference=expected.name,
        utterances=utterances.description,
        baseline=baseline,
        files=tuple(files),
    )


def _expected(source: Source, options: Options, listener: Listener) -> tuple[Expected, Utterances]:
    from valle_convert.network.converted import GgufNetwork
    from valle_convert.quantize.quality import run_reference
    from valle_convert.quantize.utterances import choose

    def run(network: Network, name: str) -> tuple[Expected, Utterances]:
        count = options.n_utterances
        utterances = choose(network.model, options.data, count, seed=options.seed)
        with listener.progress("reference", utterances.count, "utterances") as advance:
            return run_reference(network, name, utterances, advance), utterances

    if source.reference is not None:
        from valle_convert.network.reference import ReferenceNetwork

        checkpoint, description = source.reference.checkpoint, source.reference.description
        network = ReferenceNetwork(checkpoint.tensors, description)
        return run(network, f"{checkpoint.path.name} in PyTorch, float32")
    with GgufNetwork(source.path, n_threads=options.threads or None) as file:
        return run(file, f"{source.name} on llama.cpp (no checkpoint was given)")


def _baseline(quantizer: Quantizer, source: Source, options: Options) -> tuple[Path, str]:
    """The F16 file that sizes and speeds stand beside; made for that where the input is none."""
    kinds = describe_types(tuple(source.header.tensors.values()))
    main = next(iter(kinds))
    if main not in ("F32", "BF16"):
        return source.path, main
    path = source.scratch / "f16.gguf"
    kind = FILE_TYPES["F16"]
    quantizer.run(arguments_of(kind, Options(threads=options.threads), source.path, path, None))
    return path, kind.name


def _measure(
    path: Path, kind: str, expected: Expected, options: Options, listener: Listener
) -> tuple[Measured | None, str]:
    """Quality and speed, or why they could not be measured."""
    from valle_convert.network.converted import GgufNetwork
    from valle_convert.quantize.quality import measure

    file = GgufFile(path)
    table = file.tensors[TOKEN_EMBEDDING].ggml_type
    if not can_decode(table):
        return None, f"not measured: the gguf package cannot read {table.name} yet"
    with (
        GgufNetwork(file, n_threads=options.threads or None) as network,
        listener.progress(f"measuring {kind}", len(expected.cases), "passes") as advance,
    ):
        return measure(network, expected, advance), ""
