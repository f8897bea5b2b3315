"""The types of GGUF files: one table for tensor elements, one for the values of keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from gguf import GGML_QUANT_SIZES


@dataclass(frozen=True)
class GgmlType:
    """How llama.cpp stores the elements of a tensor.

    Attributes:
        name: in capitals, as in the gguf package.
        block: the number of elements stored together; rows must be a multiple of it.
    """

    name: str
    number: int
    block: int
    block_bytes: int

    def row_bytes(self, n_columns: int) -> int:
        if n_columns % self.block:
            raise ValueError(f"rows of {n_columns} do not divide into blocks of {self.block}")
        return n_columns // self.block * self.block_bytes

    @property
    def bits(self) -> float:
        return 8 * self.block_bytes / self.block


# Types of intermediate results, which files do not have; llama.cpp and the gguf package even
# disagree on the size of Q8_1.
_NOT_IN_FILES = ("Q8_1", "Q8_K")
# Q2_0 is newer than the newest gguf package: 64 two-bit values and a scale in float16.
_TYPES = [
    *(
        GgmlType(kind.name, int(kind), *size)
        for kind, size in GGML_QUANT_SIZES.items()
        if kind.name not in (*_NOT_IN_FILES, "Q2_0")
    ),
    GgmlType("Q2_0", 42, 64, 18),
]
GGML_TYPES: Mapping[str, GgmlType] = {kind.name: kind for kind in _TYPES}
TYPE_OF_NUMBER: Mapping[int, GgmlType] = {kind.number: kind for kind in _TYPES}

F32, F16, BF16, Q8_0 = (GGML_TYPES[name] for name in ("F32", "F16", "BF16", "Q8_0"))

#: Types whose elements are numpy's own, so that they can be compared bit by bit.
PLAIN_DTYPES: Mapping[GgmlType, np.dtype[Any]] = {
    F32: np.dtype(np.float32),
    F16: np.dtype(np.float16),
    BF16: np.dtype(ml_dtypes.bfloat16),
}

#: The types of values, in the numbering of the format.
VALUE_TYPES = "u8 i8 u16 i16 u32 i32 f32 bool string array u64 i64 f64".split()
STRING, ARRAY = VALUE_TYPES.index("string"), VALUE_TYPES.index("array")
#: Those of one fixed size, with their layout.
SCALARS: Mapping[str, np.dtype[Any]] = {
    name: np.dtype("?" if name == "bool" else f"<{name[0]}{int(name[1:]) // 8}")
    for name in VALUE_TYPES
    if name not in ("string", "array")
}
