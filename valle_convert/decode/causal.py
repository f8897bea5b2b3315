"""Causal sequences that grow at their end, one element a step.

The network keeps earlier results, so a step costs one element for any length of the sequence.
Guidance grows two sequences in one batch, with the same elements at their ends.
"""

from collections.abc import Sequence

import numpy as np

from valle_convert.closing import Closing
from valle_convert.decode.batch import Element
from valle_convert.decode.sampling import Logits
from valle_convert.errors import InputError
from valle_convert.model.inputs import Inputs, Segment, assemble
from valle_convert.model.spec import GemmaConfig
from valle_convert.network.protocol import Network


class CausalSequences(Closing):
    """One or more requests whose last segments grow together, each by a row of a table.

    The network forgets them at the end.
    """

    def __init__(
        self, network: Network, requests: Sequence[Sequence[Segment]], *, head: str, table: str
    ) -> None:
        self._network = network
        self._requests = [list(segments) for segments in requests]
        self._head, self._table = head, table
        #: The network's sequences, and their next positions.
        self._next: dict[object, int] = {}

    def begin(self) -> Logits:
        """Run all segments; the logits of the element after them, [requests, rows of the head]."""
        inputs = [assemble_within_context(self._network, segments) for segments in self._requests]
        self._network.make_room(len(inputs))
        found = []
        for one, segments in zip(inputs, self._requests, strict=True):
            sequence = object()
            # If positions restart, the first element of an empty last segment is at 0.
            is_unified = self._network.model.config.positions == "unified"
            self._next[sequence] = len(one) if is_unified else len(segments[-1])
            logits = self._network.step(
                one.embeddings,
                one.positions,
                head=self._head,
                outputs=slice(-1, None),
                sequence=sequence,
            )
            found.append(logits)
        return np.concatenate(found)

    def grow(self, row: int) -> list[Element]:
        """One element more at each end."""
        elements = [Element(sequence, row, position) for sequence, position in self._next.items()]
        self._next = {sequence: position + 1 for sequence, position in self._next.items()}
        return elements

    def append(self, row: int) -> Logits:
        """Add one element; the logits of the one after it, [requests, rows of the head]."""
        return append_elements(self._network, self.grow(row), head=self._head, table=self._table)

    def close(self) -> None:
        for sequence in self._next:
            self._network.forget(sequence)


def append_elements(
    network: Network, elements: Sequence[Element], *, head: str, table: str
) -> Logits:
    """Grow some sequences by a row of a table each; the logits, [n, rows of the head]."""
    rows = network.look_up(table, np.array([one.code for one in elements]))
    positions = np.array([one.position for one in elements], np.int32)
    return network.append([one.sequence for one in elements], rows, positions, head=head)


def run_pass(network: Network, segments: Sequence[Segment], *, head: str, n_outputs: int) -> Logits:
    """A sequence that stands alone; its last logits, [n_outputs, rows of the head]."""
    inputs, alone = assemble_within_context(network, segments), object()
    try:
        return network.step(
            inputs.embeddings,
            inputs.positions,
            head=head,
            outputs=slice(len(inputs) - n_outputs, None),
            sequence=alone,
        )
    finally:
        network.forget(alone)


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
