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
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from valle_convert.checkpoint.read import sha256_of
from valle_convert.errors import EnvironmentFault, InputError
from valle_convert.files import atomic_output, check_target, os_fault
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
    tensor_digests,
    write_manifest,
)
from valle_convert.quantize.options import Options, RunLog
from valle_convert.quantize.plan import (
    TENSOR_LINE,
    Fallback,
    FilePlan,
    arguments_of,
    fallbacks_of,
    keys_of,
    shown_arguments,
)
from valle_convert.quantize.source import Scratch, Source
from valle_convert.quantize.tool import Quantizer
from valle_convert.quantize.types import bits_per_weight

_PIECE = 4 << 20


@dataclass(frozen=True)
class MadeFile:
    """A file that was just made, and its digests.

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
    scratch: Scratch | None = None,
    force: bool = False,
    progress: Progress = silent,
    keep_log: Callable[[list[str]], object] = lambda _lines: None,
) -> MadeFile:
    """Make the planned file, or leave nothing.

    Args:
        quantizer: who does it.
        plan: what it is to become.
        target: the file.
        scratch: takes what the tool writes; None for one on the target's disk.
        force: whether an existing file may be replaced.
        progress: shows the bytes of the source that are done.
        keep_log: gets the tool's log, also where it failed.

    Raises:
        InputError: the target must not be written.
        EnvironmentFault: the tool failed, or did something else than it said in the plan.
    """
    check_target(target, force=force, sources=[plan.source.given])
    with closing(Scratch(target.parent)) as own:
        work, work_path = (scratch or own).new()
        with work:
            log = run_quantizer(quantizer, plan, work_path, progress, keep_log)
            header = open_written(quantizer, work)
            if plan.tensors is not None:
                check_types(quantizer, plan.tensors, header)
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
            with atomic_output(target, force=force, sources=[plan.source.given]) as out:
                sha256, tensors = copy_file(work, header, new_header, out)
                n_bytes = out.tell()
    return MadeFile(target, n_bytes, sha256, tensors, tuple(log))


def open_written(quantizer: Quantizer, work: BinaryIO) -> GgufFile:
    """What the tool has written.

    Raises:
        EnvironmentFault: it is no whole GGUF file.
    """
    try:
        return GgufFile(Path(f"what {quantizer.kind} wrote"), work)
    except InputError as error:
        # Of the tool's making, and not of the user's.
        raise EnvironmentFault(
            f"{quantizer.kind} ended without an error, and yet: {error} The tool at "
            f"{' '.join(quantizer.command)} does not work here; build it again (make "
            "llama-tools), or take another with --llama-quantize."
        ) from error


def run_quantizer(
    quantizer: Quantizer,
    plan: FilePlan,
    work: Path,
    progress: Progress,
    keep_log: Callable[[list[str]], object],
) -> list[str]:
    """Quantize into an open file; `keep_log` gets the log, also where it failed."""
    log: list[str] = []
    sizes = {name: tensor.n_bytes for name, tensor in plan.source.header.tensors.items()}
    label = f"quantizing {plan.kind.name}"
    try:
        with (
            _nameless(plan.imatrix) as imatrix,
            progress(label, sum(sizes.values()), "B") as advance,
        ):

            def follow(line: str) -> None:
                log.append(line)
                match = TENSOR_LINE.match(line)
                if match:
                    advance(sizes.get(match["name"], 0))

            arguments = arguments_of(plan.kind, plan.options, plan.source.path, work, imatrix)
            return quantizer.run(arguments, on_line=follow)
    finally:
        keep_log(log)


@contextmanager
def _nameless(imatrix: ImatrixInput | None) -> Iterator[Path | None]:
    """A path without the matrix's name, which llama.cpp writes into the file, cut after 127 bytes:
    a string that no reader takes, where the name is not UTF-8 or is cut inside of a character.
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
    """The result is what the dry run said, tensor by tensor."""
    expected = {tensor.name: (tensor.shape, tensor.ggml_type.name) for tensor in planned}
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


def copy_file(
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


# ------------------------------------------------------------------- all files of a run


@dataclass(frozen=True)
class Output:
    """A file of the run, before it is made.

    Attributes:
        plan: what it is to become.
        path: where.
        kept: the manifest's entry of a file that is there and need not be made again.
        reason: why a file that is there is made again; empty where there is none.
    """

    plan: FilePlan
    path: Path
    kept: ManifestFile | None = None
    reason: str = ""


@dataclass(frozen=True)
class Made:
    """A file that is there, with its plan.

    Attributes:
        plan: what it was to become.
        path: where.
        entry: of the manifest.
        tensors: what is in it, by its own header.
        fallbacks: the tensors that the type cannot hold.
        status: "made" or "kept".
        seconds: what making it took.
    """

    plan: FilePlan
    path: Path
    entry: ManifestFile
    tensors: tuple[TensorEntry, ...]
    fallbacks: tuple[Fallback, ...]
    status: str
    seconds: float


def outputs_of(
    quantizer: Quantizer,
    plans: Sequence[FilePlan],
    targets: Sequence[Path],
    known: Mapping[str, ManifestFile],
    options: Options,
) -> list[Output]:
    """What has to be made; refuses to replace what is there.

    A file is kept with --resume where the manifest lists it, it was made in the same way, and
    its bytes are those of then. As long as source or importance matrix are still to be made, what
    depends on them is taken to be the same.

    Raises:
        InputError: a file is there that is not kept, and there is no --force.
        EnvironmentFault: the folder cannot be written to.
    """
    outputs: list[Output] = []
    for plan, target in zip(plans, targets, strict=True):
        old = known.get(target.name)
        if not target.exists():
            outputs.append(Output(plan, target))
            continue
        reason = difference(quantizer, plan, target, old)
        if is_kept(target, old, reason, options, [plan.source.given]):
            outputs.append(Output(plan, target, kept=old))
        else:
            outputs.append(Output(plan, target, reason=reason))
    return outputs


def is_kept(
    target: Path,
    old: ManifestFile | None,
    reason: str,
    options: Options,
    sources: Sequence[Path],
) -> bool:
    """Whether an output that is there stays; where not, it may be replaced.

    Args:
        target: the output.
        old: its entry in the manifest.
        reason: why it is not what would be made; empty where it is.
        options: what the user wants.
        sources: what must not be replaced in any case.

    Raises:
        InputError: it is neither to stay nor to be replaced.
        EnvironmentFault: the folder cannot be written to.
    """
    if options.resume and old is not None and not reason:
        return True
    if not options.force and options.resume:
        raise InputError(
            f"The output {target} is there, and --resume does not keep it, since {reason}; "
            "give --force to make it again, or another folder."
        )
    if not options.force and old is not None:
        raise InputError(
            f"The output {target} exists and is not overwritten. It is of an earlier run, by "
            f"the folder's {MANIFEST}: --resume keeps what was made in the same way and makes "
            "the rest, --force makes all of it again."
        )
    check_target(target, force=options.force, sources=sources)
    return False


def difference(quantizer: Quantizer, plan: FilePlan, target: Path, old: ManifestFile | None) -> str:
    """Why a file that is there is not what would be made; empty where it is."""
    if old is None:
        return "no manifest lists it"
    arguments = shown_arguments(plan.source, plan.kind, plan.options, plan.imatrix)
    tool = tool_of(quantizer, plan)
    if old.kind != plan.kind.name:
        return f"it is of type {old.kind}"
    if plan.source.is_complete and old.source_sha256 != plan.source.sha256:
        return "it was made of another source"
    if dict(old.tool) != tool:
        return f"it was made by {old.tool.get('name')} {old.tool.get('version')}"
    if old.arguments != arguments:
        return f"it was made with other options ({' '.join(old.arguments)})"
    imatrix = plan.imatrix
    if (imatrix is None or imatrix.is_made) and old.imatrix_sha256 != (
        imatrix.sha256 if imatrix else None
    ):
        return "it was made with another importance matrix"
    if not target.is_file() or target.stat().st_size != old.n_bytes:
        return "its size is not that of the manifest"
    if sha256_of(target) != old.sha256:
        return "its bytes are not those of the manifest"
    keys = GgufFile(target, allow_part=True).keys
    for key in plan.options.identity.keys(plan.source.header.keys):
        if keys.get(key.name) != key.value:
            return f"its {key.name} is another one"
    return ""


def make_all(
    quantizer: Quantizer,
    outputs: Sequence[Output],
    listed: dict[str, ManifestFile] | None,
    options: Options,
    scratch: Scratch,
    log: RunLog,
) -> Iterator[Made]:
    """Make or keep one file after the other.

    Args:
        quantizer: who does it.
        outputs: in the order wanted.
        listed: the folder's manifest so far, which is kept right after each file; None for
            a single file, which has none.
        options: what the user wants.
        scratch: takes what the tool writes.
        log: is told what is done.
    """
    for output in outputs:
        start = time.perf_counter()
        plan, target = output.plan, output.path
        lines: tuple[str, ...] = ()
        if output.kept is not None:
            log.talk(f"kept {target.name}: source, type, tool and options are the same")
            entry = output.kept
        else:
            if output.reason:
                log.talk(f"{target.name} is made again: {output.reason}")
            done = make_file(
                quantizer,
                plan,
                target,
                scratch=scratch,
                force=options.force,
                progress=log.progress,
                keep_log=log.keep_log,
            )
            lines = done.log
            entry = _entry(quantizer, plan, done)
        tensors = tuple(GgufFile(target).tensors.values())
        seconds = time.perf_counter() - start
        if output.kept is None:
            log.talk(
                f"wrote {target}: {entry.n_bytes:,} bytes, {bits_per_weight(tensors):.2f} bits a "
                f"weight, {seconds:.1f} s"
            )
        if listed is not None:
            listed[entry.name] = entry
            write_manifest(target.parent, list(listed.values()))
        yield Made(
            plan,
            target,
            entry,
            tensors,
            fallbacks_of(lines, plan.source, plan.kind, options, tensors)
            if plan.tensors is None
            else plan.fallbacks,
            "made" if output.kept is None else "kept",
            seconds,
        )


def _entry(quantizer: Quantizer, plan: FilePlan, done: MadeFile) -> ManifestFile:
    return ManifestFile(
        name=done.path.name,
        kind=plan.kind.name,
        n_bytes=done.n_bytes,
        sha256=done.sha256,
        source_sha256=plan.source.sha256,
        tool=tool_of(quantizer, plan),
        arguments=shown_arguments(plan.source, plan.kind, plan.options, plan.imatrix),
        imatrix_sha256=plan.imatrix.sha256 if plan.imatrix else None,
        tensors=done.tensors,
    )


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


def plain_entry(path: Path, kind: str, source: Source) -> ManifestFile:
    """The manifest's entry of a file that this program wrote and that is no GGUF file."""
    return ManifestFile(
        name=path.name,
        kind=kind,
        n_bytes=path.stat().st_size,
        sha256=sha256_of(path),
        source_sha256=source.sha256,
        tool={"name": "valle-convert quantize"},
        arguments=(),
        imatrix_sha256=None,
        tensors=(),
    )


def tool_of(quantizer: Quantizer, plan: FilePlan) -> dict[str, str]:
    """Who makes a file, for manifest and report."""
    return {
        "name": quantizer.kind,
        "version": plan.tool_version,
        "sha256": quantizer.sha256,
    }
