"""Quantized files: made by llama-quantize, checked against the plan, signed, renamed.

llama-quantize writes into a file without a name beside the target, so that nothing is left
whoever is killed when. Its result is then copied into place in one pass that changes the
header (how the file was made) and computes every digest. The files of a run are made one after
the other, or kept, with a manifest that is right after each.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from valle_convert.checkpoint.read import sha256_of
from valle_convert.errors import EnvironmentFault, InputError
from valle_convert.files import atomic_output, check_target
from valle_convert.gguf_file.header import TensorEntry
from valle_convert.gguf_file.keys import DIGEST_KEYS
from valle_convert.gguf_file.read import GgufFile
from valle_convert.progress import Progress, silent
from valle_convert.quantize.imatrix import PREFIX as IMATRIX_PREFIX
from valle_convert.quantize.imatrix import ImatrixInput
from valle_convert.quantize.manifest import (
    MANIFEST,
    ManifestFile,
    TensorDigest,
    read_manifest,
    tensor_digests,
    write_manifest,
)
from valle_convert.quantize.plan import (
    TENSOR_LINE,
    FilePlan,
    Listener,
    Options,
    arguments_of,
    keys_of,
    shown_arguments,
)
from valle_convert.quantize.source import Source
from valle_convert.quantize.tool import Quantizer

_PIECE = 4 << 20


@dataclass(frozen=True)
class MadeFile:
    """A file that is there, and its digests.

    Attributes:
        path: where.
        n_bytes: its size.
        sha256: of the whole file.
        tensors: in file order.
        log: what the tool said.
    """

    path: Path
    n_bytes: int
    sha256: str
    tensors: tuple[TensorDigest, ...]
    log: tuple[str, ...]


def make_file(
    quantizer: Quantizer,
    plan: FilePlan,
    target: Path,
    *,
    force: bool = False,
    progress: Progress = silent,
    keep_log: Callable[[list[str]], object] = lambda _lines: None,
) -> MadeFile:
    """Make the planned file, or leave nothing.

    Args:
        quantizer: who does it.
        plan: what it is to become.
        target: the file.
        force: whether an existing file may be replaced.
        progress: is told of the bytes of the source that are done.
        keep_log: gets the tool's log, also where it failed.

    Raises:
        InputError: the target must not be written.
        EnvironmentFault: the tool failed, or did something else than it said in the plan.
    """
    check_target(target, force=force, sources=[plan.source.path])
    with _unnamed_file(target.parent) as work:
        log = _run(quantizer, plan, work, progress, keep_log)
        header = GgufFile(Path(f"what {quantizer.kind} wrote"), work)
        _check_types(quantizer, plan, header)
        new_header = header.changed(
            keys_of(
                quantizer.kind,
                plan.tool_version,
                quantizer.sha256,
                plan.source,
                plan.kind,
                plan.options,
                plan.imatrix,
                source_sha256=plan.source.sha256,
            ),
            drop=DIGEST_KEYS,
        )
        with atomic_output(target, force=force, sources=[plan.source.path]) as out:
            sha256, tensors = _copy(work, header, new_header, out)
            n_bytes = out.tell()
    return MadeFile(target, n_bytes, sha256, tensors, tuple(log))


def _unnamed_file(folder: Path) -> BinaryIO:
    try:
        return tempfile.TemporaryFile(dir=folder)
    except OSError as error:
        raise EnvironmentFault(
            f"No file can be made in {folder}: {error.strerror}; choose another folder."
        ) from error


def _run(
    quantizer: Quantizer,
    plan: FilePlan,
    work: BinaryIO,
    progress: Progress,
    keep_log: Callable[[list[str]], object],
) -> list[str]:
    log: list[str] = []
    sizes = {name: tensor.n_bytes for name, tensor in plan.source.header.tensors.items()}
    handle = work.fileno()
    arguments = arguments_of(
        plan.kind,
        plan.options,
        plan.source.path,
        f"/dev/fd/{handle}",
        plan.imatrix.path if plan.imatrix else None,
    )
    label = f"quantizing {plan.kind.name}"
    try:
        with progress(label, sum(sizes.values()), "B") as advance:

            def follow(line: str) -> None:
                log.append(line)
                match = TENSOR_LINE.match(line)
                if match:
                    advance(sizes.get(match["name"], 0))

            return quantizer.run(arguments, on_line=follow, keep_open=[handle])
    finally:
        keep_log(log)


def _check_types(quantizer: Quantizer, plan: FilePlan, header: GgufFile) -> None:
    """The result is what the dry run said, tensor by tensor."""
    expected = {tensor.name: (tensor.shape, tensor.ggml_type.name) for tensor in plan.tensors}
    found = {name: (t.shape, t.ggml_type.name) for name, t in header.tensors.items()}
    if found != expected:
        different = [
            name for name in {**expected, **found} if found.get(name) != expected.get(name)
        ]
        name = different[0]
        raise EnvironmentFault(
            f"{quantizer.kind} made something else than its dry run said: {name} is "
            f"{found.get(name, 'missing')}, planned was {expected.get(name, 'none')} "
            f"({len(different)} tensors differ); nothing was kept. Use the llama-quantize that "
            "`make llama-tools` builds."
        )


def _copy(
    work: BinaryIO, header: GgufFile, new_header: bytes, out: BinaryIO
) -> tuple[str, tuple[TensorDigest, ...]]:
    """Header and data into the target; the file's and the tensors' digests, side by side."""
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
            for tensor in sorted(header.tensors.values(), key=_offset)
        ]
        return pending.result(), tuple(made)


def _copy_data(work: BinaryIO, start: int, out: BinaryIO, n_bytes: int) -> None:
    """Append `n_bytes` of one file to another, inside of the system where it can do that."""
    work.seek(start)
    if hasattr(os, "copy_file_range"):
        left = n_bytes
        with suppress(OSError):  # a file system that cannot; what is left is copied below
            while left:
                n = os.copy_file_range(work.fileno(), out.fileno(), left)
                if n == 0:
                    break
                left -= n
        # The descriptors have moved on, and Python's own idea of the places has to follow.
        work.seek(start + n_bytes - left)
        out.seek(0, os.SEEK_END)
    shutil.copyfileobj(work, out, _PIECE)


def _digest(digest: hashlib._Hash, file: BinaryIO, start: int, n_bytes: int) -> str:
    """The digest with a part of a file added, without moving in the file."""
    for at in range(start, start + n_bytes, _PIECE):
        piece = os.pread(file.fileno(), min(_PIECE, start + n_bytes - at), at)
        digest.update(piece)
    return digest.hexdigest()


def _offset(tensor: TensorEntry) -> int:
    return tensor.offset


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
    source: Source,
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
        and (old := _still_there(quantizer, source, plan, target, known)) is not None
    }
    for target in targets:
        if target not in kept:
            check_target(target, force=replace_files, sources=[source.path])
    imatrix = next((plan.imatrix for plan in plans if plan.imatrix), None)
    if imatrix is not None and not single and imatrix.path.parent == folder:
        listed[imatrix.name] = _imatrix_entry(imatrix)
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
                force=replace_files,
                progress=listener.progress,
                keep_log=listener.keep_log,
            )
            if done.n_bytes != plan.n_bytes:
                raise AssertionError(f"{done.n_bytes} bytes, planned were {plan.n_bytes}")
            entry = _entry(quantizer, source, plan, done)
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
    source: Source,
    plan: FilePlan,
    target: Path,
    known: dict[str, ManifestFile],
) -> ManifestFile | None:
    """The manifest's entry of a file that need not be made again."""
    old = known.get(target.name)
    if old is None or not target.is_file() or target.stat().st_size != old.n_bytes:
        return None
    wanted = _entry(quantizer, source, plan, MadeFile(target, 0, old.sha256, (), ()))
    return old if old.made_like(wanted) and sha256_of(target) == old.sha256 else None


def _entry(quantizer: Quantizer, source: Source, plan: FilePlan, done: MadeFile) -> ManifestFile:
    return ManifestFile(
        name=done.path.name,
        kind=plan.kind.name,
        n_bytes=done.n_bytes,
        sha256=done.sha256,
        source_sha256=source.sha256,
        tool=tool_of(quantizer, plan),
        arguments=shown_arguments(plan.source, plan.kind, plan.options, plan.imatrix),
        imatrix_sha256=plan.imatrix.sha256 if plan.imatrix else None,
        tensors=done.tensors,
    )


def _imatrix_entry(imatrix: ImatrixInput) -> ManifestFile:
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
    """Who makes a file, for manifest and report."""
    return {
        "name": quantizer.kind,
        "version": plan.tool_version,
        "sha256": quantizer.sha256,
    }
