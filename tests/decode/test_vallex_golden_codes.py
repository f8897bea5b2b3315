"""VALL-E X's greedy codes of the original, through our decoder."""

from __future__ import annotations

import numpy as np
import pytest
from vallex_golden import CHECKPOINT, golden

from valle_convert.checkpoint import read_checkpoint
from valle_convert.decode import GREEDY, SamplingOptions, VallexOptions, decode_vallex
from valle_convert.model.vallex import describe_vallex
from valle_convert.network.vallex_protocol import VallexNetwork
from valle_convert.network.vallex_reference import VallexReference


@pytest.fixture(scope="module")
def network() -> VallexNetwork:
    checkpoint = read_checkpoint(CHECKPOINT)
    return VallexReference(checkpoint.tensors, describe_vallex(checkpoint).model)


@pytest.mark.parametrize("prefix", ["", "noprompt."])
@pytest.mark.parametrize(
    "options",
    [
        VallexOptions(GREEDY),
        VallexOptions(GREEDY, best_of=3),
        # As the original decodes greedily: nothing but the best code is left to draw.
        VallexOptions(SamplingOptions(top_k=1)),
        VallexOptions(SamplingOptions(top_k=1), best_of=3),
    ],
)
def test_all_levels_of_the_golden_codes_come_out_and_end_by_stop(
    network: VallexNetwork, prefix: str, options: VallexOptions
) -> None:
    given = golden(prefix)
    rng = np.random.default_rng(0)
    speech = decode_vallex(network, given.text, given.prompt, options, rng)
    np.testing.assert_array_equal(speech.codes, given.codes)
    assert speech.end == "stop"
    assert speech.codes.dtype == np.int32


def test_several_continuations_are_drawn_each_for_itself(network: VallexNetwork) -> None:
    """The winner is one that a single continuation could have been, in length and codes."""
    given = golden("")
    options = VallexOptions(SamplingOptions(temperature=1.0), best_of=4, max_frames=30)
    first, again = (
        decode_vallex(network, given.text, given.prompt, options, np.random.default_rng(3))
        for _ in range(2)
    )
    np.testing.assert_array_equal(first.codes, again.codes)
    assert first.codes.shape[0] <= 30
    assert 0 <= first.codes.min() <= first.codes.max() < network.codebook_size
