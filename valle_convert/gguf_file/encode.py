"""Encode rows of numbers in a GGUF type, without silent loss.

f32, f16 and bf16 are rounded to nearest even, as llama.cpp reads them; q8_0 is the gguf
package's. NaN, infinity, numbers too large for float16, and numbers too large for any network are
rejected.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valle_convert.checkpoint.source import LARGEST_WEIGHT
from valle_convert.errors import InputError
from valle_convert.gguf_file.types import BF16, F16, F32, GGML_TYPES, PLAIN_DTYPES, Q8_0, GgmlType

# Types whose elements are numpy's own.
_NUMBERS: Mapping[GgmlType, np.dtype[Any]] = {
    **PLAIN_DTYPES,
    **{GGML_TYPES[f"I{8 * n}"]: np.dtype(f"<i{n}") for n in (1, 2, 4, 8)},
    GGML_TYPES["F64"]: np.dtype("<f8"),
}
# Types that the gguf package does not read: bits of a code, and how far apart codes are.
_FEW_BITS: Mapping[GgmlType, tuple[int, int]] = {
    GGML_TYPES["Q1_0"]: (1, 2),
    GGML_TYPES["Q2_0"]: (2, 1),
}
# The bits of the largest number allowed, without the sign; infinity and NaN are larger.
_LARGEST_BITS: Mapping[GgmlType, np.unsignedinteger[Any]] = {
    F32: np.float32(LARGEST_WEIGHT).view(np.uint32),
    F16: np.uint16(0x7BFF),
    BF16: PLAIN_DTYPES[BF16].type(LARGEST_WEIGHT).view(np.uint16),
}


def encode(rows: NDArray[Any], ggml_type: GgmlType, name: str) -> NDArray[Any]:
    """Rows [n, columns] or [columns] as a contiguous array whose bytes are those of the file."""
    if ggml_type in PLAIN_DTYPES:
        # A value beyond float16 becomes infinite, which is checked right below.
        with np.errstate(over="ignore"):
            encoded = np.ascontiguousarray(rows, PLAIN_DTYPES[ggml_type])
        _check_size(encoded, ggml_type, rows, name)
        return encoded
    values = np.ascontiguousarray(rows, np.float32)
    _check_size(values, F32, rows, name)
    from gguf import GGMLQuantizationType, quants

    quantized: NDArray[Any] = quants.quantize(values, GGMLQuantizationType(ggml_type.number))
    return quantized


#: Offsets of the float16 scales in a block, in bytes.
_SCALES: Mapping[str, tuple[int, ...]] = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
}
_EXPONENT = np.uint16(0x7C00)


def check_blocks(blocks: NDArray[np.uint8], ggml_type: GgmlType, name: str) -> None:
    """Reject quantized rows [n, bytes of a row] that decode to NaN or infinity.

    A block's numbers are multiples of its scales, by at most some thousand, so they are finite and
    not too large if the float16 scales are finite.
    """
    places = _SCALES.get(ggml_type.name)
    if places is None:
        good = bool(np.isfinite(decode(blocks, ggml_type)).all())
    else:
        each = blocks.reshape(-1, ggml_type.block_bytes)
        good = True
        for place in places:
            scales = np.ascontiguousarray(each[:, place : place + 2]).view(np.uint16)
            good = good and not ((scales & _EXPONENT) == _EXPONENT).any()
    if not good:
        raise InputError(
            f"The tensor {name} holds NaN or infinity in a block of "
            f"{ggml_type.name}; the file is damaged: copy it again."
        )


@cache
def _every_half() -> NDArray[np.float32]:
    """All float16 numbers as float32; a lookup takes a third of the time of a conversion."""
    return np.arange(1 << 16, dtype="<u2").view("<f2").astype(np.float32)


def decode(data: NDArray[Any], ggml_type: GgmlType) -> NDArray[np.float32]:
    """Rows of a GGUF type as float32; `data` is [n, bytes of a row] or of the type itself."""
    # Overflow in a damaged file gives infinity or NaN, which the caller judges.
    with np.errstate(all="ignore"):
        if ggml_type == F16:
            return np.take(_every_half(), data.view("<u2"), mode="wrap")
        if ggml_type == Q8_0:
            *rows, n_bytes = data.shape
            n = n_bytes // Q8_0.block_bytes
            blocks = data.reshape(*rows, n, Q8_0.block_bytes)
            numbers = blocks[..., 2:].view(np.int8) * decode(blocks[..., :2].copy(), F16)
            return numbers.reshape(*rows, n * Q8_0.block)
        if ggml_type in _NUMBERS:
            return data.view(_NUMBERS[ggml_type]).astype(np.float32)
        if ggml_type in _FEW_BITS:
            return _decode_few_bits(data, ggml_type)
        from gguf import GGMLQuantizationType, quants

        try:
            kind = GGMLQuantizationType(ggml_type.number)
            values: NDArray[np.float32] = quants.dequantize(data, kind)
        except (ValueError, NotImplementedError):  # a type that it does not know, or only names
            raise InputError(
                f"the gguf package cannot read numbers of the type {ggml_type.name}"
            ) from None
    return values


def roundings(ggml_type: GgmlType) -> tuple[str | None, ...]:
    """The ways to round weights to a plain type: directly (None), or first to another type.

    A file converted to float16 and then quantized to `BF16` is rounded twice, which gives other
    values than rounding once.
    """
    return (None, *(kind.name for kind in (F16, BF16) if kind != ggml_type))


#: What is further below its type's nominal ratio is not quantization; in decibels.
DECIBELS_BELOW, _DECIBELS_FLOOR = 4.0, 1.0


def nominal_decibels(ggml_type: GgmlType) -> float:
    """The signal to noise ratio of a quantized type on normally distributed weights, in dB.

    A uniform quantizer gains 6.02 dB a bit, but scales take some of a block's bits and weights are
    not uniform. llama.cpp's types from Q2_K to Q8_0 are within 3 dB of this line.
    """
    return 6.02 * ggml_type.bits - 10.0


def least_decibels(ggml_type: GgmlType, margin: float = 0.0) -> float:
    """The lowest signal-to-noise ratio that quantizing to a type leaves, less a margin."""
    return max(_DECIBELS_FLOOR, nominal_decibels(ggml_type) - DECIBELS_BELOW - margin)


def can_decode(ggml_type: GgmlType) -> bool:
    """Whether rows of a type can be decoded; only future types cannot."""
    try:
        decode(np.zeros(ggml_type.block_bytes, np.uint8), ggml_type)
    except InputError:
        return False
    return True


def _decode_few_bits(data: NDArray[Any], ggml_type: GgmlType) -> NDArray[np.float32]:
    """Blocks of a float16 scale and 16 bytes of codes, the lowest bits first.

    One bit means -1 or 1 times the scale, two bits -1, 0, 1 or 2 times (ggml-quants.c).
    """
    n_bits, step = _FEW_BITS[ggml_type]
    blocks = data.reshape(*data.shape[:-1], -1, ggml_type.block_bytes)
    scales = np.ascontiguousarray(blocks[..., :2]).view(np.float16).astype(np.float32)
    shifts = np.arange(0, 8, n_bits, dtype=np.uint8)
    codes = blocks[..., 2:, np.newaxis] >> shifts & np.uint8((1 << n_bits) - 1)
    levels = codes.reshape(*blocks.shape[:-1], -1).astype(np.float32) * step - 1
    values: NDArray[np.float32] = (scales * levels).reshape(*data.shape[:-1], -1)
    return values


def _check_size(encoded: NDArray[Any], ggml_type: GgmlType, rows: NDArray[Any], name: str) -> None:
    largest = _LARGEST_BITS[ggml_type]
    bits = encoded.view(largest.dtype)
    # As integers: as fast as isfinite on float32, and faster on 16-bit types.
    if ((bits & (np.iinfo(largest.dtype).max >> 1)) > largest).any():
        _refuse(rows, name)


def _refuse(rows: NDArray[Any], name: str) -> None:
    values = np.asarray(rows, np.float32)
    not_finite = np.argwhere(~np.isfinite(values))
    if len(not_finite):
        where = [int(index) for index in not_finite[0]]
        raise InputError(
            f"The tensor {name} holds {values[tuple(not_finite[0])]} at {where} "
            f"({len(not_finite)} such values in this part); "
            "the checkpoint is damaged or its training diverged: take an earlier one."
        )
    largest = float(np.abs(values).max())
    if largest > LARGEST_WEIGHT:
        raise InputError(
            f"The tensor {name} holds {largest:g}, expected at most {LARGEST_WEIGHT:g}; the "
            "checkpoint is damaged or its training diverged: take an earlier one."
        )
    raise InputError(
        f"The tensor {name} holds {largest:g}, more than float16 can (65504); "
        "use --outtype bf16 or f32."
    )
