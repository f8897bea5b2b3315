"""A converted file on stock llama.cpp, as a `protocol.Network`.

The file's keys show which rows are which table and head; the rows are read from the file itself,
dequantized on request. `GemmaSession` runs them and knows nothing of VALL-E; this module adds that,
without arithmetic except for a head's bias.
"""

from collections.abc import Hashable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np

from valle_convert.families.gemma import PART
from valle_convert.families.v5.adapter import Adapter
from valle_convert.gguf_file.plan import TOKEN_EMBEDDING
from valle_convert.gguf_file.read import GgufFile
from valle_convert.llama.context import Settings
from valle_convert.llama.gemma import GemmaSession
from valle_convert.model.inputs import FloatArray, IntArray
from valle_convert.model.spec import Head, Model, level_of_head
from valle_convert.network.protocol import Network, OnLlama
from valle_convert.network.tuned import head_rows, read_probe_rows, tuned_for


class GgufNetwork(OnLlama, Network):
    """A `protocol.Network` on stock llama.cpp. Close it, or use it as a context manager."""

    def __init__(
        self,
        files: Mapping[str, GgufFile],
        model: Model,
        *,
        n_ctx: int = 512,
        settings: Settings | None = None,
        adapters: Sequence[Adapter] = (),
    ) -> None:
        self.file = files[PART]
        self.model = model
        self.adapters = tuple(adapters)
        self._embedding = self.file.tensors[TOKEN_EMBEDDING]
        self._biases = {
            head.name: np.array(head.bias, np.float32)
            for head in self.model.heads
            if head.bias is not None
        }
        probe_rows = read_probe_rows(self.file)

        def open_session(how: Settings) -> GemmaSession:
            return GemmaSession(
                self.file.path,
                n_ctx=n_ctx,
                settings=how,
                probe_rows=probe_rows,
                head_rows=head_rows(self.file),
                adapters=[one.path for one in self.adapters],
            )

        tuned = tuned_for(self.file, probe_rows, settings)
        with ExitStack() as opened:
            self.session = opened.enter_context(open_session(tuned.steps))
            self._passes = self.session
            if tuned.passes != replace(tuned.steps, n_parallel=1):
                self._passes = opened.enter_context(open_session(tuned.passes))
            self.sessions = {PART: self.session}
            self._opened = opened.pop_all()

    def look_up(self, table: str, rows: IntArray) -> FloatArray:
        return self._embedding.rows(self.model.table(table).first_row + np.asarray(rows))

    def make_room(self, n_seq: int) -> None:
        self.session.make_room(n_seq)

    def forget(self, sequence: Hashable) -> None:
        self.session.forget(sequence)

    def step(
        self,
        embeddings: FloatArray,
        positions: IntArray,
        *,
        head: str,
        outputs: slice,
        sequence: Hashable = 0,
    ) -> FloatArray:
        self._switch_adapters(head)
        target: Head = self.model.head(head)
        causal = self.model.is_causal(head)
        logits = (self.session if causal else self._passes).step(
            embeddings,
            positions,
            causal=causal,
            outputs=outputs,
            columns=target.columns,
            sequence=sequence,
        )
        return self._biased(head, logits)

    def append(
        self,
        sequences: Sequence[Hashable],
        embeddings: FloatArray,
        positions: IntArray,
        *,
        head: str,
    ) -> FloatArray:
        self._switch_adapters(head)
        columns = self.model.head(head).columns
        logits = self.session.append(sequences, embeddings, positions, columns=columns)
        return self._biased(head, logits)

    def _switch_adapters(self, head: str) -> None:
        if self.adapters:
            level = level_of_head(head)
            scales = [one.factor if one.is_for(level) else 0.0 for one in self.adapters]
            self.session.use_adapters(scales)
            self._passes.use_adapters(scales)

    def _biased(self, head: str, logits: FloatArray) -> FloatArray:
        bias = self._biases.get(head)
        return logits if bias is None else logits + bias

    def close(self) -> None:
        self._opened.close()


NETWORK = GgufNetwork
