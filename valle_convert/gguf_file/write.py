"""Writes a plan: the header, then tensor after tensor, in pieces of a megabyte.

One thread hashes the source, another encodes the next piece, and a third hashes the last one, while
a piece is written. The header, written first with placeholders of the same length, is written again
at the end. Peak memory is three pieces, plus the mapped source.
"""

import hashlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from valle_convert.checkpoint.source import BlockSource, TensorSource
from valle_convert.files import atomic_outputs, check_free_space
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
from valle_convert.model.description import RowBlock
from valle_convert.progress import Progress, silent
from valle_convert.threads import in_background, made_ahead

# Small enough for the cache: with 8 MiB, the main thread takes 1.5 s for 908 MiB instead of 1.0.
_PIECE_BYTES = 1 << 20
# Type and length of a digest in a header, and a placeholder.
_STRING = struct.pack("<IQ", STRING, len(NO_DIGEST))
_ZEROS = _STRING + NO_DIGEST.encode()


def header_of(plan: PlannedFile, values: Mapping[str, Any] | None = None) -> bytes:
    """Everything before the tensor data: keys, tensor table, padding."""
    known = values or {}
    late = [replace(key, value=known[key.name]) for key in plan.keys if key.name in known]
    keys = plan.packed_keys | {key.name: pack_key(key) for key in late}
    return join_header(
        [*keys.values()], len(plan.tensors), map(pack_tensor, plan.tensors), ALIGNMENT
    )


def write_files(
    files: Mapping[Path, PlannedFile],
    *,
    force: bool = False,
    inputs: Sequence[Path] = (),
    progress: Progress = silent,
) -> dict[Path, int]:
    """Write all of the files, or leave nothing; returns their sizes in bytes."""
    n_bytes = sum(len(header_of(one)) + one.data_bytes for one in files.values())
    with atomic_outputs(list(files), force=force, inputs=inputs) as opened:
        check_free_space(next(iter(files)), n_bytes)
        return {
            path: write_plan_to(plan, file, progress=progress)
            for (path, plan), file in zip(files.items(), opened, strict=True)
        }


def write_plan_to(plan: PlannedFile, file: BinaryIO, *, progress: Progress = silent) -> int:
    """Write all of an open file, from its beginning; returns its size in bytes."""
    file.seek(0)
    values: dict[str, Any] = {}
    if plan.biases:
        values[BIAS_KEY] = read_biases(plan)
    header = header_of(plan, values)
    size = len(header) + plan.data_bytes
    data_digest = hashlib.sha256()
    sha256 = in_background(plan.checkpoint.sha256, awaited=False)
    with ThreadPoolExecutor(1) as hashing, progress("writing", size, "B") as advance:
        pending: Future[None] | None = None
        advance(file.write(header))
        for view in made_ahead(_data(plan)):
            if pending is not None:
                pending.result()
            pending = hashing.submit(data_digest.update, view)
            advance(file.write(view))
    values[SOURCE_SHA256_KEY] = sha256.result()
    values |= plan.late_values(sha256.result())
    values[DATA_DIGEST_KEY] = data_digest.hexdigest()
    values[HEADER_DIGEST_KEY] = header_digest(header_of(plan, values), values)
    file.seek(0)
    file.write(header_of(plan, values))
    return size


def _data(plan: PlannedFile) -> Iterator[memoryview]:
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
        for _, rows in source_rows(span, source, step):
            if blocks is None:
                yield encode(rows, tensor.ggml_type, span.source)
            else:
                check_blocks(rows, tensor.ggml_type, span.source)
                yield np.ascontiguousarray(rows)


def source_rows(
    span: RowBlock, source: NDArray[Any], step: int
) -> Iterator[tuple[int, NDArray[Any]]]:
    """The rows of a span, a few at a time, each with the tensor's row where they begin."""
    for start in range(0, span.n_rows, step):
        piece = slice(start, min(start + step, span.n_rows))
        rows = source[piece if span.gather is None else list(span.gather[piece])]
        yield span.first_row + start, rows


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
