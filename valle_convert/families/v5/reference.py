"""VALL-E of versions 5 and 6 in PyTorch, float32, written to be read.

In go embeddings and positions, out come the logits of one head. The decoder is a LLaMA
with an exact (erf) GELU gate; docs/architecture.md says why.

Shapes: n new elements, m elements so far (m >= n), d = n_embd, h = heads, k = d / h.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - everybody's name for it

from valle_convert.checkpoint.source import NamedTensors
from valle_convert.closing import Closing
from valle_convert.families.v5.facts import PART
from valle_convert.model.description import Description
from valle_convert.model.spec import Model
from valle_convert.network.arithmetic import EXACT, Arithmetic
from valle_convert.network.protocol import Outputs

#: Of every RMSNorm, and of the rotary embedding. They stand in no config of these checkpoints; the
#: writer has its own, so that a wrong one there is noticed here.
RMS_EPSILON = 1e-6
ROPE_BASE = 10_000.0
#: The name that the inputs of all heads go by, since llama.cpp has them in one matrix.
HEADS = "token_embd.weight"


@dataclass(frozen=True)
class _Layer:
    attn_norm: Tensor  # [d]
    q: Tensor  # [d, d]
    k: Tensor  # [kv heads * k, d]
    v: Tensor  # [kv heads * k, d]
    o: Tensor  # [d, d]
    ffn_norm: Tensor  # [d]
    gate: Tensor  # [n_ff, d]
    up: Tensor  # [n_ff, d]
    down: Tensor  # [d, n_ff]


@dataclass
class _State:
    """Keys (rotated) and values of one causal sequence so far, one pair a layer."""

    cache: list[tuple[Tensor, Tensor]]


class ReferenceNetwork(Closing):
    """A `protocol.Network` on PyTorch.

    Attributes:
        observe: called as `observe(part, linear, inputs [n, in])` before every linear layer, with
            the layer's GGUF name (`token_embd.weight` for the heads); for importance matrices.
    """

    def __init__(
        self,
        tensors: NamedTensors,
        description: Description[Model],
        *,
        arithmetic: Arithmetic = EXACT,
    ) -> None:
        self._model = description.model
        self._activation = arithmetic.activation or F.gelu
        self._round_inputs = arithmetic.round_inputs
        self.observe: Callable[[str, str, Tensor], None] | None = None
        contents = description.contents[PART]
        read = tensors.read
        config = self._model.config

        def tensor(name: str) -> Tensor:
            # A copy: torch wants memory that it may write to, and bfloat16 needs one anyway.
            return torch.from_numpy(np.array(read(name), np.float32))

        self._tables = {
            block.label: tensor(block.source).reshape(-1, config.n_embd)[: block.n_rows]
            for block in contents.rows
            if not block.label.startswith("head.")
        }
        # By place in the model's row order, since heads may share rows.
        head_rows = {
            block.first_row: tensor(block.source)[: block.n_rows]
            for block in contents.rows
            if block.label.startswith("head.")
        }
        self._heads = {
            head.name: head_rows[head.first_row][: head.n_rows] for head in self._model.heads
        }
        self._biases = {bias.head: tensor(bias.source)[: bias.n_rows] for bias in contents.biases}
        layer_name = "model.layers.{}.{}.weight"
        self._layers = [
            _Layer(
                attn_norm=tensor(layer_name.format(i, "input_layernorm")),
                q=tensor(layer_name.format(i, "self_attn.q_proj")),
                k=tensor(layer_name.format(i, "self_attn.k_proj")),
                v=tensor(layer_name.format(i, "self_attn.v_proj")),
                o=tensor(layer_name.format(i, "self_attn.o_proj")),
                ffn_norm=tensor(layer_name.format(i, "post_attention_layernorm")),
                gate=tensor(layer_name.format(i, "mlp.gate_proj")),
                up=tensor(layer_name.format(i, "mlp.up_proj")),
                down=tensor(layer_name.format(i, "mlp.down_proj")),
            )
            for i in range(config.n_layer)
        ]
        self._norm = tensor("model.norm.weight")
        half = torch.arange(0, config.n_embd_head, 2, dtype=torch.float32)
        self._frequencies = ROPE_BASE ** (-half / config.n_embd_head)  # [k / 2]
        self._states: dict[int, _State] = {}

    @property
    def model(self) -> Model:
        return self._model

    def look_up(self, table: str, rows: NDArray[np.integer]) -> NDArray[np.float32]:
        """Rows of an input table, [n] -> [n, n_embd]."""
        found: NDArray[np.float32] = self._tables[table].numpy()[rows]
        return found

    def reset(self) -> None:
        self._states.clear()

    def close(self) -> None:
        """Nothing is held that PyTorch does not free by itself."""

    @torch.inference_mode()
    def step(
        self,
        embeddings: NDArray[np.float32],
        positions: NDArray[np.integer],
        *,
        head: str,
        outputs: Outputs,
        sequence: int = 0,
    ) -> NDArray[np.float32]:
        """Run a batch; see `Network.step`."""
        causal = self._model.is_causal(head)
        if causal:
            state = self._states.setdefault(sequence, _State([]))
        else:
            self.reset()
            state = _State([])
        x = torch.from_numpy(np.array(embeddings, np.float32))
        angles = torch.from_numpy(np.array(positions, np.float32))[:, None] * self._frequencies
        rotation = (angles.cos(), angles.sin())
        for i, layer in enumerate(self._layers):
            x = x + self._attention(i, layer, x, rotation, state, causal=causal)
            x = x + self._feed_forward(i, layer, x)
        hidden = _rms_norm(x, self._norm)[_index(outputs)]  # [n_out, d]
        logits = self._linear(HEADS, hidden, self._heads[head], self._biases.get(head))
        result: NDArray[np.float32] = logits.numpy()
        return result

    def step_many(
        self,
        embeddings: Sequence[NDArray[np.float32]],
        positions: Sequence[NDArray[np.integer]],
        *,
        head: str,
        outputs: Sequence[Outputs],
    ) -> list[NDArray[np.float32]]:
        """Run several causal sequences one after the other; see `Network.step_many`."""
        given = zip(embeddings, positions, outputs, strict=True)
        return [
            self.step(one, places, head=head, outputs=wanted, sequence=i)
            for i, (one, places, wanted) in enumerate(given)
        ]

    def _attention(
        self,
        i: int,
        layer: _Layer,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        state: _State,
        *,
        causal: bool,
    ) -> Tensor:
        width = self._model.config.n_embd_head
        normed = _rms_norm(x, layer.attn_norm)
        q, k, v = (
            self._linear(f"blk.{i}.attn_{name}.weight", normed, weight)
            .reshape(len(x), -1, width)
            .transpose(0, 1)  # [heads, n, k]
            for name, weight in (("q", layer.q), ("k", layer.k), ("v", layer.v))
        )
        q, k = _rotate(q, *rotation), _rotate(k, *rotation)
        if i < len(state.cache):
            past_k, past_v = state.cache[i]
            k, v = torch.cat([past_k, k], 1), torch.cat([past_v, v], 1)
            state.cache[i] = (k, v)
        else:
            state.cache.append((k, v))
        n, m = q.shape[1], k.shape[1]
        # Element j of the batch sees everything up to itself, whatever the positions say.
        mask = torch.ones(n, m, dtype=torch.bool).tril(m - n) if causal else None
        group = q.shape[0] // k.shape[0]
        mixed = F.scaled_dot_product_attention(
            q[None],
            k.repeat_interleave(group, 0)[None],
            v.repeat_interleave(group, 0)[None],
            attn_mask=mask,
        )[0]
        return self._linear(
            f"blk.{i}.attn_output.weight", mixed.transpose(0, 1).flatten(1), layer.o
        )

    def _feed_forward(self, i: int, layer: _Layer, x: Tensor) -> Tensor:
        normed = _rms_norm(x, layer.ffn_norm)
        gate = self._activation(self._linear(f"blk.{i}.ffn_gate.weight", normed, layer.gate))
        up = self._linear(f"blk.{i}.ffn_up.weight", normed, layer.up)
        return self._linear(f"blk.{i}.ffn_down.weight", gate * up, layer.down)

    def _linear(self, name: str, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if self.observe is not None:
            self.observe(PART, name, x)
        return F.linear(self._round_inputs(PART, name, x), weight, bias)


def _index(outputs: Outputs) -> slice | Tensor:
    return outputs if isinstance(outputs, slice) else torch.as_tensor(np.asarray(outputs))


def _rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight, RMS_EPSILON)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding on the halves of a head: x [heads, n, k], cos and sin [n, k / 2]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
