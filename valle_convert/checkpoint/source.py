"""Named tensors that can be listed without being read, and read one at a time.

Every container offers the specs of all its tensors, from the header alone, and `read`, which gives
one tensor as a numpy array, mapped from the file if possible. bfloat16 is `ml_dtypes.bfloat16`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from valle_convert.errors import InputError

BFLOAT16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
FLOAT16: np.dtype[Any] = np.dtype(np.float16)
FLOAT32: np.dtype[Any] = np.dtype(np.float32)
#: Numpy's types by their names in torch.
DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(name)
    for name in "float64 float32 float16 int64 int32 int16 int8 uint8 bool".split()
} | {"bfloat16": BFLOAT16}

#: Trained weights stay below 1e4 or so. Beyond this, a product of two activations, squared by the
#: following norm, overflows float32, so that no program computes logits of such a model.
LARGEST_WEIGHT = 1e9

#: The types that weights may have.
WEIGHT_DTYPES = (FLOAT32, FLOAT16, BFLOAT16)


@dataclass(frozen=True)
class TensorSpec:
    """A tensor according to its container's header."""

    name: str
    dtype: np.dtype[Any] | None  # the numpy type of the elements, or None if numpy has none
    dtype_name: str  # the container's own name of the type, for messages
    shape: tuple[int, ...]

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """The size in the container; 0 if numpy does not have the type."""
        return self.n_elements * (0 if self.dtype is None else self.dtype.itemsize)


def unreadable(where: Path, spec: TensorSpec) -> InputError:
    """The error for a tensor of a type that numpy does not have."""
    return InputError(
        f"{where}: the tensor {spec.name} has the type {spec.dtype_name}, which cannot be read; "
        "float32, float16 and bfloat16 can."
    )


class NamedTensors(Protocol):
    """Tensors by name, without a list of the names."""

    def read(self, name: str) -> NDArray[Any]:
        """One tensor, of the shape and type of its spec; it may be a read-only view of a file."""
        ...


class TensorSource(NamedTensors, Protocol):
    """Tensors by name; `read` may be called for any name of `specs`, in any order."""

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Every tensor of the source, in the order of the file."""
        ...


@dataclass(frozen=True)
class CarriedVocabulary:
    """The tokenizer in an export."""

    #: Of the phonemes, with their ids; possibly only one of several with the same id.
    strings: Mapping[str, int]
    merges: tuple[tuple[str, ...], ...]


@runtime_checkable
class BlockSource(TensorSource, Protocol):
    """A source with tensors in quantized types, which numpy does not have.

    `read` gives such a tensor as float32, and its spec's `dtype_name` is llama.cpp's name of the
    type.
    """

    def read_blocks(self, name: str) -> NDArray[np.uint8] | None:
        """The rows as stored, [n, bytes of a row]; None if numpy has the type."""
        ...
