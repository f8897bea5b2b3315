"""Greedy decoding gives the codes of the checkpoints' own project, every one of them."""

import numpy as np
import pytest
from golden_models import BACK_ENDS, SPEAKING, OpenNetwork, read_golden
from support import GOLDEN_VALLEX, golden_checkpoint, open_reference
from vallex_golden import decode_vallex, golden

from valle_convert.decode.ar import decode_ar
from valle_convert.decode.greedy import decode_length
from valle_convert.decode.masked import decode_masked
from valle_convert.decode.nar import decode_nar
from valle_convert.decode.options import GREEDY, DecodeOptions, SamplingOptions
from valle_convert.families.vallex.composed import ComposedNetwork

on_both = pytest.mark.parametrize("open_network", BACK_ENDS, indirect=True)
each_folder = pytest.mark.parametrize("folder", SPEAKING)
RNG = np.random.default_rng(0)

# What `notes` in the golden files says of how they were made.
AR_STEPS = 40
MASK_FRAMES, MASK_STEPS = 24, 8
GUIDED = DecodeOptions(
    sampling=GREEDY, guidance_strength=3.0, guidance_rescale=0.75, max_steps=MASK_STEPS
)


@on_both
@each_folder
def test_every_code_and_the_duration_are_those_of_the_original(
    open_network: OpenNetwork, folder: str
) -> None:
    given, network = read_golden(folder), open_network(folder)
    assert decode_length(network, given.condition) == given["gen.len"].item()
    options = DecodeOptions(sampling=GREEDY)
    result = decode_ar(network, given.condition, options, RNG, max_frames=AR_STEPS)
    np.testing.assert_array_equal(result.codes, given["gen.ar"])
    # Fewer frames than steps means that the original drew the stop code.
    assert result.end == ("limit" if len(given["gen.ar"]) == AR_STEPS else "stop")
    result = decode_nar(network, given.condition, given["gen.ar"], DecodeOptions(), RNG)
    np.testing.assert_array_equal(result.codes, given["gen.ar_nar"])
    level_0 = decode_masked(network, given.condition, MASK_FRAMES, GUIDED, RNG)
    np.testing.assert_array_equal(level_0.codes, given["gen.mask"][:, 0])
    result = decode_nar(network, given.condition, level_0.codes, GUIDED, RNG)
    np.testing.assert_array_equal(result.codes, given["gen.mask"])


# VALL-E X


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
