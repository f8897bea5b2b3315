"""The bytes of a GGUF file before its tensor data, version 3, little endian.

    "GGUF"  u32 version  u64 tensors  u64 keys
    keys:     string name, u32 type, value
    tensors:  string name, u32 dimensions, u64 each (fastest first), u32 type, u64 offset
    zeros up to the alignment

A string is a u64 length and UTF-8; an array is a u32 type of its elements, a u64 length, and the
elements. The gguf package writes the same bytes (a test compares) with a Python call per element:
0.15 s for the hundred thousand strings and ids of a production-size vocabulary, compared with
0.02 s for packing whole arrays. A conversion makes a header twice.
"""

import math
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from valle_convert.gguf_file.types import ARRAY, SCALARS, STRING, VALUE_TYPES, GgmlType

MAGIC = b"GGUF"
#: Of ggml's files before GGUF, which encodec.cpp still reads.
GGML_MAGIC = b"lmgg"
VERSION = 3
#: The default alignment of tensor data.
ALIGNMENT = 32
ALIGNMENT_KEY = "general.alignment"


@dataclass(frozen=True)
class Key:
    name: str
    value: Any
    type: str  # `u32`, `f32`, `bool`, `string` and so on, in brackets for an array
    #: The value is known once the weights are read; `value` is then a placeholder of the same size.
    deferred: bool = False


@dataclass(frozen=True)
class TensorEntry:
    name: str
    shape: tuple[int, ...]  # rows first, as in numpy; one number for a vector
    ggml_type: GgmlType
    offset: int  # from the beginning of the data

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """The size of its data, without padding."""
        return math.prod(self.shape[:-1]) * self.ggml_type.row_bytes(self.shape[-1])


def weights_by_type(tensors: Iterable[TensorEntry]) -> Counter[GgmlType]:
    counts: Counter[GgmlType] = Counter()
    for tensor in tensors:
        counts[tensor.ggml_type] += tensor.n_elements
    return counts


def padded(n_bytes: int, alignment: int = ALIGNMENT) -> int:
    return -(-n_bytes // alignment) * alignment


def tensor_entries(tensors: Iterable[tuple[str, tuple[int, ...], GgmlType]]) -> list[TensorEntry]:
    """The table of tensors whose data is written in this order, aligned."""
    entries: list[TensorEntry] = []
    end = 0
    for name, shape, ggml_type in tensors:
        entries.append(TensorEntry(name, shape, ggml_type, end))
        end += padded(entries[-1].n_bytes)
    return entries


def write_entries(
    out: BinaryIO,
    header: bytes,
    tensors: Sequence[TensorEntry],
    data: Iterable[NDArray[Any]],
    advance: Callable[[int], object] = lambda _n: None,
) -> int:
    """Write a file of tensors in the order of their data; returns its size.

    Each tensor's data is requested when it is its turn; `advance` gets its size.
    """
    size = out.write(header)
    for tensor, piece in zip(tensors, data, strict=True):
        size += out.write(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)
        size += out.write(bytes(padded(tensor.n_bytes) - tensor.n_bytes))
        advance(padded(tensor.n_bytes))
    return size


def pack_header(keys: Sequence[Key], tensors: Sequence[TensorEntry]) -> bytes:
    """Everything before the tensor data, padded to the alignment."""
    alignment = next((key.value for key in keys if key.name == ALIGNMENT_KEY), ALIGNMENT)
    table = map(pack_tensor, tensors)
    return join_header(list(map(pack_key, keys)), len(tensors), table, alignment)


def join_header(
    keys: Sequence[bytes],
    n_tensors: int,
    table: Iterable[bytes],
    alignment: int,
    version: int = VERSION,
) -> bytes:
    """A padded header of encoded keys and an encoded table of tensors."""
    counts = struct.pack("<IQQ", version, n_tensors, len(keys))
    header = b"".join([MAGIC, counts, *keys, *table])
    return header.ljust(padded(len(header), alignment), b"\0")


def pack_key(key: Key) -> bytes:
    return _string(key.name) + _value(key.type, key.value)


def pack_tensor(tensor: TensorEntry) -> bytes:
    dimensions = tensor.shape[::-1]
    shape = struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
    place = struct.pack("<IQ", tensor.ggml_type.number, tensor.offset)
    return _string(tensor.name) + shape + place


def _value(kind: str, value: Any) -> bytes:  # noqa: ANN401 - `kind` names its type
    if not kind.startswith("["):
        number, data = _elements(kind, [value])
        return struct.pack("<I", number) + data
    number, data = _elements(kind.strip("[]"), value)
    return struct.pack("<IIQ", ARRAY, number, len(value)) + data


def _elements(kind: str, values: Sequence[Any]) -> tuple[int, bytes]:
    if kind == "string":
        return STRING, b"".join(map(_string, values))
    return VALUE_TYPES.index(kind), np.array(values, SCALARS[kind]).tobytes()


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
