"""A network with adapters, each for all codebook levels or for some of them.

llama.cpp switches an adapter on and off between passes. In PyTorch, each set of adapters that some
level needs has its own network of merged weights, and `AdaptedNetwork` sends each pass to the one
of its head's level.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valle_convert.checkpoint.source import NamedTensors
from valle_convert.closing import Closing
from valle_convert.families.v5.adapter import AdaptedTensors, Adapter
from valle_convert.model.description import Description
from valle_convert.model.spec import Model, level_of_head
from valle_convert.network.protocol import Network, Outputs


def adapted_reference(
    tensors: NamedTensors,
    description: Description[Model],
    adapters: Sequence[Adapter],
    **options: Any,  # noqa: ANN401 - those of `ReferenceNetwork`
) -> Network:
    """The PyTorch reference with adapters, each in the passes of its levels."""
    from valle_convert.families.v5.reference import ReferenceNetwork

    if not adapters:
        return ReferenceNetwork(tensors, description, **options)

    def make(chosen: Sequence[Adapter]) -> Network:
        return ReferenceNetwork(AdaptedTensors(tensors, chosen), description, **options)

    return AdaptedNetwork(adapters, make)


class AdaptedNetwork(Closing):
    """A `protocol.Network` that computes each pass with the adapters of its level."""

    def __init__(
        self, adapters: Sequence[Adapter], make: Callable[[Sequence[Adapter]], Network]
    ) -> None:
        self._adapters = tuple(adapters)
        self._make = make
        self._networks: dict[tuple[bool, ...], Network] = {}

    def _of(self, head: str) -> Network:
        level = level_of_head(head)
        active = tuple(one.is_for(level) for one in self._adapters)
        if active not in self._networks:
            chosen = [one for one, is_on in zip(self._adapters, active, strict=True) if is_on]
            self._networks[active] = self._make(chosen)
        return self._networks[active]

    @property
    def model(self) -> Model:
        return self._of("ar").model

    def look_up(self, table: str, rows: NDArray[np.integer]) -> NDArray[np.float32]:
        """Rows of an input table, which no adapter changes."""
        return self._of("ar").look_up(table, rows)

    def make_room(self, n_seq: int) -> None:
        """PyTorch needs no preparation."""

    def forget(self, sequence: Hashable) -> None:
        for network in self._networks.values():
            network.forget(sequence)

    def close(self) -> None:
        """PyTorch frees everything by itself."""

    def step(
        self,
        embeddings: NDArray[np.float32],
        positions: NDArray[np.integer],
        *,
        head: str,
        outputs: Outputs,
        sequence: Hashable = 0,
    ) -> NDArray[np.float32]:
        """Run a batch; see `Network.step`."""
        return self._of(head).step(
            embeddings, positions, head=head, outputs=outputs, sequence=sequence
        )

    def append(
        self,
        sequences: Sequence[Hashable],
        embeddings: NDArray[np.float32],
        positions: NDArray[np.integer],
        *,
        head: str,
    ) -> NDArray[np.float32]:
        """Grow several causal sequences; see `Network.append`."""
        return self._of(head).append(sequences, embeddings, positions, head=head)
