"""Version 7 speaks codes without stops, and only with durations; test_speaker has the rest."""

from pathlib import Path

import numpy as np
from make_checkpoint import Shape, make_checkpoint
from speech.conftest import Talking
from support import Cli, error_of

from valle_convert import plan_conversion, write_gguf
from valle_convert.speech.results import SpeakOptions

QUICK = SpeakOptions(max_seconds=0.5, max_steps=3, language="en", seed=1)


def test_random_codes_have_no_stops_and_levels_are_made_anew(version_seven: Talking) -> None:
    speaker = version_seven.speaker
    spoken = speaker.speak("Hello. Yes.", None, QUICK)
    # No stop code, of which random weights draw many: half a second, twice.
    assert spoken.codes.shape == (2 * round(0.5 * speaker.frame_rate), 8)
    assert 0 <= spoken.codes.min() <= spoken.codes.max() < 64
    raised = speaker.regenerate_levels(spoken.saved_codes, "Hello.", None, QUICK)
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
