"""Is every weight of the file the checkpoint's?

The plan says where each row comes from; read backwards, it is the mapping's inverse. A plain type
must hold exactly the rounded weight, bit for bit. A quantized type must keep its error inside the
bound of its blocks and its noise below the signal.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from valle_convert.errors import InputError
from valle_convert.gguf_file.compare import inner
from valle_convert.gguf_file.encode import DECIBELS_BELOW, decode, encode, least_decibels, roundings
from valle_convert.gguf_file.plan import PlannedFile, PlannedTensor
from valle_convert.gguf_file.read import GgufFile, TensorInfo
from valle_convert.gguf_file.types import GGML_TYPES, PLAIN_DTYPES, GgmlType
from valle_convert.gguf_file.write import source_rows, stored_blocks
from valle_convert.llama.cpu import usable_cores
from valle_convert.model.description import RowBlock
from valle_convert.network.weights import rounded_types
from valle_convert.verify.report import Check
from valle_convert.wording import listing

_ROWS_AT_ONCE = 2048

# A table of few rows may be below the whole.
_DB_PART_MARGIN = 6.0
# Correlation of errors and weights that shows a wrong scale, if there are enough weights.
_ALONG = 0.4
_ENOUGH_WEIGHTS = 4096
_SHOWN = 3
#: These types keep seven signs for eight weights. If the eighth is wrong, it belongs to the least
#: important weight, and the error is twice the weight: 1.09 times the row's largest was measured,
#: with an importance matrix of inputs that ReLU keeps at zero. Types of one bit give a weight with
#: hardly any input whatever suits its neighbours: 1.5 times.
_FAR_OFF = frozenset({"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ3_XXS"})


@dataclass
class _Tally:
    """Statistics of a tensor, or of a part of one."""

    where: str = ""
    n_weights: int = 0
    signal: float = 0.0
    noise: float = 0.0
    product: float = 0.0  # of weights and errors, summed
    max_error: float = 0.0
    max_relative: float = 0.0  # error over the largest weight of its row

    def add(self, weights: NDArray[np.float32], found: NDArray[np.float32]) -> None:
        """Add rows [n, columns]: expected ones and those of the file."""
        largest = np.abs(weights).max(axis=-1, keepdims=True)
        signed = found - weights
        error = np.abs(signed)
        self.signal += inner(weights, weights)
        self.noise += inner(signed, signed)
        self.product += inner(signed, weights)
        relative = float((error / np.maximum(largest, np.finfo(np.float32).tiny)).max())
        # Written so that NaN stays.
        if not relative <= self.max_relative:
            self.max_relative = relative
        self.max_error = max(self.max_error, float(error.max()))
        self.n_weights += weights.size

    def merge(self, other: Self) -> None:
        if not other.max_relative <= self.max_relative:
            self.max_relative, self.where = other.max_relative, other.where
        self.max_error = max(self.max_error, other.max_error)
        self.signal += other.signal
        self.noise += other.noise
        self.product += other.product
        self.n_weights += other.n_weights

    @property
    def decibels(self) -> float:
        """Signal to noise; infinite without noise."""
        if self.noise == 0.0:
            return math.inf
        if not self.signal or not math.isfinite(self.signal + self.noise):
            return -math.inf
        return 10 * math.log10(self.signal / self.noise)

    def fault(self, least: float, most: float) -> str | None:
        """The fault, if there is one; NaN is a fault."""
        if not self.decibels >= least:
            return f"has {self.decibels:.1f} dB signal to noise, not {least:.1f}"
        if not self.max_relative <= most:
            return f"has an error of {self.max_relative:.1%} of its row's largest weight"
        if self.noise > 0.0 and self.n_weights >= _ENOUGH_WEIGHTS:
            # Rounding to the nearest value errs against the weight by the noise itself. A wrong
            # scale errs along with the weight, or against it, by the whole error.
            along = abs(self.product) / math.sqrt(self.signal * self.noise)
            if along > max(_ALONG, 2 * math.sqrt(self.noise / self.signal)):
                return (
                    f"has errors that follow the weights (correlation {along:.2f}), like a wrong "
                    "scale"
                )
        return None


def check_tensors(
    plan: PlannedFile, file: GgufFile, advance: Callable[[int], object] = lambda _n: None
) -> Iterator[Check]:
    # numpy rounds and compares without Python's lock.
    with ThreadPoolExecutor(usable_cores()) as pool:
        checks = pool.map(partial(_check, plan, file, rounded_types(plan, file)), plan.tensors)
        for tensor, check in zip(plan.tensors, checks, strict=True):
            advance(tensor.n_elements)
            yield check


def _check(
    plan: PlannedFile, file: GgufFile, rounded: Mapping[str, GgmlType], planned: PlannedTensor
) -> Check:
    found = file.tensors.get(planned.name)
    if found is None or found.shape != planned.shape:
        there = "missing" if found is None else f"of shape {list(found.shape)}"
        return Check.failure(f"tensor {planned.name}", f"{there}, expected {list(planned.shape)}")
    blocks = [
        stored_blocks(plan.checkpoint.tensors, span.source, found.ggml_type)
        for span in planned.spans
    ]
    if len(stored := [one for one in blocks if one is not None]) == len(blocks):
        return _check_moved(planned, found, stored)
    types = {span.label: rounded[span.source] for span in planned.spans}
    if all(kind in PLAIN_DTYPES for kind in types.values()):
        return _check_plain(plan, planned, found)
    return _check_quantized(plan, planned, found, types)


def _check_plain(plan: PlannedFile, planned: PlannedTensor, found: TensorInfo) -> Check:
    """The tensor is rounded exactly, either directly or through another plain type."""
    name = found.ggml_type.name
    try:
        n_different, where, rounded = _count_different(plan, planned, found, None)
        way = "exactly rounded" if rounded else "bit for bit"
        for between in roundings(found.ggml_type)[1:] if n_different else ():
            if not _count_different(plan, planned, found, between)[0]:
                n_different, way = 0, f"exactly rounded, to {between} and then to {name}"
                break
    except InputError as error:
        return Check.failure(f"tensor {planned.name}", str(error))
    return _exact_check(planned, found, n_different, "weights", where, f"weights equal, {way}")


def _count_different(
    plan: PlannedFile, planned: PlannedTensor, found: TensorInfo, between: str | None
) -> tuple[int, str, bool]:
    """The weights that differ from the rounded ones, where, and whether any had to be rounded."""
    n_different, where, rounded = 0, "", False
    for span, source, data in _rows(plan, planned, found):
        rounded = rounded or source.dtype != PLAIN_DTYPES[found.ggml_type]
        if between is not None:
            source = encode(source, GGML_TYPES[between], span.source)  # noqa: PLW2901
        expected = encode(source, found.ggml_type, span.source, by_numpy=True)
        actual = np.ascontiguousarray(data).view(expected.dtype).reshape(expected.shape)
        bits = f"u{expected.dtype.itemsize}"
        n = int(np.count_nonzero(expected.view(bits) != actual.view(bits)))
        if n and not n_different:
            where = f"{span.label} (from {span.source})"
        n_different += n
    return n_different, where, rounded


def rounding_decibels(plan: PlannedFile, name: str, found: TensorInfo) -> float:
    """Signal to noise of a whole tensor, compared with the checkpoint; infinite if it is equal."""
    planned = next(one for one in plan.tensors if one.name == name)
    tally = _Tally()
    for _, source, data in _rows(plan, planned, found):
        tally.add(source.astype(np.float32), decode(data, found.ggml_type))
    return tally.decibels


def _check_moved(
    planned: PlannedTensor, found: TensorInfo, stored: Sequence[NDArray[np.uint8]]
) -> Check:
    """The rows are the source's quantized ones, bit for bit."""
    data = found.data.reshape(planned.shape[0], -1)
    n_different, where = 0, ""
    for span, source in zip(planned.spans, stored, strict=True):
        for at, rows in source_rows(span, source, _ROWS_AT_ONCE):
            n = int((rows != data[at : at + len(rows)]).any(axis=-1).sum())
            if n and not n_different:
                where = span.label
            n_different += n
    return _exact_check(planned, found, n_different, "rows", where, "rows moved, bit for bit")


def _exact_check(
    planned: PlannedTensor, found: TensorInfo, n_different: int, unit: str, where: str, right: str
) -> Check:
    name = found.ggml_type.name
    total = planned.n_elements if unit == "weights" else planned.shape[0]
    return Check(
        f"tensor {planned.name}",
        passed=not n_different,
        summary=f"{name}: {n_different:,} of {total:,} {unit} differ, first in {where}"
        if n_different
        else f"{name}: {total:,} {right}",
        values={"type": name, unit: total, "different": n_different},
        badness=math.inf if n_different else 0.0,
    )


def _check_quantized(
    plan: PlannedFile, planned: PlannedTensor, found: TensorInfo, types: Mapping[str, GgmlType]
) -> Check:
    """The whole tensor, and every table and head in it.

    `types` has the type that the weights of each span were rounded to.
    """
    tallies: dict[str, _Tally] = {}
    for span, source, data in _rows(plan, planned, found):
        tally = tallies.setdefault(span.label, _Tally(where=span.label))
        tally.add(source.astype(np.float32), decode(data, found.ggml_type))
    whole = _Tally()
    for tally in tallies.values():
        whole.merge(tally)
    coarsest = min(types.values(), key=lambda kind: kind.bits)
    least = least_decibels(coarsest)
    least_part = least_decibels(coarsest, _DB_PART_MARGIN)
    may_be_far = any(kind.name in _FAR_OFF for kind in (found.ggml_type, *types.values()))
    most = 2.5 if may_be_far else 1.0
    faults = [
        f"{label} {fault}"
        for label, tally in tallies.items()
        if (fault := tally.fault(least_decibels(types[label], _DB_PART_MARGIN), most)) is not None
    ]
    weakest = min(tallies.values(), key=lambda tally: tally.decibels)
    name = found.ggml_type.name
    passed = not faults and whole.fault(least, most) is None
    return Check(
        f"tensor {planned.name}",
        passed=passed,
        summary=f"{name}: {whole.decibels:.1f} dB signal to noise"
        + (f" ({weakest.decibels:.1f} in {weakest.where})" if len(tallies) > 1 else "")
        + f", largest error {whole.max_error:.2e} ({whole.max_relative:.1%} of its row's largest, "
        f"{whole.where})" + (f"; {listing(faults, _SHOWN, '; ')}" if faults else ""),
        values={
            "type": name,
            "weights": whole.n_weights,
            "snr_db": whole.decibels,
            "weakest_part": weakest.where,
            "weakest_part_snr_db": weakest.decibels,
            "max_error": whole.max_error,
            "max_relative_error": whole.max_relative,
        },
        limit=f"at least {least:.1f} dB ({DECIBELS_BELOW:g} less than the type reaches on random "
        f"weights), {least_part:.1f} in each table or head; no error above its row's "
        f"largest{' times 2.5' if most > 1 else ''}; errors that do not follow the weights",
        badness=max(10 ** ((least - whole.decibels) / 10), whole.max_relative / most)
        if passed
        else math.inf,
    )


def _rows(
    plan: PlannedFile, planned: PlannedTensor, found: TensorInfo
) -> Iterator[tuple[RowBlock, NDArray[Any], NDArray[Any]]]:
    """Rows of the checkpoint with the same rows of the file, a few thousand at a time."""
    if len(planned.shape) == 1:
        span = planned.spans[0]
        yield span, plan.checkpoint.tensors.read(span.source), found.data
        return
    data = found.data.reshape(planned.shape[0], -1)
    for span in planned.spans:
        source = plan.checkpoint.tensors.read(span.source).reshape(-1, planned.shape[-1])
        for at, rows in source_rows(span, source, _ROWS_AT_ONCE):
            yield span, rows, data[at : at + len(rows)]
