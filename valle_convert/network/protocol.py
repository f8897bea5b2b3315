"""The interface of a network for decoders and the verifier.

Each family implements it twice, in PyTorch from a checkpoint and on stock llama.cpp from converted
files, so the same code runs on both and comparing them is short.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from valle_convert.model.spec import Model

if TYPE_CHECKING:
    from valle_convert.llama.session import Session


class Computing(Protocol):
    """A network of any family, as generic code sees it. A context manager."""

    @property
    def model(self) -> Any:  # noqa: ANN401 - the family's own
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class OnLlama(Computing, Protocol):
    """A network on stock llama.cpp."""

    @property
    def sessions(self) -> Mapping[str, Session]:
        """llama.cpp's sessions, by part."""
        ...


class Network(Computing, Protocol):
    """Embeddings in, logits of one head out, with a state for causal passes.

    The state is the sequences so far, each named by any key. A causal step appends to one: the
    first one has whole segments, later ones continue the last segment or begin another. A step that
    attends in both directions stands alone.
    """

    @property
    def model(self) -> Model: ...

    def look_up(self, table: str, rows: NDArray[np.integer]) -> NDArray[np.float32]:
        """Rows of an input table, [n] -> [n, n_embd]."""
        ...

    def make_room(self, n_seq: int) -> None:
        """Reserve room for `n_seq` more sequences."""
        ...

    def forget(self, sequence: Hashable) -> None:
        """End a sequence, if there is one of this key."""
        ...

    def step(
        self,
        embeddings: NDArray[np.float32],
        positions: NDArray[np.integer],
        *,
        head: str,
        outputs: slice,
        sequence: Hashable = 0,
    ) -> NDArray[np.float32]:
        """Run a batch, [n, n_embd] -> logits of the rows `outputs`, [n_outputs, rows of the head].

        Biases are included. A segment begins where positions return to 0. Later steps may begin one
        segment together, if the first step had several. Causal steps go on with a sequence.
        """
        ...

    def append(
        self,
        sequences: Sequence[Hashable],
        embeddings: NDArray[np.float32],
        positions: NDArray[np.integer],
        *,
        head: str,
    ) -> NDArray[np.float32]:
        """A causal step of one row for each of several sequences, in one batch.

        Row i of [n, n_embd] continues sequence i, which has begun; gives logits [n, rows of the
        head].
        """
        ...
