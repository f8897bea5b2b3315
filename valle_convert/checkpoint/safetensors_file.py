"""`.sft` / `.safetensors`: a JSON header, then the tensors' bytes, mapped and not copied.

    u64 little endian   length of the header
    JSON                {"__metadata__": {str: str}, name: {"dtype", "shape", "data_offsets"}, ...}
    bytes               the data; offsets count from here

The safetensors library checks the header (lengths, overlaps, holes, offsets beyond the end). The
data is mapped here, because the library's numpy side has no bfloat16. torch is not imported.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from valle_convert.checkpoint.source import DTYPES, TensorSpec
from valle_convert.errors import InputError
from valle_convert.files import check_input_file, os_fault
from valle_convert.strict_json import DuplicateKeyError, unique_json

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


def _parse_header(path: Path, data: bytes) -> dict[str, Any]:
    """The JSON that the library has checked, with the checks that it lacks."""
    try:
        header: dict[str, Any] = unique_json(data)
    except DuplicateKeyError as error:
        raise InputError(
            f"{path} is rejected: {error} of its header, which readers read differently; "
            "save the tensors again."
        ) from None
    for name, entry in header.items():
        shape = entry.get("shape", ()) if isinstance(entry, dict) else ()
        # A zero dimension makes a tensor empty, but numpy still multiplies the others.
        if math.prod(max(n, 1) for n in shape) > _MAX_ELEMENTS:
            raise InputError(
                f"{path}: the dimensions of the tensor {name[:70]!r} overflow; save "
                "the tensors again."
            )
        if len(shape) > _MAX_DIMENSIONS:
            raise InputError(
                f"{path}: the tensor {name[:70]!r} has {len(shape)} dimensions, expected at "
                f"most {_MAX_DIMENSIONS}; save the tensors again."
            )
    return header


class SafetensorsFile:
    """A `TensorSource` over one safetensors file.

    Attributes:
        metadata: the unchanged strings of the header's `__metadata__`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        check_input_file(path)
        try:
            with safe_open(path, framework="numpy") as file:
                self.metadata: dict[str, str] = dict(file.metadata() or {})
        except (SafetensorError, UnicodeDecodeError) as error:
            raise InputError(
                f"{path} is not a complete safetensors file ({error}); "
                "copy or download it again, and compare its size with the original's."
            ) from error
        except OSError as error:
            raise os_fault(f"{path} cannot be read", error) from error
        with path.open("rb") as stream:
            (length,) = _LENGTH.unpack(stream.read(_LENGTH.size))
            header = _parse_header(path, stream.read(length))
        header.pop("__metadata__", None)
        data_start = _LENGTH.size + length
        specs: dict[str, TensorSpec] = {}
        self._offsets: dict[str, int] = {}
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            specs[name] = TensorSpec(
                name=name,
                dtype=_DTYPES.get(entry["dtype"]),
                dtype_name=entry["dtype"],
                shape=tuple(entry["shape"]),
            )
            self._offsets[name] = data_start + entry["data_offsets"][0]
        self.specs: Mapping[str, TensorSpec] = MappingProxyType(specs)
        self._data: NDArray[np.uint8] = np.memmap(path, np.uint8, mode="r")

    def read(self, name: str) -> NDArray[Any]:
        """One tensor as a read-only view of the mapped file."""
        spec = self.specs[name]
        if spec.dtype is None:
            raise InputError(
                f"{self._path}: the tensor {name} has the type {spec.dtype_name}, which cannot be "
                "read; float32, float16 and bfloat16 can."
            )
        start = self._offsets[name]
        data = self._data[start : start + spec.n_bytes]
        return data.view(np.ndarray).view(spec.dtype).reshape(spec.shape)
