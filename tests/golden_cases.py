"""The golden cases as passes of a network: what the original implementation was given."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from support import GOLDEN

from valle_convert.families.family import Case
from valle_convert.families.v5.trials import pass_case
from valle_convert.model.inputs import (
    Condition,
    Segment,
    length_segments,
    speech_segments,
)
from valle_convert.model.spec import Model
from valle_convert.network.protocol import Network

# The notes of the golden files: "len tokens [0,1,9]".
DIGITS = np.array([0, 1, 9])


@dataclass(frozen=True)
class GoldenCase:
    """A pass and the logits that the original computed."""

    case: Case[Network]
    logits: NDArray[np.float32]


@cache
def golden_tensors(folder: str) -> tuple[dict[str, NDArray[np.generic]], dict[str, str]]:
    """All tensors and the metadata of a golden file."""
    with safe_open(GOLDEN / folder / "golden.safetensors", framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def golden_cases(folder: str, model: Model) -> Iterator[GoldenCase]:
    """Every `logits.*` of a golden file."""
    tensors, metadata = golden_tensors(folder)
    condition = Condition(
        phonemes=tensors["in.phn"], language=int(metadata["lang"]), prompt=tensors["in.prom"]
    )
    response, masked = tensors["in.resp"], tensors.get("in.masked")
    for name in json.loads(metadata["notes"]):
        if f"logits.{name}" not in tensors:
            continue
        head, segments = _pass(name, model, condition, response, masked)
        logits = tensors[f"logits.{name}"]
        yield GoldenCase(pass_case(name, head, segments, len(logits)), logits)


def _pass(
    name: str,
    model: Model,
    condition: Condition,
    response: NDArray[np.generic],
    masked: NDArray[np.generic] | None,
) -> tuple[str, list[Segment]]:
    if name == "ar":
        return "ar", speech_segments(model, condition, 0, response)
    if name == "ns":
        return "ar", speech_segments(model, replace(condition, task="ns"), 0, response)
    if name.startswith("nar"):
        level = int(name.removeprefix("nar"))
        return f"nar.{level}", speech_segments(model, condition, level, response)
    if name == "len":
        return "len", length_segments(model, condition, DIGITS)
    given = {"mask": condition, "mask_null": condition.null()}[name]
    assert masked is not None
    return "mask", speech_segments(model, given, 0, masked, masked=True)
