"""Named tensors that can be listed without being read, and read one at a time.

Every container offers the same two things: the specs of all its tensors, known from the
header alone, and `read`, which gives one tensor as a numpy array, mapped from the file
where the container allows it. bfloat16 is `ml_dtypes.bfloat16`, an ordinary numpy type.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

BFLOAT16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
FLOAT16: np.dtype[Any] = np.dtype(np.float16)
FLOAT32: np.dtype[Any] = np.dtype(np.float32)
#: By their names in torch, the types of tensors that numpy has.
DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(name)
    for name in "float64 float32 float16 int64 int32 int16 int8 uint8 bool".split()
} | {"bfloat16": BFLOAT16}

#: Trained weights stay below 1e4 or so. Beyond this, a product of two activations, squared by the
#: norm after it, is infinite in float32, so that no program computes logits of such a model.
LARGEST_WEIGHT = 1e9

#: The types that weights may have; everything else is refused where a weight is expected.
WEIGHT_DTYPES = (FLOAT32, FLOAT16, BFLOAT16)


@dataclass(frozen=True)
class TensorSpec:
    """What a container's header says of one tensor.

    Attributes:
        dtype: the numpy type of the elements; None for a type that numpy does not have.
        dtype_name: the container's own word for the type, for messages.
    """

    name: str
    dtype: np.dtype[Any] | None
    dtype_name: str
    shape: tuple[int, ...]

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """The size in the container; 0 for a type that numpy does not have."""
        return self.n_elements * (0 if self.dtype is None else self.dtype.itemsize)


class NamedTensors(Protocol):
    """Tensors by name; which names there are is known from elsewhere."""

    def read(self, name: str) -> NDArray[Any]:
        """One tensor; it may be a read-only view of a file."""
        ...


class TensorSource(NamedTensors, Protocol):
    """Tensors by name; `read` may be called for any name of `specs`, in any order."""

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Every tensor of the source, in the order of the file."""
        ...

    def read(self, name: str) -> NDArray[Any]:
        """One tensor, of the shape and type of its spec. It may be a read-only view of the file."""
        ...


@dataclass(frozen=True)
class CarriedVocabulary:
    """What a container of an export says of the tokenizer.

    Attributes:
        strings: of the phonemes, with their ids; one of several strings that share an id, perhaps.
        document: the two as a tokenizer.json, which is none if strings are missing in it.
    """

    strings: Mapping[str, int]
    merges: tuple[tuple[str, ...], ...]
    document: bytes


@runtime_checkable
class BlockSource(TensorSource, Protocol):
    """A source of numbers that are stored in blocks of a type that numpy does not have.

    `read` gives such a tensor as float32, and its spec's `dtype_name` is llama.cpp's name of the
    type.
    """

    def read_blocks(self, name: str) -> NDArray[np.uint8] | None:
        """The rows as they are stored, [n, bytes of a row]; None where numpy has the type."""
        ...
