"""Reads any GGUF file: keys are decoded on request, tensors mapped.

A file is untrusted. Its table of contents is walked once, strictly, and kept as spans of the mapped
bytes; so a file is opened in milliseconds, and a header can be changed without decoding 36,000
tokens. `header` describes the format.

Stock llama.cpp and the gguf package read an accepted file alike. If one of them would abort, hang
or read out of bounds, an `InputError` describes the fault.
"""

import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from valle_convert.errors import EnvironmentFault, InputError
from valle_convert.files import check_input_file, first_bytes, os_faults
from valle_convert.gguf_file.encode import decode
from valle_convert.gguf_file.header import (
    ALIGNMENT,
    ALIGNMENT_KEY,
    GGML_MAGIC,
    MAGIC,
    Key,
    TensorEntry,
    join_header,
    pack_key,
    padded,
)
from valle_convert.gguf_file.keys import CODEC_ARCHITECTURE, PART_KEY
from valle_convert.gguf_file.reader import DamageError, Keys, Reader, quote

_MAX_ALIGNMENT = 1 << 16
_SPLIT_NUMBER, _SPLIT_COUNT = "split.no", "split.count"

#: "damaged" is a GGUF file that cannot be parsed; "other" may be a checkpoint.
Kind = Literal["model", "adapter", "imatrix", "codec", "encodec.cpp codec", "damaged", "other"]


@dataclass(frozen=True)
class _Contents:
    label: str
    buffer: bytes | mmap.mmap


@dataclass(frozen=True)
class TensorInfo(TensorEntry):
    start: int = field(compare=False)  # offset of its data in the file
    _contents: _Contents = field(compare=False, repr=False)

    @property
    def data(self) -> NDArray[np.uint8]:
        """Mapped bytes: [..., bytes of a row]; [bytes] for a vector."""
        flat = np.frombuffer(self._contents.buffer, np.uint8, self.n_bytes, self.start)
        return flat.reshape(*self.shape[:-1], self.ggml_type.row_bytes(self.shape[-1]))

    def rows(
        self, index: slice | Sequence[int] | NDArray[Any] = slice(None)
    ) -> NDArray[np.float32]:
        """Rows as float32 [n, columns], dequantized; a vector as [columns]."""
        data = self.data if len(self.shape) == 1 else self.data.reshape(self.shape[0], -1)[index]
        try:
            return decode(data, self.ggml_type)
        except EnvironmentFault as error:
            raise EnvironmentFault(f"{self._contents.label}, {self.name}: {error}") from error


class GgufFile:
    """A parsed GGUF file. It stays mapped as long as this object or its data exists."""

    def __init__(
        self, path: Path, contents: bytes | BinaryIO | None = None, *, allow_part: bool = False
    ) -> None:
        self.path = path
        if contents is None:
            check_input_file(path, "GGUF file")
            with os_faults(f"{path} cannot be read"), path.open("rb") as file:
                buffer: bytes | mmap.mmap = _map(file, str(path))
        elif isinstance(contents, bytes):
            buffer = contents
        else:
            buffer = _map(contents, str(path))
        self._contents = _Contents(str(path), buffer)
        self.size = len(buffer)
        reader = Reader(buffer)
        try:
            self._parse(reader)
        except DamageError as error:
            raise InputError(
                f"{path} is not a complete GGUF file: {error}; convert or copy it again."
            ) from None
        if not allow_part:
            self.refuse_part()

    def _parse(self, reader: Reader) -> None:
        self._version, n_tensors, n_keys = reader.start()
        self._spans = reader.keys(n_keys)
        self._keys_end = reader.at
        self.keys: Mapping[str, Any] = Keys(self._contents.buffer, self._spans)
        self.alignment = self._read_alignment()
        tensors: dict[str, TensorEntry] = {}
        for _ in range(n_tensors):
            tensor = reader.tensor()
            if tensor.name in tensors:
                reader.fail(f"the tensor {quote(tensor.name)} is there twice")
            tensors[tensor.name] = tensor
        self._tables_end = reader.at
        self.data_start = self.padded(reader.at)
        self._place(tensors)
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(
                **vars(one), start=self.data_start + one.offset, _contents=self._contents
            )
            for name, one in tensors.items()
        }

    def _read_alignment(self) -> int:
        if ALIGNMENT_KEY not in self._spans:
            return ALIGNMENT
        kind = self._spans[ALIGNMENT_KEY].type
        if kind != "u32":
            raise DamageError(f"{ALIGNMENT_KEY} has type {kind}, expected u32")
        alignment: int = self.keys[ALIGNMENT_KEY]
        if not 8 <= alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
            raise DamageError(
                f"{ALIGNMENT_KEY} is {alignment}, expected a power of two from 8 to "
                f"{_MAX_ALIGNMENT}"
            )
        return alignment

    def _place(self, tensors: Mapping[str, TensorEntry]) -> None:
        """Check that the data is contiguous, in the order of the table, up to the file's end."""
        end, before = 0, "the beginning"
        for tensor in tensors.values():
            name, expected = quote(tensor.name), self.padded(end)
            if tensor.offset != expected:
                what = "overlaps with" if tensor.offset < expected else "leaves a hole after"
                raise DamageError(
                    f"the data of {name} begins at {tensor.offset} and {what} that of {before}, "
                    f"expected {expected}"
                )
            end, before = tensor.offset + tensor.n_bytes, name
            if self.data_start + end > self.size:
                raise DamageError(
                    f"the data of {name} ends at byte {self.data_start + end:,}, but the file "
                    f"has {self.size:,}"
                )
        self.data_bytes = self.padded(end)  # padding included
        n_more = self.size - self.data_start - self.data_bytes
        if n_more > 0:
            raise DamageError(f"{n_more:,} bytes follow the last tensor")

    def shape_faults(self, expected: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
        """Tensors that are missing, unexpected, or of another shape, in words."""
        for name in [*expected, *(name for name in self.tensors if name not in expected)]:
            found, shape = self.tensors.get(name), expected.get(name)
            if found is None or shape is None:
                yield f"{name} is {'unexpected' if shape is None else 'missing'}"
            elif found.shape != shape:
                yield f"{name} is {list(found.shape)}, not {list(shape)}"

    def refuse_part(self) -> None:
        """Reject a part of a split model: llama.cpp would load further files by their names."""
        if self.is_part:
            number, count = (self.keys.get(name) for name in (_SPLIT_NUMBER, _SPLIT_COUNT))
            advice = "join the parts with `llama-gguf-split --merge`."
            if PART_KEY in self.keys:  # llama.cpp's program cannot join these
                advice = "give the main file of the model, such as out.gguf."
            raise InputError(
                f"{self.path} is one part of a split model ({_SPLIT_NUMBER} {number!r:.20}, "
                f"{_SPLIT_COUNT} {count!r:.20}); {advice}"
            )

    @property
    def is_part(self) -> bool:
        return self.keys.get(_SPLIT_NUMBER, 0) != 0 or self.keys.get(_SPLIT_COUNT, 0) not in (0, 1)

    @cached_property
    def key_types(self) -> Mapping[str, str]:
        """The type of each key, as in `header.Key`."""
        return {name: span.type for name, span in self._spans.items()}

    def raw(self, name: str) -> bytes:
        """The bytes of a key's type and value in the file; equal bytes are equal keys."""
        span = self._spans[name]
        return self._contents.buffer[span.type_at : span.stop]

    def padded(self, n_bytes: int) -> int:
        return padded(n_bytes, self.alignment)

    def changed(self, keys: Sequence[Key], *, drop: Sequence[str] = ()) -> bytes:
        """The padded header with changed keys, which keep their place."""
        table = self._contents.buffer[self._keys_end : self._tables_end]
        new = {key.name: pack_key(key) for key in keys}
        entries = [
            new.pop(name) if name in new else self._contents.buffer[span.start : span.stop]
            for name, span in self._spans.items()
            if name not in drop
        ]
        entries += new.values()
        return join_header(entries, len(self.tensors), [table], self.alignment, self._version)


def _map(file: BinaryIO, label: str) -> mmap.mmap:
    if file.seek(0, 2) == 0:
        raise InputError(f"{label} is empty, expected a GGUF file.")
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def look_at(path: Path, *, strict: bool = True) -> tuple[Kind, Path | GgufFile]:
    """What a path is, and the parsed file if it is GGUF; a damaged one is an error if `strict`."""
    magic = first_bytes(path, len(MAGIC)) if os.path.isfile(path) else b""  # noqa: PTH113
    if magic != MAGIC:
        return "encodec.cpp codec" if magic == GGML_MAGIC else "other", path
    try:
        file = GgufFile(path, allow_part=True)
    except InputError:
        if strict:
            raise
        return "damaged", path
    if file.keys.get("general.architecture") == CODEC_ARCHITECTURE:
        return "codec", file
    kind = file.keys.get("general.type")
    return kind if kind in ("adapter", "imatrix") else "model", file
