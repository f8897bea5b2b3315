"""The header of a GGUF file, kept as bytes: read in milliseconds, changed without a rewrite.

A GGUF file is a header (keys, then a table of tensors) and the tensors' data. Where only
keys are looked at or added, decoding 36,000 tokens into Python strings is wasted, so the
entries are walked and kept as spans of the original bytes; what is not changed is copied.

    magic "GGUF" | u32 version | u64 n_tensors | u64 n_keys
    n_keys    x  string name | u32 type | value
    n_tensors x  string name | u32 n_dims | u64 x n_dims (columns first) | u32 type | u64 offset
    padding to the alignment, then the data; offsets count from here

A file is untrusted: whatever does not fit in it is an `InputError`.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gguf import GGML_QUANT_SIZES

from valle_convert.errors import InputError
from valle_convert.files import describe_os_error
from valle_convert.gguf_file.keys import Key
from valle_convert.gguf_file.pack import pack_key

#: Types of values, in the numbering of the format.
_TYPE_NAMES = "u8 i8 u16 i16 u32 i32 f32 bool string array u64 i64 f64".split()
_TYPE_NUMBERS = {name: number for number, name in enumerate(_TYPE_NAMES)}
_SCALARS = dict(
    zip("u8 i8 u16 i16 u32 i32 f32 bool u64 i64 f64".split(), "BbHhIif?Qqd", strict=True)
)
_STRING, _ARRAY = _TYPE_NUMBERS["string"], _TYPE_NUMBERS["array"]
_DEFAULT_ALIGNMENT = 32
_MAX_DIMENSIONS = 4


@dataclass(frozen=True)
class GgmlType:
    """How llama.cpp stores the elements of a tensor.

    Attributes:
        name: in capitals, as the gguf package has it.
        number: in files.
        block: elements that are stored together; rows have to divide by it.
        block_bytes: the size of a block.
    """

    name: str
    number: int
    block: int
    block_bytes: int

    def row_bytes(self, n_columns: int) -> int:
        """The size of a row, which has to divide into blocks."""
        return n_columns // self.block * self.block_bytes

    @property
    def bits(self) -> float:
        """Bits a weight."""
        return 8 * self.block_bytes / self.block


# Q2_0 is younger than the newest gguf package: 64 two-bit values and a scale in float16.
_TYPES = [
    *(GgmlType(kind.name, int(kind), *size) for kind, size in GGML_QUANT_SIZES.items()),
    GgmlType("Q2_0", 42, 64, 18),
]
GGML_TYPES: Mapping[str, GgmlType] = {kind.name: kind for kind in _TYPES}
_BY_NUMBER = {kind.number: kind for kind in GGML_TYPES.values()}


@dataclass(frozen=True)
class TensorEntry:
    """A row of the table of tensors.

    Attributes:
        name: the tensor's name.
        shape: rows first.
        kind: the type of its elements.
        offset: of its data, from the beginning of the data.
    """

    name: str
    shape: tuple[int, ...]
    kind: GgmlType
    offset: int

    @property
    def n_elements(self) -> int:
        """The number of weights."""
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """The size of its data, without padding."""
        return math.prod(self.shape[:-1]) * self.kind.row_bytes(self.shape[-1])


@dataclass(frozen=True)
class _Span:
    """Where a key lies in the header: the whole entry, and its value."""

    start: int
    type_at: int
    value_at: int
    stop: int


class Header:
    """The header of a GGUF file.

    Attributes:
        tensors: by name, in file order.
        alignment: what the data of each tensor is aligned to.
        data_start: where the data begins in the file.
        data_bytes: the size of the data, padding included.

    Raises:
        InputError: it is no whole GGUF file.
    """

    def __init__(self, buffer: bytes | mmap.mmap, label: str) -> None:
        reader = _Reader(buffer)
        try:
            self._parse(reader)
        except (struct.error, ValueError, UnicodeDecodeError) as error:
            raise InputError(
                f"{label} is no whole GGUF file ({error}); convert or copy it again."
            ) from error
        self._bytes = bytes(buffer[: self._tables_end])

    def _parse(self, reader: _Reader) -> None:
        if reader.take(4) != b"GGUF":
            raise ValueError("it does not begin with the four letters GGUF")
        self._version, n_tensors, n_keys = reader.unpack("<IQQ")
        if self._version not in (2, 3):
            raise ValueError(f"version {self._version} of the format, expected 2 or 3")
        self._spans: dict[str, _Span] = {}
        for _ in range(n_keys):
            start = reader.at
            name = reader.string()
            type_at = reader.at
            (kind,) = reader.unpack("<I")
            value_at = reader.at
            reader.skip_value(kind)
            if name in self._spans:
                raise ValueError(f"the key {name!r:.60} is there twice")
            self._spans[name] = _Span(start, type_at, value_at, reader.at)
        self._keys_end = reader.at
        self.tensors: dict[str, TensorEntry] = {}
        for _ in range(n_tensors):
            tensor = reader.tensor()
            if tensor.name in self.tensors:
                raise ValueError(f"the tensor {tensor.name!r:.60} is there twice")
            self.tensors[tensor.name] = tensor
        self._tables_end = reader.at
        self.alignment = _DEFAULT_ALIGNMENT
        if "general.alignment" in self._spans:
            span = self._spans["general.alignment"]
            (self.alignment,) = struct.unpack_from("<I", reader.buffer, span.value_at)
            if self.alignment < 8 or self.alignment & (self.alignment - 1):
                raise ValueError(f"an alignment of {self.alignment}")
        self.data_start = self.padded(self._tables_end)
        for tensor in self.tensors.values():
            if self.data_start + tensor.offset + tensor.n_bytes > reader.size:
                raise ValueError(f"the data of {tensor.name!r:.60} ends behind the file's end")
        self.data_bytes = max(
            (self.padded(tensor.offset + tensor.n_bytes) for tensor in self.tensors.values()),
            default=0,
        )

    @property
    def key_names(self) -> tuple[str, ...]:
        """The names of all keys, in file order."""
        return tuple(self._spans)

    def __contains__(self, name: str) -> bool:
        return name in self._spans

    def raw(self, name: str) -> bytes:
        """A key's type and value as they stand in the file; equal bytes are equal keys."""
        span = self._spans[name]
        return self._bytes[span.type_at : span.stop]

    def value(self, name: str, default: Any = None) -> Any:  # noqa: ANN401 - of any type
        """A key's value as Python has it, decoded now; `default` where there is no such key."""
        if name not in self._spans:
            return default
        span = self._spans[name]
        reader = _Reader(self._bytes, span.type_at)
        (kind,) = reader.unpack("<I")
        return reader.value(kind)

    def padded(self, n_bytes: int) -> int:
        """The size rounded up to the alignment."""
        return -(-n_bytes // self.alignment) * self.alignment

    def changed(self, keys: Sequence[Key], *, drop: Sequence[str] = ()) -> bytes:
        """The header with other keys, padded; a key that is there keeps its place.

        Args:
            keys: what to set; new ones come last, in this order.
            drop: what to leave out.
        """
        new = {key.name: pack_key(key) for key in keys}
        entries = [
            new.pop(name) if name in new else self._bytes[span.start : span.stop]
            for name, span in self._spans.items()
            if name not in drop
        ]
        entries += new.values()
        header = b"".join(
            [
                b"GGUF",
                struct.pack("<IQQ", self._version, len(self.tensors), len(entries)),
                *entries,
                self._bytes[self._keys_end : self._tables_end],
            ]
        )
        return header.ljust(self.padded(len(header)), b"\0")


def read_header(path: Path) -> Header:
    """The header of a file.

    Raises:
        InputError: it cannot be read, or is no whole GGUF file.
    """
    try:
        with path.open("rb") as file:
            return header_of_open(file, str(path))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {describe_os_error(error)}.") from error


def header_of_open(file: BinaryIO, label: str) -> Header:
    """The header of an open file, wherever its position is."""
    size = file.seek(0, 2)
    if size == 0:
        raise InputError(f"{label} is empty, where a GGUF file is expected.")
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return Header(mapped, label)


class _Reader:
    """A place in untrusted bytes."""

    def __init__(self, buffer: bytes | mmap.mmap, at: int = 0) -> None:
        self.buffer = buffer
        self.size = len(buffer)
        self.at = at

    def take(self, n_bytes: int) -> bytes:
        self._skip(n_bytes)
        return self.buffer[self.at - n_bytes : self.at]

    def unpack(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(layout, self.buffer, self.at)
        self.at += struct.calcsize(layout)
        return values

    def string(self) -> str:
        (length,) = self.unpack("<Q")
        return self.take(length).decode("utf-8")

    def _text(self) -> str:
        """A string value; unlike a name, it may be no UTF-8."""
        (length,) = self.unpack("<Q")
        return self.take(length).decode("utf-8", errors="replace")

    def skip_value(self, kind: int) -> None:
        name = self._type_name(kind)
        if name == "string":
            self._skip_strings(1)
        elif name == "array":
            element, n = self.unpack("<IQ")
            element_name = self._type_name(element)
            if element_name == "string":
                self._skip_strings(n)
            elif element_name == "array":
                raise ValueError("a list of lists")
            else:
                self._skip(n * struct.calcsize(f"<{_SCALARS[element_name]}"))
        else:
            self._skip(struct.calcsize(f"<{_SCALARS[name]}"))

    def value(self, kind: int) -> Any:  # noqa: ANN401 - of any type
        name = self._type_name(kind)
        if name == "string":
            return self._text()
        if name == "array":
            element, n = self.unpack("<IQ")
            element_name = self._type_name(element)
            if element_name == "string":
                return [self._text() for _ in range(n)]
            return list(self.unpack(f"<{n}{_SCALARS[element_name]}"))
        return self.unpack(f"<{_SCALARS[name]}")[0]

    def tensor(self) -> TensorEntry:
        name = self.string()
        (n_dims,) = self.unpack("<I")
        if not 1 <= n_dims <= _MAX_DIMENSIONS:
            raise ValueError(f"the tensor {name!r:.60} has {n_dims} dimensions")
        *columns_first, number, offset = self.unpack(f"<{n_dims}QIQ")
        kind = _BY_NUMBER.get(number)
        if kind is None:
            raise ValueError(f"the tensor {name!r:.60} is of the unknown type {number}")
        if columns_first[0] % kind.block:
            raise ValueError(f"rows of {columns_first[0]} in {name!r:.60}, of type {kind.name}")
        return TensorEntry(name, tuple(reversed(columns_first)), kind, offset)

    def _type_name(self, kind: int) -> str:
        if kind >= len(_TYPE_NAMES):
            raise ValueError(f"a value of the unknown type {kind}")
        return _TYPE_NAMES[kind]

    def _skip(self, n_bytes: int) -> None:
        if n_bytes > self.size - self.at:
            raise ValueError(f"it ends in the middle of something, {self.size:,} bytes in")
        self.at += n_bytes

    def _skip_strings(self, n: int) -> None:
        buffer, at, size = self.buffer, self.at, self.size
        length_at = struct.Struct("<Q").unpack_from
        for _ in range(n):
            at += 8 + length_at(buffer, at)[0]
            if at > size:
                raise ValueError(f"it ends in the middle of a string, {size:,} bytes in")
        self.at = at
