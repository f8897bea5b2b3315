"""EnCodec as speaking uses it: codes in and out, and the voice in front."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from valle_convert.audio import Audio, EncodecCodec, fit_prompt, prompt_audio
from valle_convert.errors import InputError

RATE = 24_000


def noise(seconds: float, level: float = 0.1, seed: int = 0) -> Audio:
    n = round(seconds * RATE)
    samples = level * np.random.default_rng(seed).standard_normal(n)
    return Audio(samples.astype(np.float32), RATE)


def test_audio_becomes_75_frames_a_second_of_8_levels(codec: EncodecCodec) -> None:
    codes = codec.encode(noise(2.0))
    assert codes.shape == (150, 8)
    assert codes.dtype == np.int32
    assert codes.min() >= 0
    assert codes.max() < codec.codebook_size == 1024
    assert all(len(np.unique(level)) > 10 for level in codes.T)
    assert codec.description.name == "encodec-24khz"
    assert (codec.description.sample_rate, codec.description.frame_rate) == (RATE, 75.0)


def test_a_codec_without_the_needed_levels_is_refused(codec_folder: Path) -> None:
    with pytest.raises(InputError, match="has 8 levels, expected at least 9"):
        EncodecCodec(codec_folder, n_levels=9)


def test_codes_that_are_none_of_the_codecs_are_a_mistake(codec: EncodecCodec) -> None:
    for codes in (np.full((3, 8), -1), np.full((3, 8), 1024), np.zeros((3, 9))):
        with pytest.raises(ValueError, match="codes"):
            codec.decode(codes.astype(np.int32))


@given(offset=st.floats(-0.9, 0.9), windows=st.integers(50, 400))
def test_a_constant_is_silence(offset: float, windows: int) -> None:
    # Of a window in which the noise begins late, its first samples may be too quiet.
    silence = np.zeros(windows * RATE // 100, np.float32)
    samples = np.concatenate([silence, noise(3.0).samples]) + np.float32(offset)
    prompt, _ = prompt_audio(Audio(samples, RATE), 2.0, "voice.wav")
    start = len(silence)
    np.testing.assert_array_equal(prompt.samples, samples[start : start + 2 * RATE])
    with pytest.raises(InputError, match="no speech"):
        prompt_audio(Audio(silence + np.float32(offset), RATE), 2.0, "voice.wav")


@pytest.mark.parametrize(
    "audio",
    [
        Audio(np.zeros(RATE, np.float32), RATE),
        noise(2.0, level=1e-4),
        noise(0.1),
        Audio(np.zeros(1, np.float32), RATE),
    ],
    ids=["silence", "hiss", "short", "one-sample"],
)
def test_a_recording_without_speech_is_refused(audio: Audio) -> None:
    with pytest.raises(InputError, match=r"no speech in voice\.wav"):
        prompt_audio(audio, 3.0, "voice.wav")


def test_a_short_prompt_is_repeated_and_a_long_one_cut_with_a_notice() -> None:
    codes = np.arange(16, dtype=np.int32).reshape(2, 8)
    longer, told = fit_prompt(codes, 5, "v")
    np.testing.assert_array_equal(longer, codes[[0, 1, 0, 1, 0]])
    assert "2 frames of sound, shorter than the 5" in told[0]
    shorter, told = fit_prompt(codes, 1, "v")
    np.testing.assert_array_equal(shorter, codes[:1])
    assert told == ("v has 2 frames; the first 1 are used as the voice",)
    same, told = fit_prompt(codes, 2, "v")
    np.testing.assert_array_equal(same, codes)
    assert told == ()
