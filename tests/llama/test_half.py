"""ggml rounds to float16 as numpy does, which the comparison of tensors relies on."""

import numpy as np
import pytest

from valle_convert.llama import half
from valle_convert.llama.half import rounded_by_ggml


def test_every_float16_and_every_tie_between_two_is_rounded_as_by_numpy() -> None:
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


def test_without_the_library_there_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half, "find_library", lambda: None)
    half._routine.cache_clear()
    try:
        assert rounded_by_ggml(np.zeros(3, np.float32)) is None
    finally:
        half._routine.cache_clear()
