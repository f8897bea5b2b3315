"""The interface of a network for decoders and the verifier.

Each family implements it twice, in PyTorch from a checkpoint and on stock llama.cpp from converted
files, so the same code runs on both and comparing them is short.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from valle_convert.model.spec import Model

if TYPE_CHECKING:
    from valle_convert.llama.session import Session

#: The rows of a step that give logits: a slice, or indices in increasing order.
Outputs = slice | Sequence[int] | NDArray[np.integer]


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

    The state is the sequence so far. A causal step appends to it: the first one after `reset` has
    whole segments, later ones continue the last segment or begin another. A step that attends in
    both directions stands alone, and leaves the state empty.
    """

    @property
    def model(self) -> Model: ...

    def look_up(self, table: str, rows: NDArray[np.integer]) -> NDArray[np.float32]:
        """Rows of an input table, [n] -> [n, n_embd]."""
        ...

    def reset(self) -> None: ...

    def step(
        self,
        embeddings: NDArray[np.float32],
        positions: NDArray[np.integer],
        *,
        head: str,
        outputs: Outputs,
        sequence: int = 0,
    ) -> NDArray[np.float32]:
        """Run a batch, [n, n_embd] -> logits [n_outputs, rows of the head], biases included.

        A segment begins where positions return to 0. Later steps may begin one segment together,
        if the first step had several.
        """
        ...

    def step_many(
        self,
        embeddings: Sequence[NDArray[np.float32]],
        positions: Sequence[NDArray[np.integer]],
        *,
        head: str,
        outputs: Sequence[Outputs],
    ) -> list[NDArray[np.float32]]:
        """Run several causal sequences, independent of each other: at once if it can.

        Sequence i is given as to its own calls of `step`. Gives logits for each sequence.
        """
        given = zip(embeddings, positions, outputs, strict=True)
        return [
            self.step(one, places, head=head, outputs=wanted, sequence=i)
            for i, (one, places, wanted) in enumerate(given)
        ]
