"""What decoders do beyond the golden cases: ends, interruption, prefixes, guidance, tasks."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from golden_models import SPEAKING, Golden, OpenNetwork, read_golden
from hypothesis import given
from hypothesis import strategies as st
from support import after, rng

from valle_convert.decode import masked
from valle_convert.decode.ar import append_codes, decode_ar
from valle_convert.decode.batch import alone
from valle_convert.decode.greedy import decode_transcript, frames_for
from valle_convert.decode.masked import decode_masked, n_hidden
from valle_convert.decode.options import GREEDY, DecodeOptions, SamplingOptions
from valle_convert.decode.speech import Prefix, choose_mode, speech_steps
from valle_convert.errors import InputError
from valle_convert.model.inputs import assemble, transcript_segments
from valle_convert.model.spec import EOS_PHONEME
from valle_convert.network.protocol import Network
from valle_convert.speech.results import SpeakOptions

FOLDER = "ar-nar-len"
GREEDY_ONES = DecodeOptions(sampling=GREEDY)
MASKED = replace(GREEDY_ONES, max_steps=8)
decode_speech = alone(speech_steps, append_codes)
#: With six frames a second, from 6 to 12 frames.
QUICK, FRAME_RATE = replace(GREEDY_ONES, max_steps=4, max_seconds=2.0), 6.0


@pytest.fixture
def network(open_network: OpenNetwork) -> Network:
    return open_network(FOLDER)


@pytest.fixture(scope="module")
def golden() -> Golden:
    return read_golden(FOLDER)


@given(n_frames=st.integers(1, 2000), n_steps=st.integers(1, 100))
def test_demasking_hides_everything_first_and_fewer_frames_each_step(
    n_frames: int, n_steps: int
) -> None:
    times = [step / max(n_steps - 1, 1) for step in range(n_steps)]
    hidden = [n_hidden(time, n_frames, step) for step, time in enumerate(times)]
    assert hidden[0] == n_frames
    assert all(later <= earlier for earlier, later in pairwise(hidden))
    assert min(hidden) >= 1


def test_demasking_interrupted_after_a_step_is_a_whole_draft(
    network: Network, golden: Golden
) -> None:
    result = decode_masked(network, golden.condition, 24, MASKED, rng(), watch=after(1))
    assert result.end == "interrupted"
    assert result.codes.shape == (24,)
    assert result.codes.max() < network.model.config.codebook_size


def test_the_temperature_of_demasking_falls_to_argmax(network: Network, golden: Golden) -> None:
    hot = DecodeOptions(max_steps=1, sampling=SamplingOptions(temperature=50.0))
    drawn = [decode_masked(network, golden.condition, 24, hot, rng(seed)).codes for seed in (1, 2)]
    assert not np.array_equal(*drawn)


def test_demasking_hears_the_prefix(network: Network, golden: Golden) -> None:
    without = decode_masked(network, golden.condition, 24, MASKED, rng()).codes
    behind = decode_masked(
        network, golden.condition, 24, MASKED, rng(), prefix=golden["in.resp"][:, 0]
    ).codes
    assert behind.shape == (24,)
    assert not np.array_equal(without, behind)


@pytest.mark.parametrize(
    ("said", "frames"), [(0, 78), (75, 78), (200, 210), (900, 900), (9_711_118_561, 900)]
)
def test_a_duration_is_at_least_a_second_padded_and_at_most_the_limit(
    said: int, frames: int
) -> None:
    assert frames_for(said, DecodeOptions(), 75.0) == frames


@given(
    said=st.integers(0, 3),
    padding=st.floats(0.01, 1),
    rate=st.floats(0.1, 75),
    most=st.floats(0.1, 600),
)
def test_there_is_always_a_frame_to_decode(
    said: int, padding: float, rate: float, most: float
) -> None:
    options = DecodeOptions(duration_padding=padding, max_seconds=most)
    assert 1 <= frames_for(said, options, rate) <= max(1, round(rate * most))


def test_auto_takes_demasking_where_the_model_has_durations(open_network: OpenNetwork) -> None:
    assert choose_mode(open_network("ar-nar-len").model) == "nar-len"
    assert choose_mode(open_network("ar-nar-len").model, "ar") == "ar"
    assert choose_mode(open_network("single-classifier").model) == "ar"


def test_noise_tasks_without_a_recording_are_refused(network: Network, golden: Golden) -> None:
    condition = replace(golden.condition, task="ns", prompt=None)
    with pytest.raises(InputError, match="ns works on a recording"):
        decode_speech(network, condition, QUICK, rng(), FRAME_RATE)


def test_voice_conversion_follows_the_recording_it_starts_from(
    network: Network, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With the recording shown in every step and none of it masked, what is drawn depends on it.
    monkeypatch.setattr(masked, "VC_THRESHOLD", 2.0)
    monkeypatch.setattr(masked, "VC_MASK_P", 0.0)
    recordings = [golden["in.resp"][:, 0], golden["in.resp"][::-1, 0]]
    codes = [
        decode_speech(
            network, golden.condition, QUICK, rng(), FRAME_RATE, recording=recording
        ).codes
        for recording in recordings
    ]
    assert [len(one) for one in codes] == [len(one) for one in recordings]
    assert not np.array_equal(*codes)


def test_a_prefix_stands_in_front_of_text_and_speech(network: Network, golden: Golden) -> None:
    condition = golden.condition
    phonemes = np.asarray(condition.phonemes)
    # The text cut in two: the first part as prefix gives the whole text again.
    cut = 12
    first = np.append(phonemes[:cut], EOS_PHONEME)
    second = np.insert(phonemes[cut:], 0, 1)
    prefix = Prefix(first, golden["gen.ar_nar"][:9])
    np.testing.assert_array_equal(prefix.extend(second), phonemes)
    options = replace(QUICK, mode="ar", max_seconds=31 / FRAME_RATE)
    speech = decode_speech(
        network, replace(condition, phonemes=second), options, rng(), FRAME_RATE, prefix=prefix
    )
    np.testing.assert_array_equal(speech.codes, golden["gen.ar_nar"][9:])


@pytest.mark.parametrize("mode", ["ar", "nar-len"])
def test_a_text_too_long_for_the_model_is_refused(
    network: Network, golden: Golden, mode: str
) -> None:
    condition = replace(golden.condition, phonemes=np.full(30_000, 5))
    with pytest.raises(InputError, match=r"30\d\d\d elements.*made for 22750"):
        decode_speech(network, condition, replace(QUICK, mode=mode), rng(), FRAME_RATE)


@pytest.mark.parametrize("folder", SPEAKING)
def test_a_transcript_is_what_running_the_whole_sequence_each_time_gives(
    open_network: OpenNetwork, folder: str
) -> None:
    network, golden = open_network(folder), read_golden(folder)
    speech, language = golden["in.resp"], golden.condition.language
    transcript = decode_transcript(network, speech, language, 25)
    expected = [1]
    while len(expected) <= 25:
        segments = transcript_segments(network.model, speech, np.array(expected), language)
        inputs = assemble(network.model, segments, network.look_up)
        network.forget(0)
        logits = network.step(
            inputs.embeddings, inputs.positions, head="stt", outputs=slice(-1, None)
        )
        expected.append(int(np.argmax(logits)))
        if expected[-1] == EOS_PHONEME:
            break
    ended = expected[-1] == EOS_PHONEME
    assert list(transcript.codes) == (expected[1:-1] if ended else expected[1:])
    assert transcript.end == ("stop" if ended else "limit")


def test_an_interrupted_transcript_keeps_the_phonemes_so_far(
    network: Network, golden: Golden
) -> None:
    whole = decode_transcript(network, golden["in.resp"], 2, 10)
    part = decode_transcript(network, golden["in.resp"], 2, 10, watch=after(4))
    assert part.end == "interrupted"
    assert list(part.codes) == list(whole.codes[:4])


@pytest.mark.parametrize(
    "build",
    [
        lambda: SamplingOptions(temperature=-1),
        lambda: SamplingOptions(temperature=math.nan),
        lambda: SamplingOptions(top_p=1.5),
        lambda: DecodeOptions(repetition_penalty=0),
        lambda: DecodeOptions(length_penalty=math.nan),
        lambda: DecodeOptions(guidance_strength=-1),
        lambda: DecodeOptions(guidance_rescale=2),
        lambda: DecodeOptions(max_steps=0),
        lambda: DecodeOptions(best_of=0),
        lambda: DecodeOptions(duration_padding=0),
        lambda: DecodeOptions(best_of=65),
        lambda: SpeakOptions(max_seconds=0),
        lambda: SpeakOptions(max_seconds=math.nan),
        lambda: SpeakOptions(prompt_seconds=61),
        lambda: SpeakOptions(context_history=-1),
    ],
)
def test_options_out_of_range_are_refused_with_their_value(build: Callable[[], object]) -> None:
    with pytest.raises(InputError, match=r"is (-1|nan|1\.5|0|2|61|65), expected"):
        build()


def test_a_huge_repetition_penalty_makes_greedy_codes_differ(
    network: Network, golden: Golden
) -> None:
    assert len(np.unique(golden["gen.ar"][:20])) < 20
    options = replace(GREEDY_ONES, repetition_penalty=1e6)
    codes = decode_ar(network, golden.condition, options, rng(), max_frames=20).codes
    assert len(np.unique(codes)) == len(codes)


def test_guidance_of_demasking_is_never_weaker_than_its_minimum(
    network: Network, golden: Golden
) -> None:
    weak, least = (
        decode_masked(
            network, golden.condition, 24, replace(MASKED, guidance_strength=strength), rng()
        ).codes
        for strength in (0.0, 2.5)
    )
    np.testing.assert_array_equal(weak, least)
