"""The files of a run: made one after the other, or kept, with a manifest that is always right.

A folder may hold files of earlier runs; those that still lie there stay in the manifest.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from valle_convert.checkpoint.read import sha256_of
from valle_convert.errors import InputError
from valle_convert.files import check_target
from valle_convert.gguf_file.header import read_header
from valle_convert.quantize.make import MadeFile, make_file
from valle_convert.quantize.manifest import (
    MANIFEST,
    ManifestFile,
    read_manifest,
    tensor_digests,
    write_manifest,
)
from valle_convert.quantize.options import Listener, Options
from valle_convert.quantize.origin import Origin
from valle_convert.quantize.plan import FilePlan, ImatrixInput, describe_types, shown_arguments
from valle_convert.quantize.report import FileReport
from valle_convert.quantize.tool import Quantizer


@dataclass(frozen=True)
class Made:
    """A file that is there, with its plan."""

    plan: FilePlan
    path: Path
    entry: ManifestFile
    status: str
    seconds: float


def make_all(
    quantizer: Quantizer,
    origin: Origin,
    plans: Sequence[FilePlan],
    targets: Sequence[Path],
    options: Options,
    single: bool,
    listener: Listener,
) -> Iterator[Made]:
    """Make or keep one file after the other; the manifest is right after each."""
    folder = targets[0].parent
    known = {} if single else _known_files(folder, options)
    listed = dict(known)
    replace_files = options.force or options.resume
    kept = {
        target: old
        for plan, target in zip(plans, targets, strict=True)
        if options.resume
        and (old := _still_there(quantizer, origin, plan, target, known)) is not None
    }
    for target in targets:
        if target not in kept:
            check_target(target, force=replace_files, sources=[origin.source.path])
    imatrix = next((plan.imatrix for plan in plans if plan.imatrix), None)
    if imatrix is not None and not single and imatrix.path.parent == folder:
        listed[imatrix.name] = _imatrix_entry(imatrix, origin)
    for plan, target in zip(plans, targets, strict=True):
        start = time.perf_counter()
        entry = kept.get(target)
        if entry is not None:
            listener.talk(f"kept {target.name}: source, type, tool and options are the same")
        else:
            done = make_file(
                quantizer,
                plan,
                target,
                source_sha256=origin.sha256.result,
                force=replace_files,
                progress=listener.progress,
                keep_log=listener.keep_log,
            )
            if done.n_bytes != plan.n_bytes:
                raise AssertionError(f"{done.n_bytes} bytes, planned were {plan.n_bytes}")
            entry = _entry(quantizer, origin, plan, done)
            listener.talk(
                f"wrote {target}: {done.n_bytes:,} bytes, {plan.bits_per_weight:.2f} bits a "
                f"weight, {time.perf_counter() - start:.1f} s"
            )
            if not single:
                listed[entry.name] = entry
                write_manifest(folder, list(listed.values()))
        status = "kept" if target in kept else "made"
        yield Made(plan, target, entry, status, time.perf_counter() - start)
    if not single:
        write_manifest(folder, list(listed.values()))


def _known_files(folder: Path, options: Options) -> dict[str, ManifestFile]:
    """What the folder's manifest lists and still lies there; other types stay in it."""
    path = folder / MANIFEST
    if not path.exists():
        return {}
    try:
        files = read_manifest(path)
    except InputError:
        if options.force:
            return {}
        raise
    return {file.name: file for file in files if (folder / file.name).is_file()}


def _still_there(
    quantizer: Quantizer,
    origin: Origin,
    plan: FilePlan,
    target: Path,
    known: dict[str, ManifestFile],
) -> ManifestFile | None:
    """The manifest's entry of a file that need not be made again."""
    old = known.get(target.name)
    if old is None or not target.is_file() or target.stat().st_size != old.n_bytes:
        return None
    wanted = _entry(quantizer, origin, plan, MadeFile(target, 0, old.sha256, (), ()))
    return old if old.made_like(wanted) and sha256_of(target) == old.sha256 else None


def _entry(quantizer: Quantizer, origin: Origin, plan: FilePlan, done: MadeFile) -> ManifestFile:
    return ManifestFile(
        name=done.path.name,
        kind=plan.kind.name,
        n_bytes=done.n_bytes,
        sha256=done.sha256,
        source_sha256=origin.sha256.result(),
        tool=tool_of(quantizer, plan),
        arguments=shown_arguments(plan.source, plan.kind, plan.settings, plan.imatrix),
        imatrix_sha256=plan.imatrix.sha256 if plan.imatrix else None,
        tensors=done.tensors,
    )


def _imatrix_entry(imatrix: ImatrixInput, origin: Origin) -> ManifestFile:
    assert origin.checkpoint is not None  # noqa: S101 - it was made of one
    header = read_header(imatrix.path)
    return ManifestFile(
        name=imatrix.name,
        kind="imatrix",
        n_bytes=imatrix.path.stat().st_size,
        sha256=imatrix.sha256,
        source_sha256=sha256_of(origin.checkpoint.path),
        tool={"name": "valle-convert imatrix"},
        arguments=(imatrix.contents.datasets[0],),
        imatrix_sha256=None,
        tensors=tensor_digests(imatrix.path, header),
    )


def tool_of(quantizer: Quantizer, plan: FilePlan) -> dict[str, str]:
    """Who makes a file, for manifest and report."""
    return {
        "name": quantizer.kind,
        "version": plan.tool_version,
        "sha256": quantizer.sha256,
    }


def file_report(made: Made) -> FileReport:
    """A file's entry in the report, before it is measured."""
    plan = made.plan
    return FileReport(
        name=made.path.name,
        kind=plan.kind.name,
        status=made.status,
        n_bytes=made.entry.n_bytes,
        bits_per_weight=plan.bits_per_weight,
        weights=describe_types(plan.tensors),
        fallbacks=plan.fallbacks,
        sha256=made.entry.sha256,
        imatrix=plan.imatrix.name if plan.imatrix else None,
        seconds=made.seconds,
    )
