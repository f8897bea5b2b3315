"""What is measured of speech is what it says, and how sure it is."""

import itertools
import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from valle_convert.audio import Audio
from valle_convert.errors import EnvironmentFault
from valle_convert.listening.listen import Recogniser
from valle_convert.listening.measures import (
    N_CEPSTRA,
    Tally,
    edit_distance,
    mel_cepstra,
    mel_cepstral_distance,
    plain_words,
)

RATE = 16_000


def noise(seed: int, seconds: float = 0.3) -> Audio:
    """Sound whose spectrum changes: noise through a filter that moves."""
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(6):
        kernel = rng.standard_normal(24)
        parts.append(np.convolve(rng.standard_normal(round(RATE * seconds / 6)), kernel, "same"))
    return Audio((np.concatenate(parts) / 40).astype(np.float32), RATE)


def test_cepstra_are_in_decibels_whatever_the_loudness() -> None:
    sound = noise(0)
    first = mel_cepstra(sound)
    assert first.shape[1] == N_CEPSTRA
    louder = mel_cepstra(Audio(sound.samples * np.float32(0.1), RATE))
    np.testing.assert_allclose(louder, first, atol=1e-3)
    # Tilted by so many dB over the bands: a cosine of them is one coefficient, of a known size.
    tilted = first.copy()
    tilted[:, 0] += 1.0
    expected = 10 / math.log(10) * math.sqrt(2)
    straight = np.sqrt(((tilted - first) ** 2).sum(1)) * expected
    np.testing.assert_allclose(straight, expected, rtol=1e-5)


@given(st.integers(1, 7), st.lists(st.integers(1, 7), min_size=1, max_size=4), st.integers(0, 99))
def test_all_recordings_at_once_are_each_by_the_definition(
    n: int, lengths: list[int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    said = rng.standard_normal((n, 3)).astype(np.float32)
    recordings = [rng.standard_normal((m, 3)).astype(np.float32) for m in lengths]
    found = mel_cepstral_distance(said, recordings)
    np.testing.assert_allclose(found, [by_definition(said, one) for one in recordings], rtol=1e-4)


def by_definition(a: np.ndarray, b: np.ndarray) -> float:
    """The cheapest of all paths, a step to the next of both counted twice."""
    cost = 10 / math.log(10) * np.sqrt(2 * ((a[:, None] - b[None]) ** 2).sum(-1))
    best: dict[tuple[int, int], float] = {}
    for i, j in itertools.product(range(len(a)), range(len(b))):
        here = float(cost[i, j])
        before = [
            best.get((i - 1, j), math.inf) + here,
            best.get((i, j - 1), math.inf) + here,
            (0.0 if i == j == 0 else best.get((i - 1, j - 1), math.inf)) + 2 * here,
        ]
        best[i, j] = min(before)
    return best[len(a) - 1, len(b) - 1] / (len(a) + len(b))


def test_a_slower_sound_is_still_nearest_to_itself() -> None:
    sounds = [noise(seed) for seed in range(5)]
    cepstra = [mel_cepstra(one) for one in sounds]
    for i, one in enumerate(sounds):
        stretched = np.interp(
            np.arange(0, len(one.samples), 0.8), np.arange(len(one.samples)), one.samples
        )
        slower = mel_cepstra(Audio(stretched.astype(np.float32), RATE))
        assert mel_cepstral_distance(slower, cepstra).argmin() == i
        assert mel_cepstral_distance(cepstra[i], [cepstra[i]])[0] == pytest.approx(0, abs=1e-2)


def test_silence_is_no_error() -> None:
    silence = mel_cepstra(Audio(np.zeros(800, np.float32), RATE))
    assert np.isfinite(mel_cepstral_distance(silence, [silence, mel_cepstra(noise(1))])).all()


def test_words_are_compared_as_words() -> None:
    assert plain_words("«Don’t», he said: no_1!") == ["don't", "he", "said", "no", "1"]
    assert edit_distance(plain_words("the old man"), plain_words("The man.")) == 1
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance([], [1, 2]) == 2


def test_an_interval_holds_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        estimate = Tally.each(rng.normal(3.0, 1.0, 30).tolist()).estimate()
        inside += estimate.low <= 3.0 <= estimate.high
    assert 0.88 <= inside / 200 <= 0.99  # 95 %, and a little less for few sentences


def test_differences_over_the_same_sentences_are_sharper_than_the_means() -> None:
    rng = np.random.default_rng(1)
    hard = rng.normal(3.0, 1.0, 40)
    one, other = Tally.each(hard.tolist()), Tally.each((hard + 0.01).tolist())
    difference = other.minus(one)
    assert difference.mean == pytest.approx(0.01)
    assert difference.low > 0
    assert difference.high - difference.low < 1e-6
    assert one.estimate().error > 0.1


def test_a_mean_is_of_all_codes_and_not_of_the_sentences_means() -> None:
    tally = Tally(np.array([1.0, 9.0]), np.array([1.0, 3.0]))
    assert tally.mean == 2.5
    assert Tally.pooled([tally, tally]).mean == 2.5
    assert Tally.each([1.0, math.nan]).mean == 1.0
    assert math.isnan(Tally.each([math.nan]).mean)


# Any program can hear words

SOUND = Audio(np.full(2400, 0.25, np.float32), 24_000)
MEASURES = "import sys, wave; w = wave.open(sys.argv[1]); print(w.getnframes(), w.getframerate())"


def test_a_command_gets_a_wav_and_prints_words() -> None:
    assert Recogniser(f'{sys.executable} -c "{MEASURES}"').hear(SOUND) == "2400 24000"
    braces = f'{sys.executable} -c "{MEASURES}" {{}} more'
    assert Recogniser(braces).hear(SOUND) == "2400 24000"


def test_a_program_that_fails_is_quoted() -> None:
    fails = Recogniser(f"{sys.executable} -c \"raise SystemExit('no model')\"")
    with pytest.raises(EnvironmentFault, match="exit code 1: no model"):
        fails.hear(SOUND)
