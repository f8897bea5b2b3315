"""Any program can hear words; what it does wrong is said in one sentence."""

import sys

import numpy as np
import pytest

from valle_convert.audio import Audio
from valle_convert.errors import EnvironmentFault, InputError
from valle_convert.listening.recogniser import Recogniser

SOUND = Audio(np.full(2400, 0.25, np.float32), 24_000)
MEASURES = "import sys, wave; w = wave.open(sys.argv[1]); print(w.getnframes(), w.getframerate())"


def test_a_command_gets_a_wav_and_prints_words() -> None:
    assert Recogniser(f'{sys.executable} -c "{MEASURES}"').hear(SOUND) == "2400 24000"
    braces = f'{sys.executable} -c "{MEASURES}" {{}} more'
    assert Recogniser(braces).hear(SOUND) == "2400 24000"


@pytest.mark.parametrize("command", ["", "   ", "a 'b"])
def test_what_is_no_command_is_refused(command: str) -> None:
    with pytest.raises(InputError, match="--asr"):
        Recogniser(command)


def test_a_program_that_is_not_there_is_named_before_it_is_needed() -> None:
    with pytest.raises(EnvironmentFault, match="no-such-recogniser"):
        Recogniser("no-such-recogniser --fast")


def test_a_program_that_fails_is_quoted() -> None:
    fails = Recogniser(f"{sys.executable} -c \"raise SystemExit('no model')\"")
    with pytest.raises(EnvironmentFault, match="exit code 1: no model"):
        fails.hear(SOUND)
