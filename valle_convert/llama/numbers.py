"""Numbers converted by ggml: in a twentieth of numpy's time, a tenth of the gguf package's."""

import ctypes
import functools
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valle_convert.errors import EnvironmentFault
from valle_convert.llama.library import find_library, load_library
from valle_convert.llama.probe import prove_library

#: `functools.cache` alone would let every thread of a pool load and prove the library.
_LOADING = threading.Lock()


def rounded_by_ggml(values: NDArray[np.float32]) -> NDArray[np.float16] | None:
    """The values rounded to nearest, ties to even; None without a working llama.cpp."""
    rounded = np.empty(values.shape, np.float16)
    return rounded if _convert("ggml-cpu", "ggml_cpu_fp32_to_fp16", values, rounded) else None


def decoded_by_ggml(data: NDArray[Any], type_name: str, target: NDArray[np.float32]) -> bool:
    """Decode whole blocks; False without a working llama.cpp that knows the type."""
    part, name = "ggml-base", f"dequantize_row_{type_name.lower().replace('_k', '_K')}"
    if type_name == "F16":
        part, name = "ggml-cpu", "ggml_cpu_fp16_to_fp32"
    return _convert(part, name, data, target)


def _convert(part: str, name: str, source: NDArray[Any], target: NDArray[Any]) -> bool:
    with _LOADING:
        routine = _routine(part, name)
    if routine is None:
        return False
    source = np.ascontiguousarray(source)
    routine(source.ctypes.data, target.ctypes.data, target.size)
    return True


@functools.cache
def _routine(part: str, name: str) -> Callable[[int, int, int], None] | None:
    if find_library() is None:
        return None
    pointer = ctypes.c_void_p
    try:
        prove_library()  # a build for another CPU would end the process
        library = load_library().ggml(part, [(name, None, [pointer, pointer, ctypes.c_int64])])
    except (EnvironmentFault, AttributeError):
        return None
    routine: Callable[[int, int, int], None] = getattr(library, name)
    return routine
