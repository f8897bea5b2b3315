"""Versions 5 and 6 in PyTorch: embeddings and positions in, the logits of one head out."""

from collections.abc import Hashable, Sequence

import numpy as np
import torch
from torch import Tensor

from valle_convert.checkpoint.source import NamedTensors
from valle_convert.families.gemma import PART
from valle_convert.families.v5.adapter import AdaptedTensors, Adapter
from valle_convert.gguf_file.plan import TOKEN_EMBEDDING
from valle_convert.model.description import Description, RowBlock
from valle_convert.model.inputs import FloatArray, IntArray
from valle_convert.model.spec import Model, level_of_head
from valle_convert.network.arithmetic import EXACT, Arithmetic
from valle_convert.network.backbone import Backbone
from valle_convert.network.protocol import Network


class ReferenceNetwork(Backbone, Network):
    """A `protocol.Network` on PyTorch; with `adapters`, each in the passes of its levels."""

    def __init__(
        self,
        tensors: NamedTensors,
        description: Description[Model],
        *,
        arithmetic: Arithmetic = EXACT,
        adapters: Sequence[Adapter] = (),
    ) -> None:
        self.model = description.model
        self._adapters = tuple(adapters)
        self._plain = tensors
        self._merged: dict[tuple[Adapter, ...], dict[str, Tensor]] = {}
        super().__init__(PART, tensors, self.model.config, arithmetic)
        contents = description.contents[PART]
        self._tables = {block.label: block for block in contents.rows}
        # By position in the model's row order, since heads may share rows.
        self._heads = {
            block.first_row: block for block in contents.rows if block.label.startswith("head.")
        }
        self._biases = {bias.head: bias for bias in contents.biases}

    def look_up(self, table: str, rows: IntArray) -> FloatArray:
        found: FloatArray = self._rows(self._tables[table]).numpy()[rows]
        return found

    @torch.inference_mode()
    def step(
        self,
        embeddings: FloatArray,
        positions: IntArray,
        *,
        head: str,
        outputs: slice,
        sequence: Hashable = 0,
    ) -> FloatArray:
        self._use_adapters(level_of_head(head))
        causal = self.model.is_causal(head)
        cache = self._caches.setdefault(sequence, []) if causal else []
        x = self.run_layers(embeddings, positions, cache, causal=causal)
        hidden = self.rms_norm("model.norm.weight", x)[outputs]  # [n_out, d]
        place = self.model.head(head)
        weight = self._rows(self._heads[place.first_row])[: place.n_rows]
        bias = self._biases.get(head)
        of_head = None if bias is None else self.weight(bias.source)[: bias.n_rows]
        logits: FloatArray = self.linear(PART, TOKEN_EMBEDDING, hidden, weight, of_head).numpy()
        return logits

    def append(
        self,
        sequences: Sequence[Hashable],
        embeddings: FloatArray,
        positions: IntArray,
        *,
        head: str,
    ) -> FloatArray:
        rows = zip(sequences, embeddings[:, None], positions[:, None], strict=True)
        return np.concatenate(
            [
                self.step(row, position, head=head, outputs=slice(None), sequence=sequence)
                for sequence, row, position in rows
            ]
        )

    def _use_adapters(self, level: int) -> None:
        """Compute with the weights of a codebook level; each set of adapters has its own."""
        if self._adapters:
            chosen = tuple(one for one in self._adapters if one.is_for(level))
            self._tensors = AdaptedTensors(self._plain, chosen)
            self._weights = self._merged.setdefault(chosen, {})

    def _rows(self, block: RowBlock) -> Tensor:
        return self.weight(block.source).reshape(-1, self._config.n_embd)[: block.n_rows]


NETWORK = ReferenceNetwork
