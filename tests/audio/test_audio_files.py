"""Audio files of every format, rate and number of channels, in and out."""

import io
import os
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from valle_convert.audio import (
    Audio,
    AudioWriter,
    EncodecCodec,
    fit_prompt,
    prompt_audio,
    read_audio,
    write_wav,
)
from valle_convert.errors import EnvironmentFault, InputError

RATE = 24_000


def tone(rate: int, seconds: float = 1.0, hertz: float = 440.0) -> NDArray[np.float32]:
    times = np.arange(round(rate * seconds)) / rate
    return (0.5 * np.sin(2 * np.pi * hertz * times)).astype(np.float32)


def strongest(audio: Audio) -> float:
    """The frequency that is loudest, in Hz."""
    spectrum = np.abs(np.fft.rfft(audio.samples))
    return float(np.argmax(spectrum)) / audio.seconds


@pytest.mark.parametrize("rate", [8_000, 22_050, 24_000, 44_100, 48_000])
@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_any_rate_and_format_gives_the_same_sound(tmp_path: Path, rate: int, suffix: str) -> None:
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, tone(rate), rate)
    audio = read_audio(path, RATE)
    assert audio.sample_rate == RATE
    assert audio.seconds == pytest.approx(1.0, abs=0.07 if suffix == "mp3" else 0.01)
    assert strongest(audio) == pytest.approx(440.0, abs=2.0)
    middle = audio.samples[len(audio.samples) // 4 : -len(audio.samples) // 4]
    assert np.abs(middle).max() == pytest.approx(0.5, abs=0.06)  # ogg and mp3 are lossy


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_channels_are_mixed_with_equal_parts(tmp_path: Path, channels: int) -> None:
    path = tmp_path / "many.wav"
    samples = np.zeros((1000, channels), np.float32)
    samples[:, -1] = 0.6
    soundfile.write(path, samples, RATE, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(path, RATE).samples, 0.6 / channels, rtol=1e-6)


def test_a_file_of_many_blocks_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    samples = np.random.default_rng(0).uniform(-1, 1, 200_001).astype(np.float32)
    soundfile.write(path, samples, RATE, subtype="FLOAT")
    np.testing.assert_array_equal(read_audio(path, RATE).samples, samples)


def test_resampling_leaves_nothing_of_what_the_new_rate_cannot_hold(tmp_path: Path) -> None:
    path = tmp_path / "high.wav"
    soundfile.write(path, tone(48_000, hertz=20_000), 48_000, subtype="FLOAT")
    audio = read_audio(path, RATE)
    middle = audio.samples[2_000:-2_000]
    # 20 kHz would be heard at 4 kHz; soxr's stop band is 100 dB and more below.
    assert np.abs(middle).max() < 1e-4


def test_a_16_bit_file_within_full_scale_is_only_rounded(tmp_path: Path) -> None:
    written = write_wav(tmp_path / "out.wav", Audio(tone(RATE), RATE))
    assert written.gain == 1.0
    stored, rate = soundfile.read(written.path, dtype="int16")
    assert rate == RATE
    assert soundfile.info(written.path).subtype == "PCM_16"
    np.testing.assert_array_equal(stored, np.rint(tone(RATE).astype(np.float64) * 32767))


@settings(max_examples=30)
@given(peak=st.floats(1.001, 1e6))
def test_a_16_bit_file_beyond_full_scale_is_made_quieter_and_never_clipped(
    tmp_path_factory: pytest.TempPathFactory, peak: float
) -> None:
    path = tmp_path_factory.mktemp("loud") / "out.wav"
    loud = (tone(RATE, 0.1) * 2 * peak).astype(np.float32)
    written = write_wav(path, Audio(loud, RATE))
    assert written.peak == pytest.approx(float(np.abs(loud).max()))
    assert written.gain == pytest.approx(1 / written.peak)
    stored, _ = soundfile.read(path, dtype="int16")
    assert np.abs(stored.astype(np.int64)).max() == 32767
    # The form is kept: every sample is the original one times the gain, rounded.
    expected = loud.astype(np.float64) * written.gain * 32767
    np.testing.assert_allclose(stored, expected, atol=0.5 + 1e-6)


@settings(max_examples=25)
@given(
    peaks=st.lists(st.floats(0.0, 4.0), min_size=1, max_size=5),
    kind=st.sampled_from([".wav", ".flac"]),
)
def test_a_file_is_the_same_in_pieces_and_at_once(
    tmp_path_factory: pytest.TempPathFactory, peaks: list[float], kind: str
) -> None:
    folder = tmp_path_factory.mktemp("pieces")
    pieces = [tone(RATE, 0.02) * np.float32(2 * peak) for peak in peaks]
    with AudioWriter(folder / f"pieces{kind}") as writer:
        assert writer.written is None
        for piece in pieces:
            writer.add(Audio(piece, RATE))
    at_once = write_wav(folder / f"whole{kind}", Audio(np.concatenate(pieces), RATE))
    assert writer.written == replace(at_once, path=folder / f"pieces{kind}")
    assert (folder / f"pieces{kind}").read_bytes() == (folder / f"whole{kind}").read_bytes()


def test_a_pipe_gets_each_piece_at_once_and_never_a_clipped_one(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    pieces = [tone(RATE, 0.02) * np.float32(height) for height in (1, 4, 1)]
    received = []
    try:
        with AudioWriter(pipe) as writer:
            for piece in pieces:
                writer.add(Audio(piece, RATE))
                received.append(os.read(reading, 1 << 16))
    finally:
        os.close(reading)
    assert soundfile.info(io.BytesIO(b"".join(received))).frames == 3 * len(pieces[0])
    assert received[0][:4] == b"RIFF"
    received[0] = received[0][44:]
    found = [np.frombuffer(one, "<i2").astype(np.float64) for one in received]
    quieter = 1 / np.abs(pieces[1]).max()
    for samples, piece, gain in zip(found, pieces, (1.0, quieter, quieter), strict=True):
        np.testing.assert_allclose(samples, piece * gain * 32767, atol=0.5 + 1e-3)
    assert writer.written is not None
    assert writer.written.gain == pytest.approx(quieter)


def test_pieces_at_different_rates_are_a_mistake(tmp_path: Path) -> None:
    with AudioWriter(tmp_path / "a.wav") as writer:
        writer.add(Audio(tone(RATE), RATE))
        with pytest.raises(ValueError, match="16000 Hz, after 24000 Hz"):
            writer.add(Audio(tone(RATE), 16_000))


@pytest.mark.parametrize("suffix", [".mp3", ".opus", ".ogg"])
def test_files_that_lose_something_keep_length_and_pitch(tmp_path: Path, suffix: str) -> None:
    written = write_wav(tmp_path / f"tone{suffix.upper()}", Audio(tone(RATE, 2.0), RATE))
    audio = read_audio(written.path, RATE)
    assert audio.seconds == pytest.approx(2.0, abs=0.06)
    assert strongest(audio) == pytest.approx(440.0, abs=2.0)
    expected = {".mp3": ("MP3", "MPEG_LAYER_III"), ".opus": ("OGG", "OPUS")}
    found = soundfile.info(written.path)
    assert (found.format, found.subtype) == expected.get(suffix, ("OGG", "VORBIS"))


@pytest.mark.parametrize("subtype", ["GSM610", "G721_32", "ULAW", "IMA_ADPCM", "PCM_U8", "DOUBLE"])
def test_files_of_telephones_and_studios_are_read(tmp_path: Path, subtype: str) -> None:
    soundfile.write(tmp_path / "a.wav", 0.5 * tone(8000, 10.0), 8000, subtype=subtype)
    audio = read_audio(tmp_path / "a.wav", RATE)
    assert audio.seconds == pytest.approx(10.0, abs=0.06)
    assert strongest(audio) == pytest.approx(440.0, abs=2.0)
    part = read_audio(tmp_path / "a.wav", 8000, max_seconds=9.0)
    np.testing.assert_array_equal(
        part.samples, read_audio(tmp_path / "a.wav", 8000).samples[:72000]
    )


def test_a_rate_that_a_format_has_not_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"at 44100 Hz .*\.wav"):
        write_wav(tmp_path / "a.opus", Audio(tone(44_100), 44_100))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3", ".opus"])
def test_a_full_disk_is_told_in_one_sentence_and_nothing_is_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], suffix: str
) -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, 5 * RATE).astype(np.float32)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def write() -> None:
        with AudioWriter(tmp_path / f"a{suffix}") as writer:
            writer.add(Audio(noise, RATE))
            resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, limits[1]))

    try:
        with pytest.raises(EnvironmentFault, match=f"a{suffix}"):
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=30, deadline=None)
@given(
    n_channels=st.integers(2, 8),
    offset=st.floats(-0.5, 0.5),
    noise=st.floats(0, 1e-3),
    rate=st.sampled_from([8_000, 24_000, 44_100]),
)
def test_channels_that_cancel_each_other_out_are_told(
    tmp_path_factory: pytest.TempPathFactory,
    n_channels: int,
    offset: float,
    noise: float,
    rate: int,
) -> None:
    folder = tmp_path_factory.mktemp("inverted")
    samples = np.zeros((rate, n_channels), np.float32)
    samples[:, 0], samples[:, 1] = tone(rate), -tone(rate)
    samples += offset
    samples[:, 1] += noise * np.random.default_rng(0).standard_normal(rate)
    soundfile.write(folder / "a b.wav", samples, rate, subtype="FLOAT")
    with pytest.raises(InputError, match=r"cancel each other.*ffmpeg -i 'a b\.wav' -af"):
        read_audio(folder / "a b.wav", RATE)
    samples[:, 1] = 0
    soundfile.write(folder / "one.wav", samples, rate, subtype="FLOAT")
    assert read_audio(folder / "one.wav", RATE).seconds == pytest.approx(1.0, abs=0.01)


def wav_bytes(samples: NDArray[np.float32], rate: int = RATE) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "cannot be read as audio"),
        (b"not audio at all, but text", "cannot be read as audio"),
        (wav_bytes(tone(RATE))[:30], "cannot be read as audio"),
        (wav_bytes(tone(RATE))[:-3_000], "truncated: 93,000 of 96,000 bytes"),
        (wav_bytes(np.zeros(0, np.float32)), "length 0"),
        (wav_bytes(np.array([0, np.nan], np.float32)), "not finite"),
        (wav_bytes(np.array([0, np.inf], np.float32)), "not finite"),
        (wav_bytes(tone(RATE), rate=1), "sample rate of 1 Hz"),
    ],
    ids=["empty", "text", "cut", "truncated", "no-samples", "nan", "infinite", "rate"],
)
def test_a_hostile_file_is_refused_by_name(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "bad.wav"
    path.write_bytes(data)
    with pytest.raises(InputError, match=words) as refusal:
        read_audio(path, RATE)
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize(
    ("n", "claimed"),
    [*((RATE, n) for n in (0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000, 96_036)), (240, 960 + 44)],
)
def test_a_length_that_is_unknown_or_slightly_off_is_taken(
    tmp_path: Path, n: int, claimed: int
) -> None:
    data = bytearray(wav_bytes(tone(RATE)[:n]))
    place = data.index(b"data") + 4
    data[place : place + 4] = claimed.to_bytes(4, "little")
    (tmp_path / "stream.wav").write_bytes(data)
    assert read_audio(tmp_path / "stream.wav", RATE).seconds == n / RATE


# EnCodec as speaking uses it: codes in and out, and the voice in front


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


def test_a_file_of_an_interrupted_work_is_not_there(tmp_path: Path) -> None:
    def interrupted() -> None:
        with AudioWriter(tmp_path / "a.wav") as writer:
            writer.add(Audio(tone(RATE), RATE))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with AudioWriter(tmp_path / "b.wav"):
        pass
    assert list(tmp_path.iterdir()) == []
