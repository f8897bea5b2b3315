"""Quantized files: made by llama-quantize, checked against the plan, signed, renamed.

llama-quantize writes into an unnamed file beside the target, so that nothing is left if either
process is killed. Its result is then copied into place in one pass that changes the header (how the
file was made) and computes every digest. The files of a run are made or kept one after the other,
and the manifest is correct after each.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, BinaryIO

from valle_convert import __version__
from valle_convert.errors import EnvironmentFault, InputError
from valle_convert.files import (
    atomic_outputs,
    check_outputs,
    os_fault,
    sha256_of,
    valid_utf8,
)
from valle_convert.gguf_file.header import TensorEntry
from valle_convert.gguf_file.keys import DIGEST_KEYS
from valle_convert.gguf_file.read import GgufFile
from valle_convert.quantize.check import faults_of
from valle_convert.quantize.imatrix import PREFIX as IMATRIX_PREFIX
from valle_convert.quantize.imatrix import ImatrixInput
from valle_convert.quantize.made import MadeFile
from valle_convert.quantize.manifest import (
    MANIFEST,
    ManifestFile,
    TensorDigest,
    tensor_digests,
    write_manifest,
)
from valle_convert.quantize.options import FolderOptions, RunLog
from valle_convert.quantize.plan import (
    TENSOR_LINE,
    BundlePlan,
    FilePlan,
    arguments_of,
    fallbacks_of,
    made_keys,
    part_keys,
    shown_arguments,
)
from valle_convert.quantize.source import Scratch, SourceBundle, write_tensors
from valle_convert.quantize.tool import Quantizer
from valle_convert.quantize.types import bits_per_weight, describe_types
from valle_convert.wording import plural

_PIECE = 4 << 20


@dataclass(frozen=True)
class MadeBundle:
    """Files that were just made: their entries in a manifest, and the tool's log."""

    entries: tuple[ManifestFile, ...]
    log: tuple[str, ...]


def make_bundle(
    quantizer: Quantizer,
    plan: BundlePlan,
    source: SourceBundle,
    *,
    scratch: Scratch,
    force: bool = False,
    log: RunLog | None = None,
) -> MadeBundle:
    """Make all planned files, or leave nothing."""
    log = log or RunLog()
    lines: list[str] = []
    done: dict[str, tuple[str, tuple[TensorDigest, ...]]] = {}
    paths = list(plan.paths.values())
    with atomic_outputs(paths, force=force, sources=source.paths) as opened:
        targets = dict(zip(plan.paths, opened, strict=True))
        for unit, one in plan.units.items():
            work, place = scratch.new()
            with work:
                lines += run_quantizer(quantizer, one, place, log)
                header = open_written(quantizer, work)
                if one.tensors is not None:
                    check_types(quantizer, one.tensors, header)
                target, part = targets[unit.part], source.bundle.files[unit.part]
                if unit.first is None:
                    keys = made_keys(quantizer, one, one.source.sha256)
                    new_header = header.changed(keys, drop=DIGEST_KEYS)
                    done[unit.part] = copy_file(work, header, new_header, target)
                else:
                    own = [t for t in header.tensors.values() if t.name in part.tensors]
                    write_tensors(target, part_keys(quantizer, one, part, one.source.sha256), own)
        for copied, file in source.copied.items():
            with file.path.open("rb") as original:
                shutil.copyfileobj(original, targets[copied])
    return MadeBundle(_entries(quantizer, plan, source, done), tuple(lines))


def _entries(
    quantizer: Quantizer,
    plan: BundlePlan,
    source: SourceBundle,
    done: Mapping[str, tuple[str, tuple[TensorDigest, ...]]],
) -> tuple[ManifestFile, ...]:
    """Entries of all files, the main one first, with missing digests computed."""
    units = {unit.part: one for unit, one in plan.units.items()}
    entries = []
    for part, path in plan.paths.items():
        one = units.get(part)
        sha256, tensors = done.get(part) or (
            sha256_of(path),
            tensor_digests(GgufFile(path, allow_part=True)),
        )
        if one is None:
            tool: dict[str, str] = {"name": "valle-convert", "version": __version__}
            arguments: tuple[str, ...] = ("copy",)
            source_sha256, imatrix = sha256_of(source.bundle.files[part].path), None
        else:
            tool, source_sha256, imatrix = tool_of(quantizer, one), one.source.sha256, one.imatrix
            arguments = shown_arguments(one.source, one.kind, one.options, imatrix)
        entries.append(
            ManifestFile(
                name=path.name,
                kind=plan.kind.name,
                n_bytes=path.stat().st_size,
                sha256=sha256,
                source_sha256=source_sha256,
                tool=tool,
                arguments=arguments,
                imatrix_sha256=imatrix.sha256 if imatrix else None,
                tensors=tensors,
            )
        )
    return tuple(entries)


def open_written(quantizer: Quantizer, work: BinaryIO) -> GgufFile:
    """The output of the tool."""
    try:
        return GgufFile(Path(f"output of {quantizer.kind}"), work)
    except InputError as error:
        # The tool's fault, not the user's.
        raise EnvironmentFault(
            f"{quantizer.kind} ended without an error, but: {error} The tool at "
            f"{' '.join(quantizer.command)} does not work here; build it again (make "
            "llama-tools), or choose another with --llama-quantize."
        ) from error


def run_quantizer(quantizer: Quantizer, plan: FilePlan, work: Path, log: RunLog) -> list[str]:
    """Quantize into an open file; the log is kept, also after a failure."""
    lines: list[str] = []
    sizes = {name: tensor.n_bytes for name, tensor in plan.source.header.tensors.items()}
    label = f"quantizing {plan.kind.name}"
    try:
        with (
            _nameless(plan.imatrix) as imatrix,
            log.progress(label, sum(sizes.values()), "B") as advance,
        ):

            def follow(line: str) -> None:
                lines.append(line)
                match = TENSOR_LINE.match(line)
                if match:
                    advance(sizes.get(match["name"], 0))

            arguments = arguments_of(plan.kind, plan.options, plan.source.path, work, imatrix)
            return quantizer.run(arguments, on_line=follow)
    finally:
        log.keep_log(lines)


@contextmanager
def _nameless(imatrix: ImatrixInput | None) -> Iterator[Path | None]:
    """A path without the matrix's name. llama.cpp writes the name into the file, cut after 127
    bytes, and no reader accepts the string if it is not UTF-8 or is cut inside a character.
    """
    if imatrix is None:
        yield None
        return
    try:
        file = imatrix.path.open("rb")
    except OSError as error:
        raise os_fault(f"The importance matrix {imatrix.path} cannot be read", error) from error
    with file:
        yield Path(f"/dev/fd/{file.fileno()}")


def check_types(quantizer: Quantizer, planned: Sequence[TensorEntry], header: GgufFile) -> None:
    """Compare the result with the dry run, tensor by tensor."""
    expected = {tensor.name: (tensor.shape, tensor.ggml_type.name) for tensor in planned}
    found = {name: (t.shape, t.ggml_type.name) for name, t in header.tensors.items()}
    if found != expected:
        different = [
            name for name in {**expected, **found} if found.get(name) != expected.get(name)
        ]
        name = different[0]
        raise EnvironmentFault(
            f"{quantizer.kind} differs from its dry run: {name} is "
            f"{found.get(name, 'missing')}, expected {expected.get(name, 'none')} "
            f"({len(different)} tensors differ); nothing was kept. Use the llama-quantize of "
            "`make llama-tools`."
        )


def copy_file(
    work: BinaryIO, header: GgufFile, new_header: bytes, out: BinaryIO
) -> tuple[str, tuple[TensorDigest, ...]]:
    """Write header and data to the target, and compute the digests of file and tensors."""
    out.write(new_header)
    out.flush()
    _copy_data(work, header.data_start, out, header.data_bytes)
    whole = hashlib.sha256(new_header)
    with ThreadPoolExecutor(max_workers=1) as pool:
        pending = pool.submit(_digest, whole, work, header.data_start, header.data_bytes)
        made = [
            TensorDigest(
                tensor.name,
                tensor.ggml_type.name,
                tensor.shape,
                _digest(hashlib.sha256(), work, header.data_start + tensor.offset, tensor.n_bytes),
            )
            for tensor in sorted(header.tensors.values(), key=attrgetter("offset"))
        ]
        return pending.result(), tuple(made)


def _copy_data(work: BinaryIO, start: int, out: BinaryIO, n_bytes: int) -> None:
    """Append `n_bytes` of one file to another, inside the kernel if possible."""
    work.seek(start)
    if hasattr(os, "copy_file_range"):
        left = n_bytes
        with suppress(OSError):  # unsupported by the file system; the rest is copied below
            while left:
                n = os.copy_file_range(work.fileno(), out.fileno(), left)
                if n == 0:
                    break
                left -= n
        # The descriptors have moved on; tell Python.
        work.seek(start + n_bytes - left)
        out.seek(0, os.SEEK_END)
    shutil.copyfileobj(work, out, _PIECE)


def _digest(digest: hashlib._Hash, file: BinaryIO, start: int, n_bytes: int) -> str:
    """The digest extended by a part of a file, without moving in the file."""
    for at in range(start, start + n_bytes, _PIECE):
        piece = os.pread(file.fileno(), min(_PIECE, start + n_bytes - at), at)
        digest.update(piece)
    return digest.hexdigest()


# ------------------------------------------------------------------- all files of a run


@dataclass(frozen=True)
class Output:
    """The files of a type, before they are made.

    Attributes:
        kept: the manifest's entries of existing files that need not be made again.
        reason: why existing files are made again; empty if there are none.
    """

    plan: BundlePlan
    kept: tuple[ManifestFile, ...] = ()
    reason: str = ""


def output_of(
    quantizer: Quantizer,
    plan: BundlePlan,
    source: SourceBundle,
    known: Mapping[str, ManifestFile],
    options: FolderOptions,
) -> Output:
    """What has to be made of a type; refuses to replace what is there.

    With --resume, all files of a type are kept if the manifest lists them, they were made in the
    same way, and their bytes are those of then. As long as source or importance matrix are still
    to be made, what depends on them is taken to be the same.
    """
    there = {part: path for part, path in plan.paths.items() if path.exists()}
    if not there:
        if plan.path.parent.is_dir():
            check_outputs([plan.path], force=options.force, inputs=source.paths)
        return Output(plan)
    units = {unit.part: one for unit, one in plan.units.items()}
    path, reason = next(iter(there.values())), ""
    for part, place in there.items():
        old, one = known.get(place.name), units.get(part)
        if found := _difference(quantizer, source, part, one, place, old):
            path, reason = place, found
            break
    missing = [place.name for part, place in plan.paths.items() if part not in there]
    if not reason and missing:
        reason = f"{missing[0]} of its set is missing"
    if _is_kept(path, known.get(path.name), reason, options, source.paths):
        return Output(plan, kept=tuple(known[place.name] for place in plan.paths.values()))
    for place in there.values():
        _is_kept(place, known.get(place.name), reason, options, source.paths)
    return Output(plan, reason=reason)


def _is_kept(
    target: Path,
    old: ManifestFile | None,
    reason: str,
    options: FolderOptions,
    sources: Sequence[Path],
) -> bool:
    """Whether an existing output is kept; if not, it may be replaced."""
    if options.resume and old is not None and not reason:
        return True
    if not options.force and options.resume:
        raise InputError(
            f"The output {target} exists, and --resume does not keep it, since {reason}; "
            "give --force to make it again, or another folder."
        )
    if not options.force and old is not None:
        raise InputError(
            f"The output {target} exists and is not overwritten; --resume keeps the files of "
            f"the folder's {MANIFEST} that were made in the same way, --force makes all "
            "of them again."
        )
    check_outputs([target], force=options.force, inputs=sources)
    return False


def _difference(
    quantizer: Quantizer,
    source: SourceBundle,
    part: str,
    plan: FilePlan | None,
    target: Path,
    old: ManifestFile | None,
) -> str:
    """Why an existing file is not what would be made, or copied; empty if it is."""
    if old is None:
        return "no manifest lists it"
    if plan is not None and (reason := _made_otherwise(quantizer, plan, old)):
        return reason
    if not target.is_file() or target.stat().st_size != old.n_bytes:
        return "its size is not that of the manifest"
    if sha256_of(target) != old.sha256:
        return "its bytes differ from the manifest"
    if plan is None:
        is_new = source.is_complete and sha256_of(source.bundle.files[part].path) != old.sha256
        return "it was made from another source" if is_new else ""
    keys = GgufFile(target, allow_part=True).keys
    for key in plan.options.identity.keys(plan.source.header.keys):
        if keys.get(key.name) != key.value:
            return f"its {key.name} is another one"
    return ""


def _made_otherwise(quantizer: Quantizer, plan: FilePlan, old: ManifestFile) -> str:
    """How the manifest's entry differs from the plan; empty where it does not."""
    if old.kind != plan.kind.name:
        return f"it has the type {old.kind}"
    if plan.source.is_complete and old.source_sha256 != plan.source.sha256:
        return "it was made from another source"
    if dict(old.tool) != tool_of(quantizer, plan):
        return f"it was made by {old.tool.get('name')} {old.tool.get('version')}"
    if old.arguments != shown_arguments(plan.source, plan.kind, plan.options, plan.imatrix):
        return f"it was made with other options ({' '.join(old.arguments)})"
    imatrix = plan.imatrix
    if (imatrix is None or imatrix.is_made) and old.imatrix_sha256 != (
        imatrix.sha256 if imatrix else None
    ):
        return "it was made with another importance matrix"
    return ""


def make_all(
    quantizer: Quantizer,
    outputs: Sequence[Output],
    source: SourceBundle,
    listed: dict[str, ManifestFile] | None,
    options: FolderOptions,
    scratch: Scratch,
    log: RunLog,
) -> Iterator[MadeFile]:
    """Make or keep the files of one type after the other, and compare each with its source."""
    for output in outputs:
        start = time.perf_counter()
        plan, target, entries = output.plan, output.plan.path, output.kept
        others = (
            f" and {plural(len(plan.paths) - 1, 'file')} beside it" if len(plan.paths) > 1 else ""
        )
        lines: tuple[str, ...] = ()
        if entries:
            log.talk(f"kept {target.name}{others}: source, type, tool and options are the same")
        else:
            if output.reason:
                log.talk(f"{target.name} is made again: {output.reason}")
            done = make_bundle(
                quantizer, plan, source, scratch=scratch, force=options.force, log=log
            )
            entries, lines = done.entries, done.log
        files = {part: GgufFile(path, allow_part=True) for part, path in plan.paths.items()}
        found = {unit: tuple(files[unit.part].tensors.values()) for unit in plan.units}
        made = replace(
            planned(output),
            status="kept" if output.kept else "made",
            n_bytes=sum(entry.n_bytes for entry in entries),
            **_weights_of([tensor for one in found.values() for tensor in one]),
            sha256=entries[0].sha256,
            faults=faults_of(source, files),
            seconds=time.perf_counter() - start,
        )
        if not output.kept:
            log.talk(
                f"wrote {target}{others}: {made.n_bytes:,} bytes, {made.bits_per_weight:.2f} bits "
                f"a weight, {made.seconds:.1f} s"
            )
            if listed is not None:
                listed |= {entry.name: entry for entry in entries}
                write_manifest(target.parent, listed.values())
        if any(one.tensors is None for one in plan.units.values()):
            fallbacks = [
                fallback
                for unit, one in plan.units.items()
                for fallback in fallbacks_of(lines, one.source, plan.kind, one.options, found[unit])
            ]
            made = replace(made, fallbacks=tuple(fallbacks))
        yield made


def planned(output: Output) -> MadeFile:
    """The known properties of a type's files before they are made."""
    plan, n_files = output.plan, len(output.plan.paths)
    return MadeFile(
        name=valid_utf8(plan.path.name),
        kind=plan.kind.name,
        status="kept" if output.kept else "planned",
        n_bytes=plan.n_bytes or 0,
        **_weights_of(plan.tensors),
        fallbacks=plan.fallbacks,
        imatrix=plan.imatrices[0].name if plan.imatrices else None,
        note=f"{n_files} files" if n_files > 1 else "",
    )


def _weights_of(tensors: Sequence[TensorEntry]) -> dict[str, Any]:
    return {
        "bits_per_weight": bits_per_weight(tensors) if tensors else 0.0,
        "weights": describe_types(tensors),
    }


def imatrix_entry(imatrix: ImatrixInput) -> ManifestFile:
    """The manifest's entry of an importance matrix that was made for a folder."""
    header = GgufFile(imatrix.path)
    return ManifestFile(
        name=imatrix.name,
        kind="imatrix",
        n_bytes=imatrix.path.stat().st_size,
        sha256=imatrix.sha256,
        source_sha256=header.keys[f"{IMATRIX_PREFIX}source_sha256"],
        tool={"name": "valle-convert imatrix"},
        arguments=(imatrix.contents.datasets[0],),
        imatrix_sha256=None,
        tensors=tensor_digests(header),
    )


def tool_of(quantizer: Quantizer, plan: FilePlan) -> dict[str, str]:
    """The maker of a file, for manifest and report."""
    return {
        "name": quantizer.kind,
        "version": plan.tool_version,
        "sha256": quantizer.sha256,
    }
