"""Writes a plan: the header, then tensor after tensor, in pieces of a megabyte.

One thread hashes the source, another encodes the next piece, and a third hashes the last one, while
a piece is written. The header, written first with placeholders of the same length, is written again
at the end. Peak memory is three pieces, plus the mapped source.
"""

from __future__ import annotations

import hashlib
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from valle_convert.checkpoint.source import BlockSource, TensorSource
from valle_convert.files import atomic_outputs, check_free_space, check_outputs
from valle_convert.gguf_file.encode import check_blocks, encode
from valle_convert.gguf_file.header import ALIGNMENT, join_header, pack_key, pack_tensor, padded
from valle_convert.gguf_file.keys import (
    BIAS_KEY,
    DATA_DIGEST_KEY,
    HEADER_DIGEST_KEY,
    NO_DIGEST,
    SOURCE_SHA256_KEY,
)
from valle_convert.gguf_file.plan import PlannedFile, PlannedTensor
from valle_convert.gguf_file.types import F32, STRING, GgmlType
from valle_convert.progress import Progress, silent
from valle_convert.threads import made_ahead

# Small enough for the cache: with 8 MiB, the main thread takes 1.5 s for 908 MiB instead of 1.0.
_PIECE_BYTES = 1 << 20
# Type and length of a digest in a header, and a placeholder.
_STRING = struct.pack("<IQ", STRING, len(NO_DIGEST))
_ZEROS = _STRING + NO_DIGEST.encode()


class _CancelledError(Exception):
    """The hashing thread was stopped, because the writing failed."""


def header_of(plan: PlannedFile, values: Mapping[str, Any] | None = None) -> bytes:
    """Everything before the tensor data: keys, tensor table, padding."""
    known = values or {}
    late = [replace(key, value=known[key.name]) for key in plan.keys if key.name in known]
    keys = plan.packed_keys | {key.name: pack_key(key) for key in late}
    table = map(pack_tensor, plan.tensors)
    return join_header(list(keys.values()), len(plan.tensors), table, ALIGNMENT)


def write_files(
    files: Mapping[Path, PlannedFile],
    *,
    force: bool = False,
    sources: Sequence[Path] = (),
    progress: Progress = silent,
) -> dict[Path, int]:
    """Write all of the files, or leave nothing; returns their sizes in bytes."""
    first = next(iter(files))
    for path in files:
        check_outputs([path], force=force, inputs=sources)
    check_free_space(first, sum(len(header_of(one)) + one.data_bytes for one in files.values()))
    with (
        _digest_of(files[first]) as digest,
        atomic_outputs(list(files), force=force, sources=sources) as opened,
    ):
        return {
            path: write_plan_to(plan, file, source=digest, progress=progress)
            for (path, plan), file in zip(files.items(), opened, strict=True)
        }


@contextmanager
def _digest_of(plan: PlannedFile) -> Iterator[Future[str]]:
    """The SHA-256 of the source, computed by another thread and cancelled if the writing fails."""
    stop = threading.Event()

    def keep_going(_n: int) -> None:
        if stop.is_set():
            raise _CancelledError

    with ThreadPoolExecutor(max_workers=1) as pool:
        try:
            yield pool.submit(plan.checkpoint.sha256, keep_going)
        finally:
            stop.set()


def write_plan_to(
    plan: PlannedFile,
    file: BinaryIO,
    *,
    source: Future[str] | None = None,
    progress: Progress = silent,
) -> int:
    """Write all of an open file, from its beginning; returns its size in bytes."""
    file.seek(0)
    values: dict[str, Any] = {}
    if plan.biases:
        values[BIAS_KEY] = read_biases(plan)
    header = header_of(plan, values)
    size = len(header) + plan.data_bytes
    with (
        _digest_of(plan) if source is None else nullcontext(source) as digest,
        ThreadPoolExecutor(max_workers=1) as hashing,
    ):
        data_digest = hashlib.sha256()
        pending: Future[None] | None = None
        with progress("writing", size, "B") as advance:
            advance(file.write(header))
            for view in made_ahead(_data(plan)):
                if pending is not None:
                    pending.result()
                pending = hashing.submit(data_digest.update, view)
                advance(file.write(view))
        if pending is not None:
            pending.result()
        values[SOURCE_SHA256_KEY] = digest.result()
        values |= plan.late_values(digest.result())
        values[DATA_DIGEST_KEY] = data_digest.hexdigest()
        values[HEADER_DIGEST_KEY] = header_digest(header_of(plan, values), values)
        file.seek(0)
        file.write(header_of(plan, values))
    return size


def _data(plan: PlannedFile) -> Iterator[memoryview]:
    """All bytes after the header."""
    for tensor in plan.tensors:
        yield from map(_bytes_of, pieces(plan, tensor))
        yield memoryview(bytes(padded(tensor.n_bytes) - tensor.n_bytes))


def header_digest(header: bytes, digests: Mapping[str, Any]) -> str:
    """The SHA-256 of a header, with zeros in the place of its digests."""
    for name in (DATA_DIGEST_KEY, HEADER_DIGEST_KEY):
        digest = str(digests.get(name, NO_DIGEST)).encode()
        header = header.replace(name.encode() + _STRING + digest, name.encode() + _ZEROS)
    return hashlib.sha256(header).hexdigest()


def pieces(plan: PlannedFile, tensor: PlannedTensor) -> Iterator[NDArray[Any]]:
    """The encoded bytes of a planned tensor, in order, a megabyte at a time."""
    tensors = plan.checkpoint.tensors
    for span in tensor.spans:
        blocks = stored_blocks(tensors, span.source, tensor.ggml_type)
        source = tensors.read(span.source) if blocks is None else blocks
        if len(tensor.shape) == 1:
            yield encode(source, tensor.ggml_type, span.source)
            continue
        if blocks is None:
            source = source.reshape(-1, tensor.shape[-1])
        step = max(1, _PIECE_BYTES // (source.shape[1] * source.dtype.itemsize))
        for start in range(0, span.n_rows, step):
            piece = slice(start, min(start + step, span.n_rows))
            rows = source[piece if span.gather is None else list(span.gather[piece])]
            if blocks is None:
                yield encode(rows, tensor.ggml_type, span.source)
            else:
                check_blocks(rows, tensor.ggml_type, span.source)
                yield np.ascontiguousarray(rows)


def stored_blocks(
    tensors: TensorSource, name: str, ggml_type: GgmlType
) -> NDArray[np.uint8] | None:
    """The rows of a source tensor that is already of the quantized type, [n, bytes], or None."""
    if not isinstance(tensors, BlockSource) or tensors.specs[name].dtype_name != ggml_type.name:
        return None
    return tensors.read_blocks(name)


def read_biases(plan: PlannedFile) -> list[float]:
    """The heads' biases one after the other, as float32 values."""
    values: list[float] = []
    for bias in plan.biases:
        source = plan.checkpoint.tensors.read(bias.source)[: bias.n_rows]
        values += encode(source.astype(np.float32), F32, bias.source).tolist()
    return values


def _bytes_of(data: NDArray[Any]) -> memoryview:
    return data.reshape(-1).view(np.uint8).data
