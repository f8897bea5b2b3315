"""Networks, as other code sees them.

Each family has an interface of its own and implements it twice, in PyTorch from a checkpoint and
on stock llama.cpp from converted files, so the same code runs on both. `Network` is the one of
versions 5 and 6, which `decode/` runs; those of other families are in their `composed.py`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from valle_convert.closing import Closing
from valle_convert.model.inputs import FloatArray, IntArray
from valle_convert.model.spec import Model

if TYPE_CHECKING:
    from valle_convert.llama.session import Session


class AnyNetwork(Closing):
    """A network of any family. A context manager."""

    model: Any  # the family's own


class OnLlama(AnyNetwork):
    """A network on stock llama.cpp."""

    sessions: Mapping[str, Session]  # by part


class Network(AnyNetwork):
    """Embeddings in, logits of one head out, with a state for causal passes.

    The state is the sequences so far, each named by any key. A causal step appends to one: the
    first one has whole segments, later ones continue the last segment or begin another. A step that
    attends in both directions stands alone.
    """

    model: Model

    @abstractmethod
    def look_up(self, table: str, rows: IntArray) -> FloatArray:
        """Rows of an input table, [n] -> [n, n_embd]."""

    @abstractmethod
    def make_room(self, n_seq: int) -> None:
        """Reserve room for `n_seq` more sequences."""

    @abstractmethod
    def forget(self, sequence: Hashable) -> None:
        """End a sequence, if there is one of this key."""

    @abstractmethod
    def step(
        self,
        embeddings: FloatArray,
        positions: IntArray,
        *,
        head: str,
        outputs: slice,
        sequence: Hashable = 0,
    ) -> FloatArray:
        """Run a batch, [n, n_embd] -> logits of the rows `outputs`, [n_outputs, rows of the head].

        Biases are included. A segment begins where positions return to 0. Later steps may begin one
        segment together, if the first step had several. Causal steps go on with a sequence.
        """

    @abstractmethod
    def append(
        self,
        sequences: Sequence[Hashable],
        embeddings: FloatArray,
        positions: IntArray,
        *,
        head: str,
    ) -> FloatArray:
        """A causal step of one row for each of several sequences, in one batch.

        Row i of [n, n_embd] continues sequence i, which has begun; gives logits [n, rows of the
        head].
        """
