"""Numbers of every type are those of llama.cpp's table of types, with its library and without."""

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from valle_convert.errors import InputError
from valle_convert.gguf_file.encode import can_decode, decode, encode
from valle_convert.gguf_file.types import F16, GGML_TYPES, PLAIN_DTYPES, Q8_0, GgmlType
from valle_convert.llama import numbers
from valle_convert.llama.library import find_library
from valle_convert.llama.numbers import _library, rounded_by_ggml
from valle_convert.llama.probe import prove_library


class Traits(ctypes.Structure):
    """`ggml_type_traits` of ggml.h."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
        ("from_float_ref", ctypes.c_void_p),
    )


@pytest.fixture(scope="module")
def traits_of() -> Callable[[GgmlType], Traits]:
    found = find_library()
    assert found is not None
    (path,) = found.parent.glob("libggml-base.so")
    library = ctypes.CDLL(str(path))
    library.ggml_get_type_traits.restype = ctypes.POINTER(Traits)

    def traits(kind: GgmlType) -> Traits:
        value: Traits = library.ggml_get_type_traits(kind.number)[0]
        return value

    return traits


@pytest.fixture(params=["with llama.cpp", "without"])
def has_library(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[bool]:
    prove_library()
    if request.param == "without":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # remembers no proof
    numbers._library.cache_clear()
    yield request.param == "with llama.cpp"
    numbers._library.cache_clear()


@pytest.mark.parametrize("kind", GGML_TYPES.values(), ids=GGML_TYPES.keys())
def test_llama_cpp_makes_the_same_numbers_of_the_same_bytes(
    kind: GgmlType, traits_of: Callable[[GgmlType], Traits], has_library: bool
) -> None:
    traits = traits_of(kind)
    assert (traits.type_name or b"").decode().upper() == kind.name
    assert (traits.blck_size, traits.type_size) == (kind.block, kind.block_bytes)
    assert can_decode(kind) == (has_library or kind.name not in ("Q1_0", "Q2_0"))
    if not can_decode(kind):
        return
    if not traits.to_float:
        assert kind.block == 1
        return
    raw: NDArray[Any] = np.random.default_rng(kind.number).integers(
        0, 256, (64, 3 * kind.block_bytes), dtype=np.uint8
    )
    expected = np.empty((64, 3 * kind.block), np.float32)
    convert = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    convert(traits.to_float)(raw.ctypes.data, expected.ctypes.data, expected.size)
    found = decode(raw, kind)
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)
    # A vector is a row without its matrix.
    np.testing.assert_array_equal(decode(raw[5], kind), expected[5])
    if kind in (*PLAIN_DTYPES, Q8_0):
        assert decode(raw[:0], kind).shape == (0, 3 * kind.block)


@pytest.mark.parametrize("kind", [*PLAIN_DTYPES, Q8_0], ids=lambda kind: kind.name)
def test_what_is_written_is_what_llama_cpp_reads(
    kind: GgmlType, traits_of: Callable[[GgmlType], Traits]
) -> None:
    rows = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    encoded = encode(rows, kind, "rows")
    traits = traits_of(kind)
    found = np.empty_like(rows)
    if traits.to_float:
        convert = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
        convert(traits.to_float)(encoded.ctypes.data, found.ctypes.data, found.size)
    else:
        found = encoded.copy()
    error = np.abs(found - rows).max(axis=1) / np.abs(rows).max(axis=1)
    # Half a step of 127 in Q8_0, half a unit of 8 bits in BF16.
    assert error.max() <= {"F32": 0, "F16": 2**-11, "BF16": 2**-8}.get(kind.name, 0.51 / 127)


# Rounded by ggml


def test_every_float16_and_every_tie_between_two_is_rounded_as_by_numpy() -> None:
    prove_library()
    _library.cache_clear()
    finite = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    ties = (finite[1:].astype(np.float64) + finite[:-1]) / 2
    near = np.stack([np.nextafter(ties, side, dtype=np.float32) for side in (0, ties, np.inf)])
    values = np.concatenate([finite, near.ravel(), [np.float32(65_520.0), np.float32(1e-45)]])
    values = np.concatenate([values, -values]).astype(np.float32).reshape(2, -1)
    rounded = rounded_by_ggml(values)
    assert rounded is not None
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16)
    np.testing.assert_array_equal(rounded.view(np.uint16), expected.view(np.uint16))


@pytest.mark.parametrize("by_numpy", [False, True])
@pytest.mark.parametrize("value", [65_520.0, -7e4, np.inf, np.nan])
def test_a_number_that_float16_cannot_hold_is_rejected(value: float, by_numpy: bool) -> None:
    rows = np.zeros((2, 32), np.float32)
    rows[1, 7] = value
    with pytest.raises(InputError, match=f"tensor w holds {abs(value):g}|holds {value:g}"):
        encode(rows, F16, "w", by_numpy=by_numpy)
