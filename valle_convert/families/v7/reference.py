"""VALL-E of version 7 in PyTorch, float32, written to be read: the measure of everything else.

It takes the checkpoint's own names, and computes levels one after the other.

Shapes: n elements, d = n_embd, h = heads, k = d / h, R = levels.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - everybody's name for it

from valle_convert.checkpoint.source import NamedTensors
from valle_convert.families.v7.composed import AllLevelsNetwork, Encoded
from valle_convert.families.v7.facts import AUDIO, ENCODERS, PART, VersionSevenModel
from valle_convert.model.inputs import FloatArray, IntArray
from valle_convert.network.arithmetic import EXACT, Arithmetic

#: Of every RMSNorm, of every LayerNorm, and of the rotary embedding. They stand in no config of
#: these checkpoints; the writer and the other network have their own.
RMS_EPSILON, NORM_EPSILON = 1e-6, 1e-5
ROPE_BASE = 10_000.0
#: The name that the inputs of all heads go by, since the file has them in one matrix.
HEADS = "token_embd.weight"
_TABLES = {
    "phonemes": "phn_emb.weight",
    "text": "text_emb.weight",
    "language": "langs_emb.weight",
    "task": "tasks_emb.weight",
    "tone": "tones_emb.weight",
    "length": "len_emb",
    "separator": "sep",
}
_HEADS = {"length": "len_decoder.head", "phonemes": "phn_decoder.head", "text": "text_decoder.head"}


class VersionSevenReference(AllLevelsNetwork):
    """An `AllLevelsNetwork` on PyTorch."""

    def __init__(
        self, tensors: NamedTensors, model: VersionSevenModel, *, arithmetic: Arithmetic = EXACT
    ) -> None:
        super().__init__(model)
        self._tensors = tensors
        self._activation = arithmetic.activation or F.gelu
        self._round_inputs = arithmetic.round_inputs
        self._weights: dict[str, Tensor] = {}

    def close(self) -> None:
        """Nothing is held that PyTorch does not free by itself."""

    def look_up(self, table: str, rows: IntArray) -> FloatArray:
        """Rows of a table of the backbone's file."""
        weights = self._weight(_TABLES[table]).numpy()
        found: FloatArray = weights.reshape(-1, weights.shape[-1])[rows]
        return found

    @torch.inference_mode()
    def encode(self, kind: Encoded, codes: IntArray) -> FloatArray:
        """The levels' rows, each with its place, normed and fed forward; then summed by weight."""
        source, config = ENCODERS[kind], self._model.config
        total = torch.zeros(len(codes), config.n_embd)
        weights = torch.ones(config.n_levels)
        if config.level_weights:
            weights = self._weight(f"{source}.level_weights").softmax(0)
        for level in range(config.n_levels):
            x = self._weight(f"{source}.embs.{level}.weight")[codes[:, level]]
            x = x + self._weight(f"{source}.pos_embedding").reshape(-1, config.n_embd)[level]
            if config.encoder_norm:
                x = self._layer_norm(f"{source}.norm", x)
            if config.n_ff_encoder:
                hidden = self._audio(f"a.{kind}.ffn_up.weight", f"{source}.proj.0", x)
                x = x + self._audio(f"a.{kind}.ffn_down.weight", f"{source}.proj.2", F.gelu(hidden))
            total += weights[level] * x
        result: FloatArray = total.numpy()
        return result

    @torch.inference_mode()
    def run(
        self, rows: FloatArray, positions: NDArray[np.int32], n_outputs: int, *, causal: bool
    ) -> FloatArray:
        """A LLaMA with a GELU gate; the last norm is there only where the decoders have none."""
        config = self._model.config
        half = torch.arange(0, config.n_embd_head, 2, dtype=torch.float32)
        frequencies = ROPE_BASE ** (-half / config.n_embd_head)  # [k / 2]
        angles = torch.from_numpy(np.array(positions, np.float32))[:, None] * frequencies
        x = torch.from_numpy(np.array(rows, np.float32))
        for i in range(config.n_layer):
            layer = f"model.layers.{i}"
            normed = self._rms_norm(f"{layer}.input_layernorm.weight", x)
            x = x + self._attention(i, normed, (angles.cos(), angles.sin()), causal=causal)
            normed = self._rms_norm(f"{layer}.post_attention_layernorm.weight", x)
            gate = self._activation(self._linear(i, "ffn_gate", "mlp.gate_proj", normed))
            up = self._linear(i, "ffn_up", "mlp.up_proj", normed)
            x = x + self._linear(i, "ffn_down", "mlp.down_proj", gate * up)
        x = x[-n_outputs:]
        if not config.level_norm:
            x = self._rms_norm("model.norm.weight", x)
        result: FloatArray = x.numpy()
        return result

    def _attention(
        self, i: int, x: Tensor, rotation: tuple[Tensor, Tensor], *, causal: bool
    ) -> Tensor:
        q, k, v = (
            self._linear(i, f"attn_{name}", f"self_attn.{name}_proj", x)
            .reshape(len(x), self._model.config.n_head, -1)
            .transpose(0, 1)  # [h, n, k]
            for name in "qkv"
        )
        q, k = _rotate(q, *rotation), _rotate(k, *rotation)
        mixed = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=causal)[0]
        return self._linear(i, "attn_output", "self_attn.o_proj", mixed.transpose(0, 1).flatten(1))

    @torch.inference_mode()
    def decode(self, states: FloatArray) -> FloatArray:
        logits = []
        for level in range(self._model.n_levels):
            x, source = torch.from_numpy(states), f"audio_decoder.head.{level}"
            if self._model.config.level_norm:
                x = self._layer_norm(f"{source}.0", x)
            hidden = self._audio(f"a.level.{level}.ffn_up.weight", f"{source}.1", x)
            x = self._audio(f"a.level.{level}.ffn_down.weight", f"{source}.3", F.gelu(hidden))
            logits.append(self._audio(HEADS, f"{source}.4", x))
        result: FloatArray = torch.stack(logits).numpy()
        return result

    @torch.inference_mode()
    def head(self, name: str, states: FloatArray) -> FloatArray:
        """The logits of a head that reads states as they are."""
        logits: FloatArray = self._audio(HEADS, _HEADS[name], torch.from_numpy(states)).numpy()
        return logits

    def _rms_norm(self, name: str, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self._weight(name), RMS_EPSILON)

    def _layer_norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self._weight(f"{name}.weight"), self._weight(f"{name}.bias")
        return F.layer_norm(x, (x.shape[-1],), weight, bias, NORM_EPSILON)

    def _linear(self, i: int, target: str, source: str, x: Tensor) -> Tensor:
        """A layer of the backbone, by its GGUF name for who listens."""
        target = f"blk.{i}.{target}.weight"
        if self.observe is not None:
            self.observe(PART, target, x)
        weight = self._weight(f"model.layers.{i}.{source}.weight")
        return F.linear(self._round_inputs(PART, target, x), weight)

    def _audio(self, target: str, source: str, x: Tensor) -> Tensor:
        """A linear layer of the encoders, decoders and heads."""
        if self.observe is not None:
            self.observe(AUDIO, target, x)
        return F.linear(x, self._weight(f"{source}.weight"), self._weight(f"{source}.bias"))

    def _weight(self, name: str) -> Tensor:
        if name not in self._weights:
            # A copy: torch wants memory that it may write to, and bfloat16 needs one anyway.
            self._weights[name] = torch.from_numpy(np.array(self._tensors.read(name), np.float32))
        return self._weights[name]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding on the halves of a head: x [h, n, k], cos and sin [n, k / 2]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
