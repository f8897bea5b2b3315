"""`.sft` / `.safetensors`: a JSON header, then the tensors' bytes, mapped and not copied.

    u64 little endian   length of the header
    JSON                {"__metadata__": {str: str}, name: {"dtype", "shape", "data_offsets"}, ...}
    bytes               the data; offsets count from here

The safetensors library checks the header (lengths, overlaps, holes, offsets beyond the end). The
data is mapped here, because the library's numpy side has no bfloat16. torch is not imported.
"""

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from valle_convert.checkpoint.source import DTYPES, TensorSpec, unreadable
from valle_convert.errors import InputError
from valle_convert.files import check_input_file, os_faults
from valle_convert.strict_json import unique_json

_LENGTH = struct.Struct("<Q")

_DTYPES = {
    "F64": DTYPES["float64"],
    "F32": DTYPES["float32"],
    "F16": DTYPES["float16"],
    "BF16": DTYPES["bfloat16"],
    "BOOL": DTYPES["bool"],
    "U8": DTYPES["uint8"],
    **{f"I{bits}": DTYPES[f"int{bits}"] for bits in (8, 16, 32, 64)},
}
#: The limit of numpy's arrays.
_MAX_DIMENSIONS = 64
_MAX_ELEMENTS = 1 << 56


class WeightsNeededError(Exception):
    """A header alone does not answer the question."""


class _Entry(msgspec.Struct, frozen=True):
    dtype: str
    shape: tuple[Annotated[int, msgspec.Meta(ge=0)], ...]
    data_offsets: tuple[int, int]


class SafetensorsHeader:
    """The tensors of a file that is not here; a `TensorSource` without weights."""

    def __init__(self, where: str, data: bytes) -> None:
        """Read the JSON of a header, with the checks that the library lacks."""
        try:
            header = msgspec.convert(unique_json(data), dict[str, Any])
            self.metadata = msgspec.convert(header.pop("__metadata__", None) or {}, dict[str, str])
            entries = msgspec.convert(header, dict[str, _Entry])
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise InputError(
                f"{where} is not a safetensors file ({error!s:.90}); copy or download it again."
            ) from error
        specs: dict[str, TensorSpec] = {}
        self._begins: dict[str, int] = {}
        for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
            # A zero dimension makes a tensor empty, but numpy still multiplies the others.
            if math.prod(max(n, 1) for n in entry.shape) > _MAX_ELEMENTS:
                fault = "has dimensions that overflow"
            elif len(entry.shape) > _MAX_DIMENSIONS:
                fault = f"has {len(entry.shape)} dimensions, expected at most {_MAX_DIMENSIONS}"
            else:
                specs[name] = TensorSpec(name, _DTYPES.get(entry.dtype), entry.dtype, entry.shape)
                self._begins[name] = entry.data_offsets[0]
                continue
            raise InputError(f"{where}: the tensor {name[:70]!r} {fault}; save the tensors again.")
        self.specs: Mapping[str, TensorSpec] = specs

    def read(self, name: str) -> NDArray[Any]:
        raise WeightsNeededError(name)


class SafetensorsFile(SafetensorsHeader):
    def __init__(self, path: Path) -> None:
        self._path = path
        check_input_file(path)
        try:
            with os_faults(f"{path} cannot be read"), safe_open(path, framework="numpy"):
                pass
        except (SafetensorError, UnicodeDecodeError) as error:
            reason = str(error).removeprefix("Error while deserializing header: ")
            raise InputError(
                f"{path} is not a complete safetensors file ({reason:.100}); copy or download it "
                "again."
            ) from error
        with path.open("rb") as stream:
            (length,) = _LENGTH.unpack(stream.read(_LENGTH.size))
            super().__init__(str(path), stream.read(length))
        self._data: NDArray[np.uint8] = np.memmap(path, np.uint8, mode="r")
        self._data_start = _LENGTH.size + length

    def read(self, name: str) -> NDArray[Any]:
        """One tensor as a read-only view of the mapped file."""
        spec = self.specs[name]
        if spec.dtype is None:
            raise unreadable(self._path, spec)
        start = self._data_start + self._begins[name]
        data = self._data[start : start + spec.n_bytes]
        return data.view(np.ndarray).view(spec.dtype).reshape(spec.shape)
