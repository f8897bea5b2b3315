"""Demasking of all levels, held against the algorithm as its description has it, word for word."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support import GOLDEN_VERSION_7, Convert, golden_checkpoint, open_reference

from valle_convert import open_network
from valle_convert.decode.masked import times
from valle_convert.decode.options import GREEDY, Callbacks, DecodeOptions, SamplingOptions
from valle_convert.families.v7.composed import AllLevelsNetwork
from valle_convert.families.v7.decode import decode_duration, decode_levels, without_stops
from valle_convert.families.v7.trials import utterances
from valle_convert.model.inputs import Condition

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def reference() -> AllLevelsNetwork:
    network: AllLevelsNetwork = open_reference(golden_checkpoint(GOLDEN_VERSION_7))
    return network


def by_the_description(
    network: AllLevelsNetwork, condition: Condition, n: int, n_steps: int, strength: float
) -> NDArray[np.int64]:
    """With temperature 0, level by level in PyTorch, as the original's own loop has it."""
    n_levels, codes = network.model.n_levels, network.model.codebook_size
    mask = codes + 1
    response = torch.full((n, n_levels), mask)
    scores = torch.ones(n, n_levels)
    for step, time in enumerate(torch.linspace(0, 1, n_steps)):
        count = max(1, min(int(math.cos(time * math.pi * 0.5) * n), n - step))
        for level in range(n_levels):
            order = torch.sort(scores[:, level], stable=True).indices
            response[order[:count], level] = mask
        hidden = response == mask
        full, null = (
            torch.from_numpy(network.levels(one, response.numpy())).double()
            for one in (condition, condition.null())
        )
        guided = null + (full - null) * max(strength, 2.5)
        guided = guided * (0.75 * full.std() / guided.std() + 0.25)
        best = guided.argmax(-1).T
        response = torch.where(hidden, best, response)
        scores = guided.softmax(-1).max(-1).values.T.float()
    return response.numpy()


@pytest.mark.parametrize(("n", "n_steps"), [(19, 1), (24, 10), (21, 25), (3, 7)])
def test_greedy_codes_are_those_of_the_description(
    n: int, n_steps: int, reference: AllLevelsNetwork
) -> None:
    (one,) = utterances(reference.model, 1)
    expected = by_the_description(reference, one.condition, n, n_steps, 3.0)
    options = DecodeOptions(sampling=GREEDY, guidance_strength=3.0, max_steps=n_steps)
    found = decode_levels(reference, one.condition, n, options, RNG)
    np.testing.assert_array_equal(found.codes, expected)


def test_greedy_codes_on_llama_are_those_of_the_reference(
    reference: AllLevelsNetwork, converted: Convert
) -> None:
    """In one step: a net of random weights has so many ties that later ones part ways."""
    (one,) = utterances(reference.model, 1)
    options = DecodeOptions(sampling=GREEDY, guidance_strength=3.0, max_steps=1)
    expected = decode_levels(reference, one.condition, 19, options, RNG)
    with open_network(converted(GOLDEN_VERSION_7, "f32"), n_threads=1) as network:
        found = decode_levels(network, one.condition, 19, options, RNG)
    np.testing.assert_array_equal(found.codes, expected.codes)


@given(n_steps=st.integers(1, 400))
def test_the_times_of_steps_are_pytorchs_own(n_steps: int) -> None:
    expected = torch.linspace(0, 1, n_steps).tolist()
    assert times(n_steps) == expected


class Dealt(AllLevelsNetwork):
    """Logits that depend on nothing but what is shown, to follow a decode by hand."""

    def __init__(self, network: AllLevelsNetwork, length: NDArray[np.float32]) -> None:
        super().__init__(network.model)
        self.shown: list[NDArray[Any]] = []
        self._length = length

    def levels(self, condition: Condition, response: NDArray[Any]) -> NDArray[np.float32]:
        self.shown.append(np.array(response))
        draw = np.random.default_rng([len(condition.phonemes), *response.ravel()])
        shape = (self.model.n_levels, len(response), self.model.codebook_size + 1)
        return draw.standard_normal(shape, np.float32)

    def length(self, condition: Condition, *, everywhere: bool = False) -> NDArray[np.float32]:
        del condition, everywhere
        return self._length

    def look_up(self, *_: Any) -> Any:
        raise NotImplementedError

    encode = run = decode = head = look_up

    def close(self) -> None:
        pass


@given(
    n=st.integers(1, 30),
    n_steps=st.integers(1, 12),
    temperature=st.sampled_from([0.0, 1.0]),
    top_k=st.integers(0, 5),
    keeps=st.booleans(),
    n_before=st.integers(0, 4),
    seed=st.integers(0, 99),
)
def test_what_is_shown_and_what_stays(
    reference: AllLevelsNetwork,
    n: int,
    n_steps: int,
    temperature: float,
    top_k: int,
    keeps: bool,
    n_before: int,
    seed: int,
) -> None:
    network = Dealt(reference, np.zeros((1, 1), np.float32))
    (one,) = utterances(reference.model, 1)
    draw = np.random.default_rng(seed)
    level_0 = draw.integers(0, 40, n, dtype=np.int32) if keeps else None
    prefix = draw.integers(0, 40, (n_before, 8), dtype=np.int32)
    sampling = SamplingOptions(temperature=temperature, top_k=top_k)
    options = DecodeOptions(sampling=sampling, max_steps=n_steps)
    result = decode_levels(network, one.condition, n, options, draw, level_0=level_0, prefix=prefix)
    assert result.codes.shape == (n, 8)
    assert result.codes.max() <= 40  # never the mask
    assert result.end == "stop"
    assert len(network.shown) == 2 * n_steps
    for shown in network.shown:
        np.testing.assert_array_equal(shown[:n_before], prefix)
    for step, (full, null) in enumerate(zip(*[iter(network.shown)] * 2, strict=True)):
        np.testing.assert_array_equal(full, null)
        time = torch.linspace(0, 1, n_steps)[step]
        count = max(1, min(int(math.cos(time * math.pi * 0.5) * n), n - step))
        hidden = (full[n_before:] == 41).sum(0).tolist()
        assert hidden == [0 if keeps else count, *[count] * 7]
    if level_0 is not None:
        np.testing.assert_array_equal(result.codes[:, 0], level_0)


@given(
    seconds=st.floats(width=32),
    most=st.integers(1, 2000),
    rate=st.sampled_from([75.0, 44_100 / 512]),
)
def test_a_duration_in_seconds_is_whole_and_within_limits(
    reference: AllLevelsNetwork, seconds: float, most: int, rate: float
) -> None:
    network = Dealt(reference, np.array([[seconds]], np.float32))
    options = DecodeOptions(max_seconds=most / rate)
    n = decode_duration(network, Condition(np.array([1, 2])), options, rate)
    assert 1 <= n <= most
    if 1 < seconds < most / rate / 1.1:
        assert n == min(int(max(int(np.float32(seconds) * rate), round(rate)) * 1.05), most)


@given(digits=st.lists(st.integers(0, 9), min_size=5, max_size=5))
def test_a_duration_in_digits_is_a_number_of_frames(
    reference: AllLevelsNetwork, digits: list[int]
) -> None:
    network = Dealt(reference, np.eye(10, dtype=np.float32)[digits])
    options = DecodeOptions(duration_padding=1.0, max_seconds=100_000)
    n = decode_duration(network, Condition(np.array([1, 2])), options, 75.0)
    assert n == max(75, int("".join(map(str, digits))))


def test_stops_are_replaced_and_nothing_else(reference: AllLevelsNetwork) -> None:
    (one,) = utterances(reference.model, 1)
    codes = one.response.astype(np.int32)
    np.testing.assert_array_equal(without_stops(reference, one.condition, codes), codes)
    stopped = codes.copy()
    stopped[3, 1] = stopped[7, 6] = 40
    found = without_stops(reference, one.condition, stopped)
    assert found.max() < 40
    changed = np.argwhere(found != codes).tolist()
    assert all(place in ([3, 1], [7, 6]) for place in changed)


def test_an_interrupted_decode_gives_a_whole_draft(reference: AllLevelsNetwork) -> None:
    network = Dealt(reference, np.zeros((1, 1), np.float32))
    (one,) = utterances(reference.model, 1)
    for n_done in range(3):
        network.shown.clear()
        result = decode_levels(
            network,
            one.condition,
            10,
            DecodeOptions(sampling=GREEDY, max_steps=5),
            RNG,
            watch=Callbacks(should_stop=lambda n=n_done: len(network.shown) == 2 * n),
        )
        assert result.end == "interrupted"
        assert result.codes.shape == (10 if n_done else 0, 8)
        assert not (result.codes == 41).any()
