"""What is in a GGUF file, whoever made it: keys decoded when asked for, tensors mapped.

A file is untrusted. The table of its contents is walked once, strictly, and kept as spans
of the mapped bytes; so a file is opened in milliseconds, and a header can be changed without
decoding 36,000 tokens. `header` describes the format.

What is accepted, stock llama.cpp and the gguf package read alike. What one of them would
abort, hang or index wildly on, is an `InputError` that says what is wrong.
"""

from __future__ import annotations

import mmap
import stat
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray

from valle_convert.checkpoint.hub import is_on_hub
from valle_convert.errors import InputError
from valle_convert.files import check_input_file, os_fault
from valle_convert.gguf_file.encode import decode
from valle_convert.gguf_file.header import (
    ALIGNMENT,
    ALIGNMENT_KEY,
    MAGIC,
    Key,
    TensorEntry,
    join_header,
    pack_key,
    pack_tensor,
    padded,
    tensor_entries,
    write_entries,
)
from valle_convert.gguf_file.types import ARRAY, SCALARS, STRING, TYPE_OF_NUMBER, VALUE_TYPES

_VERSIONS = (2, 3)
_MAX_DIMENSIONS = 4
_MAX_TENSOR_NAME = 63  # bytes: what llama.cpp holds without the zero at the end
_MAX_KEY_NAME = 65_535  # bytes, by the specification
# Far above any model, and low enough that a hostile file costs a second and some 100 MB.
_MAX_ENTRIES = 1 << 17  # keys, and tensors
_MAX_ELEMENTS = 1 << 23  # of all arrays together
_MAX_HEADER_BYTES = 128 << 20
_MAX_ALIGNMENT = 1 << 16
_MAX_COUNT = (1 << 63) - 1  # elements of a tensor, in llama.cpp's int64
_SPLIT_NUMBER, _SPLIT_COUNT = "split.no", "split.count"
_SHOWN = 60  # characters of a name in a message


@dataclass(frozen=True)
class _Contents:
    """The bytes of a file, and what to call it."""

    label: str
    buffer: bytes | mmap.mmap


@dataclass(frozen=True)
class TensorInfo(TensorEntry):
    """One tensor of a GGUF file.

    Attributes:
        start: of its data, from the beginning of the file.
    """

    start: int = field(compare=False)
    _contents: _Contents = field(compare=False, repr=False)

    @property
    def data(self) -> NDArray[np.uint8]:
        """Mapped bytes: [..., bytes of a row]; of a vector, [bytes]."""
        flat = np.frombuffer(self._contents.buffer, np.uint8, self.n_bytes, self.start)
        return flat.reshape(*self.shape[:-1], self.ggml_type.row_bytes(self.shape[-1]))

    def rows(
        self, index: slice | Sequence[int] | NDArray[Any] = slice(None)
    ) -> NDArray[np.float32]:
        """Rows as float32 [n, columns], dequantized; a vector as [columns]."""
        data = self.data if len(self.shape) == 1 else self.data.reshape(self.shape[0], -1)[index]
        try:
            return decode(data, self.ggml_type)
        except InputError as error:
            raise InputError(f"{self._contents.label}, {self.name}: {error}") from error


def is_gguf(path: Path) -> bool:
    """Whether a file is meant to be a GGUF file, by its first four letters."""
    if is_on_hub(path):
        return False
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return False  # a pipe is not waited for
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise os_fault(f"{path} cannot be read", error) from error


class GgufFile:
    """A GGUF file, parsed. It stays mapped as long as this object or data of it lives.

    Args:
        contents: the file's bytes, or the file opened, wherever its position is.

    Attributes:
        keys: every metadata key, decoded when it is looked up; strings and lists as Python's.
        key_types: the type of each key, as in `header.Key`.
        tensors: by name, in the order of the file.
        alignment: what the data of each tensor is aligned to.
        data_start: where the data begins in the file.
        data_bytes: the size of the data, padding included.
        size: of the file, in bytes.
    """

    def __init__(
        self,
        path: Path,
        contents: bytes | BinaryIO | None = None,
        *,
        allow_part: bool = False,
    ) -> None:
        self.path = path
        if contents is None:
            buffer: bytes | mmap.mmap = _map_path(path)
        elif isinstance(contents, bytes):
            buffer = contents
        else:
            buffer = _map(contents, str(path))
        self._contents = _Contents(str(path), buffer)
        self.size = len(buffer)
        reader = _Reader(buffer)
        try:
            self._parse(reader)
        except _DamageError as error:
            raise InputError(
                f"{path} is no whole GGUF file: {error}; convert or copy it again."
            ) from None
        if not allow_part:
            self.refuse_part()

    def _parse(self, reader: _Reader) -> None:
        self._version, n_tensors, n_keys = reader.start()
        self._spans = reader.keys(n_keys)
        self._keys_end = reader.at
        self.keys: Mapping[str, Any] = _Keys(self._contents.buffer, self._spans)
        self.alignment = self._read_alignment()
        tensors: dict[str, TensorEntry] = {}
        for _ in range(n_tensors):
            tensor = reader.tensor()
            if tensor.name in tensors:
                reader.fail(f"the tensor {_quote(tensor.name)} is there twice")
            tensors[tensor.name] = tensor
        self._tables_end = reader.at
        self.data_start = self.padded(reader.at)
        self._place(tensors)
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(
                name=name,
                shape=tensor.shape,
                ggml_type=tensor.ggml_type,
                offset=tensor.offset,
                start=self.data_start + tensor.offset,
                _contents=self._contents,
            )
            for name, tensor in tensors.items()
        }

    def _read_alignment(self) -> int:
        if ALIGNMENT_KEY not in self._spans:
            return ALIGNMENT
        kind = self._spans[ALIGNMENT_KEY].type
        if kind != "u32":
            raise _DamageError(f"{ALIGNMENT_KEY} is of type {kind}, where u32 is expected")
        alignment: int = self.keys[ALIGNMENT_KEY]
        if not 8 <= alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
            raise _DamageError(
                f"{ALIGNMENT_KEY} is {alignment}, where a power of two from 8 to "
                f"{_MAX_ALIGNMENT} is expected"
            )
        return alignment

    def _place(self, tensors: Mapping[str, TensorEntry]) -> None:
        """The data: one tensor behind the other, in the order of the table, to the file's end."""
        end, before = 0, "the beginning"
        for tensor in tensors.values():
            name, expected = _quote(tensor.name), self.padded(end)
            if tensor.offset % self.alignment:
                raise _DamageError(
                    f"the data of {name} begins at {tensor.offset}, which is no multiple of the "
                    f"alignment {self.alignment}"
                )
            if tensor.offset != expected:
                what = "overlaps with" if tensor.offset < expected else "leaves a hole after"
                raise _DamageError(
                    f"the data of {name} begins at {tensor.offset} and {what} that of {before}, "
                    f"where {expected} is next"
                )
            end, before = tensor.offset + tensor.n_bytes, name
            if self.data_start + end > self.size:
                raise _DamageError(
                    f"the data of {name} ends at byte {self.data_start + end:,}, and the file "
                    f"has {self.size:,}"
                )
        self.data_bytes = self.padded(end)
        n_more = self.size - self.data_start - self.data_bytes
        if n_more > 0:
            raise _DamageError(f"{n_more:,} bytes follow the last tensor")

    def refuse_part(self) -> None:
        """Refuse a part of a split model: llama.cpp would load further files by their names."""
        if self.is_part:
            number, count = (self.keys.get(name) for name in (_SPLIT_NUMBER, _SPLIT_COUNT))
            raise InputError(
                f"{self.path} is one part of a split model ({_SPLIT_NUMBER} {number!r:.20}, "
                f"{_SPLIT_COUNT} {count!r:.20}), where a whole one is expected; join the parts "
                "with `llama-gguf-split --merge`."
            )

    @property
    def is_part(self) -> bool:
        """Whether it is one of several files of a split model."""
        return self.keys.get(_SPLIT_NUMBER, 0) != 0 or self.keys.get(_SPLIT_COUNT, 0) not in (0, 1)

    @cached_property
    def key_types(self) -> Mapping[str, str]:
        return {name: span.type for name, span in self._spans.items()}

    def raw(self, name: str) -> bytes:
        """A key's type and value as they stand in the file; equal bytes are equal keys."""
        span = self._spans[name]
        return self._contents.buffer[span.type_at : span.stop]

    def padded(self, n_bytes: int) -> int:
        """The size rounded up to the alignment."""
        return padded(n_bytes, self.alignment)

    def changed(self, keys: Sequence[Key], *, drop: Sequence[str] = ()) -> bytes:
        """The header with other keys, padded; a key that is there keeps its place."""
        table = self._contents.buffer[self._keys_end : self._tables_end]
        entries = self._entries(keys, drop)
        return join_header(entries, len(self.tensors), [table], self.alignment, self._version)

    def write_aligned(self, out: BinaryIO) -> None:
        """Write the same keys and tensors, aligned as files are that do not say how.

        llama-quantize aligns what it writes to 32 bytes, and keeps a key that says otherwise.
        """
        held = self.tensors.values()
        tensors = tensor_entries((one.name, one.shape, one.ggml_type) for one in held)
        entries = self._entries((), (ALIGNMENT_KEY,))
        table = map(pack_tensor, tensors)
        header = join_header(entries, len(tensors), table, ALIGNMENT, self._version)
        write_entries(out, header, tensors, (one.data for one in held))

    def _entries(self, keys: Sequence[Key], drop: Sequence[str]) -> list[bytes]:
        new = {key.name: pack_key(key) for key in keys}
        entries = [
            new.pop(name) if name in new else self._contents.buffer[span.start : span.stop]
            for name, span in self._spans.items()
            if name not in drop
        ]
        return [*entries, *new.values()]


class _DamageError(Exception):
    """What is wrong with a file, in words."""


@dataclass(frozen=True)
class _Span:
    """Where a key lies: the whole entry, its type, its value."""

    type: str
    start: int
    type_at: int
    value_at: int
    stop: int


class _Keys(Mapping[str, Any]):
    """Values by name, each decoded once, when it is looked up."""

    def __init__(self, buffer: bytes | mmap.mmap, spans: Mapping[str, _Span]) -> None:
        self._buffer = buffer
        self._spans = spans
        self._decoded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 - of any type
        if name not in self._decoded:
            span = self._spans[name]
            self._decoded[name] = _Reader(self._buffer, span.value_at).value(span.type)
        return self._decoded[name]

    def __contains__(self, name: object) -> bool:
        return name in self._spans

    def __iter__(self) -> Iterator[str]:
        return iter(self._spans)

    def __len__(self) -> int:
        return len(self._spans)


class _Reader:
    """A place in untrusted bytes."""

    def __init__(self, buffer: bytes | mmap.mmap, at: int = 0) -> None:
        self._buffer = buffer
        self._size = len(buffer)
        self._n_elements = 0
        self.at = at

    def start(self) -> tuple[int, int, int]:
        """Version, number of tensors, number of keys."""
        if self._buffer[: len(MAGIC)] != MAGIC:
            self.fail("it does not begin with the four letters GGUF")
        self._skip(len(MAGIC), "magic")
        version, n_tensors, n_keys = self._unpack("<IQQ", "beginning")
        if version not in _VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS
            found = "in big-endian byte order" if swapped else f"of version {version} of the format"
            self.fail(f"it is {found}, where little-endian and version 2 or 3 are expected")
        # The shortest key is a u8 of a one-letter name, the shortest tensor has one dimension.
        for n, what, least in ((n_keys, "keys", 14), (n_tensors, "tensors", 33)):
            if n > _MAX_ENTRIES:
                self.fail(f"it says that it has {n} {what}, where {_MAX_ENTRIES:,} are allowed")
            if n * least > self._size:
                self.fail(
                    f"it says that it has {n} {what}, more than its {self._size:,} bytes hold"
                )
        return version, n_tensors, n_keys

    def keys(self, n: int) -> dict[str, _Span]:
        """The entries of the metadata by name."""
        spans: dict[str, _Span] = {}
        for i in range(n):
            start = self.at
            name = self._name(f"key {i}", _MAX_KEY_NAME)
            type_at = self.at
            what = f"key {_quote(name)}"
            (number,) = self._unpack("<I", what)
            value_at = self.at
            kind = self._skip_value(number, what)
            if name in spans:
                self.fail(f"the {what} is there twice")
            spans[name] = _Span(kind, start, type_at, value_at, self.at)
        return spans

    def tensor(self) -> TensorEntry:
        name = self._name("tensor", _MAX_TENSOR_NAME)
        what = f"tensor {_quote(name)}"
        (n_dims,) = self._unpack("<I", what)
        if not 1 <= n_dims <= _MAX_DIMENSIONS:
            self.fail(f"the {what} has {n_dims} dimensions, where 1 to 4 are expected")
        *columns_first, number, offset = self._unpack(f"<{n_dims}QIQ", what)
        shape = tuple(reversed(columns_first))
        if 0 in shape:
            self.fail(f"the {what} of shape {list(shape)} has no elements")
        kind = TYPE_OF_NUMBER.get(number)
        if kind is None:
            self.fail(f"the {what} is of the unknown type {number}")
        try:
            entry = TensorEntry(name, shape, kind, offset)
            if max(entry.n_elements, entry.n_bytes, offset) > _MAX_COUNT:
                self.fail(f"the {what} of shape {list(shape)} at {offset} exceeds 63 bits")
        except ValueError as error:
            self.fail(f"the {what} cannot be {kind.name}: {error}")
        return entry

    def value(self, kind: str) -> Any:  # noqa: ANN401 - of any type
        """A value that was walked over before."""
        if kind == "string":
            return self._text()
        if not kind.startswith("["):
            return self._numbers(kind, 1)[0]
        element = kind.strip("[]")
        _, n = self._unpack("<IQ", "array")
        return (
            [self._text() for _ in range(n)] if element == "string" else self._numbers(element, n)
        )

    def fail(self, what: str) -> NoReturn:
        raise _DamageError(what)

    def _skip_value(self, number: int, what: str) -> str:
        """Walk over a value; returns its type in words."""
        if number == STRING:
            self._skip_strings(1, what)
            return "string"
        if number != ARRAY:
            return self._skip_numbers(number, 1, what)
        element, n = self._unpack("<IQ", what)
        if element == ARRAY:
            self.fail(f"the {what} is an array of arrays, which llama.cpp does not read")
        self._n_elements += n
        if self._n_elements > _MAX_ELEMENTS:
            self.fail(
                f"the {what} brings the elements of all arrays to {self._n_elements}, where "
                f"{_MAX_ELEMENTS:,} are allowed"
            )
        if element == STRING:
            self._skip_strings(n, what)
            return "[string]"
        return f"[{self._skip_numbers(element, n, what)}]"

    def _skip_numbers(self, number: int, n: int, what: str) -> str:
        if number >= len(VALUE_TYPES):
            self.fail(f"the {what} is of the unknown type {number}")
        kind = VALUE_TYPES[number]
        start = self.at
        self._skip(n * SCALARS[kind].itemsize, what)
        if kind == "bool" and self._buffer[start : self.at].translate(None, b"\0\1"):
            self.fail(f"the {what} has a bool that is neither 0 nor 1")
        return kind

    def _skip_strings(self, n: int, what: str) -> None:
        buffer, start, size = self._buffer, self.at, min(self._size, _MAX_HEADER_BYTES)
        if 8 * n > size - start:
            self._skip(8 * n, what)
        at, longest = start, 0
        length_at = struct.Struct("<Q").unpack_from
        for i in range(n):
            if at + 8 > size:
                self._skip(size, what)
            (length,) = length_at(buffer, at)
            longest = max(longest, length)
            at += 8 + length
            if at > size:
                self.fail(
                    f"string {i} of the {what} has {length} bytes, more than the file has left"
                    if size == self._size
                    else f"the {what} reaches beyond {_MAX_HEADER_BYTES:,} bytes of header"
                )
        self.at = at
        try:
            # Lengths below 128 are ASCII, with zeros behind them that no letter runs across, so
            # that all strings are valid where the whole is: 0.1 ms for a vocabulary.
            if longest < 128:
                buffer[start:at].decode()
            else:
                again = _Reader(buffer, start)
                for _ in range(n):
                    again._text()
        except UnicodeDecodeError:
            self.fail(f"the {what} has a string that is not UTF-8")

    def _name(self, what: str, most: int) -> str:
        start = self.at
        (length,) = self._unpack("<Q", f"name of a {what}")
        if not 0 < length <= most:
            self.fail(f"a {what} has a name of {length} bytes, where 1 to {most} are expected")
        self.at = start
        self._skip_strings(1, f"name of a {what}")
        self.at = start
        name = self._text()
        if "\0" in name:
            self.fail(f"the name {_quote(name)} of a {what} has a zero in it")
        return name

    def _text(self) -> str:
        (length,) = struct.unpack_from("<Q", self._buffer, self.at)
        start = self.at + 8
        self.at = start + length
        return self._buffer[start : self.at].decode()

    def _numbers(self, kind: str, n: int) -> list[Any]:
        values: list[Any] = np.frombuffer(self._buffer, SCALARS[kind], n, self.at).tolist()
        return values

    def _unpack(self, layout: str, what: str) -> tuple[Any, ...]:
        start = self.at
        self._skip(struct.calcsize(layout), what)
        return struct.unpack_from(layout, self._buffer, start)

    def _skip(self, n_bytes: int, what: str) -> None:
        if n_bytes > self._size - self.at:
            self.fail(f"it ends within the {what}, {self._size:,} bytes in")
        self.at += n_bytes
        if self.at > _MAX_HEADER_BYTES:
            self.fail(f"the {what} reaches beyond {_MAX_HEADER_BYTES:,} bytes of header")


def _quote(name: str) -> str:
    return repr(name if len(name) <= _SHOWN else f"{name[:_SHOWN]}...")


def _map_path(path: Path) -> mmap.mmap:
    check_input_file(path, "GGUF file")
    try:
        with path.open("rb") as file:
            return _map(file, str(path))
    except OSError as error:
        raise os_fault(f"{path} cannot be read", error) from error


def _map(file: BinaryIO, label: str) -> mmap.mmap:
    if file.seek(0, 2) == 0:
        raise InputError(f"{label} is empty, where a GGUF file is expected.")
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def parsed(path: Path) -> Path | GgufFile:
    """A GGUF file, parsed; the path of what is none or is damaged, for whoever says so."""
    try:
        return GgufFile(path, allow_part=True) if is_gguf(path) else path
    except InputError:
        return path


def is_adapter(path: Path) -> bool:
    """Whether a file is a GGUF adapter, rather than a LoRA of the training project."""
    return is_gguf(path) and GgufFile(path).keys.get("general.type") == "adapter"
