"""The differences of two GGUF files, key by key and tensor by tensor, and how large they are.

Works on any two files, from their bytes; weights are read a few megabytes at a time.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valle_convert.errors import EnvironmentFault, InputError
from valle_convert.gguf_file.encode import decode
from valle_convert.gguf_file.read import GgufFile, TensorInfo
from valle_convert.progress import Progress, silent
from valle_convert.wording import listing, plural

_PIECE_WEIGHTS = 1 << 17  # three arrays of them fit into the cache of a core
_SHOWN, _BEFORE = 60, 20


@dataclass(frozen=True)
class KeyDifference:
    """A key that differs; None if a file does not have it."""

    name: str
    first: str | None
    second: str | None


@dataclass(frozen=True)
class TensorDifference:
    name: str
    first: str | None  # type and shape in each file, or None
    second: str | None
    equal_numbers: bool = False
    #: Signal of the first over the difference; None if the numbers are equal or incomparable.
    snr_db: float | None = None
    max_error: float | None = None
    note: str = ""

    def __str__(self) -> str:
        sides = f"{self.name}: {self.first or '(none)'} | {self.second or '(none)'}"
        if self.note:
            return f"{sides}, {self.note}"
        if self.equal_numbers:
            return f"{sides}, the same numbers"
        if self.snr_db is None:
            return sides
        return f"{sides}, {self.snr_db:.1f} dB signal to noise, largest error {self.max_error:.2e}"


@dataclass(frozen=True)
class Comparison:
    first: str
    second: str
    keys_compared: int
    tensors_compared: int
    keys: tuple[KeyDifference, ...]
    tensors: tuple[TensorDifference, ...]

    @property
    def same(self) -> bool:
        """Whether all keys and tensors are bit-identical."""
        return not self.keys and not self.tensors

    def lines(self) -> Iterator[str]:
        """One line for each difference, and a last one with their number."""
        for key in self.keys:
            yield f"key     {key.name}: {' | '.join(_shown(key.first, key.second))}"
        yield from (f"tensor  {tensor}" for tensor in self.tensors)
        keys = plural(self.keys_compared, "key")
        tensors = plural(self.tensors_compared, "tensor")
        if self.same:
            yield f"the same: {keys} and {tensors}"
        else:
            yield f"{len(self.keys)} of {keys} and {len(self.tensors)} of {tensors} differ"

    def to_json(self) -> dict[str, Any]:
        return {"schema_version": 1, "same": self.same, **asdict(self)}


def signal_to_noise(first: TensorInfo, second: TensorInfo) -> float | None:
    """Signal of the first tensor over the difference, in dB; infinite if the numbers are the same.

    None if they cannot be compared.
    """
    found = _compare_data(first, second)
    return math.inf if found is None or found.equal_numbers else found.snr_db


def compare_files(
    first: Mapping[str, GgufFile], second: Mapping[str, GgufFile], *, progress: Progress = silent
) -> Comparison:
    paths = [next(iter(files.values())).path for files in (first, second)]
    if list(first) != list(second):
        kinds = [listing(parts, 2) for parts in (first, second)]
        raise InputError(
            f"{paths[0]} has the parts {kinds[0]}, but {paths[1]} has {kinds[1]}; compare models "
            "of the same kind."
        )
    pairs = [(f"{part}: " if len(first) > 1 else "", first[part], second[part]) for part in first]
    keys: list[KeyDifference] = []
    tensors: list[TensorDifference] = []
    n_keys = n_tensors = 0
    total = sum(tensor.n_elements for _, a, _ in pairs for tensor in a.tensors.values())
    with progress("comparing", total, "weights") as advance:
        for words, a, b in pairs:
            keys += [replace(one, name=words + one.name) for one in _compare_keys(a, b)]
            n_keys += len({*a.keys, *b.keys})
            found = _compare_tensors(a, b, advance)
            tensors += [replace(one, name=words + one.name) for one in found]
            n_tensors += len({*a.tensors, *b.tensors})
    return Comparison(
        str(paths[0]),
        str(paths[1]),
        keys_compared=n_keys,
        tensors_compared=n_tensors,
        keys=tuple(keys),
        tensors=tuple(tensors),
    )


def _compare_tensors(
    a: GgufFile, b: GgufFile, advance: Callable[[int], object]
) -> Iterator[TensorDifference]:
    for name in dict.fromkeys([*a.tensors, *b.tensors]):
        in_a, in_b = a.tensors.get(name), b.tensors.get(name)
        if in_a is None or in_b is None or in_a.shape != in_b.shape:
            yield TensorDifference(name, _show(in_a), _show(in_b))
        else:
            difference = _compare_data(in_a, in_b)
            if difference is not None:
                yield difference
        advance(in_a.n_elements if in_a else 0)


def _compare_keys(a: GgufFile, b: GgufFile) -> Iterator[KeyDifference]:
    for name in dict.fromkeys([*a.keys, *b.keys]):
        if name in a.keys and name in b.keys and a.raw(name) == b.raw(name):
            continue
        yield KeyDifference(
            name,
            _text(a.keys[name]) if name in a.keys else None,
            _text(b.keys[name]) if name in b.keys else None,
        )


def _compare_data(a: TensorInfo, b: TensorInfo) -> TensorDifference | None:
    same_type = a.ggml_type == b.ggml_type
    equal = same_type
    signal = noise = largest = 0.0
    note = ""
    for raw_a, raw_b in zip(_pieces(a), _pieces(b), strict=True):
        same = same_type and np.array_equal(raw_a, raw_b)
        equal = equal and same
        if note:
            continue
        try:
            x = decode(raw_a, a.ggml_type).ravel()
            y = x if same else decode(raw_b, b.ggml_type).ravel()
        except EnvironmentFault as fault:
            note = str(fault)
            continue
        signal += inner(x, x)
        if not same:
            with np.errstate(all="ignore"):  # infinite - infinite
                error = y - x
                largest_here = _peak(error)
                if math.isinf(largest_here):  # beyond float32
                    error = y.astype(np.float64) - x
                    largest_here = _peak(error)
            noise += inner(error, error)
            largest = max(largest, largest_here)
    if not math.isfinite(signal + noise):
        note = "not all numbers are finite"
    if equal:
        return None
    if note:
        return TensorDifference(a.name, _show(a), _show(b), note=note)
    decibels = 10 * math.log10(signal / noise) if signal and noise else -math.inf
    snr_db = None if noise == 0 else decibels
    return TensorDifference(a.name, _show(a), _show(b), noise == 0, snr_db, largest)


def _peak(x: NDArray[Any]) -> float:
    return max(float(x.max()), -float(x.min()))


def inner(x: NDArray[Any], y: NDArray[Any]) -> float:
    """The inner product; in float64, which is slower, where float32 overflows or vanishes."""
    product = float(np.vdot(x, y))
    if 1e-24 < abs(product) < math.inf:
        return product
    return float(np.vdot(x.astype(np.float64), y.astype(np.float64)))


def _pieces(tensor: TensorInfo) -> Iterator[NDArray[np.uint8]]:
    """The rows of a tensor as bytes [rows, bytes of a row]; pieces of two files line up."""
    rows = tensor.data.reshape(-1, tensor.data.shape[-1])
    step = max(1, _PIECE_WEIGHTS // tensor.shape[-1])
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


def _show(tensor: TensorInfo | None) -> str | None:
    return None if tensor is None else f"{tensor.ggml_type.name} {list(tensor.shape)}"


def _text(value: object) -> str:
    return f"{len(value)} values: {value!r}" if isinstance(value, list) else repr(value)


def _shown(first: str | None, second: str | None) -> Iterator[str]:
    """Two values in a line; of long ones, the part where they differ."""
    texts = [one or "(none)" for one in (first, second)]
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*texts, strict=False))
    start = max(0, sum(1 for _ in same) - _BEFORE)
    if max(map(len, texts)) <= _SHOWN:
        start = 0
    for one in texts:
        before, after = start > 0, len(one) > start + _SHOWN
        yield f"{'...' * before}{one[start : start + _SHOWN]}{'...' * after}"
