"""ggml rounds to float16 as numpy does, so the bytes of a file do not depend on who rounded."""

import numpy as np
import pytest

from valle_convert.errors import InputError
from valle_convert.gguf_file.encode import encode
from valle_convert.gguf_file.types import F16
from valle_convert.llama.numbers import _library, rounded_by_ggml
from valle_convert.llama.probe import prove_library


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
