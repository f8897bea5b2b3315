"""From text and a recording to sound, on stock llama.cpp: what holds for every family."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from speech.conftest import Talking
from support import ONE_THREAD, after

from valle_convert.audio import EncodecCodec, read_codes, write_codes
from valle_convert.decode.options import SamplingOptions
from valle_convert.decode.speech import Timings
from valle_convert.errors import InputError
from valle_convert.families import families
from valle_convert.speech.results import SpeakOptions
from valle_convert.speech.settings import parse_settings, settings, with_settings
from valle_convert.speech.speaker import Watch

RATE = 24_000
FRAMES = 15  # of 0.2 seconds, at most
TEXT = "One. Two. Three."


def test_a_long_text_is_spoken_sentence_by_sentence_and_joined(
    talking: Talking, voice: Path
) -> None:
    text = "First sentence. Second one! ... Third?"
    pieces = talking.speaker.pieces(text, voice, talking.heard)
    first = next(pieces)
    assert first.text == "First sentence."
    rest = list(pieces)
    assert [piece.text for piece in rest] == ["Second one!", "Third?"]
    spoken = talking.speaker.speak(text, voice, talking.heard)
    np.testing.assert_array_equal(
        spoken.codes, np.concatenate([piece.codes for piece in (first, *rest)])
    )
    assert spoken.is_whole
    assert spoken.audio is not None
    assert len(spoken.audio.samples) == len(spoken.codes) * 320
    assert any("nothing to say: '...'" in notice for notice in spoken.notices)


def test_every_sentence_is_told_when_it_is_done(talking: Talking) -> None:
    told: list[Any] = []
    watch = Watch(on_sentences=lambda all_: told.append(list(all_)), on_piece=told.append)
    spoken = talking.speaker.speak(TEXT, None, talking.quick, watch=watch, keep_audio=False)
    phonemes, *pieces = told
    assert phonemes == [piece.phonemes for piece in spoken.pieces]
    assert [piece.text for piece in pieces] == ["One.", "Two.", "Three."]
    assert all(len(piece.audio.samples) == len(piece.codes) * 320 for piece in pieces)
    assert all(piece.audio is None for piece in spoken.pieces)


def test_what_cannot_be_said_is_named(talking: Talking) -> None:
    spoken = talking.speaker.speak("Hello 你.", None, talking.quick)
    assert any("in English and are skipped: 你 (U+4F60)" in notice for notice in spoken.notices)


def test_a_sentence_that_takes_the_language_of_the_others_is_reported(talking: Talking) -> None:
    text = "大丈夫。はい。"
    spoken = talking.speaker.speak(text, None, replace(talking.quick, language=None))
    assert [piece.language for piece in spoken.pieces] == ["ja", "ja"]
    assert any("'大丈夫。' may be Chinese or Japanese" in notice for notice in spoken.notices)
    given = talking.speaker.speak(text, None, replace(talking.quick, language="ja"))
    assert not any("Chinese or Japanese" in notice for notice in given.notices)


def test_the_time_of_every_stage_is_told(causal: Talking, voice: Path) -> None:
    spoken = causal.speaker.speak("One. Two.", voice, causal.heard)
    times = spoken.seconds
    stages = (times.text, times.voice, times.level_0, times.levels, times.codec)
    assert all(seconds > 0 for seconds in stages)
    assert times.total == pytest.approx(sum(stages) + times.length)
    assert spoken.real_time_factor == pytest.approx(times.total / (len(spoken.codes) / 75))
    # Text and voice are read once.
    for stage in ("text", "voice"):
        assert [getattr(piece.seconds, stage) > 0 for piece in spoken.pieces] == [True, False]
    assert Timings(text=1) + Timings(text=2, codec=3) == Timings(text=3, codec=3)


def test_a_seed_gives_the_same_speech_and_no_seed_tells_the_one_it_took(
    talking: Talking, voice: Path
) -> None:
    drawn = replace(talking.heard, sampling=SamplingOptions(), seed=None)
    # Three sentences, since a seed may stop before the first code of one.
    first = talking.speaker.speak(TEXT, voice, drawn)
    again = talking.speaker.speak(TEXT, voice, replace(drawn, seed=first.seed))
    other = talking.speaker.speak(TEXT, voice, replace(drawn, seed=first.seed + 1))
    np.testing.assert_array_equal(first.codes, again.codes)
    assert not np.array_equal(first.codes, other.codes)


def test_phonemes_are_spoken_as_they_are(talking: Talking) -> None:
    spoken = talking.speaker.speak(talking.hello, None, talking.quick, is_phonemes=True)
    by_text = talking.speaker.speak("Hello.", None, talking.quick)
    np.testing.assert_array_equal(spoken.codes, by_text.codes)
    assert not any("lack" in notice for notice in spoken.notices)
    assert (spoken.pieces[0].text, spoken.pieces[0].phonemes) == ("", talking.hello)


def test_level_0_of_given_codes_stays_and_the_rest_is_decoded(causal: Talking, voice: Path) -> None:
    spoken = causal.speaker.speak("Hello.", voice, causal.heard)
    saved = replace(spoken.saved_codes, codes=spoken.codes.copy())
    saved.codes[:, 1:] = 0
    raised = causal.speaker.regenerate_levels(saved, "Hello.", voice, causal.heard)
    np.testing.assert_array_equal(raised.codes, spoken.codes)
    assert raised.is_whole
    part = causal.speaker.regenerate_levels(saved, "Hello.", voice, causal.heard, watch=after(2))
    assert not part.is_whole
    np.testing.assert_array_equal(part.pieces[0].codes, spoken.codes[:, :3])


def test_an_interrupted_text_keeps_what_was_finished(causal: Talking, voice: Path) -> None:
    whole = causal.speaker.speak(TEXT, voice, causal.heard)
    first, second = whole.pieces[0].codes, whole.pieces[1].codes
    # A sentence is asked about before each frame, the stop code and each of 7 levels.
    asked = len(first) + (whole.pieces[0].end == "stop") + 7
    part = causal.speaker.speak(TEXT, voice, causal.heard, watch=after(asked + 4))
    assert not part.is_whole
    assert [piece.end for piece in part.pieces] == [whole.pieces[0].end, "interrupted"]
    np.testing.assert_array_equal(part.codes, first)
    np.testing.assert_array_equal(part.pieces[1].codes, second[:4, :1])
    assert part.audio is not None
    assert len(part.audio.samples) == (len(first) + 4) * 320
    # Interrupted between two sentences, nothing is cut, and yet it is not whole.
    between = causal.speaker.speak(TEXT, voice, causal.heard, watch=after(asked))
    assert [piece.end for piece in between.pieces] == [whole.pieces[0].end]
    assert not between.is_whole
    assert whole.is_whole


def test_a_text_interrupted_at_once_is_nothing(talking: Talking) -> None:
    spoken = talking.speaker.speak("One.", None, talking.quick, watch=after(0))
    assert spoken.pieces == ()
    assert spoken.codes.shape == (0, 8)
    assert spoken.audio is None
    assert spoken.real_time_factor == float("inf")


@pytest.mark.parametrize(("n", "spoken"), [(1, 2), (3, 1), (6, 0)])
def test_a_sentence_that_the_model_ends_at_once_is_drawn_again_and_then_told(
    causal: Talking, n: int, spoken: int
) -> None:
    assert causal.stopping is not None
    speaker = causal.stopping(n)
    options = replace(causal.quick, sampling=SamplingOptions())
    if not spoken:
        with pytest.raises(InputError, match="There is nothing to write: the model generated noth"):
            speaker.speak("One. Two.", None, options)
        return
    said = speaker.speak("One. Two.", None, options)
    assert len(said.pieces) == 2
    assert sum(len(piece.codes) > 0 for piece in said.pieces) == spoken
    told = [notice for notice in said.notices if "generated nothing for 'One.'" in notice]
    assert len(told) == 2 - spoken
    assert said.audio is not None
    assert len(said.audio.samples) == len(said.codes) * 320


def test_at_temperature_0_nothing_is_drawn_again(causal: Talking) -> None:
    assert causal.stopping is not None
    said = causal.stopping(1).speak("One. Two.", None, causal.quick)
    assert [len(piece.codes) > 0 for piece in said.pieces] == [False, True]


@pytest.mark.parametrize("is_phonemes", [False, True])
def test_a_sentence_that_is_cut_off_is_told(talking: Talking, is_phonemes: bool) -> None:
    said = talking.hello if is_phonemes else "Hello."
    options = replace(talking.quick, max_seconds=0.1)
    spoken = talking.speaker.speak(said, None, options, is_phonemes=is_phonemes)
    assert (len(spoken.codes), spoken.pieces[0].end) == (8, "limit")
    mode, words = "ar", "did not end within 0.1 seconds and is cut off there"
    if talking.stopping is None:
        mode, words = "nar-len", "was shortened to 0.1 seconds, the limit"
    assert (spoken.pieces[0].mode, spoken.pieces[0].language) == (mode, "en")
    assert f"{said!r} {words}" in spoken.notices


def test_spoken_codes_are_saved_and_sounded_again(
    talking: Talking, voice: Path, tmp_path: Path
) -> None:
    spoken = talking.speaker.speak("Hello.", voice, talking.heard)
    path = tmp_path / "hello.npz"
    write_codes(path, spoken.saved_codes)
    saved = read_codes(path)
    assert saved.codec.sample_rate == RATE
    assert spoken.audio is not None
    for source in (path, str(path), saved, saved.codes):
        again = talking.speaker.decode(source)
        np.testing.assert_array_equal(again.samples, spoken.audio.samples)


def test_without_a_codec_codes_speak_and_audio_is_refused(talking: Talking, voice: Path) -> None:
    with_audio = talking.speaker.speak("Hello.", None, talking.quick)
    with talking.bundle.family.speaker(talking.bundle, settings=ONE_THREAD) as mute:
        spoken = mute.speak("Hello.", with_audio.saved_codes, talking.heard)
        assert spoken.audio is None
        assert 0 < len(spoken.codes) <= FRAMES
        with pytest.raises(InputError, match="Audio needs a codec"):
            mute.speak("Hello.", voice, talking.heard)
        with pytest.raises(InputError, match="Audio needs a codec"):
            mute.decode(spoken.codes)


#: Another value than the default for each of them.
OTHER: dict[str, Any] = {
    "mode": "nar-len",
    "language": "ja",
    "accent": "ja",
    "sampling": SamplingOptions(top_k=1),
    "nar_sampling": SamplingOptions(temperature=5),
    "repetition_penalty": 50.0,
    "repetition_decay": 1.0,
    "guidance_strength": 3.0,
    "guidance_rescale": 0.1,
    "max_steps": 2,
    "best_of": 5,
    "length_penalty": -3,
    "max_seconds": 0.1,
    "duration_padding": 9,
    "prompt_seconds": 0.2,
    "context_history": 2,
    "seed": 2,
}


def test_every_option_is_read_by_a_family() -> None:
    read = [family.speaks_with for family in families()]
    assert frozenset().union(*read) == {one.name for one in fields(SpeakOptions)}
    assert {*OTHER, "voice_text"} == frozenset().union(*read)


#: The fixtures of `conftest` by the titles of families.
TALKING = {"VALL-E": "version_five", "VALL-E X": "vall_e_x", "VALL-E of version 7": "version_seven"}


@pytest.mark.parametrize(
    ("talking", "name"),
    [
        (TALKING[family.title], name)
        for family in families()
        for name in sorted(OTHER.keys() - family.speaks_with)
    ],
    indirect=["talking"],
)
def test_options_that_a_family_does_not_name_change_nothing(
    talking: Talking, voice: Path, name: str
) -> None:
    options = replace(talking.heard, sampling=SamplingOptions())
    codes = [
        talking.speaker.speak("Hello. Yes.", voice, one).codes
        for one in (options, replace(options, **{name: OTHER[name]}))
    ]
    np.testing.assert_array_equal(*codes)


# Settings by flat names are the fields of SpeakOptions, each once

#: A value that is not the default.
WORDS_OF = {int: "7", float: "0.5", str: "en"}


def test_every_field_is_a_setting_with_help() -> None:
    assert all(one.help for one in settings().values())
    own = {"language", "voice_text", "seed"}  # options of their own
    assert {one.field for one in settings().values()} | own == {
        field.name for field in fields(SpeakOptions)
    }


@pytest.mark.parametrize("name", sorted(settings()))
def test_a_setting_changes_its_field_alone(name: str) -> None:
    setting, before = settings()[name], SpeakOptions(seed=1)
    text = setting.choices[-1] if setting.choices else WORDS_OF[setting.kind]
    values = parse_settings([f"{name.replace('_', '-')}={text}"])
    after = with_settings(before, values)
    changed = [
        field.name
        for field in fields(after)
        if getattr(after, field.name) != getattr(before, field.name)
    ]
    assert changed == [setting.field]
    assert str(next(iter(values.values()))) == text
    assert any(setting.field in family.speaks_with for family in families())


@pytest.mark.parametrize(
    "given",
    ["", "top_k", "=3", "tempo=1", "top_k=x", "top_p=nan", "mode=best", "seed=3", "top_k=1,"],
)
def test_what_is_no_setting_is_refused(given: str) -> None:
    with pytest.raises(InputError, match="--set") as refused:
        parse_settings([given])
    assert len(str(refused.value)) <= 200


def test_a_codec_that_is_not_the_models_is_refused(talking: Talking, encodec: EncodecCodec) -> None:
    four_levels = EncodecCodec(encodec.weights, n_levels=4)
    with pytest.raises(InputError, match=r"4 levels of 64 codes, and the model.*8 levels of 64"):
        talking.bundle.family.speaker(talking.bundle, codec=four_levels)
