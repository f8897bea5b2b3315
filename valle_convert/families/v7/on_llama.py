"""A converted model of version 7: the backbone on stock llama.cpp, the rest in PyTorch.

llama.cpp gives the states of the last layer. Encoders, decoders and heads are computed from the
weights of the second file, for all levels of a piece of speech at once. The weights are dequantized
on first use and kept: 0.3 GB for 24 x 1024 with feed-forwards of twice the width.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name

from valle_convert.families.gemma import PART
from valle_convert.families.v7.composed import AllLevelsNetwork, Encoded
from valle_convert.families.v7.facts import AUDIO, VersionSevenModel
from valle_convert.gguf_file.keys import RMS_EPSILON
from valle_convert.gguf_file.plan import TOKEN_EMBEDDING
from valle_convert.gguf_file.read import GgufFile
from valle_convert.llama.context import Settings
from valle_convert.llama.gemma import GemmaSession
from valle_convert.model.inputs import FloatArray, IntArray
from valle_convert.model.trainer import OUTPUT_NORM
from valle_convert.network.protocol import OnLlama
from valle_convert.network.tuned import read_probe_rows, tuned_for

#: Of every LayerNorm; PyTorch's default, which is in no config of these checkpoints.
_NORM_EPSILON = 1e-5
#: Frames that the encoders and decoders compute at once, to limit memory.
_FRAMES_AT_ONCE = 512


class VersionSevenGguf(OnLlama, AllLevelsNetwork):
    """An `AllLevelsNetwork` on stock llama.cpp. Close it, or use it as a context manager."""

    def __init__(
        self,
        files: Mapping[str, GgufFile],
        model: VersionSevenModel,
        *,
        settings: Settings | None = None,
    ) -> None:
        super().__init__(model)
        self._main, self._audio = files[PART], files[AUDIO]
        self._weights: dict[str, Tensor] = {}
        self._last_norm = self._main.tensors[OUTPUT_NORM].rows().reshape(-1)
        probe_rows = read_probe_rows(self._main)

        self.session = GemmaSession(
            self._main.path,
            probe_rows=probe_rows,
            settings=tuned_for(self._main, probe_rows, settings).passes,
            last_norm=self._last_norm,
        )
        self.sessions = {PART: self.session}

    def close(self) -> None:
        self.session.close()

    def look_up(self, table: str, rows: IntArray) -> FloatArray:
        """Rows of a table, dequantized from the mapped file."""
        first = self.model.table(table).first_row
        return self._main.tensors[TOKEN_EMBEDDING].rows(first + np.asarray(rows))

    def run(
        self, rows: FloatArray, positions: NDArray[np.int32], n_outputs: int, *, causal: bool
    ) -> FloatArray:
        """The states of the last layer, after the last norm if the model has one."""
        self.session.forget(0)
        outputs = slice(len(rows) - n_outputs, None)
        states = self.session.step(rows, positions, causal=causal, outputs=outputs)
        if self.model.config.level_norm:
            return states
        size = np.sqrt(np.square(states).mean(-1, keepdims=True) + np.float32(RMS_EPSILON))
        normed: FloatArray = states / size * self._last_norm
        return normed

    @torch.inference_mode()
    def encode(self, kind: Encoded, codes: IntArray) -> FloatArray:
        """One vector per frame, [n, levels] -> [n, d]."""
        return np.concatenate([self._encode(kind, part) for part in _parts(codes)])

    def _encode(self, kind: Encoded, codes: IntArray) -> FloatArray:
        config, prefix = self.model.config, f"a.{kind}"
        first = [self.model.audio.table(f"{kind}.{i}").first_row for i in range(config.n_levels)]
        rows = self._audio.tensors[TOKEN_EMBEDDING].rows((codes + np.array(first)).reshape(-1))
        x = torch.from_numpy(rows).reshape(*codes.shape, config.n_embd)  # [n, levels, d]
        x = x + self._weight(f"{prefix}.position_embd")
        if config.encoder_norm:
            weight, bias = (
                self._weight(f"{prefix}.norm.weight"),
                self._weight(f"{prefix}.norm.bias"),
            )
            x = F.layer_norm(x, (config.n_embd,), weight, bias, _NORM_EPSILON)
        if config.n_ff_encoder:
            x = x + self._linear(f"{prefix}.ffn_down", F.gelu(self._linear(f"{prefix}.ffn_up", x)))
        if config.level_weights:
            x = x * self._weight(f"{prefix}.level_weights").softmax(0)[:, None]
        result: FloatArray = x.sum(1).numpy()
        return result

    @torch.inference_mode()
    def decode(self, states: FloatArray) -> FloatArray:
        """The logits of all levels, each by its own decoder."""
        return np.concatenate([self._decode(part) for part in _parts(states)], axis=1)

    def _decode(self, states: FloatArray) -> FloatArray:
        config = self.model.config
        x = torch.from_numpy(states).expand(config.n_levels, *states.shape)  # [levels, n, d]
        if config.level_norm:
            x = F.layer_norm(x, (config.n_embd,), eps=_NORM_EPSILON)
            x = torch.addcmul(self._levels("norm.bias"), x, self._levels("norm.weight"))
        hidden = F.gelu(
            torch.baddbmm(self._levels("ffn_up.bias"), x, self._levels("ffn_up.weight"))
        )
        x = torch.baddbmm(self._levels("ffn_down.bias"), hidden, self._levels("ffn_down.weight"))
        weights, biases = self._level_heads
        logits: FloatArray = torch.baddbmm(biases, x, weights).numpy()
        return logits

    @torch.inference_mode()
    def head(self, name: str, states: FloatArray) -> FloatArray:
        """The logits of a head that reads unchanged states."""
        logits: FloatArray = F.linear(torch.from_numpy(states), *self._head(name)).numpy()
        return logits

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self._weight(f"{name}.weight"), self._weight(f"{name}.bias"))

    def _levels(self, name: str) -> Tensor:
        """A tensor of every level's decoder, stacked for batched products."""
        if name not in self._weights:
            levels = range(self.model.n_levels)
            stacked = torch.stack([self._read(f"a.level.{level}.{name}") for level in levels])
            self._weights[name] = stacked[:, None] if stacked.dim() == 2 else stacked.mT
        return self._weights[name]

    @cached_property
    def _level_heads(self) -> tuple[Tensor, Tensor]:
        """Weights [levels, d, A + 1] and biases [levels, 1, A + 1]."""
        heads = [self._head(f"level.{level}") for level in range(self.model.n_levels)]
        weights, biases = (torch.stack(parts) for parts in zip(*heads, strict=True))
        return weights.mT, biases[:, None]

    def _head(self, name: str) -> tuple[Tensor, Tensor]:
        """The weights and the biases of a head."""
        head = self.model.audio.head(name)
        rows = self._audio.tensors[TOKEN_EMBEDDING].rows(head.columns)
        return torch.from_numpy(rows), torch.tensor(head.bias)

    def _weight(self, name: str) -> Tensor:
        if name not in self._weights:
            self._weights[name] = self._read(name)
        return self._weights[name]

    def _read(self, name: str) -> Tensor:
        tensor = self._audio.tensors[name]
        return torch.from_numpy(np.array(tensor.rows())).reshape(tensor.shape)


def _parts(frames: NDArray[Any]) -> list[NDArray[Any]]:
    return np.split(frames, range(_FRAMES_AT_ONCE, len(frames), _FRAMES_AT_ONCE))


NETWORK = VersionSevenGguf
