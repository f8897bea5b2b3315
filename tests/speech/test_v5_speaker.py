"""What versions 5 and 6 speak, answer and hear, on a quantized file and stock llama.cpp; what only
version 7 does."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import soundfile
from make_checkpoint import Shape, make_checkpoint
from speech.conftest import Talking
from support import Cli, error_of

from valle_convert import plan_conversion, write_gguf
from valle_convert.decode.options import GREEDY
from valle_convert.errors import InputError
from valle_convert.families.v5.speech import VersionFiveSpeaker
from valle_convert.speech.results import Piece, SpeakOptions
from valle_convert.speech.speaker import Watch
from valle_convert.tokenizer.choose import BUILT_IN, open_tokenizer
from valle_convert.tokenizer.oracle import Setting

RATE = 24_000
QUICK = SpeakOptions(
    max_steps=2, max_seconds=0.2, prompt_seconds=0.4, seed=1, sampling=GREEDY, language="en"
)
AR = replace(QUICK, mode="ar")


def test_voice_language_and_guidance_change_what_is_spoken(
    speaker: VersionFiveSpeaker, voice: Path
) -> None:
    codes = [
        speaker.speak("Computer.", recording, options).codes
        for recording, options in (
            (voice, AR),
            (None, AR),
            (voice, replace(AR, language="de")),
            (voice, replace(AR, guidance_strength=3.0)),
        )
    ]
    assert not any(np.array_equal(codes[0], other) for other in codes[1:])


def test_phonemes_that_the_model_lacks_are_told(speaker: VersionFiveSpeaker) -> None:
    odd = speaker.speak("həl€ˈoʊ", None, QUICK, is_phonemes=True)
    assert "the model's vocabulary lacks these phonemes of the text: € (U+20AC)" in odd.notices


def test_the_ids_are_those_of_the_original_tokenizer(speaker: VersionFiveSpeaker) -> None:
    texts = ("həlˈoʊ wˈɜːld.", "ʁøœ €", "<bos>a")
    setting = Setting(add_special=True, parse_special=False)
    expected = open_tokenizer(BUILT_IN).oracle().encode_batch(texts, setting)
    assert [*map(speaker._tokenize, texts)] == expected


def test_context_of_earlier_sentences_changes_the_later_ones_only(
    speaker: VersionFiveSpeaker, voice: Path
) -> None:
    text = "One two three. Four five six. Seven eight."
    alone = speaker.speak(text, voice, AR)
    together = speaker.speak(text, voice, replace(AR, context_history=2))
    same = [
        np.array_equal(a.codes, b.codes) for a, b in zip(alone.pieces, together.pieces, strict=True)
    ]
    assert same == [True, False, False]


@pytest.mark.parametrize("seconds", [0.4, 0.41, 0.43])  # 30.0, 30.75 and 32.25 frames
def test_a_cut_recording_is_told_once(
    speaker: VersionFiveSpeaker, voice: Path, seconds: float
) -> None:
    codes, notices = speaker.prompt(voice, seconds, "the voice")
    assert len(codes) == round(75 * seconds)
    assert len(notices) == 1


def test_voice_conversion_keeps_the_length_of_the_recording(
    speaker: VersionFiveSpeaker, voice: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source.wav"
    samples = 0.1 * np.random.default_rng(5).standard_normal(RATE // 2)
    soundfile.write(source, samples, RATE)
    spoken = speaker.answer("vc", source, "Hello world.", voice, QUICK)
    assert spoken.codes.shape == (38, 8)
    assert (spoken.pieces[0].text, spoken.pieces[0].mode) == ("Hello world.", "nar-len")
    assert any(str(voice) in notice for notice in spoken.notices)
    with pytest.raises(InputError, match="only the mode nar-len"):
        speaker.answer("vc", source, "Hello world.", voice, AR)


@pytest.mark.parametrize("task", ["ns", "sr"])
@pytest.mark.parametrize("text", ["", "Hello world."])
def test_noise_tasks_answer_a_recording_with_one_as_long(
    speaker: VersionFiveSpeaker, voice: Path, task: Literal["ns", "sr"], text: str
) -> None:
    spoken = speaker.answer(task, voice, text, None, QUICK)
    assert spoken.codes.shape == (38, 8)
    assert spoken.audio is not None
    # Without a text, there are no phonemes of it to be saved with the codes.
    assert (spoken.saved_codes.phonemes != ()) == (text != "")


def test_an_answer_is_told_when_it_is_done_and_may_be_interrupted(
    speaker: VersionFiveSpeaker, voice: Path
) -> None:
    told: list[Piece] = []
    watch = Watch(should_stop=lambda: bool(told), on_piece=told.append)
    spoken = speaker.answer("ns", voice, "", None, QUICK, watch=watch)
    assert spoken.is_whole
    assert spoken.pieces == tuple(told)
    assert not speaker.answer("ns", voice, "", None, QUICK, watch=watch).is_whole


# Version 7

SHORT = SpeakOptions(max_seconds=0.5, max_steps=3, language="en", seed=1)


def test_random_codes_have_no_stops_and_levels_are_made_anew(version_seven: Talking) -> None:
    speaker = version_seven.speaker
    spoken = speaker.speak("Hello. Yes.", None, SHORT)
    # No stop code, of which random weights draw many: half a second, twice.
    assert spoken.codes.shape == (2 * round(0.5 * speaker.frame_rate), 8)
    assert 0 <= spoken.codes.min() <= spoken.codes.max() < 64
    raised = speaker.regenerate_levels(spoken.saved_codes, "Hello.", None, SHORT)
    np.testing.assert_array_equal(raised.codes[:, 0], spoken.codes[:, 0])


def test_a_model_without_durations_says_that_it_cannot_speak(
    tmp_path: Path, codec: Path, cli: Cli
) -> None:
    make_checkpoint(tmp_path / "m.sft", Shape(version=7, capabilities=("nar",)))
    write_gguf(plan_conversion(tmp_path / "m.sft"), tmp_path / "m.gguf")
    gguf, message = tmp_path / "m.gguf", "it has the capabilities nar, expected len"
    for command in (
        ("speak", gguf, "Hi.", "--save-codes", tmp_path / "c.npz"),
        ("serve", gguf, "--codec", codec, "--port", 0),
    ):
        assert message in error_of(cli(*command), 2)
