"""Version 7 speaks codes, and names what does not apply to it; test_speaker has the rest."""

from pathlib import Path

import numpy as np
import pytest
from make_checkpoint import Shape, make_checkpoint
from support import Cli, error_of

from valle_convert import plan_conversion, write_gguf
from valle_convert.audio import read_codes
from valle_convert.families.bundle import open_bundle
from valle_convert.speech.results import SpeakOptions

#: Of other options than these, version 7 reads none.
QUICK = SpeakOptions(max_seconds=0.5, max_steps=3, prompt_seconds=0.3, language="en", seed=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With as many codes as the small EnCodec, and one that gives no levels but all of them."""
    folder = tmp_path_factory.mktemp("version-7")
    shape = Shape(version=7, audio_tokens=64, capabilities=("nar", "len"))
    make_checkpoint(folder / "m.sft", shape)
    write_gguf(plan_conversion(folder / "m.sft"), folder / "m.gguf")
    return folder / "m.gguf"


def test_a_seed_gives_the_same_codes_again_with_and_without_a_voice(model: Path) -> None:
    bundle = open_bundle(model)
    with bundle.family.speaker(bundle, n_threads=1) as speaker:
        alone = [speaker.speak("Hello. Yes.", None, QUICK) for _ in range(2)]
        np.testing.assert_array_equal(alone[0].codes, alone[1].codes)
        assert [piece.text for piece in alone[0].pieces] == ["Hello.", "Yes."]
        # No stop code, of which random weights draw many: half a second, twice.
        assert alone[0].codes.shape == (2 * round(0.5 * speaker.frame_rate), 8)
        assert 0 <= alone[0].codes.min() <= alone[0].codes.max() < 64
        voiced = speaker.speak("Hello. Yes.", alone[0].saved_codes, QUICK)
        assert not np.array_equal(voiced.codes, alone[0].codes)
        assert alone[0].audio is None
        raised = speaker.regenerate_levels(alone[0].saved_codes, "Hello.", None, QUICK)
        np.testing.assert_array_equal(raised.codes[:, 0], alone[0].codes[:, 0])


def test_the_command_line_saves_codes(model: Path, tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "c.npz"
    said = cli(
        "speak", model, "Hello.", "--save-codes", out, "--set", "max_steps=2,max_seconds=0.5"
    )
    assert said.code == 0, said.err
    assert read_codes(out).codes.shape[1] == 8


def test_a_model_without_durations_says_that_it_cannot_speak(tmp_path: Path, cli: Cli) -> None:
    make_checkpoint(tmp_path / "m.sft", Shape(version=7, capabilities=("nar",)))
    write_gguf(plan_conversion(tmp_path / "m.sft"), tmp_path / "m.gguf")
    result = cli("speak", tmp_path / "m.gguf", "Hi.", "--save-codes", tmp_path / "c.npz")
    assert "it has the capabilities nar, expected len" in error_of(result, 2)
