"""VALL-E X's decoding, on a chain whose probabilities are known."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray
from support import after, rng
from vallex_golden import decode_vallex

from valle_convert.decode.batch import Element
from valle_convert.decode.options import GREEDY, DecodeOptions, SamplingOptions
from valle_convert.families.vallex.composed import VallexText
from valle_convert.families.vallex.decode import (
    MAX_CODES_A_SYMBOL,
    decode_vallex_ar,
)

Ids = NDArray[np.int32]

N_CODES, N_LEVELS = 5, 8
STOP = N_CODES
NO_VOICE = np.zeros((0, N_LEVELS), np.int32)


def text_of(*symbols: int) -> VallexText:
    return VallexText(np.array(symbols, np.int32), np.zeros(len(symbols), np.int32))


class Chain:
    """A Markov chain: the next code depends on the one before, and stop gets likelier.

    Levels above count up: at level q the code is (level 0 + q + prompt's frames) modulo all.
    """

    model = SimpleNamespace(n_levels=N_LEVELS, codebook_size=N_CODES)

    def __init__(self, stop_at: int | None = None, seed: int = 0) -> None:
        self.table = np.random.default_rng(seed).normal(size=(N_CODES, N_CODES + 1))
        self.stop_at = stop_at
        self.sequences: dict[Hashable, list[int]] = {}
        self.room = 0

    def logits_after(self, codes: Sequence[int], n_prompt: int) -> NDArray[np.float32]:
        row = self.table[codes[-1] if codes else 0].astype(np.float32)
        if self.stop_at is not None:
            row[STOP] = 50.0 if len(codes) - n_prompt >= self.stop_at else -50.0
        return row

    def begin_ar(
        self, text: VallexText, prompt: Ids, sequences: Sequence[Hashable], *, room: int
    ) -> NDArray[np.float32]:
        assert len(text) > 0
        self.n_prompt, self.room = len(prompt), room
        self.sequences = {one: prompt.tolist() for one in sequences}
        self.running = set(sequences)
        return self.logits_after(prompt.tolist(), self.n_prompt)[None]

    def append_codes(self, elements: Sequence[Element]) -> NDArray[np.float32]:
        for sequence, code, position in elements:
            assert sequence in self.running
            assert 0 <= code < N_CODES
            self.sequences[sequence].append(code)
            assert len(self.sequences[sequence]) == position
            assert len(self.sequences[sequence]) - self.n_prompt <= self.room
        return np.stack(
            [self.logits_after(self.sequences[one], self.n_prompt) for one, *_ in elements]
        )

    def forget(self, sequence: Hashable) -> None:
        self.running.remove(sequence)

    def pass_nar(self, text: VallexText, prompt: Ids, codes: Ids) -> NDArray[np.float32]:
        assert len(text) > 0
        assert prompt.shape[1] == N_LEVELS
        level = codes.shape[1]
        wanted = (codes[:, 0] + level + len(prompt)) % N_CODES
        logits = np.zeros((len(codes), N_CODES), np.float32)
        logits[np.arange(len(codes)), wanted] = 1.0
        return logits


@pytest.mark.parametrize("symbols", [(7,), (7, 8, 9)])
def test_it_ends_after_16_codes_a_symbol(symbols: tuple[int, ...]) -> None:
    network = Chain(stop_at=10_000)
    said = decode_vallex_ar(network, text_of(*symbols), NO_VOICE[:, 0], DecodeOptions(), rng())
    assert (len(said.codes), said.end) == (16 * len(symbols), "limit")
    assert MAX_CODES_A_SYMBOL == 16
    assert network.room == 16 * len(symbols)


def drawn_codes(network: Chain, options: DecodeOptions, seed: int) -> tuple[int, ...]:
    said = decode_vallex_ar(network, text_of(7), NO_VOICE[:, 0], options, rng(seed), max_frames=1)
    return tuple(said.codes.tolist())


def test_codes_are_drawn_by_the_probabilities_of_the_chain() -> None:
    network = Chain()
    options = DecodeOptions(sampling=SamplingOptions(temperature=0.7))
    n = 4000
    counts = Counter(drawn_codes(network, options, seed) for seed in range(n))
    scaled = np.exp(network.table[0] / 0.7)
    expected = scaled / scaled.sum()
    found = [counts[i,] / n for i in range(N_CODES)] + [counts[()] / n]
    # Three standard deviations of a frequency of 4000 draws are 0.024 at most.
    np.testing.assert_allclose(found, expected, atol=0.025)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("n_prompt", [0, 4])
def test_of_several_continuations_the_one_with_the_best_score_wins(
    length_penalty: float, n_prompt: int
) -> None:
    sampling = SamplingOptions(temperature=1.3, top_k=4)
    prompt = np.arange(n_prompt, dtype=np.int32)
    options = DecodeOptions(sampling=sampling, best_of=6, length_penalty=length_penalty)
    n_different = 0
    for seed in range(20):
        network = Chain(seed=seed)
        said = decode_vallex_ar(network, text_of(7), prompt, options, rng(seed))
        # What all the copies were, replayed: the network keeps them, but for each one's last code
        # where that was the 16th.
        scores = {}
        for sequence in network.sequences.values():
            own = sequence[n_prompt:]
            if len(own) < MAX_CODES_A_SYMBOL - 1:
                scores[tuple(own)] = score(network, prompt, own, options)
        if len(scores) < options.best_of or said.end != "stop":
            continue
        assert max(scores, key=lambda one: scores[one]) == tuple(said.codes.tolist())
        n_different += len(set(scores)) > 1
    assert n_different > 3


def score(network: Chain, prompt: Ids, codes: Sequence[int], options: DecodeOptions) -> float:
    """The sum of log probabilities up to and with stop, over a power of the length."""
    total = 0.0
    sequence = prompt.tolist()
    for code in [*codes, STOP]:
        logits = network.logits_after(sequence, len(prompt)).astype(np.float64)
        kept = np.sort(logits)[-options.sampling.top_k :]
        scaled = np.exp(kept / options.sampling.temperature)
        total += math.log(np.exp(logits[code] / options.sampling.temperature) / scaled.sum())
        sequence.append(code)
    return total / (1 + len(prompt) + len(codes)) ** (options.length_penalty or 0)


def test_the_best_codes_need_no_second_copy() -> None:
    network = Chain(stop_at=3)
    options = DecodeOptions(sampling=GREEDY, best_of=5)
    decode_vallex_ar(network, text_of(7), NO_VOICE[:, 0], options, rng())
    assert len(network.sequences) == 1


@pytest.mark.parametrize("best_of", [1, 3])
def test_interrupted_it_gives_what_there_is(best_of: int) -> None:
    options = DecodeOptions(best_of=best_of)
    network = Chain(stop_at=10)
    speech = decode_vallex(network, text_of(7), NO_VOICE, options, rng(), watch=after(3))
    assert (speech.codes.shape, speech.end) == ((3, 1), "interrupted")
    speech = decode_vallex(network, text_of(7), NO_VOICE, options, rng(), watch=after(10 + 1 + 2))
    assert (speech.codes.shape, speech.end) == ((10, 3), "interrupted")
