"""EnCodec in PyTorch, computed in chunks, so that memory does not grow with the audio.

Every convolution keeps the end of its input, every transposed convolution the overlap of its
output, every LSTM its state. So the chunks give the same result as the whole. Padding is that of
transformers: the start of a recording is reflected, and its end too if the stride does not divide
it. This works for causal models only.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name

from valle_convert.encodec.architecture import (
    Convolution,
    Elu,
    Layer,
    Lstm,
    ResidualBlock,
    TransposedConvolution,
    codebook_name,
    decoder_layers,
    encoder_layers,
)
from valle_convert.encodec.weights import EncodecWeights

#: Frames per chunk: one second, for which the widest layers take 3 MB. Five seconds are not faster,
#: and encoding and decoding four minutes takes 659 MiB instead of 464 (published model).
_CHUNK_FRAMES = 75

#: One layer: takes [1, channels, time] and whether it is the last chunk; returns the same form.
_Step = Callable[[Tensor, bool], Tensor]


class EncodecEncoder:
    def __init__(self, codec: EncodecWeights, n_levels: int) -> None:
        self._spec = codec.spec
        self._stack = _Stack(codec, "encoder", encoder_layers(codec.spec))
        self._codebooks = _codebooks(codec, n_levels)
        # |e|^2 of every code, once.
        self._norms = [book.T.pow(2).sum(0, keepdim=True) for book in self._codebooks]

    def encode(self, samples: NDArray[np.float32]) -> NDArray[np.int32]:
        """Samples [n] at the codec's rate to codes [frames, levels]; n / 320 frames, rounded up."""
        steps, length = self._stack.steps(), self._stack.chunk * self._spec.hop_length
        codes = [np.zeros((0, len(self._codebooks)), np.int32)]
        with torch.inference_mode():
            for start, is_last in _chunks(len(samples), length):
                part = np.array(samples[start : start + length], np.float32)
                frames = _run(steps, torch.from_numpy(part)[None, None], is_last)[0].T
                codes.append(self._quantize(frames).numpy())
        return np.concatenate(codes)

    def _quantize(self, frames: Tensor) -> Tensor:
        """Frames [n, width] to codes [n, levels]; every level encodes the residual."""
        left, codes = frames, []
        for book, norm in zip(self._codebooks, self._norms, strict=True):
            # In the order of transformers, so that ties round the same way.
            distances = -(left.pow(2).sum(1, keepdim=True) - 2 * left @ book.T + norm)
            nearest = distances.max(dim=-1).indices
            left = left - F.embedding(nearest, book)
            codes.append(nearest)
        return torch.stack(codes, dim=1).int()


class EncodecDecoder:
    def __init__(self, codec: EncodecWeights, n_levels: int) -> None:
        self._spec = codec.spec
        self._stack = _Stack(codec, "decoder", decoder_layers(codec.spec))
        self._codebooks = _codebooks(codec, n_levels)

    def decode(self, codes: NDArray[np.integer]) -> NDArray[np.float32]:
        """Codes [frames, levels or fewer] to samples [frames * 320]."""
        steps, length, at = self._stack.steps(), self._stack.chunk, 0
        samples = np.zeros(len(codes) * self._spec.hop_length, np.float32)
        with torch.inference_mode():
            for start, is_last in _chunks(len(codes), length):
                part = codes[start : start + length]
                audio = _run(steps, self._look_up(part), is_last)[0, 0]
                samples[at : at + len(audio)] = audio.numpy()
                at += len(audio)
        return samples

    def _look_up(self, codes: NDArray[np.integer]) -> Tensor:
        """Codes [n, levels] to the sum of their vectors, [1, width, n]."""
        indices = torch.from_numpy(np.array(codes, np.int64))
        total = torch.zeros(len(codes), self._spec.codebook_dim)
        for level, book in enumerate(self._codebooks[: codes.shape[1]]):
            total = total + F.embedding(indices[:, level], book)
        return total.T[None]


def _chunks(n: int, length: int) -> Iterator[tuple[int, bool]]:
    """Where chunks begin, and whether each is the last."""
    for start in range(0, n, length):
        yield start, start + length >= n


def _run(steps: list[_Step], values: Tensor, is_last: bool) -> Tensor:
    for step in steps:
        values = step(values, is_last)
    return values


def _codebooks(codec: EncodecWeights, n_levels: int) -> list[Tensor]:
    """Codebooks of the first levels, [codes, width] each."""
    return [torch.tensor(codec.read(codebook_name(n))) for n in range(n_levels)]


# ------------------------------------------------------------------------------ the layers


class _Stack:
    """The encoder or the decoder: layers and their weights, read once."""

    def __init__(self, codec: EncodecWeights, name: str, layers: tuple[Layer, ...]) -> None:
        self._layers = layers
        self.pad_mode = codec.spec.pad_mode
        self._weights: dict[str, Tensor] = {}
        for entry in codec.tensors:
            if entry.name.startswith(f"{name}."):
                self._weights[entry.name] = torch.tensor(codec.read(entry.name))
        blocks = [layer for layer in layers if isinstance(layer, ResidualBlock)]
        convolutions = [
            *(layer for layer in layers if isinstance(layer, Convolution)),
            *(block.first for block in blocks),
        ]
        reach = max(one.kernel * one.dilation for one in convolutions)
        #: Frames per chunk; more than any convolution looks back.
        self.chunk = max(_CHUNK_FRAMES, 2 * reach)

    def __getitem__(self, name: str) -> Tensor:
        return self._weights[name]

    def steps(self) -> list[_Step]:
        """The layers without state, for a new recording."""
        return [self._step(layer) for layer in self._layers]

    def _step(self, layer: Layer) -> _Step:
        match layer:
            case Convolution():
                return _ConvolutionStep(layer, self)
            case TransposedConvolution():
                return _TransposedStep(layer, self)
            case Lstm():
                return _LstmStep(layer, self)
            case ResidualBlock():
                return _ResidualStep(layer, self)
            case Elu():
                return _elu_in_place


def _elu_in_place(values: Tensor, is_last: bool) -> Tensor:
    """ELU in place: the output of a layer is used by the next one only."""
    del is_last
    return F.elu(values, inplace=True)


class _ConvolutionStep:
    def __init__(self, layer: Convolution, stack: _Stack) -> None:
        self._layer, self._pad_mode = layer, stack.pad_mode
        self._weight, self._bias = stack[f"{layer.name}.weight"], stack[f"{layer.name}.bias"]
        #: Number of samples to the left, reflected at the start of a recording.
        self._reach = (layer.kernel - 1) * layer.dilation + 1 - layer.stride
        self._before: Tensor | None = None

    def __call__(self, values: Tensor, is_last: bool) -> Tensor:
        layer = self._layer
        # Only the last chunk may not be a multiple of the stride.
        right = -values.shape[-1] % layer.stride if is_last else 0
        left = self._reach if self._before is None else 0
        if self._before is not None:
            values = torch.cat([self._before, values], dim=-1)
        if self._reach and not is_last:
            self._before = values[..., values.shape[-1] - self._reach :].clone()
        if left or right:
            values = _pad(values, left, right, self._pad_mode)
        return F.conv1d(values, self._weight, self._bias, layer.stride, dilation=layer.dilation)


def _pad(values: Tensor, left: int, right: int, mode: str) -> Tensor:
    """Padding of transformers: input too short to be reflected gets zeros first."""
    short = max(left, right) - values.shape[-1] + 1
    if mode != "reflect" or short <= 0:
        return F.pad(values, (left, right), mode)
    values = F.pad(values, (0, short))
    return F.pad(values, (left, right), mode)[..., :-short]


class _TransposedStep:
    def __init__(self, layer: TransposedConvolution, stack: _Stack) -> None:
        self._layer = layer
        self._weight, self._bias = stack[f"{layer.name}.weight"], stack[f"{layer.name}.bias"]
        self._overlap: Tensor | None = None

    def __call__(self, values: Tensor, is_last: bool) -> Tensor:
        n = values.shape[-1] * self._layer.stride
        made = F.conv_transpose1d(values, self._weight, self._bias, self._layer.stride)
        if self._overlap is not None:
            made[..., : self._overlap.shape[-1]] += self._overlap
        if not is_last:
            # The bias is in it already, and will be added again.
            self._overlap = made[..., n:] - self._bias[None, :, None]
        return made[..., :n]


class _LstmStep:
    def __init__(self, layer: Lstm, stack: _Stack) -> None:
        with torch.device("meta"):
            module = torch.nn.LSTM(layer.width, layer.width, layer.n_layers)
        state = {name: stack[f"{layer.name}.{name}"] for name, _ in module.named_parameters()}
        module.load_state_dict(state, assign=True)
        self._module = module
        self._state: tuple[Tensor, Tensor] | None = None

    def __call__(self, values: Tensor, is_last: bool) -> Tensor:
        del is_last
        sequence = values.permute(2, 0, 1)  # [time, 1, width]
        made, self._state = self._module(sequence, self._state)
        added: Tensor = made + sequence
        return added.permute(1, 2, 0).contiguous()


class _ResidualStep:
    def __init__(self, layer: ResidualBlock, stack: _Stack) -> None:
        self._first = _ConvolutionStep(layer.first, stack)
        self._second = _ConvolutionStep(layer.second, stack)
        self._shortcut = None if layer.shortcut is None else _ConvolutionStep(layer.shortcut, stack)

    def __call__(self, values: Tensor, is_last: bool) -> Tensor:
        made = self._first(F.elu(values), is_last)
        made = self._second(F.elu(made, inplace=True), is_last)
        around = values if self._shortcut is None else self._shortcut(values, is_last)
        return made.add_(around)
