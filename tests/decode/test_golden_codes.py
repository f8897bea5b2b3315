"""Greedy decoding gives the codes of the checkpoints' own project, every one of them."""

import numpy as np
import pytest
from golden_models import BACK_ENDS, SPEAKING, OpenNetwork, read_golden

from valle_convert.decode import (
    GREEDY,
    ArOptions,
    Guidance,
    MaskedOptions,
    NarOptions,
    decode_ar,
    decode_length,
    decode_masked,
    decode_nar,
)

pytestmark = [
    pytest.mark.parametrize("open_network", BACK_ENDS, indirect=True),
    pytest.mark.parametrize("folder", SPEAKING),
]
RNG = np.random.default_rng(0)

# What `notes` in the golden files says of how they were made.
AR_STEPS = 40
MASK_FRAMES, MASK_STEPS = 24, 8
MASK_GUIDANCE = Guidance(cfg_strength=3.0, cfg_rescale=0.75)


def test_greedy_ar_gives_every_code_of_the_original(open_network: OpenNetwork, folder: str) -> None:
    golden = read_golden(folder)
    result = decode_ar(
        open_network(folder), golden.condition, ArOptions(GREEDY, max_frames=AR_STEPS), RNG
    )
    np.testing.assert_array_equal(result.codes, golden["gen.ar"])
    # Fewer frames than steps means that the original drew the stop code.
    assert result.end == ("limit" if len(golden["gen.ar"]) == AR_STEPS else "stop")


def test_greedy_nar_gives_every_code_of_the_original(
    open_network: OpenNetwork, folder: str
) -> None:
    golden = read_golden(folder)
    result = decode_nar(open_network(folder), golden.condition, golden["gen.ar"], NarOptions(), RNG)
    np.testing.assert_array_equal(result.codes, golden["gen.ar_nar"])


def test_the_duration_is_the_number_that_the_original_read(
    open_network: OpenNetwork, folder: str
) -> None:
    golden = read_golden(folder)
    assert decode_length(open_network(folder), golden.condition) == golden["gen.len"].item()


def test_demasking_and_guided_nar_give_every_code_of_the_original(
    open_network: OpenNetwork, folder: str
) -> None:
    golden = read_golden(folder)
    network = open_network(folder)
    level_0 = decode_masked(
        network,
        golden.condition,
        MASK_FRAMES,
        MaskedOptions(MASK_STEPS, GREEDY, MASK_GUIDANCE),
        RNG,
    )
    np.testing.assert_array_equal(level_0.codes, golden["gen.mask"][:, 0])
    options = NarOptions(guidance=MASK_GUIDANCE)
    result = decode_nar(network, golden.condition, level_0.codes, options, RNG)
    np.testing.assert_array_equal(result.codes, golden["gen.mask"])
