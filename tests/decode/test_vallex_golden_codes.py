"""VALL-E X's greedy codes of the original, through our decoder, on PyTorch and on llama.cpp."""

import numpy as np
import pytest
from golden_models import BACK_ENDS, OpenNetwork
from support import GOLDEN_VALLEX, golden_checkpoint, open_reference
from vallex_golden import decode_vallex, golden

from valle_convert.decode.options import GREEDY, DecodeOptions, SamplingOptions
from valle_convert.families.vallex.composed import ComposedNetwork

on_both = pytest.mark.parametrize("open_network", BACK_ENDS, indirect=True)


@pytest.fixture
def network(open_network: OpenNetwork) -> ComposedNetwork:
    return open_network(GOLDEN_VALLEX)


@on_both
@pytest.mark.parametrize("prefix", ["", "noprompt."])
@pytest.mark.parametrize(
    "options",
    [
        DecodeOptions(sampling=GREEDY),
        DecodeOptions(sampling=GREEDY, best_of=3),
        # As the original decodes greedily: nothing but the best code is left to draw.
        DecodeOptions(sampling=SamplingOptions(top_k=1)),
        DecodeOptions(sampling=SamplingOptions(top_k=1), best_of=3),
    ],
)
def test_all_levels_of_the_golden_codes_come_out_and_end_by_stop(
    network: ComposedNetwork, prefix: str, options: DecodeOptions
) -> None:
    given = golden(prefix)
    rng = np.random.default_rng(0)
    speech = decode_vallex(network, given.text, given.prompt, options, rng)
    np.testing.assert_array_equal(speech.codes, given.codes)
    assert speech.end == "stop"
    assert speech.codes.dtype == np.int32


@pytest.mark.parametrize("open_network", ["llama.cpp"], indirect=True)
def test_what_is_drawn_is_the_same_on_both(network: ComposedNetwork) -> None:
    """Copies of sequences that grow apart, one of which may end before the others."""
    both = network, open_reference(golden_checkpoint(GOLDEN_VALLEX))
    options = DecodeOptions(sampling=SamplingOptions(temperature=0.9), best_of=3)
    for prefix, seed in (("", 0), ("", 1), ("noprompt.", 2), ("noprompt.", 3)):
        given = golden(prefix)
        found, expected = (
            decode_vallex(
                one, given.text, given.prompt, options, np.random.default_rng(seed), max_frames=60
            )
            for one in both
        )
        np.testing.assert_array_equal(found.codes, expected.codes)
        assert found.end == expected.end
