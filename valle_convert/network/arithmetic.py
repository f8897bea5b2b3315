"""How the layers of a network compute, and the effect of llama.cpp's arithmetic, in PyTorch.

On the CPU llama.cpp rounds the inputs of a matrix product to a type that follows from the weights'
(float16 for float16, blocks of 8-bit numbers for all quantized types), and looks GELU up in a table
of float16. This module does the same to a reference network. Its logits are not llama.cpp's bit for
bit, since sums are rounded in another order, but they are as far from the exact ones, on any
network. That makes their error the yardstick for correct files.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name

#: Quantized types whose inputs are rounded in blocks of 32; all others have blocks of 256.
_BLOCKS_OF_32 = frozenset("Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q8_1 IQ4_NL MXFP4 NVFP4 Q1_0 Q2_0".split())
_LARGEST = 127  # 8-bit number
_GELU_TABLE_ENDS = 10.0


#: Called as `observe(part, linear, inputs [n, in], outputs [n, out])` after every linear layer,
#: with the layer's GGUF name; `INPUTS` is the name for the rows that go into the first layer.
Observer = Callable[[str, str, Tensor, Tensor], None]
INPUTS = "inputs"


def unobserved(*_: object) -> None:
    pass


@dataclass(frozen=True)
class Arithmetic:
    """The arithmetic of matrix products and activations."""

    #: Of the feed-forward; None for the checkpoint's own.
    activation: Callable[[Tensor], Tensor] | None = None
    #: Called as `round_inputs(part, linear, inputs [n, in])` with the layer's GGUF name before
    #: every linear layer; its result is multiplied.
    round_inputs: Callable[[str, str, Tensor], Tensor] = lambda _part, _name, inputs: inputs


#: Float32 throughout.
EXACT = Arithmetic()


def gelu_from_table(x: Tensor) -> Tensor:
    """GELU as in ggml's CPU backend: the tanh form, of and in float16 between -10 and 10."""
    table = F.gelu(x.half().float(), approximate="tanh").half().float()
    return torch.where(x.abs() < _GELU_TABLE_ENDS, table, F.relu(x))


def input_rounding(
    types: Mapping[str, Mapping[str, str]],
) -> Callable[[str, str, Tensor], Tensor]:
    """How inputs of each linear layer are rounded before they are multiplied."""

    def round_inputs(part: str, name: str, x: Tensor) -> Tensor:
        # Other parts are computed in PyTorch, from dequantized weights.
        kind = types[part][name] if part in types else "F32"
        if kind == "F32":
            return x
        if kind == "F16":
            return x.half().float()
        if kind == "BF16":
            return x.bfloat16().float()
        return _in_blocks(x, 32 if kind in _BLOCKS_OF_32 else 256)

    return round_inputs


def _in_blocks(x: Tensor, size: int) -> Tensor:
    """Whole numbers up to 127 times a scale for each block: [n, columns] -> the same."""
    blocks = x.reshape(*x.shape[:-1], -1, size)
    scale = blocks.abs().amax(-1, keepdim=True) / _LARGEST
    if size == 32:
        scale = scale.half().float()
    rounded = torch.round(blocks / torch.where(scale > 0, scale, 1.0)).clamp(-_LARGEST, _LARGEST)
    return (rounded * scale).reshape(x.shape)
