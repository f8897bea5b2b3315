"""Tests in a child process whether this machine's llama.cpp survives its work.

A build for another CPU raises no error, it kills the process: SIGILL on the first unknown
instruction, SIGSEGV on a virtual machine that announces AMX but lacks it (the first batch of a
*quantized* model dies; f32 and f16 run). So `selftest` quantizes and decodes a tiny model in a
child, and a death by signal becomes an `EnvironmentFault` here.

It takes about a second. The user's cache folder remembers a success by the library's files and the
CPU's features, so that only the first use pays.
"""

import functools
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from valle_convert.errors import EnvironmentFault
from valle_convert.llama.cpu import cpu_features
from valle_convert.llama.library import INSTALL, REBUILD, find_library
from valle_convert.llama.programs import child_environment

SELFTEST = "valle_convert.llama.selftest"
STAGE = "stage: "  # prefix of a child's line that announces its next step
PROBE_VERSION = 1  # increment it when the self-test changes
TIMEOUT = 300.0  # seconds; it takes one to three


@dataclass(frozen=True)
class ProbeResult:
    """The library works."""

    remembered: bool  # whether an earlier probe of the same library on the same CPU is trusted
    seconds: float  # the time of this probe; 0 if it is remembered


@functools.cache
def prove_library() -> ProbeResult:
    """Probe the installed library, once per process, library and CPU."""
    return probe_and_remember(cache_folder())


def is_proved() -> bool:
    """Whether the cache folder remembers a success of the installed library on this CPU."""
    library = find_library()
    return library is not None and os.path.isfile(_mark(cache_folder(), library))  # noqa: PTH113


def probe_and_remember(folder: Path, command: Sequence[str] | None = None) -> ProbeResult:
    """Probe the installed library unless `folder` remembers a success."""
    library = find_library()
    if library is None:
        raise EnvironmentFault(
            f"llama.cpp's library was not found, and this command needs it. Run {INSTALL}."
        )
    mark = _mark(folder, library)
    if os.path.isfile(mark):  # noqa: PTH113 - no exception for a closed folder
        return ProbeResult(remembered=True, seconds=0.0)
    start = time.monotonic()
    run_probe(command)
    seconds = time.monotonic() - start
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
    return ProbeResult(remembered=False, seconds=seconds)


def run_probe(command: Sequence[str] | None = None, *, timeout: float = TIMEOUT) -> None:
    given = [sys.executable, "-m", SELFTEST] if command is None else list(command)
    try:
        child = subprocess.run(  # noqa: S603 - our own interpreter and module
            given,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=timeout,
            env=child_environment(),
        )
    except subprocess.TimeoutExpired as error:
        said = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else ""
        raise EnvironmentFault(
            f"llama.cpp did not end its self-test within {timeout:g} seconds{_doing(said)}; "
            f"build it again for this machine: {REBUILD}"
        ) from error
    except OSError as error:
        raise EnvironmentFault(
            f"The self-test of llama.cpp cannot be started: {error}; check the Python interpreter."
        ) from error
    if child.returncode < 0:
        number = -child.returncode
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = "unknown"
        raise EnvironmentFault(
            f"llama.cpp crashed (signal {number}, {name}) on this machine{_doing(child.stdout)}; "
            f"its build does not fit this CPU. Build it again: {REBUILD}"
        )
    if child.returncode != 0:
        last = (child.stderr.strip().splitlines() or ["no output"])[-1]
        raise EnvironmentFault(
            f"llama.cpp failed its self-test (exit code {child.returncode})"
            f"{_doing(child.stdout)}: {last}"
        )


def _mark(folder: Path, library: Path) -> Path:
    return folder / f"llama-probe-{fingerprint(library)}"


def fingerprint(library: Path) -> str:
    """A hash that changes with the library's files, the CPU and the self-test."""
    files = []
    for path in sorted(library.parent.iterdir()):
        # libggml-cpu has the kernels, so all files of the folder count, not only libllama.
        if path.is_file():
            status = path.stat()
            files.append([str(path.resolve()), status.st_mtime_ns, status.st_size])
    facts = json.dumps([PROBE_VERSION, files, cpu_features()])
    return hashlib.sha256(facts.encode()).hexdigest()[:24]


def cache_folder() -> Path:
    """The user's cache folder for this program, by the XDG rules; it may not exist."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    if Path(given).is_absolute():
        return Path(given) / "valle-convert"
    try:
        home = Path.home()
    except RuntimeError:  # a user without a home
        home = Path(tempfile.gettempdir())
    return home / ".cache" / "valle-convert"


def _doing(stdout: str) -> str:
    """` while ...`, from the last stage that the child announced."""
    stages = [line[len(STAGE) :] for line in stdout.splitlines() if line.startswith(STAGE)]
    return f" while {stages[-1]}" if stages else ""
