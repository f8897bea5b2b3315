"""Any program can hear words; what it does wrong is said in one sentence."""

import sys

import numpy as np
import pytest

from valle_convert.audio import Audio
from valle_convert.errors import EnvironmentFault
from valle_convert.listening.listen import Recogniser

SOUND = Audio(np.full(2400, 0.25, np.float32), 24_000)
MEASURES = "import sys, wave; w = wave.open(sys.argv[1]); print(w.getnframes(), w.getframerate())"


def test_a_command_gets_a_wav_and_prints_words() -> None:
    assert Recogniser(f'{sys.executable} -c "{MEASURES}"').hear(SOUND) == "2400 24000"
    braces = f'{sys.executable} -c "{MEASURES}" {{}} more'
    assert Recogniser(braces).hear(SOUND) == "2400 24000"


def test_a_program_that_fails_is_quoted() -> None:
    fails = Recogniser(f"{sys.executable} -c \"raise SystemExit('no model')\"")
    with pytest.raises(EnvironmentFault, match="exit code 1: no model"):
        fails.hear(SOUND)
