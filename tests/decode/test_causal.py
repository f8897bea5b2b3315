"""Sequences that grow: as the whole sequence at once, at the price of one element a step."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from golden_models import BACK_ENDS, SPEAKING, OpenNetwork, read_golden

from valle_convert.decode.causal import CausalSequences
from valle_convert.model.inputs import assemble, speech_segments
from valle_convert.network.protocol import Network

pytestmark = [
    pytest.mark.parametrize("open_network", BACK_ENDS, indirect=True),
    pytest.mark.parametrize("folder", SPEAKING),
]
#: Normalized mean square error between one batch and many: up to 7e-9 measured, since llama.cpp's
#: GELU is a table in f16 that turns the last digits of float32 into larger steps.
ROUNDING = 1e-7
#: The rows that begin the response, after none.
ROWS = (5, 9, 5, 60, 0, 31)


@contextmanager
def counted(network: Network) -> Iterator[list[int]]:
    """How many elements each step of a network is given from here on."""
    counts: list[int] = []
    real = network.append

    def append(sequences, *others, **options):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN002, ANN003, ANN202
        counts.append(len(sequences))
        return real(sequences, *others, **options)

    network.append = append  # type: ignore[method-assign]
    try:
        yield counts
    finally:
        del network.append


def test_growing_gives_what_the_whole_sequences_give(
    open_network: OpenNetwork, folder: str
) -> None:
    network, golden = open_network(folder), read_golden(folder)
    model = network.model
    conditions = (golden.condition, golden.condition.null())
    requests = []
    for one in conditions:
        segments = speech_segments(model, one, 0, np.zeros(1, np.int64))
        requests.append([*segments[:-1], replace(segments[-1], rows=np.zeros((0, 1), np.int64))])
    with (
        counted(network) as counts,
        CausalSequences(network, requests, head="ar", table="response.ar") as sequences,
    ):
        found = [sequences.begin(), *(sequences.append(row) for row in ROWS)]
    assert counts == [2] * len(ROWS)
    for i, one in enumerate(conditions):
        segments = speech_segments(model, one, 0, np.array(ROWS))
        inputs = assemble(model, segments, network.look_up)
        network.forget(0)
        # The separator before the response gives the first of its codes.
        expected = network.step(
            inputs.embeddings, inputs.positions, head="ar", outputs=slice(inputs.last - 1, None)
        )
        grown = np.stack([logits[i] for logits in found])
        error = np.mean((grown - expected) ** 2) / np.mean(expected**2)
        assert error < ROUNDING
