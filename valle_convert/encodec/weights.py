"""An opened EnCodec: its spec, its source, and tensors read on demand."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from valle_convert.encodec.architecture import CodecTensor, EncodecSpec, tensor_table
from valle_convert.errors import InputError

Tensor = NDArray[np.float32]
#: Reads one tensor in float32, of the shape of its entry.
TensorReader = Callable[[CodecTensor], Tensor]


@dataclass(frozen=True)
class EncodecWeights:
    """A codec with all tensors present and of the right shape."""

    spec: EncodecSpec
    source: str  # what was opened, as the user wrote it
    reader: TensorReader
    files: tuple[Path, ...]  # all files that are read; no output may replace them
    license: str | None = None  # license of the weights, if known
    url: str | None = None  # where the weights are published, if known
    notes: tuple[str, ...] = ()
    halves: frozenset[str] = frozenset()  # tensors that are float16 in a converted file
    is_cpp: bool = False  # whether it is a file of encodec.cpp

    @cached_property
    def _entries(self) -> Mapping[str, CodecTensor]:
        return {entry.name: entry for entry in tensor_table(self.spec)}

    @property
    def tensors(self) -> tuple[CodecTensor, ...]:
        """Every tensor, in the order of encodec.cpp's file."""
        return tuple(self._entries.values())

    def read(self, name: str) -> Tensor:
        """One tensor in float32, weight norm folded."""
        tensor = self.reader(self._entries[name])
        broken = tensor.size - int(np.count_nonzero(np.isfinite(tensor)))
        if broken:
            raise InputError(
                f"The codec {self.source} is damaged: in the tensor {name}, {broken:,} of "
                f"{tensor.size:,} values are not finite. Download it again."
            )
        return tensor
