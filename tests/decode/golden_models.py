"""The golden checkpoints that can speak, and what their own project made of them."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from golden_cases import golden_tensors
from numpy.typing import NDArray

from valle_convert.model.inputs import Condition

#: The folders with generated codes: all of version 5 and 6 that can speak in every mode.
SPEAKING = ("ar-nar-len", "ar-nar-len-unified-causal", "v6-text-head")
BACK_ENDS = ("pytorch", "llama.cpp")

#: Of a golden folder, of any family.
OpenNetwork = Callable[[str], Any]


@dataclass(frozen=True)
class Golden:
    """Inputs of one golden folder, and what the checkpoints' own project made of them."""

    condition: Condition
    tensors: dict[str, NDArray[np.generic]]

    def __getitem__(self, name: str) -> NDArray[np.generic]:
        return self.tensors[name]


def read_golden(folder: str) -> Golden:
    tensors, metadata = golden_tensors(folder)
    condition = Condition(tensors["in.phn"], json.loads(metadata["lang"]), tensors["in.prom"])
    return Golden(condition, tensors)
