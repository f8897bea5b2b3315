"""Is every weight of the file the checkpoint's?

The plan's parts say where each row comes from; read backwards, they are the mapping's
inverse. A plain type must hold exactly the rounded weight, bit for bit. A quantized type
must keep its error inside the bound of its blocks and its noise below the signal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES
from numpy.typing import NDArray

from valle_convert.errors import InputError
from valle_convert.gguf_file.encode import PLAIN_DTYPES, decode, encode
from valle_convert.gguf_file.plan import GgufPlan, Part, PlannedTensor
from valle_convert.gguf_file.read import GgufFile, TensorInfo
from valle_convert.verify.report import Check

_ROWS_AT_ONCE = 2048

# A uniform quantizer gains 6.02 dB a bit. Of the bits of a block some go into scales, and
# weights are not uniform: llama.cpp's types reach 6.02 * bits - 10 dB on normally distributed
# weights, q2_k to q8_0 alike, within 3 dB. What is below this line is not quantization.
_DB_PER_BIT = 6.02
_DB_MARGIN = 14.0
_DB_FLOOR = 1.0


@dataclass
class _Tally:
    """What was found in one tensor."""

    n_weights: int = 0
    n_different: int = 0
    signal: float = 0.0
    noise: float = 0.0
    max_error: float = 0.0
    max_relative: float = 0.0  # error over the largest weight of its row
    where: str = ""

    @property
    def decibels(self) -> float:
        """Signal to noise; infinite where there is no noise."""
        if self.noise == 0.0:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal else -math.inf


def check_tensors(
    plan: GgufPlan, file: GgufFile, advance: Callable[[int], object] = lambda _n: None
) -> Iterator[Check]:
    """One check a tensor.

    Args:
        plan: made anew from the checkpoint.
        file: the converted file.
        advance: hears of the number of weights compared.
    """
    for planned in plan.tensors:
        found = file.tensors.get(planned.name)
        if found is None or found.shape != planned.shape:
            yield Check(
                f"tensor {planned.name}",
                passed=False,
                summary="missing" if found is None else f"of shape {list(found.shape)}",
                values={},
                limit=f"shape {list(planned.shape)}",
                badness=math.inf,
            )
            continue
        if found.ggml_type in PLAIN_DTYPES:
            yield _check_plain(plan, planned, found, advance)
        else:
            yield _check_quantized(plan, planned, found, advance)


def _check_plain(
    plan: GgufPlan, planned: PlannedTensor, found: TensorInfo, advance: Callable[[int], object]
) -> Check:
    tally = _Tally()
    rounded = False
    for part, source, data in _rows(plan, planned, found):
        rounded = rounded or source.dtype != PLAIN_DTYPES[found.ggml_type]
        try:
            expected = encode(source, found.ggml_type, part.source)
        except InputError as error:
            return Check(f"tensor {planned.name}", passed=False, summary=str(error), values={})
        actual = np.ascontiguousarray(data).view(expected.dtype).reshape(expected.shape)
        bits = f"u{expected.dtype.itemsize}"
        different = expected.view(bits) != actual.view(bits)
        n = int(np.count_nonzero(different))
        if n and not tally.n_different:
            tally.where = f"{part.label} (from {part.source})"
        tally.n_different += n
        tally.n_weights += expected.size
        advance(expected.size)
    how = "exactly rounded" if rounded else "bit for bit"
    name = found.ggml_type.name
    return Check(
        f"tensor {planned.name}",
        passed=tally.n_different == 0,
        summary=f"{name}: {tally.n_different:,} of {tally.n_weights:,} weights differ, "
        f"first in {tally.where}"
        if tally.n_different
        else f"{name}: {tally.n_weights:,} weights equal, {how}",
        values={"type": name, "weights": tally.n_weights, "different": tally.n_different},
        badness=math.inf if tally.n_different else 0.0,
    )


def _check_quantized(
    plan: GgufPlan, planned: PlannedTensor, found: TensorInfo, advance: Callable[[int], object]
) -> Check:
    tally = _Tally()
    for part, source, data in _rows(plan, planned, found):
        weights = source.astype(np.float32)
        error = np.abs(decode(data, found.ggml_type) - weights)
        largest = np.abs(weights).max(axis=-1, keepdims=True)
        tally.signal += float(np.square(weights, dtype=np.float64).sum())
        tally.noise += float(np.square(error, dtype=np.float64).sum())
        relative = float((error / np.maximum(largest, np.finfo(np.float32).tiny)).max())
        if not relative <= tally.max_relative:
            tally.max_relative, tally.where = relative, part.label
        tally.max_error = max(tally.max_error, float(error.max()))
        tally.n_weights += weights.size
        advance(weights.size)
    block, n_bytes = GGML_QUANT_SIZES[found.ggml_type]
    bits = 8 * n_bytes / block
    least = max(_DB_FLOOR, _DB_PER_BIT * bits - _DB_MARGIN)
    # No format puts a weight further off than the largest of its row.
    passed = tally.decibels >= least and tally.max_relative <= 1.0
    name = found.ggml_type.name
    return Check(
        f"tensor {planned.name}",
        passed=passed,
        summary=f"{name}: {tally.decibels:.1f} dB signal to noise, largest error "
        f"{tally.max_error:.2e} ({tally.max_relative:.1%} of its row's largest, {tally.where})",
        values={
            "type": name,
            "weights": tally.n_weights,
            "snr_db": tally.decibels,
            "max_error": tally.max_error,
            "max_relative_error": tally.max_relative,
        },
        limit=f"at least {least:.1f} dB ({_DB_PER_BIT} dB for each of {bits:.2f} bits, "
        f"less {_DB_MARGIN:g}), no error above its row's largest",
        badness=max(10 ** ((least - tally.decibels) / 10), tally.max_relative),
    )


def _rows(
    plan: GgufPlan, planned: PlannedTensor, found: TensorInfo
) -> Iterator[tuple[Part, NDArray[Any], NDArray[Any]]]:
    """Rows of the checkpoint beside the same rows of the file, some thousand at a time."""
    if len(planned.shape) == 1:
        part = planned.parts[0]
        yield part, plan.checkpoint.tensors.read(part.source), found.data
        return
    data = found.data.reshape(planned.shape[0], -1)
    for part in planned.parts:
        source = plan.checkpoint.tensors.read(part.source).reshape(-1, planned.shape[-1])
        for start in range(0, part.n_rows, _ROWS_AT_ONCE):
            stop = min(start + _ROWS_AT_ONCE, part.n_rows)
            if part.gather is None:
                rows = source[start:stop]
            else:
                rows = source[np.asarray(part.gather[start:stop])]
            yield part, rows, data[part.first_row + start : part.first_row + stop]
