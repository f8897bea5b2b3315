"""The types of GGUF files: one table for tensor elements, one for the values of keys."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np


@dataclass(frozen=True)
class GgmlType:
    name: str  # in capitals, as in the gguf package
    number: int
    block: int  # the number of elements stored together; rows must be a multiple of it
    block_bytes: int
    #: The number that llama.cpp gives to files of mostly this type; 1024 if it has to guess.
    file_type: int = 1024

    def row_bytes(self, n_columns: int) -> int:
        if n_columns % self.block:
            raise ValueError(f"rows of {n_columns} do not divide into blocks of {self.block}")
        return n_columns // self.block * self.block_bytes

    @property
    def bits(self) -> float:
        return 8 * self.block_bytes / self.block


# Name, number, elements and bytes of a block, and the number of files of that type; not Q8_1 and
# Q8_K, which no file has. The gguf package has the same table, and takes 40 ms to import.
_TABLE = """
    F32 0 1 4 0; F16 1 1 2 1; BF16 30 1 2 32; F64 28 1 8; I8 24 1 1; I16 25 1 2; I32 26 1 4;
    I64 27 1 8; Q4_0 2 32 18 2; Q4_1 3 32 20 3; Q5_0 6 32 22 8; Q5_1 7 32 24 9; Q8_0 8 32 34 7;
    Q2_K 10 256 84 10; Q3_K 11 256 110 12; Q4_K 12 256 144 15; Q5_K 13 256 176 17;
    Q6_K 14 256 210 18; IQ2_XXS 16 256 66; IQ2_XS 17 256 74; IQ3_XXS 18 256 98; IQ1_S 19 256 50;
    IQ4_NL 20 32 18 25; IQ3_S 21 256 110; IQ2_S 22 256 82; IQ4_XS 23 256 136 30; IQ1_M 29 256 56;
    TQ1_0 34 256 54; TQ2_0 35 256 66; MXFP4 39 32 17; NVFP4 40 64 36; Q1_0 41 128 18; Q2_0 42 64 18
"""
_TYPES = [GgmlType(name, *map(int, row)) for name, *row in map(str.split, _TABLE.split(";"))]
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
