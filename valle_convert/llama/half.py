"""Rounding to float16 by ggml: a second opinion on numpy's, in a twentieth of the time."""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from valle_convert.errors import EnvironmentFault
from valle_convert.llama.library import find_library, load_library
from valle_convert.llama.probe import prove_library

#: `functools.cache` alone would let every thread of a pool load and prove the library.
_LOADING = threading.Lock()


def rounded_by_ggml(values: NDArray[np.float32]) -> NDArray[np.float16] | None:
    """The values rounded to nearest, ties to even; None without a working llama.cpp."""
    with _LOADING:
        routine = _routine()
    if routine is None:
        return None
    values = np.ascontiguousarray(values)
    rounded = np.empty(values.shape, np.float16)
    routine(values.ctypes.data, rounded.ctypes.data, values.size)
    return rounded


@functools.cache
def _routine() -> Callable[[int, int, int], None] | None:
    name, pointer = "ggml_cpu_fp32_to_fp16", ctypes.c_void_p
    if find_library() is None:
        return None
    try:
        prove_library()  # a build for another CPU would end the process
        library = load_library().ggml(
            "ggml-cpu", [(name, None, [pointer, pointer, ctypes.c_int64])]
        )
    except (EnvironmentFault, AttributeError):
        return None
    routine: Callable[[int, int, int], None] = getattr(library, name)
    return routine
