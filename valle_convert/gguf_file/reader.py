"""The table of contents of a GGUF file, walked once and strictly, as spans of its bytes."""

import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from valle_convert.gguf_file.header import MAGIC, TensorEntry
from valle_convert.gguf_file.types import ARRAY, SCALARS, STRING, TYPE_OF_NUMBER, VALUE_TYPES

_VERSIONS = (2, 3)
_MAX_DIMENSIONS = 4
_MAX_TENSOR_NAME = 63  # bytes: llama.cpp's limit without the final zero
_MAX_KEY_NAME = 65_535  # bytes, by the specification
# Far above any model, but a hostile file costs at most a second and some 100 MB.
_MAX_ENTRIES = 1 << 17  # keys, and tensors
_MAX_ELEMENTS = 1 << 23  # of all arrays together
_MAX_HEADER_BYTES = 128 << 20
_MAX_COUNT = (1 << 63) - 1  # elements of a tensor, in llama.cpp's int64
_SHOWN = 60  # characters of a name in a message


class DamageError(Exception):
    """The fault in a file, in words."""


@dataclass(frozen=True)
class KeySpan:
    type: str
    start: int
    type_at: int
    value_at: int
    stop: int


class Keys(Mapping[str, Any]):
    """Values by name, each decoded once, on access."""

    def __init__(self, buffer: bytes | mmap.mmap, spans: Mapping[str, KeySpan]) -> None:
        self._buffer = buffer
        self._spans = spans
        self._decoded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 - of any type
        if name not in self._decoded:
            span = self._spans[name]
            self._decoded[name] = Reader(self._buffer, span.value_at).value(span.type)
        return self._decoded[name]

    def __contains__(self, name: object) -> bool:
        return name in self._spans

    def __iter__(self) -> Iterator[str]:
        return iter(self._spans)

    def __len__(self) -> int:
        return len(self._spans)


class Reader:
    """A position in untrusted bytes."""

    def __init__(self, buffer: bytes | mmap.mmap, at: int = 0) -> None:
        self._buffer = buffer
        self._size = len(buffer)
        self._n_elements = 0
        self.at = at

    def start(self) -> tuple[int, int, int]:
        if self._buffer[: len(MAGIC)] != MAGIC:
            self.fail("it does not begin with the four letters GGUF")
        self._skip(len(MAGIC), "magic")
        version, n_tensors, n_keys = self._unpack("<IQQ", "beginning")
        if version not in _VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS
            found = "in big-endian byte order" if swapped else f"of version {version} of the format"
            self.fail(f"it is {found}, expected little-endian and version 2 or 3")
        # The shortest key is a u8 of a one-letter name, the shortest tensor has one dimension.
        for n, what, least in ((n_keys, "keys", 14), (n_tensors, "tensors", 33)):
            if n > _MAX_ENTRIES:
                self.fail(f"it claims {n} {what}, expected at most {_MAX_ENTRIES:,}")
            if n * least > self._size:
                self.fail(f"it claims {n} {what}, more than fit in {self._size:,} bytes")
        return version, n_tensors, n_keys

    def keys(self, n: int) -> dict[str, KeySpan]:
        spans: dict[str, KeySpan] = {}
        for i in range(n):
            start = self.at
            name = self._name(f"key {i}", _MAX_KEY_NAME)
            type_at = self.at
            what = f"key {quote(name)}"
            (number,) = self._unpack("<I", what)
            value_at = self.at
            kind = self._skip_value(number, what)
            if name in spans:
                self.fail(f"the {what} is there twice")
            spans[name] = KeySpan(kind, start, type_at, value_at, self.at)
        return spans

    def tensor(self) -> TensorEntry:
        name = self._name("tensor", _MAX_TENSOR_NAME)
        what = f"tensor {quote(name)}"
        (n_dims,) = self._unpack("<I", what)
        if not 1 <= n_dims <= _MAX_DIMENSIONS:
            self.fail(f"the {what} has {n_dims} dimensions, expected 1 to 4")
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
        """A value that was already walked over."""
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
        raise DamageError(what)

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
                f"the {what} brings the elements of all arrays to {self._n_elements}, expected "
                f"at most {_MAX_ELEMENTS:,}"
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
            # Lengths below 128 are ASCII, followed by zeros that no character runs across, so
            # all strings are valid if the whole is: 0.1 ms for a vocabulary.
            if longest < 128:
                buffer[start:at].decode()
            else:
                again = Reader(buffer, start)
                for _ in range(n):
                    again._text()
        except UnicodeDecodeError:
            self.fail(f"the {what} has a string that is not UTF-8")

    def _name(self, what: str, most: int) -> str:
        start = self.at
        (length,) = self._unpack("<Q", f"name of a {what}")
        if not 0 < length <= most:
            self.fail(f"a {what} has a name of {length} bytes, expected 1 to {most}")
        self.at = start
        self._skip_strings(1, f"name of a {what}")
        self.at = start
        name = self._text()
        if "\0" in name:
            self.fail(f"the name {quote(name)} of a {what} contains a zero")
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


def quote(name: str) -> str:
    return repr(name if len(name) <= _SHOWN else f"{name[:_SHOWN]}...")
