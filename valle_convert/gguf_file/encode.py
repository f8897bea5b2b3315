"""Encode rows of numbers in a GGUF type, without silent loss.

f32, f16 and bf16 are rounded to nearest even, as llama.cpp reads them; q8_0 is the gguf
package's. NaN, infinity, numbers too large for float16, and numbers too large for any network are
rejected.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valle_convert.checkpoint.source import LARGEST_WEIGHT
from valle_convert.errors import EnvironmentFault, InputError
from valle_convert.gguf_file.types import BF16, F16, F32, GGML_TYPES, PLAIN_DTYPES, GgmlType

# Types whose elements are numpy's own.
_NUMBERS: Mapping[GgmlType, np.dtype[Any]] = {
    **PLAIN_DTYPES,
    **{GGML_TYPES[f"I{8 * n}"]: np.dtype(f"<i{n}") for n in (1, 2, 4, 8)},
    GGML_TYPES["F64"]: np.dtype("<f8"),
}
# The bits of the largest number allowed, without the sign; infinity and NaN are larger.
_LARGEST_BITS: Mapping[GgmlType, np.unsignedinteger[Any]] = {
    F32: np.float32(LARGEST_WEIGHT).view(np.uint32),
    F16: np.uint16(0x7BFF),
    BF16: PLAIN_DTYPES[BF16].type(LARGEST_WEIGHT).view(np.uint16),
}


def encode(
    rows: NDArray[Any], ggml_type: GgmlType, name: str, *, by_numpy: bool = False
) -> NDArray[Any]:
    """Rows [n, columns] or [columns] as a contiguous array whose bytes are those of the file.

    With `by_numpy`, float16 is numpy's rounding and not ggml's: a second opinion, but slower.
    """
    if ggml_type in PLAIN_DTYPES:
        encoded = None
        if ggml_type == F16 and rows.dtype == np.float32 and not by_numpy:
            from valle_convert.llama.numbers import rounded_by_ggml

            encoded = rounded_by_ggml(rows)
        if encoded is None:
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


def check_blocks(blocks: NDArray[np.uint8], ggml_type: GgmlType, name: str) -> None:
    """Reject quantized rows [n, bytes of a row] that decode to NaN or infinity."""
    if not np.isfinite(decode(blocks, ggml_type)).all():
        raise InputError(
            f"The tensor {name} holds NaN or infinity in a block of "
            f"{ggml_type.name}; the file is damaged: copy it again."
        )


def decode(data: NDArray[Any], ggml_type: GgmlType) -> NDArray[np.float32]:
    """Rows of a GGUF type as float32; `data` is [n, bytes of a row] or of the type itself.

    By ggml once a command has proved llama.cpp here, else by numpy and the gguf package.
    """
    if ggml_type in _NUMBERS and ggml_type != F16:
        with np.errstate(all="ignore"):  # overflow in a damaged file, which the caller judges
            return data.view(_NUMBERS[ggml_type]).astype(np.float32)
    from valle_convert.llama.numbers import decoded_by_ggml

    columns = data.shape[-1] * data.itemsize // ggml_type.block_bytes * ggml_type.block
    decoded = np.empty((*data.shape[:-1], columns), np.float32)
    is_done = decoded_by_ggml(data, ggml_type.name, decoded)
    return decoded if is_done else _decode_without_ggml(data, ggml_type)


def _decode_without_ggml(data: NDArray[Any], ggml_type: GgmlType) -> NDArray[np.float32]:
    if ggml_type == F16:
        return data.view(_NUMBERS[F16]).astype(np.float32)
    from gguf import GGMLQuantizationType, quants

    try:
        kind = GGMLQuantizationType(ggml_type.number)
        with np.errstate(all="ignore"):
            values: NDArray[np.float32] = quants.dequantize(data, kind)
    except (ValueError, NotImplementedError):  # a type that it does not know, or only names
        raise EnvironmentFault(
            f"numbers of the type {ggml_type.name} need llama.cpp, which is not installed or was "
            "not tested here. Run `valle-convert doctor`."
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
    except EnvironmentFault:
        return False
    return True


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
