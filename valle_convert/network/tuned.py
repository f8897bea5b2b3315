"""The fastest settings for a converted file, from `llama.tuning`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from valle_convert.gguf_file.encode import decode, encode, nominal_decibels
from valle_convert.gguf_file.plan import TOKEN_EMBEDDING
from valle_convert.gguf_file.read import GgufFile
from valle_convert.gguf_file.types import PLAIN_DTYPES, GgmlType
from valle_convert.llama.context import EXACT, FloatArray, Settings
from valle_convert.llama.session import SMALL_MODEL, Session
from valle_convert.llama.tuning import Tune, Tuned, tuned_settings
from valle_convert.metrics import nmse


def tuned_for(
    file: GgufFile,
    open_session: Callable[[Settings], Session],
    rows: Mapping[int, FloatArray],
    settings: Settings | None,
    tune: Tune,
) -> Tuned:
    """Settings for passes and for steps: given ones, or the fastest that are exact enough."""
    base = settings or EXACT
    sizes: Counter[GgmlType] = Counter()
    for tensor in file.tensors.values():
        sizes[tensor.ggml_type] += tensor.n_elements
    # A small model speaks in less time than the search takes.
    if tune == "off" or sizes.total() < SMALL_MODEL:
        return Tuned(base, base)
    found = tuned_settings(
        open_session,
        base,
        np.stack(list(rows.values())),
        rounding=rounding_of(sizes.most_common(1)[0][0]),
        about=sorted((name, one.ggml_type.name, *one.shape) for name, one in file.tensors.items()),
        mode=tune,
    )
    # For a step, the callback for every node of the graph costs more than the rows of the head do.
    return replace(found, passes=replace(found.passes, own_head=True))


def head_rows(file: GgufFile) -> Callable[[slice], FloatArray]:
    """Rows of the output head, which is the token table, dequantized on request."""
    table = file.tensors[TOKEN_EMBEDDING]
    return lambda columns: table.rows(np.arange(table.shape[0])[columns])


def rounding_of(ggml_type: GgmlType) -> float:
    """The normalized mean square error of normally distributed weights in a type."""
    if ggml_type not in PLAIN_DTYPES:
        return float(10 ** (-nominal_decibels(ggml_type) / 10))
    exact = np.random.default_rng(0).standard_normal((16, 256), np.float32)
    return nmse(exact, decode(encode(exact, ggml_type, "noise").view(np.uint8), ggml_type))
