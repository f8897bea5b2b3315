"""`llama_model_quantize` of the installed library, behind llama-quantize's command line.

    python -m valle_convert.quantize.worker [options] IN.gguf [OUT.gguf] TYPE [THREADS]

The options are those that this project uses: --dry-run, --allow-requantize, --pure,
--tensor-type, --imatrix. The log goes to stderr, in llama.cpp's words.
"""

import argparse
import ctypes
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valle_convert.errors import ValleConvertError
from valle_convert.gguf_file.header import Key
from valle_convert.llama.library import load_library
from valle_convert.quantize.imatrix import read_imatrix
from valle_convert.quantize.types import FILE_TYPES, check_tensor_type, ggml_type

# llama_model_kv_override: which member of the union holds.
_TAG_INT, _TAG_STRING = 0, 3
_N_VALUE = 128  # bytes of a string in it, with the zero at the end


def main(arguments: Sequence[str]) -> int:
    """Parse the arguments, call the routine; returns the exit code."""
    parser = argparse.ArgumentParser(prog="llama_model_quantize", allow_abbrev=False)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--allow-requantize", action="store_true")
    parser.add_argument("--pure", action="store_true")
    parser.add_argument("--tensor-type", action="append", default=[])
    parser.add_argument("--imatrix", type=Path)
    parser.add_argument("files_type_threads", nargs="+")
    options = parser.parse_args(arguments)
    try:
        return _quantize(options, *_positional(options.files_type_threads))
    except ValleConvertError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code


def _positional(words: Sequence[str]) -> tuple[str, str, str, int]:
    """Input, output (empty where there is none), type, threads (0 for the library's choice)."""
    source, *rest = words
    target = "" if rest and rest[0] in FILE_TYPES else rest.pop(0) if rest else ""
    name = rest.pop(0) if rest else ""
    if name not in FILE_TYPES:
        raise SystemExit(f"no type in {' '.join(words)}")
    return source, target, name, int(rest[0]) if rest else 0


def _quantize(
    options: argparse.Namespace, source: str, target: str, type_name: str, threads: int
) -> int:
    library = load_library()
    api = library.api

    def write(_level: int, text: bytes | None, _user_data: object) -> None:
        sys.stderr.write((text or b"").decode("utf-8", errors="replace"))
        sys.stderr.flush()

    callback = api.llama_log_callback(write)
    api.llama_log_set(callback, None)
    params = api.llama_model_quantize_default_params()
    params.nthread = threads
    params.ftype = FILE_TYPES[type_name].number
    params.only_copy = type_name == "COPY"
    params.dry_run = options.dry_run
    params.allow_requantize = options.allow_requantize
    params.pure = options.pure
    if options.tensor_type:
        params.tt_overrides = _tensor_types(api, options.tensor_type)
    if options.imatrix:
        imatrix = read_imatrix(options.imatrix)
        means = {name: entry.mean() for name, entry in imatrix.entries.items()}
        params.imatrix = _importance(api, means)
        params.kv_overrides = _overrides(api, imatrix.keys(str(options.imatrix)))
    code: int = api.llama_model_quantize(
        os.fsencode(source), os.fsencode(target), ctypes.byref(params)
    )
    return code


def _tensor_types(api: Any, values: Sequence[str]) -> Any:  # noqa: ANN401 - ctypes
    pairs = [check_tensor_type(value).split("=", 1) for value in values]
    array = (api.llama_model_tensor_override * (len(pairs) + 1))()
    for i, (pattern, name) in enumerate(pairs):
        array[i].pattern = os.fsencode(pattern)
        array[i].type = ggml_type(name).number
    return array  # the last element stays zero, which ends the list


def _importance(api: Any, means: Mapping[str, NDArray[np.float32]]) -> Any:  # noqa: ANN401 - ctypes
    """The list that the routine takes; it points into `means`, which has to outlive it."""
    array = (api.llama_model_imatrix_data * (len(means) + 1))()
    for entry, (name, values) in zip(array, means.items(), strict=False):
        entry.name = name.encode()
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = len(values)
    return array


def _overrides(api: Any, keys: Sequence[Key]) -> Any:  # noqa: ANN401 - ctypes
    array = (api.llama_model_kv_override * (len(keys) + 1))()
    for override, key in zip(array, keys, strict=False):
        override.key = key.name.encode()
        if key.type == "string":
            override.tag = _TAG_STRING
            override.value.val_str = key.value.encode()[: _N_VALUE - 1]
        else:
            override.tag = _TAG_INT
            override.value.val_i64 = key.value
    return array


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
