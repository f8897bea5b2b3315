"""Causal sequences that grow at their end, one element a step.

The network keeps earlier results, so a step costs one element for any length of the sequence.
Guidance grows two sequences in one batch, with the same elements at their ends.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from valle_convert.decode.sampling import Logits
from valle_convert.errors import InputError
from valle_convert.model.inputs import Inputs, Segment, assemble
from valle_convert.model.spec import GemmaConfig
from valle_convert.network.protocol import Network


class CausalSequences:
    """One or more requests whose last segments grow together."""

    def __init__(
        self, network: Network, requests: Sequence[Sequence[Segment]], *, head: str
    ) -> None:
        self._network = network
        self._requests = [list(segments) for segments in requests]
        self._head = head
        self._next_positions: list[int] = []

    def begin(self) -> Logits:
        """Run all segments; the logits of the element after them, [requests, rows of the head]."""
        self._network.reset()
        inputs = [assemble_within_context(self._network, segments) for segments in self._requests]
        # If positions restart, the first element of an empty last segment is at 0.
        self._next_positions = [
            len(one) if self._unified else len(segments[-1])
            for one, segments in zip(inputs, self._requests, strict=True)
        ]
        return self._step([one.embeddings for one in inputs], [one.positions for one in inputs])

    def append(self, table: str, row: int) -> Logits:
        """Add one element; the logits of the one after it, [requests, rows of the head]."""
        embedding = self._network.look_up(table, np.array([row]))
        places = [np.array([position], np.int32) for position in self._next_positions]
        self._next_positions = [position + 1 for position in self._next_positions]
        return self._step([embedding] * len(places), places)

    @property
    def _unified(self) -> bool:
        return self._network.model.config.positions == "unified"

    def _step(
        self, embeddings: list[NDArray[np.float32]], positions: list[NDArray[np.int32]]
    ) -> Logits:
        found = self._network.step_many(
            embeddings,
            positions,
            head=self._head,
            outputs=[[len(places) - 1] for places in positions],
        )
        return np.concatenate(found)


def assemble_within_context(network: Network, segments: Sequence[Segment]) -> Inputs:
    check_context(network.model.config, sum(len(segment) + 1 for segment in segments) - 1)
    return assemble(network.model, segments, network.look_up)


def check_context(config: GemmaConfig, n_elements: int) -> None:
    """Reject a sequence that is longer than the model's context."""
    if n_elements > config.n_ctx_train:
        raise InputError(
            f"Text, voice and speech together are {n_elements} elements, but the model was made "
            f"for {config.n_ctx_train}; give a shorter text or a shorter voice recording."
        )
