"""The program llama-quantize, or the same routine in the installed library.

Both run as a child process with the same arguments and write the same log, so callers need not
know which one runs. The library runs in a child too, since a llama.cpp that was built for another
CPU kills its process. The child ends with this process, even if that is killed.
"""

import hashlib
import importlib.metadata
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from valle_convert.errors import EnvironmentFault, InputError
from valle_convert.files import sha256_of
from valle_convert.llama.library import INSTALL, find_library
from valle_convert.llama.programs import child_environment, find_program

Kind = Literal["llama-quantize", "llama_model_quantize"]
PROGRAM: Kind = "llama-quantize"
LIBRARY: Kind = "llama_model_quantize"
#: The value of `--llama-quantize` for the routine in the library.
LIBRARY_WORD = "library"
_WORKER = "valle_convert.quantize.worker"
_TAIL = 12
# Linux sends the signal when the parent ends; it survives exec, and costs the start of a bare
# Python, 25 ms. (subprocess could do it between fork and exec, where a process with threads may
# hang.)
_PR_SET_PDEATHSIG = 1
_END_WITH_PARENT = f"""
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl({_PR_SET_PDEATHSIG}, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
try:
    os.execv(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"{{sys.argv[2]}} cannot be started: {{error.strerror}}")
"""
_OPEN_FILE = re.compile(r"/dev/fd/(\d+)")
# How versions of the program print their build.
_BUILD = re.compile(r"^(?:version: |.*\bbuild = )(.+)$")


@dataclass(frozen=True)
class Quantizer:
    """A program that takes llama-quantize's arguments."""

    kind: Kind
    command: tuple[str, ...]
    how: str
    version: str  # of the library; of the program, what its log says, known when it has run
    sha256: str  # of the program's file, or of the library's files

    def run(
        self,
        arguments: Sequence[str],
        *,
        on_line: Callable[[str], object] = lambda _line: None,
    ) -> list[str]:
        lines: list[str] = []
        try:
            child = subprocess.Popen(  # noqa: S603 - the user's own program
                [*_end_with_parent(), *self.command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                encoding="utf-8",
                errors="replace",
                pass_fds=[int(m[1]) for m in map(_OPEN_FILE.fullmatch, arguments) if m],
                env=child_environment(),
            )
        except OSError as error:
            raise EnvironmentFault(
                f"{self.command[0]} cannot be started: {error.strerror}; give another with "
                "--llama-quantize."
            ) from error
        try:
            with child.stdout or io.StringIO() as log:
                for line in log:
                    lines.append(line.rstrip("\n"))
                    on_line(lines[-1])
            code = child.wait()
        finally:
            # After Ctrl-C or an error of ours, its result is useless.
            if child.poll() is None:
                child.kill()
                child.wait()
        if code != 0:
            raise EnvironmentFault(_why_it_failed(self.kind, code, lines))
        return lines

    def version_in(self, log: Sequence[str]) -> str:
        """The build that its log names, else what was known before."""
        found = [match.group(1).strip() for match in map(_BUILD.match, log) if match]
        return found[0] if found and self.kind == PROGRAM else self.version


def find_quantizer(given: str | None = None) -> Quantizer:
    """The program given, or in $LLAMA_QUANTIZE, in PATH, or built here; else the library."""
    if given == LIBRARY_WORD:
        return _library("--llama-quantize")
    if given is not None:
        path = Path(given)
        if not (path.is_file() and os.access(path, os.X_OK)):
            raise InputError(
                f"--llama-quantize is {given}, which is no program that can be run; give the path "
                f"of llama-quantize, or the word {LIBRARY_WORD} for the routine in the installed "
                "library."
            )
        return _program(path, "--llama-quantize")
    try:
        program = find_program(PROGRAM)
    except EnvironmentFault as missing:
        if find_library() is None:
            raise EnvironmentFault(
                f"{missing} Nor is llama-cpp-python installed, whose library has the same routine "
                f"({INSTALL})."
            ) from missing
        return _library("no llama-quantize was found")
    return _program(program.path, program.how)


def _program(path: Path, how: str) -> Quantizer:
    return Quantizer(PROGRAM, (str(path.absolute()),), how, "unknown", sha256_of(path))


def _library(how: str) -> Quantizer:
    library = find_library()
    if library is None:
        raise EnvironmentFault(f"llama.cpp's library was not found. Run {INSTALL}.")
    digest = hashlib.sha256()
    # The routine is in libllama, the number formats in libggml-base.
    for path in sorted({file.resolve() for file in library.parent.iterdir() if file.is_file()}):
        digest.update(f"{path.name} {sha256_of(path)}\n".encode())
    version = f"llama-cpp-python {importlib.metadata.version('llama-cpp-python')}"
    return Quantizer(LIBRARY, (sys.executable, "-m", _WORKER), how, version, digest.hexdigest())


def _end_with_parent() -> tuple[str, ...]:
    """The beginning of a command that is killed when this process ends."""
    if not sys.platform.startswith("linux"):
        return ()
    return (sys.executable, "-I", "-S", "-c", _END_WITH_PARENT, str(os.getpid()))


def _why_it_failed(kind: str, code: int, lines: Sequence[str]) -> str:
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        what = f"{kind} was killed by {name}"
    else:
        what = f"{kind} failed with exit code {code}"
    said = [line for line in lines if line.strip() and not line.startswith("llama_model_loader")]
    tail = "\n  ".join(said[-_TAIL:]) or "(nothing)"
    return f"{what}; no file was written. The last that it said:\n  {tail}"
