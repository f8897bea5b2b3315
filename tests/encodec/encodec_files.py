"""EnCodecs in every kind of file that is read, made of the golden folder and of random weights."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file
from support import GOLDEN

GOLDEN_ENCODEC = GOLDEN / "encodec-small"
LAYOUT: dict[str, Any] = json.loads((GOLDEN_ENCODEC / "layout.json").read_text())
LAYOUT_24KHZ: dict[str, Any] = json.loads((GOLDEN_ENCODEC / "layout-24khz.json").read_text())


def golden(name: str) -> NDArray[Any]:
    """A tensor of the golden file."""
    with safe_open(GOLDEN_ENCODEC / "golden.safetensors", framework="numpy") as file:
        tensor: NDArray[Any] = file.get_tensor(name)
    return tensor


def golden_tensors() -> dict[str, torch.Tensor]:
    """The golden folder's, under the names of transformers 5."""
    return load_file(GOLDEN_ENCODEC / "hf" / "model.safetensors")


def with_old_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As older transformers saved them: weight_g and weight_v."""
    return {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in tensors.items()
    }


def with_meta_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As Meta's `.th` has them."""
    renamed = {}
    for name, tensor in with_old_names(tensors).items():
        stack, _, index, *rest = name.split(".")
        if stack == "quantizer":
            new = f"quantizer.vq.layers.{index}._{'.'.join(rest)}"
        elif rest[0] == "lstm":
            new = ".".join([stack, "model", index, *rest])
        elif rest[0] == "conv":
            upward = stack == "decoder" and index in {"3", "6", "9", "12"}
            middle = "convtr.convtr" if upward else "conv.conv"
            new = f"{stack}.model.{index}.{middle}.{rest[1]}"
        else:
            new = ".".join([stack, "model", index, *rest[:-1], "conv", rest[-1]])
        renamed[new] = tensor
    return renamed
