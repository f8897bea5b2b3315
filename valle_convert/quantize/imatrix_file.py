"""llama.cpp's importance matrix file: for each matrix, how large its inputs' columns are.

It is a GGUF file of `general.type` "imatrix". For a matrix `X` [rows, columns] it has two
float32 tensors: `X.in_sum2` [1, columns], the sum of the squares of every input column, and
`X.counts` [1, 1], over how many inputs. llama-quantize divides the one by the other.

    imatrix.datasets     [string]  what the inputs were, in words
    imatrix.chunk_count  u32       sequences
    imatrix.chunk_size   u32       elements of the longest of them
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from valle_convert.errors import InputError
from valle_convert.files import atomic_output
from valle_convert.gguf_file.header import GGML_TYPES, Header, read_header
from valle_convert.gguf_file.keys import Key
from valle_convert.gguf_file.pack import pack_key

_SUM, _COUNTS = ".in_sum2", ".counts"
_ALIGNMENT = 32
_F32 = GGML_TYPES["F32"].number
_VERSION = 3  # of GGUF
_MAX_TEXT = 127  # bytes of a string that llama.cpp's list of overrides holds


@dataclass(frozen=True, eq=False)
class Entry:
    """What is known of one matrix.

    Attributes:
        sums: of the squares of each input column, float32 [columns].
        count: over how many inputs.
    """

    sums: NDArray[np.float32]
    count: int

    def mean(self) -> NDArray[np.float32]:
        """Mean squares as llama-quantize computes them: 1 where there was no input."""
        if self.count == 0:
            return np.ones_like(self.sums)
        return np.ascontiguousarray(self.sums / np.float32(self.count))


@dataclass(frozen=True, eq=False)
class ImatrixFile:
    """The contents of an importance matrix file.

    Attributes:
        entries: by the name of the matrix.
        datasets: what the inputs were, in words.
        chunk_count: sequences.
        chunk_size: elements of the longest.
        extra: further keys, of this project.
    """

    entries: Mapping[str, Entry]
    datasets: tuple[str, ...]
    chunk_count: int
    chunk_size: int
    extra: tuple[Key, ...] = field(default=())

    def keys(self, file_name: str) -> list[Key]:
        """What llama-quantize writes into a file that it made with this matrix."""
        keys = [Key("quantize.imatrix.file", _cut(file_name), "string")]
        if self.datasets:
            keys.append(Key("quantize.imatrix.dataset", _cut(self.datasets[0]), "string"))
        keys.append(Key("quantize.imatrix.entries_count", len(self.entries), "u32"))
        if self.chunk_count > 0:
            keys.append(Key("quantize.imatrix.chunks_count", self.chunk_count, "u32"))
        return keys


def write_imatrix(
    imatrix: ImatrixFile, target: Path, *, force: bool, sources: Sequence[Path] = ()
) -> None:
    """Write the file, or leave nothing.

    Raises:
        InputError: the target must not be written.
        EnvironmentFault: it cannot be.
    """
    keys = [
        Key("general.type", "imatrix", "string"),
        Key("imatrix.datasets", list(imatrix.datasets), "[string]"),
        Key("imatrix.chunk_count", imatrix.chunk_count, "u32"),
        Key("imatrix.chunk_size", imatrix.chunk_size, "u32"),
        *imatrix.extra,
    ]
    table: list[bytes] = []
    data: list[bytes] = []
    offset = 0
    for name, entry in sorted(imatrix.entries.items()):
        for suffix, values in (
            (_SUM, entry.sums.reshape(1, -1)),
            (_COUNTS, np.array([[entry.count]], np.float32)),
        ):
            text = (name + suffix).encode()
            rows, columns = values.shape
            table.append(struct.pack("<Q", len(text)) + text)
            table.append(struct.pack("<IQQIQ", 2, columns, rows, _F32, offset))
            raw = np.ascontiguousarray(values, "<f4").tobytes()
            data.append(raw + bytes(-len(raw) % _ALIGNMENT))
            offset += len(data[-1])
    header = b"".join(
        [
            b"GGUF",
            struct.pack("<IQQ", _VERSION, len(data), len(keys)),
            *map(pack_key, keys),
            *table,
        ]
    )
    with atomic_output(target, force=force, sources=sources) as file:
        file.write(header + bytes(-len(header) % _ALIGNMENT))
        file.writelines(data)


def read_imatrix(path: Path) -> ImatrixFile:
    """Read an importance matrix file, ours or llama-imatrix's.

    Raises:
        InputError: it is none, or damaged; the older format that is no GGUF is refused, too.
    """
    header = read_header(path)
    if header.value("general.type") != "imatrix":
        raise InputError(
            f"{path} is a GGUF file, but no importance matrix (general.type is "
            f"{header.value('general.type')!r}); make one with `valle-convert imatrix`."
        )
    entries: dict[str, Entry] = {}
    for name in header.tensors:
        matrix = name.removesuffix(_SUM)
        if matrix == name:
            continue
        sums, counts = _read(path, header, name), _read(path, header, matrix + _COUNTS)
        if counts.size != 1 or not np.isfinite(sums).all() or (sums < 0).any():
            raise InputError(
                f"{path}: the entry of {matrix} is no list of sums of squares; make the "
                "importance matrix again."
            )
        if not (np.isfinite(counts).all() and counts[0] >= 0):
            raise InputError(f"{path}: the entry of {matrix} counts {counts[0]} inputs.")
        entries[matrix] = Entry(sums, round(float(counts[0])))
    if not entries:
        raise InputError(f"{path} is an importance matrix without entries; make it again.")
    datasets = header.value("imatrix.datasets", [])
    chunk_count = header.value("imatrix.chunk_count", 0)
    chunk_size = header.value("imatrix.chunk_size", 0)
    if not isinstance(datasets, list) or not isinstance(chunk_count, int):
        raise InputError(f"{path}: imatrix.datasets or imatrix.chunk_count is of a wrong type.")
    return ImatrixFile(entries, tuple(map(str, datasets)), chunk_count, chunk_size)


def _read(path: Path, header: Header, name: str) -> NDArray[np.float32]:
    tensor = header.tensors.get(name)
    if tensor is None or tensor.kind.name != "F32":
        raise InputError(f"{path} has no tensor {name} of type F32; make the file again.")
    with path.open("rb") as file:
        file.seek(header.data_start + tensor.offset)
        return np.frombuffer(file.read(tensor.n_bytes), "<f4")


def _cut(text: str) -> str:
    """As much of a text as llama.cpp keeps of it, cut between characters."""
    return text.encode()[:_MAX_TEXT].decode(errors="ignore")
