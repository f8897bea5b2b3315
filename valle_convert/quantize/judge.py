"""The files of a run, held against the checkpoint, and the verdict on each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gguf import GGMLQuantizationType

from valle_convert.gguf_file.header import read_header
from valle_convert.quantize.folder import Made
from valle_convert.quantize.limits import judge, limits_for
from valle_convert.quantize.options import Listener, Options
from valle_convert.quantize.origin import Origin
from valle_convert.quantize.plan import Settings, arguments_of, bits_per_weight, describe_types
from valle_convert.quantize.recipes import STOCK
from valle_convert.quantize.report import FileReport, QuantizeReport
from valle_convert.quantize.tool import Quantizer
from valle_convert.quantize.types import FILE_TYPES

if TYPE_CHECKING:
    from valle_convert.quantize.measure import Measured, Reference
    from valle_convert.quantize.sequences import Sequences

_F16 = FILE_TYPES["F16"]


def measure_all(
    report: QuantizeReport,
    quantizer: Quantizer,
    origin: Origin,
    made: Sequence[Made],
    options: Options,
    listener: Listener,
) -> QuantizeReport:
    """The report with quality, speed and verdict of every file.

    Args:
        report: of the files as they were made.
        quantizer: makes the F16 file that speeds stand beside, where the input is none.
        origin: the input and the checkpoint.
        made: the files, in the order of the report.
        options: utterances, limits, threads.
        listener: hears of each pass.

    Raises:
        InputError: given utterances are not of the format or not of this model.
        EnvironmentFault: llama.cpp does not work on this machine.
    """
    reference, sequences = _reference(origin, options, listener)
    base_path, base_kind = _baseline(quantizer, origin)
    header = read_header(base_path)
    measured, _ = _measure(base_path, base_kind, reference, options, listener)
    baseline = FileReport(
        name=origin.source.name if base_path == origin.source.path else f"{origin.stem}-F16.gguf",
        kind=base_kind,
        status="input",
        n_bytes=base_path.stat().st_size,
        bits_per_weight=bits_per_weight(tuple(header.tensors.values())),
        weights=describe_types(tuple(header.tensors.values())),
        measured=measured,
    )
    files: list[FileReport] = []
    for one, file in zip(made, report.files, strict=True):
        limits = limits_for(one.plan.kind, options.max_kl, options.min_agreement)
        measured, note = _measure(one.path, one.plan.kind.name, reference, options, listener)
        verdict = judge(measured, limits) if measured and limits else None
        if measured and not limits:
            note = "not judged: no limits were measured for it; give --max-kl or --min-agreement"
        files.append(replace(file, measured=measured, verdict=verdict, note=note))
    return replace(
        report,
        reference=reference.name,
        sequences=sequences.description,
        baseline=baseline,
        files=tuple(files),
    )


def _reference(origin: Origin, options: Options, listener: Listener) -> tuple[Reference, Sequences]:
    from valle_convert.network.converted import GgufNetwork
    from valle_convert.quantize.measure import make_reference
    from valle_convert.quantize.sequences import choose

    count = options.n_utterances
    if origin.checkpoint is not None and origin.description is not None:
        from valle_convert.network.reference import ReferenceNetwork

        sequences = choose(origin.description.model, options.data, count, seed=options.seed)
        network = ReferenceNetwork(origin.checkpoint, origin.description)
        name = f"{origin.checkpoint.path.name} in PyTorch, float32"
        with listener.progress("reference", sequences.count, "utterances") as advance:
            return make_reference(network, name, sequences, advance), sequences
    with GgufNetwork(origin.source.path, n_threads=options.settings.threads or None) as file:
        sequences = choose(file.model, options.data, count, seed=options.seed)
        name = f"{origin.source.name} on llama.cpp (no checkpoint was given)"
        with listener.progress("reference", sequences.count, "utterances") as advance:
            return make_reference(file, name, sequences, advance), sequences


def _baseline(quantizer: Quantizer, origin: Origin) -> tuple[Path, str]:
    """The F16 file that sizes and speeds stand beside; made for that where the input is none."""
    kinds = describe_types(tuple(origin.source.header.tensors.values()))
    main = next(iter(kinds))
    if main not in ("F32", "BF16"):
        return origin.source.path, main
    path = origin.scratch / "f16.gguf"
    quantizer.run(arguments_of(_F16, Settings(STOCK), origin.source.path, path, None))
    return path, _F16.name


def _measure(
    path: Path, kind: str, reference: Reference, options: Options, listener: Listener
) -> tuple[Measured | None, str]:
    """Quality and speed, or why they could not be measured."""
    from valle_convert.gguf_file.read import GgufFile
    from valle_convert.network.converted import GgufNetwork
    from valle_convert.quantize.measure import measure

    known = {int(one) for one in GGMLQuantizationType}
    kinds = {tensor.kind for tensor in read_header(path).tensors.values()}
    unknown = sorted(one.name for one in kinds if one.number not in known)
    if unknown:
        return None, f"not measured: the gguf package cannot read {', '.join(unknown)} yet"
    with (
        GgufNetwork(GgufFile(path), n_threads=options.settings.threads or None) as network,
        listener.progress(f"measuring {kind}", len(reference.cases), "passes") as advance,
    ):
        return measure(network, reference, advance), ""
