"""VALL-E X in PyTorch, float32, written for clarity: the reference for everything else.

It uses the checkpoint's own names and folds the levels' norms by itself, so that an error of the
writer does not repeat here.
"""

from collections.abc import Hashable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name

from valle_convert.checkpoint.source import NamedTensors
from valle_convert.families.vallex.composed import ComposedNetwork, Ids, Rows
from valle_convert.families.vallex.facts import Net, VallexModel, table_source
from valle_convert.gguf_file.plan import TOKEN_EMBEDDING
from valle_convert.model.description import Description
from valle_convert.network.arithmetic import EXACT, Arithmetic
from valle_convert.network.backbone import Cache, TorchNetwork, attend

#: Of every LayerNorm; the writer has its own constant, so that a wrong one there is noticed here.
NORM_EPSILON = 1e-5


class VallexReference(TorchNetwork, ComposedNetwork):
    def __init__(
        self,
        tensors: NamedTensors,
        description: Description[VallexModel],
        *,
        arithmetic: Arithmetic = EXACT,
        folded: bool = False,
    ) -> None:
        ComposedNetwork.__init__(self, description.model)
        TorchNetwork.__init__(self, tensors, arithmetic)
        self._activation = arithmetic.activation or F.relu
        self._norm_of = self._stored if folded else self._folded

    def look_up(self, net: str, table: str, ids: Ids) -> Rows:
        found: Rows = self.weight(table_source(net, table)).numpy()[ids]
        return found

    def _read_text(self, sequence: Hashable, rows: Rows, room: int) -> None:
        del room
        cache = self._caches[sequence] = []
        self._run(self.model.ar, rows, cache, causal=False, level=0)

    @torch.inference_mode()
    def _extend(self, sequence: Hashable, rows: Rows, n_outputs: int) -> Rows:
        hidden = self._run(self.model.ar, rows, self._caches[sequence], causal=True, level=0)
        return self._head("ar", "ar_predict_layer.weight", hidden[-n_outputs:])

    def _append(self, sequences: Sequence[Hashable], rows: Rows) -> Rows:
        given = zip(sequences, rows, strict=True)
        return np.concatenate([self._extend(sequence, row[None], 1) for sequence, row in given])

    def _fork(self, sequence: Hashable, copies: Sequence[Hashable]) -> None:
        # Steps replace a layer's pair without changing it, so copies may share them.
        self._caches |= {copy: list(self._caches[sequence]) for copy in copies}

    @torch.inference_mode()
    def _run_nar(self, level: int, rows: Rows, n_outputs: int) -> Rows:
        hidden = self._run(self.model.nar, rows, [], causal=False, level=level)
        return self._head("nar", f"nar_predict_layers.{level - 1}.weight", hidden[-n_outputs:])

    @torch.inference_mode()
    def _run(self, net: Net, rows: Rows, cache: Cache, *, causal: bool, level: int) -> Tensor:
        """All layers and the last norm, [n, d]; the cache is extended."""
        x = self.rows(net.name, rows)
        for i in range(net.n_layer):
            layer = f"{net.name}_decoder.layers.{i}"
            x = x + self._attention(net, i, self._norm(layer + ".norm1", level, x), cache, causal)
            hidden = self._norm(layer + ".norm2", level, x)
            hidden = self._linear(net, f"blk.{i}.ffn_up.weight", f"{layer}.linear1.", hidden)
            hidden = self._activation(hidden)
            x = x + self._linear(net, f"blk.{i}.ffn_down.weight", f"{layer}.linear2.", hidden)
        return self._norm(f"{net.name}_decoder.norm", level, x)

    def _attention(self, net: Net, i: int, x: Tensor, cache: Cache, causal: bool) -> Tensor:
        layer = f"{net.name}_decoder.layers.{i}.self_attn."
        packed = self._linear(net, f"blk.{i}.attn_qkv.weight", f"{layer}in_proj_", x)
        q, k, v = (
            part.reshape(len(x), net.n_head, -1).transpose(0, 1) for part in packed.chunk(3, -1)
        )
        mixed = attend(q, k, v, cache, i, causal=causal)
        return self._linear(net, f"blk.{i}.attn_output.weight", f"{layer}out_proj.", mixed)

    def _norm(self, name: str, level: int, x: Tensor) -> Tensor:
        if level:
            weight, bias = self._norm_of(name, level)
        else:
            weight, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return F.layer_norm(x, (x.shape[-1],), weight, bias, NORM_EPSILON)

    def _stored(self, name: str, level: int) -> tuple[Tensor, Tensor]:
        return (
            self.weight(f"{name}.weight at level {level}"),
            self.weight(f"{name}.bias at level {level}"),
        )

    def _folded(self, name: str, level: int) -> tuple[Tensor, Tensor]:
        """The adaptive norm as in the original: gain * norm(x) + shift."""
        stage = self.weight(f"nar_stage_embeddings.{level - 1}.word_embeddings.weight")[0]
        projection = f"{name}.project_layer."
        both = F.linear(stage, self.weight(f"{projection}weight"), self.weight(f"{projection}bias"))
        gain, shift = both.chunk(2)
        weight, bias = self.weight(f"{name}.norm.weight"), self.weight(f"{name}.norm.bias")
        return gain * weight, gain * bias + shift

    def _linear(self, net: Net, target: str, source: str, x: Tensor) -> Tensor:
        """A layer by its GGUF name and by the prefix of its own."""
        weight, bias = self.weight(f"{source}weight"), self.weight(f"{source}bias")
        return self.linear(net.name, target, x, weight, bias)

    def _head(self, net: str, source: str, hidden: Tensor) -> Rows:
        logits: Rows = self.linear(net, TOKEN_EMBEDDING, hidden, self.weight(source)).numpy()
        return logits


NETWORK = VallexReference
