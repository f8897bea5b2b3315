"""Rows of a file's token table that test llama.cpp's input scale."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from valle_convert.errors import InputError
from valle_convert.gguf_file.plan import TOKEN_EMBEDDING
from valle_convert.gguf_file.read import GgufFile

#: The number of rows, evenly spread over the token table.
_PROBE_ROWS = 32


def read_probe_rows(file: GgufFile, n_rows: int | None = None) -> dict[int, NDArray[np.float32]]:
    """A few rows of the token table of a GGUF file, as floats: id -> [n_embd].

    Rows of middling size come first: there, both the row and the layers show in the logits.
    """
    table = file.tensors.get(TOKEN_EMBEDDING)
    if table is None:
        raise InputError(
            f"{file.path} has no tensor token_embd.weight; convert the checkpoint again."
        )
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
