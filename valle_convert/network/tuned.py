"""What a session of llama.cpp needs of a converted file: rows of its token table, settings."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from valle_convert.errors import InputError
from valle_convert.gguf_file.encode import decode, encode, nominal_decibels
from valle_convert.gguf_file.header import weights_by_type
from valle_convert.gguf_file.plan import TOKEN_EMBEDDING
from valle_convert.gguf_file.read import GgufFile
from valle_convert.gguf_file.types import PLAIN_DTYPES, GgmlType
from valle_convert.llama.context import EXACT, FloatArray, Settings
from valle_convert.llama.session import SMALL_MODEL
from valle_convert.llama.tuning import FileFacts, tuned_settings
from valle_convert.metrics import nmse

#: The number of rows, evenly spread over the token table.
_PROBE_ROWS = 32


@dataclass(frozen=True)
class Tuned:
    """Settings for passes in both directions, and for steps of one row."""

    passes: Settings
    steps: Settings


def tuned_for(
    file: GgufFile,
    rows: Mapping[int, FloatArray],  # likely inputs
    settings: Settings | None,
    first: Path | None = None,  # the first part, if `file` is the second
) -> Tuned:
    """Given settings, or the fastest that are exact enough."""
    given = settings or EXACT
    base = replace(given, n_parallel=1, tune="off")
    sizes = weights_by_type(file.tensors.values())
    # A small model speaks in less time than the search takes.
    if given.tune == "off" or sizes.total() < SMALL_MODEL:
        return Tuned(base, replace(base, n_parallel=given.n_parallel or 1))
    kind = sizes.most_common(1)[0][0]
    n_layer = len({name.split(".")[1] for name in file.tensors if name.startswith("blk.")})
    facts = FileFacts(kind.name, sizes.total(), n_layer, file.tensors[TOKEN_EMBEDDING].shape[1])
    inputs = np.stack(list(rows.values()))
    paths = [first, file.path] if first else [file.path]
    found = tuned_settings(paths, facts, base, inputs, rounding_of(kind), given.tune)
    passes, steps = (found.passes.settings, found.steps.settings) if found else (base, base)
    n_parallel = given.n_parallel or (found.n_parallel if found else 1)
    return Tuned(
        replace(passes, own_head=True), replace(steps, own_head=True, n_parallel=n_parallel)
    )


def read_probe_rows(file: GgufFile, n_rows: int | None = None) -> dict[int, FloatArray]:
    """A few rows of the token table of a GGUF file, as floats: id -> [n_embd].

    Rows of middling size come first: there, both the row and the layers show in the logits.
    """
    table = file.tensors[TOKEN_EMBEDDING]
    ids = np.unique(np.linspace(0, (n_rows or table.shape[0]) - 1, _PROBE_ROWS).astype(np.int64))
    rows = table.rows(ids)
    sizes = np.sqrt(np.mean(rows**2, axis=1))
    used = np.flatnonzero(sizes > 0)
    if not len(used):
        raise InputError(
            f"All {len(ids)} probed rows of token_embd.weight in {file.path} are zero; "
            "the file is not a converted model."
        )
    from_the_middle = used[np.argsort(np.abs(sizes[used] - np.median(sizes[used])), kind="stable")]
    return {int(ids[i]): rows[i] for i in from_the_middle}


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
