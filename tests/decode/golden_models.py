"""The golden checkpoints that can speak, and what their own project made of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from valle_convert.checkpoint import read_checkpoint
from valle_convert.model.families import describe
from valle_convert.model.inputs import Condition
from valle_convert.network import Network
from valle_convert.reference import ReferenceNetwork

GOLDEN = Path(__file__).parents[2] / "fixtures" / "golden"

#: The folders with generated codes: all of version 5 and 6 that can speak in every mode.
SPEAKING = ("ar-nar-len", "ar-nar-len-unified-causal", "v6-text-head")
BACK_ENDS = ("pytorch", "llama.cpp")

OpenNetwork = Callable[[str], Network]


@dataclass(frozen=True)
class Golden:
    """Inputs of one golden folder, and what the checkpoints' own project made of them."""

    condition: Condition
    tensors: dict[str, NDArray[np.int32]]

    def __getitem__(self, name: str) -> NDArray[np.int32]:
        return self.tensors[name]


def read_golden(folder: str) -> Golden:
    with safe_open(GOLDEN / folder / "golden.safetensors", "numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        language = json.loads(file.metadata()["lang"])
    return Golden(Condition(tensors["in.phn"], language, tensors["in.prom"]), tensors)


def checkpoint_of(folder: str) -> Path:
    return next((GOLDEN / folder).glob("fp32.*"))


def open_reference(folder: str) -> ReferenceNetwork:
    checkpoint = read_checkpoint(checkpoint_of(folder))
    return ReferenceNetwork(checkpoint, describe(checkpoint))
