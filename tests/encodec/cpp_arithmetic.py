"""What encodec.cpp computes of a file, in PyTorch: the oracle of the exporter's tests.

Weights and inputs of convolutions, the matrices of LSTMs and the vectors that they multiply are
rounded to float16; sums, biases, gates, residuals and distances stay float32.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_CONVOLUTIONS = (torch.conv1d, torch.conv_transpose1d)
_LSTM = torch._C._VariableFunctions.lstm


class EncodecCppArithmetic(TorchFunctionMode):
    """A context in which convolutions and LSTMs round as that program does."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in _CONVOLUTIONS:
            return func(_rounded(args[0]), _rounded(args[1]), *args[2:], **(kwargs or {}))
        if func is _LSTM:
            return _lstm(*args[:3])
        return func(*args, **(kwargs or {}))


def _rounded(values: torch.Tensor) -> torch.Tensor:
    return values.half().float()


def _lstm(
    sequence: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor], weights: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Step by step: x_t and h_t are rounded where they meet a matrix."""
    last = []
    for n in range(len(weights) // 4):
        hidden, cell = (part[n] for part in state)
        w_ih, w_hh, b_ih, b_hh = weights[4 * n : 4 * n + 4]
        outputs = []
        for at_t in _rounded(sequence) @ _rounded(w_ih).T + b_ih:
            gates = at_t + _rounded(hidden) @ _rounded(w_hh).T + b_hh
            i, f, g, o = gates.chunk(4, dim=-1)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * cell.tanh()
            outputs.append(hidden)
        sequence = torch.stack(outputs)
        last.append((hidden, cell))
    return sequence, torch.stack([h for h, _ in last]), torch.stack([c for _, c in last])
