"""Rows of numbers to the bytes of a GGUF type, with nothing lost in silence.

f32, f16 and bf16 are rounded to nearest even, as llama.cpp reads them; q8_0 is the gguf
package's. NaN and infinity are refused, and so is a number too large for float16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from numpy.typing import NDArray

from valle_convert.checkpoint.source import BFLOAT16, FLOAT16, FLOAT32
from valle_convert.errors import InputError

F32 = GGMLQuantizationType.F32
F16 = GGMLQuantizationType.F16
BF16 = GGMLQuantizationType.BF16
Q8_0 = GGMLQuantizationType.Q8_0

#: The types whose elements are numpy's own, so that a tensor of them can be compared bit by bit.
PLAIN_DTYPES: dict[GGMLQuantizationType, np.dtype[Any]] = {
    F32: FLOAT32,
    F16: FLOAT16,
    BF16: BFLOAT16,
}

# The exponent bits, all ones in infinity and NaN.
_EXPONENTS = {F16: np.uint16(0x7C00), BF16: np.uint16(0x7F80)}


def row_bytes(ggml_type: GGMLQuantizationType, n_columns: int) -> int:
    """Size of one row.

    Raises:
        ValueError: the type cannot hold rows of that length.
    """
    block: int
    n_bytes: int
    block, n_bytes = GGML_QUANT_SIZES[ggml_type]
    if n_columns % block:
        raise ValueError(f"rows of {n_columns} do not divide into blocks of {block}")
    return n_columns // block * n_bytes


def encode(rows: NDArray[Any], ggml_type: GGMLQuantizationType, name: str) -> NDArray[Any]:
    """Rows in the given type.

    Args:
        rows: [n, columns] or [columns]; float32, float16 or bfloat16.
        ggml_type: F32, F16, BF16 or Q8_0.
        name: of the source tensor, for messages.

    Returns:
        A contiguous array whose bytes are those of the file.

    Raises:
        InputError: a value is NaN or infinite, or too large for float16.
    """
    if ggml_type in PLAIN_DTYPES:
        # A value beyond float16 becomes infinite, which is checked right below.
        with np.errstate(over="ignore"):
            encoded = np.ascontiguousarray(rows, PLAIN_DTYPES[ggml_type])
        exponent = _EXPONENTS.get(ggml_type)
        if exponent is None:
            finite = bool(np.isfinite(encoded).all())
        else:
            # Half the bytes to look at, and faster than isfinite on these types.
            finite = not bool(((encoded.view(np.uint16) & exponent) == exponent).any())
        if not finite:
            _refuse_not_finite(rows, name)
        return encoded
    values = np.ascontiguousarray(rows, FLOAT32)
    if not np.isfinite(values).all():
        _refuse_not_finite(values, name)
    quantized: NDArray[Any] = quants.quantize(values, ggml_type)
    return quantized


def decode(data: NDArray[Any], ggml_type: GGMLQuantizationType) -> NDArray[np.float32]:
    """Rows of a GGUF type as float32; `data` is [n, bytes of a row] or of the type itself."""
    plain = PLAIN_DTYPES.get(ggml_type)
    if plain is not None:
        return data.view(plain).astype(np.float32)
    values: NDArray[np.float32] = quants.dequantize(data, ggml_type)
    return values


def nominal_decibels(ggml_type: GGMLQuantizationType) -> float:
    """The ratio of signal to noise that a quantized type reaches on normally distributed weights.

    A uniform quantizer gains 6.02 dB a bit; of the bits of a block some go into scales, and weights
    are not uniform. llama.cpp's types from Q2_K to Q8_0 lie within 3 dB of this line.
    """
    block, n_bytes = GGML_QUANT_SIZES[ggml_type]
    decibels: float = 6.02 * 8 * n_bytes / block - 10.0
    return decibels


def _refuse_not_finite(rows: NDArray[Any], name: str) -> None:
    values = np.asarray(rows, FLOAT32)
    not_finite = np.argwhere(~np.isfinite(values))
    if len(not_finite):
        where = [int(index) for index in not_finite[0]]
        raise InputError(
            f"The tensor {name} holds {values[tuple(not_finite[0])]} at {where} "
            f"({len(not_finite)} such values in this part of it), where numbers are expected; "
            "the checkpoint is damaged or its training diverged: take an earlier one."
        )
    largest = float(np.abs(values).max())
    raise InputError(
        f"The tensor {name} holds {largest:g}, more than float16 can (65504); "
        "use --outtype bf16 or f32."
    )
