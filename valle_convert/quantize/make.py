"""One quantized file: made by llama-quantize, checked against the plan, signed, renamed.

llama-quantize writes into a file without a name beside the target, so that nothing is left
whoever is killed when. Its result is then copied into place in one pass that changes the
header (how the file was made) and computes every digest.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from valle_convert.errors import EnvironmentFault
from valle_convert.files import atomic_output, check_target
from valle_convert.gguf_file.header import Header, TensorEntry, header_of_open
from valle_convert.progress import Progress, silent
from valle_convert.quantize.plan import TENSOR_LINE, FilePlan, arguments_of, keys_of
from valle_convert.quantize.tool import Quantizer

_PIECE = 4 << 20


@dataclass(frozen=True)
class MadeTensor:
    """A tensor of a file that is there."""

    name: str
    kind: str
    shape: tuple[int, ...]
    sha256: str


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
    tensors: tuple[MadeTensor, ...]
    log: tuple[str, ...]


def make_file(
    quantizer: Quantizer,
    plan: FilePlan,
    target: Path,
    *,
    source_sha256: Callable[[], str],
    force: bool = False,
    progress: Progress = silent,
    keep_log: Callable[[list[str]], object] = lambda _lines: None,
) -> MadeFile:
    """Make the planned file, or leave nothing.

    Args:
        quantizer: who does it.
        plan: what it is to become.
        target: the file.
        source_sha256: gives the source's digest, which may be computed meanwhile.
        force: whether an existing file may be replaced.
        progress: hears of the bytes of the source that are done.
        keep_log: gets the tool's log, also where it failed.

    Raises:
        InputError: the target must not be written.
        EnvironmentFault: the tool failed, or did something else than it said in the plan.
    """
    check_target(target, force=force, sources=[plan.source.path])
    with _unnamed_file(target.parent) as work:
        log = _run(quantizer, plan, work, progress, keep_log)
        header = header_of_open(work, f"what {quantizer.kind} wrote")
        _check_types(quantizer, plan, header)
        new_header = header.changed(
            keys_of(
                quantizer.kind,
                plan.tool_version,
                quantizer.sha256,
                plan.source,
                plan.kind,
                plan.settings,
                plan.imatrix,
                source_sha256=source_sha256(),
            )
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
        plan.settings,
        plan.source.path,
        f"/dev/fd/{handle}",
        plan.imatrix.path if plan.imatrix else None,
    )
    label = f"quantizing {plan.kind.name}"
    try:
        with progress(label, sum(sizes.values()), "B") as advance:

            def hear(line: str) -> None:
                log.append(line)
                match = TENSOR_LINE.match(line)
                if match:
                    advance(sizes.get(match["name"], 0))

            return quantizer.run(arguments, on_line=hear, keep_open=[handle])
    finally:
        keep_log(log)


def _check_types(quantizer: Quantizer, plan: FilePlan, header: Header) -> None:
    """The result is what the dry run said, tensor by tensor."""
    expected = {tensor.name: (tensor.shape, tensor.kind.name) for tensor in plan.tensors}
    found = {name: (t.shape, t.kind.name) for name, t in header.tensors.items()}
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
    work: BinaryIO, header: Header, new_header: bytes, out: BinaryIO
) -> tuple[str, tuple[MadeTensor, ...]]:
    """Header and data into the target; the file's and the tensors' digests, side by side."""
    out.write(new_header)
    out.flush()
    _copy_data(work, header.data_start, out, header.data_bytes)
    whole = hashlib.sha256(new_header)
    with ThreadPoolExecutor(max_workers=1) as pool:
        pending = pool.submit(_digest, whole, work, header.data_start, header.data_bytes)
        made = [
            MadeTensor(
                tensor.name,
                tensor.kind.name,
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
