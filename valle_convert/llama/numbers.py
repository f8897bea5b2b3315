"""Numbers converted by ggml, in a tenth of the time, once a command has proved the library."""

import ctypes
import functools
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valle_convert.errors import EnvironmentFault
from valle_convert.llama.library import load_library
from valle_convert.llama.probe import is_proved

#: `functools.cache` alone would let every thread of a pool load the library.
_LOADING = threading.Lock()


def rounded_by_ggml(values: NDArray[np.float32]) -> NDArray[np.float16] | None:
    """The values rounded to nearest, ties to even; None without a llama.cpp that was proved."""
    rounded = np.empty(values.shape, np.float16)
    return rounded if _convert("ggml-cpu", "ggml_cpu_fp32_to_fp16", values, rounded) else None


def decoded_by_ggml(data: NDArray[Any], type_name: str, target: NDArray[np.float32]) -> bool:
    """Decode whole blocks; False without a proved llama.cpp that knows the type."""
    part, name = "ggml-base", f"dequantize_row_{type_name.lower().replace('_k', '_K')}"
    if type_name == "F16":
        part, name = "ggml-cpu", "ggml_cpu_fp16_to_fp32"
    return _convert(part, name, data, target)


def _convert(part: str, name: str, source: NDArray[Any], target: NDArray[Any]) -> bool:
    with _LOADING:
        library = _library(part)
    routine = getattr(library, name, None)
    if routine is None:
        return False
    routine.restype, routine.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    source = np.ascontiguousarray(source)
    routine(source.ctypes.data, target.ctypes.data, target.size)
    return True


@functools.cache
def _library(part: str) -> Any:  # noqa: ANN401
    if not is_proved():  # a build for another CPU would end the process
        return None
    try:
        return load_library().ggml(part, [])
    except EnvironmentFault:
        return None
