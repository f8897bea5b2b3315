"""The converted, quantized miniature says what the PyTorch reference says, on stock llama.cpp."""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from support import ONE_THREAD, PROJECT, run_python

from miniature import corpus
from miniature.evaluate import held_out, opened
from miniature.world import WorldCodec, analyse
from valle_convert.audio import Audio, read_audio
from valle_convert.decode.options import SamplingOptions
from valle_convert.families.bundle import open_bundle
from valle_convert.families.v5 import listen
from valle_convert.listening.listen import (
    NLL,
    PHONEMES,
    RETRIEVAL,
    Listened,
    ListeningTest,
    Measure,
    Sentence,
)
from valle_convert.listening.measures import (
    Estimate,
    mel_cepstra,
    mel_cepstral_distance,
    normalized,
)
from valle_convert.speech.results import SpeakOptions

FOLDER = PROJECT / "miniature"
CODEC = FOLDER / "codec.safetensors"
TYPES = ("Q4_K_M", "Q8_0", "F16")


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`quantized(type)`: the miniature, converted and quantized once."""
    folder = tmp_path_factory.mktemp("miniature")
    full = folder / "miniature-F16.gguf"
    run(FOLDER / "miniature.sft", full, "--verify", "none")

    def make(kind: str) -> Path:
        path = folder / f"miniature-{kind}.gguf"
        if not path.exists():
            run("quantize", full, path, kind)
        return path

    return make


def run(*arguments: object) -> None:
    run_python("-m", "miniature", *arguments, check=True)


@cache
def recorded(n: int) -> list[Sentence]:
    """The same for every file: espeak-ng draws the noise in its voices anew each time."""
    return held_out(5, n)


def heard(path: Path, n: int) -> Listened:
    with opened(path) as network:
        return ListeningTest(recorded(n), WorldCodec(CODEC), listen).listen(network)


def estimate(listened: Listened, measure: Measure) -> Estimate:
    total = listened.total(measure)
    assert total is not None
    return total.estimate()


def margin(one: Estimate, other: Estimate) -> float:
    """What two means over different draws of sentences differ by, in 97.5 % of all cases."""
    return 1.96 * math.hypot(one.error, other.error)


def check_speech(quantized: Callable[[str], Path], types: tuple[str, ...], n: int) -> None:
    reference = heard(FOLDER / "miniature.sft", n)
    said_right = estimate(reference, RETRIEVAL)
    assert said_right.low > 1 / n  # chance
    errors = estimate(reference, PHONEMES)
    for kind in types:
        file = heard(quantized(kind), n)
        found = estimate(file, RETRIEVAL)
        assert found.mean >= said_right.mean - margin(found, said_right), kind
        edits = estimate(file, PHONEMES)
        assert edits.mean <= errors.mean + margin(edits, errors), kind
        assert edits.mean < 0.9  # who guesses edits nearly every phoneme
        # Nothing in it is drawn, and so it tells what the others cannot.
        mine, base = file.total(NLL), reference.total(NLL)
        assert mine is not None
        assert base is not None
        worse = mine.minus(base).mean
        assert worse <= (1e-3 if kind == "F16" else base.estimate().error), kind


def test_held_out_sentences_are_said_as_the_reference_says_them(
    quantized: Callable[[str], Path],
) -> None:
    check_speech(quantized, ("Q4_K_M",), 8)


@pytest.mark.slow
def test_so_are_many_sentences_in_many_types(quantized: Callable[[str], Path]) -> None:
    check_speech(quantized, TYPES, 48)


def test_the_voice_is_that_of_the_prompt(quantized: Callable[[str], Path], tmp_path: Path) -> None:
    settings = WorldCodec(CODEC).settings
    pitches: dict[str, tuple[float, float]] = {}
    for voice in corpus.VOICES:
        prompt = FOLDER / f"voice-{voice}.flac"
        out = tmp_path / f"{voice}.wav"
        said = ("speak", quantized("Q4_K_M"), "The old man sees the river.", "-o", out)
        how = ("--set", "mode=ar,max_seconds=4,prompt_seconds=0.8", "--temperature", 0.6)
        run(*said, *how, "--seed", 0, "--voice", prompt, "--codec", CODEC)
        sounds = [read_audio(path, corpus.SAMPLE_RATE).samples for path in (prompt, out)]
        frames = [analyse(one, settings) for one in sounds]
        asked, got = (float(np.median(one[one[:, 0] > 0, 1])) for one in frames)
        pitches[voice] = asked, got
        assert abs(got - asked) < math.log(2) / 3, voice  # a third of an octave
    (plain, plain_said), (female, female_said) = pitches["plain"], pitches["female"]
    # The voices are an octave apart, and so is what is said in them.
    assert female - plain > math.log(2) / 2
    assert female_said - plain_said > math.log(2) / 2


@pytest.mark.parametrize("voice", corpus.VOICES)
def test_hello_world_is_heard_as_that_more_often_than_chance_has_it(
    quantized: Callable[[str], Path], voice: str
) -> None:
    texts = ["Hello world.", *corpus.held_out_texts(5, 12)]
    recordings = [Audio(corpus.speak(one, voice).samples, corpus.SAMPLE_RATE) for one in texts]
    cepstra = [normalized(mel_cepstra(one)) for one in recordings]
    right = 0
    bundle = open_bundle(quantized("Q4_K_M"))
    with bundle.family.speaker(bundle, codec=WorldCodec(CODEC), settings=ONE_THREAD) as speaker:
        for seed in range(8):
            options = SpeakOptions(
                mode="ar",
                language="en",
                sampling=SamplingOptions(temperature=0.6),
                prompt_seconds=0.8,
                max_seconds=3.0,
                seed=seed,
            )
            said = speaker.speak(texts[0], FOLDER / f"voice-{voice}.flac", options).audio
            assert said is not None
            found = mel_cepstral_distance(normalized(mel_cepstra(said)), cepstra)
            right += texts[found.argmin()].startswith("Hello world")
    assert right >= 3  # by chance 3 of 8 are right once in 50 times, at one in 13
