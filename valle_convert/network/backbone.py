"""Networks in PyTorch, float32, from a checkpoint: the reference for everything else.

Shapes: n new elements, m elements so far (m >= n), d = n_embd, h = heads, k = d / h.
"""

from collections.abc import Hashable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name

from valle_convert.checkpoint.source import NamedTensors
from valle_convert.model.spec import GemmaConfig
from valle_convert.network.arithmetic import INPUTS, Arithmetic, Observer, unobserved

#: Of every RMSNorm, and of the rotary embedding. No config of these checkpoints has them; the
#: writer has its own constants, so that a wrong one there is noticed here.
RMS_EPSILON = 1e-6
ROPE_BASE = 10_000.0

#: Keys (rotated) and values [h, m, k] of the layers of a sequence.
Cache = list[tuple[Tensor, Tensor]]


class TorchNetwork:
    """Weights, read on first use, linear layers, and the sequences so far."""

    def __init__(self, tensors: NamedTensors, arithmetic: Arithmetic) -> None:
        self._tensors = tensors
        self._arithmetic = arithmetic
        #: Gets the inputs and outputs of every linear layer, and what goes into the first one.
        self.observe: Observer = unobserved
        self._weights: dict[str, Tensor] = {}
        self._caches: dict[Hashable, Cache] = {}

    def close(self) -> None:
        """PyTorch frees everything by itself."""

    def make_room(self, n_seq: int) -> None:
        """PyTorch needs no preparation."""

    def forget(self, sequence: Hashable) -> None:
        self._caches.pop(sequence, None)

    def weight(self, name: str) -> Tensor:
        if name not in self._weights:
            # Torch wants writable memory.
            values = np.require(self._tensors.read(name), np.float32, ["C", "W"])
            self._weights[name] = torch.from_numpy(values)
        return self._weights[name]

    def rows(self, part: str, rows: NDArray[np.float32]) -> Tensor:
        x = torch.from_numpy(np.array(rows, np.float32))
        self.observe(part, INPUTS, x, x)
        return x

    def linear(
        self, part: str, target: str, x: Tensor, weight: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """A linear layer by its GGUF name."""
        found = F.linear(self._arithmetic.round_inputs(part, target, x), weight, bias)
        self.observe(part, target, x, found)
        return found


class Backbone(TorchNetwork):
    """A LLaMA with an exact (erf) GELU gate; docs/architecture.md says why."""

    def __init__(
        self, part: str, tensors: NamedTensors, config: GemmaConfig, arithmetic: Arithmetic
    ) -> None:
        super().__init__(tensors, arithmetic)
        self._part = part
        self._config = config
        self._activation = arithmetic.activation or F.gelu

    def run_layers(
        self,
        rows: NDArray[np.float32],
        positions: NDArray[np.integer],
        cache: Cache,
        *,
        causal: bool,
    ) -> Tensor:
        """All layers, without the last norm, [n, d] -> [n, d]; the cache is extended."""
        width = self._config.n_embd_head
        half = torch.arange(0, width, 2, dtype=torch.float32)
        frequencies = ROPE_BASE ** (-half / width)  # [k / 2]
        angles = torch.from_numpy(np.array(positions, np.float32))[:, None] * frequencies
        rotation = (angles.cos(), angles.sin())
        x = self.rows(self._part, rows)
        for i in range(self._config.n_layer):
            normed = self.rms_norm(f"model.layers.{i}.input_layernorm.weight", x)
            q, k, v = (
                self._layer(i, f"attn_{name}", f"self_attn.{name}_proj", normed)
                .reshape(len(x), -1, width)
                .transpose(0, 1)  # [h, n, k]
                for name in "qkv"
            )
            q, k = _rotate(q, *rotation), _rotate(k, *rotation)
            mixed = attend(q, k, v, cache, i, causal=causal)
            x = x + self._layer(i, "attn_output", "self_attn.o_proj", mixed)
            normed = self.rms_norm(f"model.layers.{i}.post_attention_layernorm.weight", x)
            gate = self._activation(self._layer(i, "ffn_gate", "mlp.gate_proj", normed))
            up = self._layer(i, "ffn_up", "mlp.up_proj", normed)
            x = x + self._layer(i, "ffn_down", "mlp.down_proj", gate * up)
        return x

    def rms_norm(self, name: str, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight(name), RMS_EPSILON)

    def _layer(self, i: int, target: str, source: str, x: Tensor) -> Tensor:
        weight = self.weight(f"model.layers.{i}.{source}.weight")
        return self.linear(self._part, f"blk.{i}.{target}.weight", x, weight)


def attend(q: Tensor, k: Tensor, v: Tensor, cache: Cache, layer: int, *, causal: bool) -> Tensor:
    """Attention to the cached and the new elements of a layer, [h, n, k] -> [n, d].

    k and v may have fewer heads than q.
    """
    if layer < len(cache):
        k, v = torch.cat([cache[layer][0], k], 1), torch.cat([cache[layer][1], v], 1)
        cache[layer] = (k, v)
    else:
        cache.append((k, v))
    n, m, group = q.shape[1], k.shape[1], q.shape[0] // k.shape[0]
    # Element j of the batch sees everything up to itself, at any position.
    mask = torch.ones(n, m, dtype=torch.bool).tril(m - n) if causal else None
    mixed = F.scaled_dot_product_attention(
        q[None],
        k.repeat_interleave(group, 0)[None],
        v.repeat_interleave(group, 0)[None],
        attn_mask=mask,
    )
    return mixed[0].transpose(0, 1).flatten(1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding on the halves of a head: x [heads, n, k], cos and sin [n, k / 2]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
