"""VALL-E of version 7 in PyTorch: levels one after the other, by the checkpoint's own names.

Shapes: n elements, d = n_embd, R = levels.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name

from valle_convert.checkpoint.source import NamedTensors
from valle_convert.families.gemma import PART
from valle_convert.families.v7.composed import AllLevelsNetwork, Encoded
from valle_convert.families.v7.facts import (
    AUDIO,
    ENCODERS,
    TABLES,
    VersionSevenModel,
    head_names,
)
from valle_convert.gguf_file.plan import TOKEN_EMBEDDING
from valle_convert.model.description import Description
from valle_convert.model.inputs import FloatArray, IntArray
from valle_convert.network.arithmetic import EXACT, Arithmetic
from valle_convert.network.backbone import Backbone

#: Of every LayerNorm; the other network has its own.
NORM_EPSILON = 1e-5


class VersionSevenReference(Backbone, AllLevelsNetwork):
    def __init__(
        self,
        tensors: NamedTensors,
        description: Description[VersionSevenModel],
        *,
        arithmetic: Arithmetic = EXACT,
    ) -> None:
        model = description.model
        AllLevelsNetwork.__init__(self, model)
        Backbone.__init__(self, PART, tensors, model.config, arithmetic)
        self._names = head_names(model.n_levels)

    def look_up(self, table: str, rows: IntArray) -> FloatArray:
        weights = self.weight(TABLES[table]).numpy()
        found: FloatArray = weights.reshape(-1, weights.shape[-1])[rows]
        return found

    @torch.inference_mode()
    def encode(self, kind: Encoded, codes: IntArray) -> FloatArray:
        """The levels' rows with their positions, normed and fed forward, as a weighted sum."""
        source, config = ENCODERS[kind], self.model.config
        total = torch.zeros(len(codes), config.n_embd)
        weights = torch.ones(config.n_levels)
        if config.level_weights:
            weights = self.weight(f"{source}.level_weights").softmax(0)
        for level in range(config.n_levels):
            x = self.weight(f"{source}.embs.{level}.weight")[codes[:, level]]
            x = x + self.weight(f"{source}.pos_embedding").reshape(-1, config.n_embd)[level]
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
        """The backbone, with the last norm unless the decoders have their own."""
        x = self.run_layers(rows, positions, [], causal=causal)[-n_outputs:]
        if not self.model.config.level_norm:
            x = self.rms_norm("model.norm.weight", x)
        result: FloatArray = x.numpy()
        return result

    @torch.inference_mode()
    def decode(self, states: FloatArray) -> FloatArray:
        logits = []
        for level in range(self.model.n_levels):
            x, source = torch.from_numpy(states), f"audio_decoder.head.{level}"
            if self.model.config.level_norm:
                x = self._layer_norm(f"{source}.0", x)
            hidden = self._audio(f"a.level.{level}.ffn_up.weight", f"{source}.1", x)
            x = self._audio(f"a.level.{level}.ffn_down.weight", f"{source}.3", F.gelu(hidden))
            logits.append(self._audio(TOKEN_EMBEDDING, self._names[f"level.{level}"], x))
        result: FloatArray = torch.stack(logits).numpy()
        return result

    @torch.inference_mode()
    def head(self, name: str, states: FloatArray) -> FloatArray:
        """The logits of a head that reads unchanged states."""
        x = torch.from_numpy(states)
        logits: FloatArray = self._audio(TOKEN_EMBEDDING, self._names[name], x).numpy()
        return logits

    def _layer_norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return F.layer_norm(x, (x.shape[-1],), weight, bias, NORM_EPSILON)

    def _audio(self, target: str, source: str, x: Tensor) -> Tensor:
        """A linear layer of the encoders, decoders and heads."""
        weight, bias = self.weight(f"{source}.weight"), self.weight(f"{source}.bias")
        return self.linear(AUDIO, target, x, weight, bias)


NETWORK = VersionSevenReference
