"""From text and a recording to sound, on a quantized file and stock llama.cpp."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from valle_convert.audio import (
    Audio,
    EncodecCodec,
    SavedCodes,
    read_audio,
    read_codes,
    write_codes,
    write_wav,
)
from valle_convert.decode import GREEDY, Guidance, TranscribeOptions
from valle_convert.errors import InputError
from valle_convert.families.v5.on_llama import GgufNetwork
from valle_convert.families.v5.speech import Speaker
from valle_convert.gguf_file.read import GgufFile
from valle_convert.speech.results import SpeakOptions, Timings
from valle_convert.tokenizer.choose import BUILT_IN, open_tokenizer
from valle_convert.tokenizer.oracle import Setting

RATE = 24_000
QUICK = SpeakOptions(
    max_steps=2, max_seconds=0.2, prompt_seconds=0.4, seed=1, sampling=GREEDY, language="en"
)
AR = replace(QUICK, mode="ar")


@pytest.fixture(scope="module")
def voice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stereo recording at another rate than the codec's, half a second long."""
    path = tmp_path_factory.mktemp("voice") / "prompt.flac"
    samples = 0.1 * np.random.default_rng(0).standard_normal((22_050, 2))
    soundfile.write(path, samples, 44_100)
    return path


def after(n: int) -> Callable[[], bool]:
    left = iter(range(n))
    return lambda: next(left, None) is None


@pytest.mark.parametrize("mode", ["ar", "nar-len"])
def test_text_and_a_recording_become_a_wav_file(
    speaker: Speaker, voice: Path, tmp_path: Path, mode: str
) -> None:
    spoken = speaker.speak("Hello world.", voice, replace(QUICK, mode=mode))
    assert spoken.audio is not None
    written = write_wav(tmp_path / "hello.wav", spoken.audio)
    assert spoken.codes.shape == (15, 8)
    assert spoken.is_whole
    assert written.seconds == pytest.approx(0.2)
    info = soundfile.info(written.path)
    assert (info.samplerate, info.channels, info.frames) == (RATE, 1, 15 * 320)
    (piece,) = spoken.pieces
    assert (piece.text, piece.phonemes, piece.mode) == ("Hello world.", "həlˈoʊ wˈɜːld.", mode)
    np.testing.assert_array_equal(speaker.sound(spoken.codes).samples, spoken.audio.samples)


def test_a_long_text_is_spoken_sentence_by_sentence_and_joined(
    speaker: Speaker, voice: Path
) -> None:
    text = "First sentence. Second one! ... Third?"
    pieces = speaker.pieces(text, voice, QUICK)
    first = next(pieces)
    assert first.text == "First sentence."
    rest = list(pieces)
    assert [piece.text for piece in rest] == ["Second one!", "Third?"]
    spoken = speaker.speak(text, voice, QUICK)
    np.testing.assert_array_equal(
        spoken.codes, np.concatenate([piece.codes for piece in (first, *rest)])
    )
    assert spoken.audio is not None
    assert len(spoken.audio.samples) == 3 * 15 * 320
    assert any("nothing to say in '...'" in notice for notice in spoken.notices)


def test_what_cannot_be_said_is_named(speaker: Speaker) -> None:
    spoken = speaker.speak("Hello 你.", None, QUICK)
    assert any("in English and are left out: 你 (U+4F60)" in notice for notice in spoken.notices)


def test_a_sentence_that_takes_the_language_of_the_others_is_reported(speaker: Speaker) -> None:
    spoken = speaker.speak("大丈夫。はい。", None, replace(QUICK, language=None))
    assert [piece.language for piece in spoken.pieces] == ["ja", "ja"]
    assert any("'大丈夫。' may be Chinese or Japanese" in notice for notice in spoken.notices)
    given = speaker.speak("大丈夫。はい。", None, replace(QUICK, language="ja"))
    assert not any("Chinese or Japanese" in notice for notice in given.notices)


def test_the_time_of_every_stage_is_told(speaker: Speaker, voice: Path) -> None:
    spoken = speaker.speak("One. Two.", voice, QUICK)
    times = spoken.seconds
    stages = (times.text, times.voice, times.length, times.level_0, times.levels, times.codec)
    assert all(seconds > 0 for seconds in stages)
    assert times.total == pytest.approx(sum(stages))
    assert spoken.real_time_factor == pytest.approx(times.total / 0.4)
    # The voice is read once.
    assert [piece.seconds.voice > 0 for piece in spoken.pieces] == [True, False]
    assert Timings(text=1) + Timings(text=2, codec=3) == Timings(text=3, codec=3)


def test_a_seed_gives_the_same_speech_and_no_seed_tells_the_one_it_took(
    speaker: Speaker, voice: Path
) -> None:
    drawn = replace(SpeakOptions(), **{**vars(QUICK), "sampling": SpeakOptions().sampling})
    first = speaker.speak("Hello.", voice, replace(drawn, seed=None))
    again = speaker.speak("Hello.", voice, replace(drawn, seed=first.seed))
    other = speaker.speak("Hello.", voice, replace(drawn, seed=first.seed + 1))
    np.testing.assert_array_equal(first.codes, again.codes)
    assert not np.array_equal(first.codes, other.codes)


def test_voice_language_and_guidance_change_what_is_spoken(speaker: Speaker, voice: Path) -> None:
    codes = [
        speaker.speak("Computer.", recording, options).codes
        for recording, options in (
            (voice, AR),
            (None, AR),
            (voice, replace(AR, language="de")),
            (voice, replace(AR, guidance=Guidance(3.0))),
        )
    ]
    assert not any(np.array_equal(codes[0], other) for other in codes[1:])


def test_the_language_is_detected_where_none_is_given(speaker: Speaker) -> None:
    options = replace(QUICK, language=None)
    spoken = speaker.speak("Guten Morgen, wie geht es Ihnen? 今日は。", None, options)
    assert [piece.language for piece in spoken.pieces] == ["de", "ja"]


def test_phonemes_are_spoken_as_they_are_and_unknown_ones_told(speaker: Speaker) -> None:
    spoken = speaker.speak("həlˈoʊ.", None, QUICK, is_phonemes=True)
    by_text = speaker.speak("Hello.", None, QUICK)
    np.testing.assert_array_equal(spoken.codes, by_text.codes)
    assert not any("lacks" in notice for notice in spoken.notices)
    odd = speaker.speak("həl€ˈoʊ", None, QUICK, is_phonemes=True)
    assert "the model's vocabulary lacks these phonemes of the text: € (U+20AC)" in odd.notices


def test_context_of_earlier_sentences_changes_the_later_ones_only(
    speaker: Speaker, voice: Path
) -> None:
    text = "One two three. Four five six. Seven eight."
    alone = speaker.speak(text, voice, AR)
    together = speaker.speak(text, voice, replace(AR, context_history=2))
    same = [
        np.array_equal(a.codes, b.codes) for a, b in zip(alone.pieces, together.pieces, strict=True)
    ]
    assert same == [True, False, False]


def test_an_interrupted_text_keeps_what_was_finished(speaker: Speaker, voice: Path) -> None:
    whole = speaker.speak("One. Two. Three.", voice, AR)
    # A sentence is asked about before each of 15 frames and 7 levels; 4 frames into the second.
    part = speaker.speak("One. Two. Three.", voice, AR, should_stop=after(15 + 7 + 4))
    assert not part.is_whole
    assert [piece.end for piece in part.pieces] == ["limit", "interrupted"]
    np.testing.assert_array_equal(part.codes, whole.pieces[0].codes)
    np.testing.assert_array_equal(part.pieces[1].codes, whole.pieces[1].codes[:4, :1])
    assert part.audio is not None
    assert len(part.audio.samples) == (15 + 4) * 320
    # Interrupted between two sentences, nothing is cut, and yet it is not whole.
    between = speaker.speak("One. Two. Three.", voice, AR, should_stop=after(15 + 7))
    assert [piece.end for piece in between.pieces] == ["limit"]
    assert not between.is_whole
    assert whole.is_whole


def test_a_text_interrupted_at_once_is_nothing(speaker: Speaker) -> None:
    spoken = speaker.speak("One.", None, AR, should_stop=after(0))
    assert spoken.pieces == ()
    assert spoken.codes.shape == (0, 8)
    assert spoken.audio is None
    assert spoken.real_time_factor == float("inf")


class StopsAtOnce(GgufNetwork):
    """A model that draws the stop code first, in its first `n` sentences."""

    def __init__(self, file: Path, n: int) -> None:
        super().__init__(file, n_threads=1)
        self.n = n

    def step(self, *arguments: Any, **options: Any) -> Any:
        return self._stop(super().step(*arguments, **options), options["head"])

    def step_many(self, *arguments: Any, **options: Any) -> Any:
        many = super().step_many(*arguments, **options)
        return [self._stop(rows, options["head"]) for rows in many]

    def _stop(self, rows: np.ndarray, head: str) -> np.ndarray:
        if head != "ar" or self.n == 0:
            return rows
        self.n -= 1
        rows = rows.copy()
        rows[:, self.model.config.special_code] = 1e4
        return rows


@pytest.mark.parametrize(("n", "spoken"), [(1, 2), (3, 1), (6, 0)])
def test_a_sentence_that_the_model_ends_at_once_is_drawn_again_and_then_told(
    gguf: Path, codec: EncodecCodec, n: int, spoken: int
) -> None:
    with StopsAtOnce(gguf, n) as network:
        speaker = Speaker(network, tokenize=lambda _text: [1, 20, 30, 2], codec=codec)
        options = SpeakOptions(mode="ar", language="en", max_seconds=0.2, seed=1)
        if not spoken:
            with pytest.raises(InputError, match="There is nothing to write: the model said noth"):
                speaker.speak("One. Two.", None, options)
            return
        said = speaker.speak("One. Two.", None, options)
    assert len(said.pieces) == 2
    assert sum(len(piece.codes) > 0 for piece in said.pieces) == spoken
    told = [notice for notice in said.notices if "said nothing for 'One.'" in notice]
    assert len(told) == 2 - spoken
    assert said.audio is not None
    assert len(said.audio.samples) == len(said.codes) * 320


def test_a_sentence_that_does_not_fit_the_limit_is_told(speaker: Speaker, voice: Path) -> None:
    cut = speaker.speak("Hello world.", voice, AR)
    assert "'Hello world.' did not end within 0.2 seconds and is cut off there" in cut.notices
    hurried = speaker.speak("Hello world.", voice, QUICK)
    assert "'Hello world.' has to fit into 0.2 seconds, the limit" in hurried.notices


# --------------------------------------------------------------------------- voices, codes


def test_a_voice_is_a_file_audio_or_codes_alike(
    speaker: Speaker, codec: EncodecCodec, voice: Path, tmp_path: Path
) -> None:
    audio = read_audio(voice, RATE)
    trimmed = Audio(audio.samples[: round(0.4 * RATE)], RATE)
    saved = SavedCodes(codec.encode(trimmed), codec.description, codec.codebook_size)
    file = tmp_path / "voice.npz"
    write_codes(file, saved)
    codes = [speaker.speak("Hello.", one, AR).codes for one in (voice, str(voice), saved, file)]
    for one, other in pairwise(codes):
        np.testing.assert_array_equal(one, other)


def test_a_prompt_is_cut_or_repeated_with_a_notice(speaker: Speaker, voice: Path) -> None:
    (cut, _) = speaker.speak("Hello.", voice, QUICK).notices
    assert f"{voice} is 0.5 seconds long; the 0.4 seconds from 0.0 on" in cut
    (repeated, _) = speaker.speak("Hello.", voice, replace(QUICK, prompt_seconds=2.0)).notices
    assert "38 frames of sound, fewer than the 150" in repeated


def test_spoken_codes_are_saved_and_spoken_from_again(
    speaker: Speaker, voice: Path, tmp_path: Path
) -> None:
    spoken = speaker.speak("Hello.", voice, QUICK)
    path = tmp_path / "hello.npz"
    write_codes(path, spoken.saved_codes)
    saved = read_codes(path)
    assert spoken.audio is not None
    np.testing.assert_array_equal(speaker.sound(saved.codes).samples, spoken.audio.samples)
    assert saved.codec.sample_rate == RATE


def test_without_a_codec_codes_speak_and_audio_is_refused(
    gguf: Path, speaker: Speaker, voice: Path
) -> None:
    with_audio = speaker.speak("Hello.", None, QUICK)
    with Speaker.open(gguf, n_threads=1) as mute:
        spoken = mute.speak("Hello.", with_audio.saved_codes, QUICK)
        assert spoken.audio is None
        assert spoken.codes.shape == (15, 8)
        with pytest.raises(InputError, match="needs a codec"):
            mute.speak("Hello.", voice, QUICK)
        with pytest.raises(InputError, match="needs a codec"):
            mute.sound(spoken.codes)


# -------------------------------------------------------------------------------- tasks


def test_voice_conversion_keeps_the_length_of_the_recording(
    speaker: Speaker, voice: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source.wav"
    samples = 0.1 * np.random.default_rng(5).standard_normal(RATE // 2)
    soundfile.write(source, samples, RATE)
    spoken = speaker.convert(source, voice, "Hello world.", QUICK)
    assert spoken.codes.shape == (38, 8)
    with pytest.raises(InputError, match="only the mode nar-len"):
        speaker.convert(source, voice, "Hello world.", AR)


@pytest.mark.parametrize("task", ["ns", "sr"])
@pytest.mark.parametrize("text", ["", "Hello world."])
def test_noise_tasks_answer_a_recording_with_one_as_long(
    speaker: Speaker, voice: Path, task: str, text: str
) -> None:
    spoken = speaker.clean(voice, task, text, QUICK)  # type: ignore[arg-type]
    assert spoken.codes.shape == (38, 8)
    assert spoken.audio is not None


def test_a_recording_is_transcribed_to_phonemes(speaker: Speaker, voice: Path) -> None:
    heard = speaker.transcribe(voice, "en", TranscribeOptions(max_phonemes=12))
    assert 0 < len(heard.ids) <= 12
    assert heard.phonemes
    assert (heard.language, heard.end in {"stop", "limit"}) == ("en", True)
    assert heard.decode_seconds > 0


# -------------------------------------------------------------------------------- ids


def test_the_ids_are_those_of_the_original_tokenizer(speaker: Speaker) -> None:
    oracle = open_tokenizer(BUILT_IN).oracle()
    setting = Setting(add_special=True, parse_special=False)
    for phonemes in ("həlˈoʊ wˈɜːld.", "ʁøœ €", "<bos>a"):
        assert speaker._tokenize(phonemes) == oracle.encode_batch([phonemes], setting)[0]


def test_a_cache_in_f16_is_used_and_nearly_as_exact(gguf: Path) -> None:
    logits = []
    for cache_type in ("f32", "f16"):
        with Speaker.open(gguf, n_threads=1, cache_type=cache_type) as opened:
            network = opened._network
            x = network.look_up("response.ar", np.arange(30))
            positions = np.arange(30, dtype=np.int32)
            logits.append(network.step(x, positions, head="nar.1", outputs=slice(0, None)))
    error = np.mean((logits[0] - logits[1]) ** 2) / np.mean(logits[0] ** 2)
    assert 0 < error < 1e-3  # 3e-4 measured, on rows that no model sees alone


def test_any_network_and_tokenizer_make_a_speaker(
    gguf: Path, codec: EncodecCodec, speaker: Speaker
) -> None:
    oracle = open_tokenizer(BUILT_IN).oracle()
    setting = Setting(add_special=True, parse_special=False)
    with GgufNetwork(GgufFile(gguf), n_threads=1) as network:
        other = Speaker(
            network,
            tokenize=lambda phonemes: oracle.encode_batch([phonemes], setting)[0],
            codec=codec,
        )
        np.testing.assert_array_equal(
            other.speak("Hello.", None, QUICK).codes, speaker.speak("Hello.", None, QUICK).codes
        )


# ---------------------------------------------------------------------------- bad input


def test_text_with_nothing_to_say_is_refused(speaker: Speaker) -> None:
    for text in ("", "...", "\n\n"):
        with pytest.raises(InputError, match="nothing to say"):
            speaker.speak(text, None, QUICK)


def test_a_silent_voice_is_refused_by_name(speaker: Speaker, tmp_path: Path) -> None:
    silence = tmp_path / "silence.wav"
    soundfile.write(silence, np.zeros(RATE), RATE)
    with pytest.raises(InputError, match=r"no speech in .*silence\.wav"):
        speaker.speak("Hello.", silence, QUICK)


def test_a_language_that_the_model_does_not_know_is_refused(speaker: Speaker) -> None:
    with pytest.raises(InputError, match=r"language 'nl'; its languages are en, ja, de"):
        speaker.speak("Hallo.", None, replace(QUICK, language="nl"))


def test_phonemes_too_long_for_the_model_are_refused(speaker: Speaker) -> None:
    with pytest.raises(InputError, match=r"made for 22750; give a shorter text"):
        speaker.speak("b" * 30_000, None, QUICK, is_phonemes=True)


def test_a_codec_that_is_not_the_models_is_refused(gguf: Path, codec: EncodecCodec) -> None:
    four_levels = EncodecCodec(codec.weights, n_levels=4)
    with pytest.raises(InputError, match=r"4 levels of 64 codes, and the model.*8 levels of 64"):
        Speaker.open(gguf, codec=four_levels)


@pytest.mark.parametrize(
    "build",
    [
        lambda: SpeakOptions(max_seconds=0),
        lambda: SpeakOptions(prompt_seconds=61),
        lambda: SpeakOptions(context_history=-1),
    ],
)
def test_options_out_of_range_are_refused(build: Callable[[], object]) -> None:
    with pytest.raises(InputError, match="is expected"):
        build()
