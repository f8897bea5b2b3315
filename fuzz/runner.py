"""Runs targets in processes with limits: memory, time, files, and what may be called.

A worker makes and reads input after input. Findings are: any exception but `ValleConvertError`, a
file left behind or written elsewhere, a program started, memory beyond the limit, more than ten
seconds of CPU time, and the worker's own death. A counter in shared memory tells the parent which
input a worker was at when it died or hung; the next worker continues after it.
"""

from __future__ import annotations

import json
import mmap
import os
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any, NoReturn

from fuzz.targets import TARGETS, Files, Target
from valle_convert.errors import ValleConvertError

#: Of CPU time, since other processes may run.
SECONDS_PER_INPUT = 10
MEMORY_BYTES = 1 << 30
#: Of an error, in characters besides its path.
LONGEST_MESSAGE = 500
#: A worker that is stuck in C code, where Python handles no signal, is killed after this time.
_STUCK_SECONDS = 120
_COUNTERS = struct.Struct("<4Q")  # next input, accepted, refused, findings
#: A session loads it to read states out of a graph.
_OURS = "libggml-"
#: What a reader must never do.
_FORBIDDEN = (
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "os.fork", "os.forkpty",
    "subprocess.Popen", "socket.connect", "socket.bind", "socket.getaddrinfo", "pty.spawn",
    "webbrowser.open", "ftplib.connect", "urllib.Request", "ctypes.dlopen",
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    target: str
    seed: int
    index: int
    #: An exception, "hang", "killed by SIGSEGV" ...
    what: str
    #: The innermost functions of this project; findings at one place count as one.
    where: str
    detail: str


@dataclass
class Count:
    """Counts of the inputs of a target; one line of the log."""

    target: str
    seed: int
    first: int
    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    findings: int = 0
    seconds: float = 0.0
    peak_mb: float = 0.0


class _HangError(BaseException):
    """No `except Exception` of a reader may swallow it."""


class _ForbiddenError(BaseException):
    """No `except Exception` of a reader may swallow it, either."""


def make_input(target: Target, seed: int, index: int) -> Files:
    """The files of an input; the same for the same three."""
    return target.make(Random(f"{target.name}/{seed}/{index}"))


# -------------------------------------------------------------------------------- one input


class Bench:
    """A folder to read in, and a guard over all that happens meanwhile."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "in"
        self.temporary = root / "tmp"
        for path in (self.folder, self.temporary):
            path.mkdir()
        tempfile.tempdir = str(self.temporary)
        self._root = str(root)
        self._is_reading = False
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._is_reading:
            return
        is_ours = event == "ctypes.dlopen" and _OURS in str(arguments[0])
        if event in _FORBIDDEN and not is_ours:
            raise _ForbiddenError(f"{event} {arguments!r:.300}")
        if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
            path = os.fspath(arguments[0]) if not isinstance(arguments[0], int) else ""
            if isinstance(path, bytes):
                path = os.fsdecode(path)
            if path and not path.startswith((self._root, "/dev/null")):
                raise _ForbiddenError(f"{path!r} was opened for writing")

    def read(self, target: Target, files: Files) -> str:
        """Write the files and read them; "accepted" or "refused". Any exception is a finding."""
        for name, data in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        signal.setitimer(signal.ITIMER_PROF, SECONDS_PER_INPUT)
        self._is_reading = True
        try:
            target.read(self.folder)
        except ValleConvertError as error:
            verdict = "refused"
            check_message(str(error).replace(str(self.folder), ""))
        else:
            verdict = "accepted"
        finally:
            self._is_reading = False
            signal.setitimer(signal.ITIMER_PROF, 0)
            left = self._clear(files)
        if left:
            raise AssertionError(f"left behind: {left}")
        return verdict

    def _clear(self, files: Files) -> list[str]:
        left = [path.name for path in self.temporary.rglob("*")]
        for path in sorted(self.folder.rglob("*"), reverse=True):
            name = str(path.relative_to(self.folder))
            if path.is_dir():
                path.rmdir()
                continue
            if name not in files:
                left.append(name)
            path.unlink()
        return left


def check_message(text: str) -> None:
    """Check that a user can read an error."""
    if not text or len(text) > LONGEST_MESSAGE or "Traceback" in text:
        raise AssertionError(f"a message of {len(text):,} characters: {text[:200]!r}")


def finding_of(target: Target, seed: int, index: int, error: BaseException) -> Finding:
    """An exception as a finding; where it is, by the innermost frames of this project."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "valle_convert" in frame.filename] or list(frames)
    where = " < ".join(f"{Path(frame.filename).name}:{frame.name}" for frame in reversed(ours[-2:]))
    what = "hang" if isinstance(error, _HangError) else type(error).__name__
    detail = "".join(traceback.format_exception(error))[-4000:]
    return Finding(target.name, seed, index, what, where, detail)


def check_seeds(bench: Bench, target: Target) -> None:
    """Check that a target accepts the files that it starts from."""
    for files in target.valid():
        if bench.read(target, files) != "accepted":
            raise RuntimeError(f"{target.name}: a valid input was refused")


# --------------------------------------------------------------------------------- workers


def run_worker(
    target: Target,
    root: Path,
    seed: int,
    first: int,
    seconds: float,
    counters: mmap.mmap,
    findings: Path,
    most: int | None = None,
) -> None:
    """Read inputs until the time is over or there have been as many as asked for."""
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGPROF, _on_alarm)
    bench = Bench(root)
    check_seeds(bench, target)
    limit_memory()
    index, counts = first, {"accepted": 0, "refused": 0, "findings": 0}
    end = time.monotonic() + seconds
    while True:
        _COUNTERS.pack_into(counters, 0, index, *counts.values())
        if time.monotonic() >= end or (most is not None and index - first >= most):
            return
        files = make_input(target, seed, index)
        try:
            counts[bench.read(target, files)] += 1
        except (Exception, _HangError, _ForbiddenError) as error:  # each is a finding
            counts["findings"] += 1
            keep(finding_of(target, seed, index, error), findings)
        index += 1


def limit_memory() -> None:
    """A gigabyte of address space beyond what this process has."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _on_alarm(_number: int, _frame: object) -> NoReturn:
    raise _HangError(f"longer than {SECONDS_PER_INPUT} seconds")


def keep(finding: Finding, folder: Path) -> None:
    with (folder / f"{finding.target}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(finding)) + "\n")


@dataclass
class Run:
    """All targets in turn, each in a process of its own; `out` keeps counts and findings."""

    out: Path
    seed: int = 0
    targets: Mapping[str, Target] = field(default_factory=lambda: TARGETS)

    def __post_init__(self) -> None:
        self.findings = self.out / "findings"
        self.findings.mkdir(parents=True, exist_ok=True)
        #: A `Count` for each turn of a target.
        self.log = self.out / "counts.jsonl"

    def counts(self) -> list[Count]:
        """Everything that was run so far with this seed."""
        if not self.log.exists():
            return []
        lines = self.log.read_text(encoding="utf-8").splitlines()
        found = [Count(**json.loads(line)) for line in lines]
        return [count for count in found if count.seed == self.seed]

    def next_index(self, name: str) -> int:
        """The first input that a target has not had."""
        ends = [one.first + one.inputs for one in self.counts() if one.target == name]
        return max(ends, default=0)

    def for_seconds(self, seconds: float, slice_seconds: float = 60.0) -> Iterator[Count]:
        """Give every target the same time, in turns; log each count when it is done."""
        turns = max(1, round(seconds / (slice_seconds * len(self.targets))))
        for _ in range(turns):
            for target in self.targets.values():
                yield self.turn(target, seconds / turns / len(self.targets))

    def turn(self, target: Target, seconds: float, most: int | None = None) -> Count:
        """One target for some time, in as many processes as it kills."""
        total = Count(target.name, self.seed, self.next_index(target.name))
        started = time.monotonic()
        while (left := seconds - (time.monotonic() - started)) > 0:
            wanted = None if most is None else most - total.inputs
            if wanted == 0:
                break
            is_done = self._one_process(target, left, total, wanted)
            if is_done:
                break
        total.seconds = round(time.monotonic() - started, 2)
        total.peak_mb = round(total.peak_mb, 1)
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(total)) + "\n")
        return total

    def _one_process(self, target: Target, seconds: float, total: Count, most: int | None) -> bool:
        """Run a worker to its end; False where it died or was killed in the middle."""
        first = total.first + total.inputs
        counters = mmap.mmap(-1, _COUNTERS.size)
        _COUNTERS.pack_into(counters, 0, first, 0, 0, 0)
        with tempfile.TemporaryDirectory(prefix="fuzz-", dir=_fast_folder()) as name:
            root = Path(name)
            sys.stdout.flush()
            child = os.fork()
            if child == 0:
                _be_worker(target, root, self.seed, first, seconds, counters, self.findings, most)
            code, peak_mb, is_stuck = _wait(child, counters)
            printed = (root / "printed").read_text(encoding="utf-8", errors="replace")
        index, accepted, refused, findings = _COUNTERS.unpack_from(counters, 0)
        total.inputs += index - first
        total.accepted += accepted
        total.refused += refused
        total.findings += findings
        total.peak_mb = max(total.peak_mb, peak_mb)
        if code == 0:
            return True
        if code > 0:
            raise RuntimeError(f"the worker of {target.name} ended with {code}: {printed[-3000:]}")
        what = "hang" if is_stuck else f"killed by {signal.Signals(-code).name}"
        finding = Finding(target.name, self.seed, index, what, "outside of Python", printed[-4000:])
        keep(finding, self.findings)
        total.findings += 1
        total.inputs += 1
        return False


def _be_worker(target: Target, root: Path, *arguments: Any) -> NoReturn:  # noqa: ANN401
    """The child's part of a fork: work, and end without any cleaning up."""
    code = 1
    try:
        # Some libraries print what they think of a damaged file.
        handle = os.open(root / "printed", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for descriptor in (1, 2):
            os.dup2(handle, descriptor)
        run_worker(target, root, *arguments)
        code = 0
    except BaseException:
        os.write(2, traceback.format_exc().encode("utf-8", "replace"))
    finally:
        os._exit(code)


def _wait(child: int, counters: mmap.mmap) -> tuple[int, float, bool]:
    """A worker's exit code, its largest memory in MB, and whether it was stuck and killed."""
    last, since, is_stuck = -1, time.monotonic(), False
    while True:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status), usage.ru_maxrss / 1024, is_stuck
        (index, *_) = _COUNTERS.unpack_from(counters, 0)
        if index != last:
            last, since = index, time.monotonic()
        elif time.monotonic() - since > _STUCK_SECONDS:
            os.kill(child, signal.SIGKILL)
            is_stuck = True
        time.sleep(0.05)


def _fast_folder() -> str | None:
    """Memory, where there is some: a disk would be what is measured."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - a folder of its own


# --------------------------------------------------------------------------------- reports


def distinct(folder: Path) -> list[tuple[Finding, int]]:
    """Findings by target, kind and place: the first of each, and how many there are."""
    found: dict[tuple[str, str, str], list[Finding]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            one = Finding(**json.loads(line))
            found.setdefault((one.target, one.what, one.where), []).append(one)
    return [(ones[0], len(ones)) for ones in found.values()]


def table(counts: Sequence[Count]) -> Iterator[tuple[object, ...]]:
    """The rows of docs/fuzzing.csv."""
    yield ("target", "inputs", "taken", "refused", "findings", "seconds", "memory MB")
    for name in dict.fromkeys(count.target for count in counts):
        ones = [count for count in counts if count.target == name]
        sums = (
            sum(getattr(count, field) for count in ones)
            for field in ("inputs", "accepted", "refused", "findings", "seconds")
        )
        yield (name, *map(round, sums), round(max(count.peak_mb for count in ones)))
