"""Samplers: what each filter keeps, and how codes are drawn."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from support import rng

from valle_convert.decode.options import SamplingOptions
from valle_convert.decode.sampling import (
    draw,
    guide,
    keep_min_p,
    keep_top_k,
    keep_top_n_sigma,
    keep_top_p,
    penalize_length,
    penalize_repetition,
    probabilities,
    sample,
)

Block = NDArray[np.float32]

# Wide enough for every real logit; coarse steps make ties happen.
VALUES = st.integers(-400, 400).map(lambda n: n / 16)
BLOCKS = hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(2, 40)), elements=VALUES)
OPTIONS = st.builds(
    SamplingOptions,
    temperature=st.sampled_from([0.0, 1e-300, 0.5, 1.0, 50.0]),
    top_k=st.integers(0, 50),
    top_p=st.floats(0, 1),
    min_p=st.floats(0, 1),
    top_no=st.floats(0, 5),
)


@given(logits=BLOCKS, options=OPTIONS)
def test_temperature_0_takes_the_most_likely_code_whatever_the_filters(
    logits: Block, options: SamplingOptions
) -> None:
    greedy = SamplingOptions(0.0, options.top_k, options.top_p, options.min_p, options.top_no)
    np.testing.assert_array_equal(sample(logits, greedy, rng()), logits.argmax(axis=-1))


@given(logits=BLOCKS, options=OPTIONS)
def test_a_drawn_code_is_one_of_those_that_every_filter_keeps(
    logits: Block, options: SamplingOptions
) -> None:
    codes = sample(logits, options, rng())
    rows = np.arange(len(logits))
    for kept in (
        keep_min_p(logits, options.min_p),
        keep_top_k(logits, options.top_k),
        keep_top_p(keep_top_k(keep_min_p(logits, options.min_p), options.top_k), options.top_p),
    ):
        assert np.isfinite(kept[rows, codes]).all()


@given(logits=BLOCKS)
def test_a_tiny_temperature_takes_one_of_the_most_likely_codes(logits: Block) -> None:
    codes = draw(logits, 1e-300, rng())
    np.testing.assert_array_equal(logits[np.arange(len(logits)), codes], logits.max(axis=-1))


@given(logits=BLOCKS, top_k=st.integers(1, 50))
def test_top_k_keeps_the_k_highest_and_what_ties_with_them(logits: Block, top_k: int) -> None:
    kept = np.isfinite(keep_top_k(logits, top_k))
    for row, mask in zip(logits, kept, strict=True):
        threshold = np.sort(row)[::-1][min(top_k, len(row)) - 1]
        np.testing.assert_array_equal(mask, row >= threshold)


@given(logits=BLOCKS, top_p=st.floats(0, 0.999))
def test_top_p_keeps_enough_probability_and_no_code_more(logits: Block, top_p: float) -> None:
    kept = np.isfinite(keep_top_p(logits, top_p))
    for row, mask in zip(probabilities(logits), kept, strict=True):
        assert mask.any()
        rounding = 1e-9
        assert row[mask].sum() >= top_p - rounding
        assert row[mask].sum() - row[mask].min() <= top_p + rounding
        if not mask.all():
            assert row[mask].min() >= row[~mask].max() - rounding


@given(logits=BLOCKS, min_p=st.floats(0.001, 1))
def test_min_p_keeps_what_is_likely_enough_beside_the_best(logits: Block, min_p: float) -> None:
    kept = np.isfinite(keep_min_p(logits, min_p))
    ratio = np.exp((logits - logits.max(axis=-1, keepdims=True)).astype(np.float64))
    rounding = 1e-4
    assert kept[ratio >= min_p * (1 + rounding)].all()
    assert not kept[ratio < min_p * (1 - rounding)].any()


@given(logits=BLOCKS, n=st.floats(0.01, 5), temperature=st.sampled_from([0.25, 4.0]))
def test_top_n_sigma_keeps_the_same_codes_at_every_temperature(
    logits: Block, n: float, temperature: float
) -> None:
    scaled = (logits / np.float32(temperature)).astype(np.float32)
    np.testing.assert_array_equal(
        np.isfinite(keep_top_n_sigma(logits, n)), np.isfinite(keep_top_n_sigma(scaled, n))
    )


def test_top_n_sigma_measures_from_the_highest_logit() -> None:
    logits = np.array([[0, 0, 0, 6, 10]], np.float32)  # deviation 4.6
    np.testing.assert_array_equal(
        np.isfinite(keep_top_n_sigma(logits, 1.0)), [[False, False, False, True, True]]
    )


@given(logits=BLOCKS)
def test_filters_at_their_defaults_change_nothing(logits: Block) -> None:
    for result in (
        keep_min_p(logits, 0.0),
        keep_top_k(logits, 0),
        keep_top_p(logits, 1.0),
        keep_top_n_sigma(logits, 0.0),
        penalize_repetition(logits, np.array([0, 1], np.int32), 1.0, 0.0),
        penalize_length(logits, 0, 9, 0.0),
    ):
        np.testing.assert_array_equal(result, logits)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_codes_are_drawn_with_their_probability(temperature: float) -> None:
    row = np.array([1.0, 0.0, -1.0, 2.0, -np.inf], np.float32)
    n = 200_000
    codes = draw(np.tile(row, (n, 1)), temperature, rng())
    expected = probabilities(row[None] / np.float32(temperature))[0]
    # Four standard deviations of a frequency from n draws.
    tolerance = 4 * math.sqrt(0.25 / n)
    np.testing.assert_allclose(np.bincount(codes, minlength=5) / n, expected, atol=tolerance)
    assert not (codes == 4).any()


@given(
    logits=BLOCKS,
    previous=st.lists(st.integers(0, 1), min_size=1, max_size=9),
    factor=st.floats(1.01, 10),
    decay=st.floats(0, 2),
)
def test_a_repetition_penalty_never_favours_a_code_and_spares_new_ones(
    logits: Block, previous: list[int], factor: float, decay: float
) -> None:
    result = penalize_repetition(logits, np.array(previous, np.int32), factor, decay)
    there = np.unique(previous)
    new = np.setdiff1d(np.arange(logits.shape[1]), there)
    np.testing.assert_array_equal(result[:, new], logits[:, new])
    assert (result[:, there] <= logits[:, there]).all()
    assert (result[:, there] < logits[:, there])[logits[:, there] != 0].all()


def test_a_repetition_penalty_counts_the_latest_place_of_a_code() -> None:
    logits = np.array([[8.0, 8.0, -8.0, 8.0]], np.float32)
    # Distances from the end: code 1 at 1 (and 3), code 0 at 2, code 2 at 4.
    previous = np.array([2, 1, 0, 1], np.int32)
    result = penalize_repetition(logits, previous, 2.0, 1.0)
    np.testing.assert_array_equal(result, [[2.0, 4.0, -64.0, 8.0]])


def test_a_length_penalty_above_0_delays_the_stop_code_and_below_0_hastens_it() -> None:
    logits = np.array([[1.0, 8.0]], np.float32)
    np.testing.assert_array_equal(penalize_length(logits, 1, 4, 0.5), [[1.0, 4.0]])
    np.testing.assert_array_equal(penalize_length(logits, 1, 4, -0.5), [[1.0, 16.0]])
    negative = np.array([[1.0, -8.0]], np.float32)
    np.testing.assert_array_equal(penalize_length(negative, 1, 4, 0.5), [[1.0, -16.0]])


@given(
    logits=BLOCKS,
    penalty=st.sampled_from([1e-6, 0.5, 2.0, 1e308]),
    power=st.sampled_from([-100.0, -1.0, 1.0, 100.0]),
    length=st.integers(1, 45_000),
)
def test_penalties_beyond_all_numbers_leave_numbers(
    logits: Block, penalty: float, power: float, length: int
) -> None:
    previous = np.arange(length, dtype=np.int32) % logits.shape[1]
    for result in (
        penalize_repetition(logits, previous, penalty, power),
        penalize_length(logits, 0, length, power),
    ):
        assert np.isfinite(result).all()
        assert sample(result, SamplingOptions(), rng()).shape == (len(logits),)


@given(full=BLOCKS, strength=st.floats(0, 10), rescale=st.floats(0, 1), seed=st.integers(0, 99))
def test_guidance_interpolates_between_the_conditions_and_beyond(
    full: Block, strength: float, rescale: float, seed: int
) -> None:
    noise = np.random.default_rng(seed).standard_normal(full.shape).astype(np.float32)
    null = full + noise
    np.testing.assert_allclose(guide(full, null, 0.0, 0.0), null, rtol=1e-6)
    np.testing.assert_allclose(guide(full, null, 1.0, 0.0), full, atol=1e-4)
    guided = guide(full, null, strength, rescale)
    np.testing.assert_array_equal(
        guided.argmax(axis=-1), guide(full, null, strength, 0.0).argmax(axis=-1)
    )
    spread = guide(full, null, strength, 1.0).std(ddof=1, dtype=np.float64)
    assert spread == pytest.approx(full.std(ddof=1, dtype=np.float64), rel=1e-3)
