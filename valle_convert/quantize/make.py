"""Quantized files: made by llama-quantize, checked against the plan, signed, renamed.

llama-quantize writes into an unnamed file beside the target, so that nothing is left if either
process is killed. Its result is then copied into place with another header, which says how the file
was made.

A file is compared with its source: keys, tokenizer and shapes are equal, and so is every tensor of
the same type; the noise of the others is what their type makes.
"""

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from valle_convert import __version__
from valle_convert.errors import EnvironmentFault, InputError
from valle_convert.families.family import Unit
from valle_convert.files import atomic_outputs, sha256_of
from valle_convert.gguf_file.compare import signal_to_noise
from valle_convert.gguf_file.encode import can_decode, least_decibels
from valle_convert.gguf_file.header import write_entries
from valle_convert.gguf_file.keys import DIGEST_KEYS, FILE_TYPE_KEY
from valle_convert.gguf_file.read import GgufFile, TensorInfo
from valle_convert.quantize.imatrix import SOURCE_KEY, ImatrixInput
from valle_convert.quantize.manifest import ManifestFile, tensor_digests
from valle_convert.quantize.options import RunLog
from valle_convert.quantize.plan import TENSOR_LINE, TypePlan, UnitPlan, arguments_of
from valle_convert.quantize.source import SourceBundle, write_tensors
from valle_convert.quantize.tool import Quantizer
from valle_convert.quantize.types import FileType
from valle_convert.threads import in_background

#: Signal to noise that 16 bits keep, in decibels.
_PLAIN = 40.0
#: Keys that quantizing changes.
_OWN = ("quantize.", "valle.quantize.", "general.")
_SHOWN = 3


class Made(NamedTuple):
    """The files of a type by part, their entries in a manifest, and how they differ."""

    files: Mapping[str, GgufFile]
    entries: tuple[ManifestFile, ...]
    faults: tuple[str, ...]


def make_files(
    plan: TypePlan,
    source: SourceBundle,
    *,
    force: bool = False,
    log: RunLog | None = None,
) -> Made:
    """Make all planned files and compare them with their source, or leave nothing."""
    log = log or RunLog()
    with atomic_outputs([*plan.paths.values()], force=force, inputs=source.paths) as opened:
        targets = dict(zip(plan.paths, opened, strict=True))
        for unit, one in plan.units.items():
            work, place = source.scratch.new()
            run_quantizer(one, place, log)
            _write_part(one, work, targets[unit.part], source.bundle.files[unit.part], unit)
            in_background(work.close)  # freeing 240 MB takes 60 ms
        for copied, given in source.copied.items():
            with given.path.open("rb") as original:
                shutil.copyfileobj(original, targets[copied])
        # Before the files have their names: a file that has one is in a manifest soon.
        units = {unit.part: one for unit, one in plan.units.items()}
        files: dict[str, GgufFile] = {}
        with ThreadPoolExecutor(len(targets)) as pool:
            entries = []
            for part, file in targets.items():
                made = files[part] = GgufFile(plan.paths[part], file, allow_part=True)
                before, of_part = source.bundle.files[part], units.get(part)
                entries.append(pool.submit(_entry, made, file, plan.kind, before, of_part))
            faults = faults_of(source, files)
        return Made(files, tuple(entry.result() for entry in entries), faults)


def _write_part(
    plan: UnitPlan, work: BinaryIO, target: BinaryIO, part: GgufFile, unit: Unit
) -> None:
    """Write the result of llama-quantize as a part, with keys that say how it was made."""
    header = open_written(plan.quantizer, work)
    check_types(plan, header)
    made = [*header.tensors.values()]
    if unit.first is None:
        new_header = header.changed(plan.keys(plan.source.sha256), drop=DIGEST_KEYS)
        write_entries(target, new_header, made, (tensor.data for tensor in made))
    else:
        own = [tensor for tensor in made if tensor.name in part.tensors]
        write_tensors(target, plan.part_keys(part, plan.source.sha256), own)


def _entry(
    made: GgufFile, file: BinaryIO, kind: FileType, original: GgufFile, plan: UnitPlan | None
) -> ManifestFile:
    """The manifest's entry of a written file, which was made by a plan, or copied."""
    file.seek(0)
    copier = {"name": "valle-convert", "version": __version__}
    return ManifestFile(
        name=made.path.name,
        kind=kind.name,
        n_bytes=made.size,
        sha256=hashlib.file_digest(file, "sha256").hexdigest(),  # type: ignore[arg-type]
        source_sha256=plan.source.sha256 if plan else sha256_of(original.path),
        tool=plan.tool if plan else copier,
        arguments=plan.arguments if plan else ("copy",),
        imatrix_sha256=plan.imatrix.sha256 if plan and plan.imatrix else None,
        tensors=tensor_digests(made),
    )


def open_written(quantizer: Quantizer, work: BinaryIO) -> GgufFile:
    try:
        return GgufFile(Path(f"output of {quantizer.kind}"), work)
    except InputError as error:
        # The tool's fault, not the user's.
        raise EnvironmentFault(
            f"{quantizer.kind} ended without an error, but: {error} The tool at "
            f"{' '.join(quantizer.command)} does not work here; build it again (make "
            "llama-tools), or choose another with --llama-quantize."
        ) from error


def run_quantizer(plan: UnitPlan, work: Path, log: RunLog) -> None:
    """Quantize into an open file; the log is kept, also after a failure."""
    lines: list[str] = []
    sizes = {name: tensor.n_bytes for name, tensor in plan.source.header.tensors.items()}
    label = f"quantizing {plan.kind.name}"
    try:
        with (
            plan.imatrix.path.open("rb") if plan.imatrix else nullcontext() as matrix,
            log.progress(label, sum(sizes.values()), "B") as advance,
        ):

            def follow(line: str) -> None:
                lines.append(line)
                match = TENSOR_LINE.match(line)
                if match:
                    advance(sizes.get(match["name"], 0))

            # Without the matrix's name: llama.cpp writes it into the file, cut after 127 bytes, and
            # no reader accepts a string that is not UTF-8 or is cut inside a character.
            imatrix = None if matrix is None else Path(f"/dev/fd/{matrix.fileno()}")
            arguments = arguments_of(plan.kind, plan.options, plan.source.path, work, imatrix)
            plan.quantizer.run(arguments, on_line=follow)
    finally:
        log.keep_log(lines)


def check_types(plan: UnitPlan, header: GgufFile) -> None:
    if plan.tensors is None:
        return
    expected = {tensor.name: (tensor.shape, tensor.ggml_type.name) for tensor in plan.tensors}
    found = {name: (t.shape, t.ggml_type.name) for name, t in header.tensors.items()}
    different = [name for name in expected | found if found.get(name) != expected.get(name)]
    if different:
        name = different[0]
        raise EnvironmentFault(
            f"{plan.quantizer.kind} differs from its dry run: {name} is "
            f"{found.get(name, 'missing')}, expected {expected.get(name, 'none')} "
            f"({len(different)} tensors differ); nothing was kept. Use the llama-quantize of "
            "`make llama-tools`."
        )


def imatrix_entry(imatrix: ImatrixInput) -> ManifestFile:
    """The manifest's entry of an importance matrix that was made for a folder."""
    header = GgufFile(imatrix.path)
    return ManifestFile(
        name=imatrix.name,
        kind="imatrix",
        n_bytes=imatrix.path.stat().st_size,
        sha256=imatrix.sha256,
        source_sha256=header.keys[SOURCE_KEY],
        tool={"name": "valle-convert imatrix"},
        arguments=(imatrix.contents.datasets[0],),
        imatrix_sha256=None,
        tensors=tensor_digests(header),
    )


def faults_of(source: SourceBundle, made: Mapping[str, GgufFile]) -> tuple[str, ...]:
    """How files, by part, differ from their source; empty if they do not."""
    found: list[str] = []
    for part, before in source.bundle.files.items():
        label = f"{part}: " if len(made) > 1 else ""
        after = made[part]
        found += [f"{label}{one}" for one in (*_keys(before, after), *_tensors(before, after))]
    more = len(found) - _SHOWN
    return (*found[:_SHOWN], *([f"{more} more"] if more > 0 else []))


def _keys(before: GgufFile, after: GgufFile) -> Iterator[str]:
    for name in before.keys:
        if name in (*DIGEST_KEYS, FILE_TYPE_KEY) or name.startswith(_OWN):
            continue
        if name not in after.keys:
            yield f"the key {name} is missing"
        elif after.raw(name) != before.raw(name):
            yield f"the key {name} differs"


def _tensors(before: GgufFile, after: GgufFile) -> Iterator[str]:
    yield from after.shape_faults({name: one.shape for name, one in before.tensors.items()})
    for name, old in before.tensors.items():
        new = after.tensors.get(name)
        # Not in threads: numpy's short calls would wait for each other.
        if new is not None and new.shape == old.shape and (fault := _fault(old, new)):
            yield f"{name} {fault}"


def _fault(before: TensorInfo, after: TensorInfo) -> str:
    kind = after.ggml_type
    if before.ggml_type == kind:
        return "" if np.array_equal(before.data, after.data) else "has different weights"
    if not (can_decode(before.ggml_type) and can_decode(kind)):
        return ""
    noise = signal_to_noise(before, after)
    least = _PLAIN if kind.block == 1 else least_decibels(kind)
    if noise is None:
        return "holds NaN or infinity"
    if noise >= least:
        return ""
    return f"has {noise:.1f} dB signal to noise, and {kind.name} has at least {least:.1f}"
