"""A speech recogniser: any command that takes the path of a wav and prints a text."""

import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from valle_convert.audio.files import Audio, write_wav
from valle_convert.errors import EnvironmentFault, InputError

#: A recogniser that takes longer for a sentence hangs.
_SECONDS = 600.0
_SHOWN = 300


class Recogniser:
    def __init__(self, command: str) -> None:
        self.command = command
        try:
            self._words = shlex.split(command)
        except ValueError as error:
            raise InputError(f"--asr is {command!r}, which is not a command: {error}.") from error
        if not self._words:
            raise InputError("--asr is empty; give a command that prints what it hears in a wav.")
        if shutil.which(self._words[0]) is None:
            raise EnvironmentFault(
                f"--asr needs the program {self._words[0]}, which is not installed, or not in PATH."
            )

    def hear(self, audio: Audio) -> str:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "speech.wav"
            write_wav(path, audio)
            words = [word.replace("{}", str(path)) for word in self._words]
            if words == self._words:
                words.append(str(path))
            try:
                done = subprocess.run(  # noqa: S603 - the user's own command
                    words,
                    capture_output=True,
                    check=False,
                    stdin=subprocess.DEVNULL,
                    timeout=_SECONDS,
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                raise EnvironmentFault(
                    f"The recognizer {self.command!r} failed: {error}."
                ) from error
        if done.returncode:
            said = " ".join(done.stderr.decode(errors="replace").split())[-_SHOWN:]
            raise EnvironmentFault(
                f"The recognizer {self.command!r} ended with exit code {done.returncode}"
                + (f": {said}" if said else "")
                + "; it must print what it hears in the wav whose path it gets."
            )
        return done.stdout.decode(errors="replace").strip()
