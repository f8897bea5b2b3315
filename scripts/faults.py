"""Count what is left when a run is killed, interrupted, or hits a fault of the machine.

    python scripts/faults.py [--kills 60] [--seed 0] [--only convert imatrix] [--json counts.json]

Each operation writes over files of an earlier run, and into an empty folder. After each fault, a
file must be the old one or the whole new one, byte for byte. Anything else must be a temporary file
that the next run removes, and no child process may live on. The table at the end is
docs/faults.csv. Without root, there are no faults of disks and of other users.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

PROJECT = Path(__file__).parents[1]
PROGRAM = [sys.executable, "-m", "valle_convert"]
#: Reads everything, since Python may be in root's home, and writes where nobody may.
_AS_NOBODY = (
    *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search", "--"),
)
_ENDED_SECONDS = 10.0
#: States of a file after a fault: as it was, whole and new, in between, or damaged.
OLD, NEW, MIXED, BROKEN = "old", "new", "mixed", "BROKEN"


@dataclass(frozen=True)
class Operation:
    """One command that writes `outputs`, from the folder {given} to {out}."""

    name: str
    command: str
    #: The rest of the command when it writes the old files, and when it writes the new ones.
    first: str
    again: str
    outputs: tuple[str, ...]

    def words(self, given: Path, out: Path, *, first: bool = False) -> list[str]:
        text = f"{self.command} {self.first if first else self.again} --force"
        return [word.format(given=given, out=out) for word in text.split()]


OPERATIONS = (
    Operation(
        "convert",
        "{given}/model.sft {out}/o.gguf --verify none",
        "--outtype q8_0",
        "",
        ("o.gguf",),
    ),
    Operation(
        "quantize", "quantize {given}/model.gguf {out}/q.gguf", "Q5_K_M", "Q4_K_M", ("q.gguf",)
    ),
    Operation(
        "quantize, a folder",
        "quantize --types Q8_0,Q4_0",
        "{given}/sub/model.gguf {out}/set",
        "{given}/model.gguf {out}/set",
        (
            *("set/model-Q8_0.gguf", "set/model-Q4_0.gguf"),
            *("set/manifest.json", "set/SHA256SUMS"),
        ),
    ),
    Operation(
        "imatrix",
        "imatrix {given}/small.sft --out {out}/i.gguf",
        "--utterances 1",
        "--utterances 2",
        ("i.gguf",),
    ),
    Operation(
        "repair",
        "repair --verify none",
        "{given}/other.gguf {out}/r.gguf",
        "{given}/wrong.gguf {out}/r.gguf",
        ("r.gguf",),
    ),
    Operation("codec", "codec {given}/codec {out}/c.gguf", "--outtype f32", "", ("c.gguf",)),
    Operation(
        "export",
        "export",
        "{given}/sub/model.gguf {out}/e",
        "{given}/model.gguf {out}/e",
        ("e/fp32.sft",),
    ),
    Operation(
        "convert, VALL-E X",
        "{given}/x.pt {out}/x.gguf --verify none",
        "--outtype q8_0",
        "",
        ("x.gguf", "x-nar.gguf", *(f"x-nar-{level}.gguf" for level in range(1, 8))),
    ),
)


def run(
    arguments: Sequence[object], *, before: Sequence[str] = (), **options: object
) -> subprocess.CompletedProcess[str]:
    """The program to its end; `before` stands in front of its name."""
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [*before, *PROGRAM, *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        errors="replace",
        cwd=PROJECT,
        **options,
    )


def prepare(folder: Path) -> None:
    from old_files import make_old

    shutil.copy(PROJECT / "miniature" / "miniature.sft", folder / "model.sft")
    shutil.copy(PROJECT / "fixtures/golden/ar-nar-len/fp32.sft", folder / "small.sft")
    shutil.copy(PROJECT / "fixtures/golden/valle-x-small/vallex-checkpoint.pt", folder / "x.pt")
    shutil.copytree(PROJECT / "fixtures/golden/encodec-small/hf", folder / "codec")
    for name, kind in (("wrong.gguf", "F16"), ("other.gguf", "F32")):
        make_old(folder / "small.sft", folder / name, kind)
    (folder / "sub").mkdir()
    for source, name, kind in (
        ("model.sft", "model.gguf", "f16"),
        ("model.sft", "sub/model.gguf", "f32"),
    ):
        made = run([folder / source, folder / name, "--verify", "none", "--outtype", kind])
        made.check_returncode()


def digests(folder: Path, names: Sequence[str]) -> dict[str, str]:
    return {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in names
        if (folder / name).exists()
    }


class Stage:
    """An operation whose old and new outputs are known; a run takes about `seconds`."""

    def __init__(self, operation: Operation, given: Path, folder: Path) -> None:
        self.operation = operation
        self.given = given
        made = []
        for first in (True, False, False):
            out = Path(tempfile.mkdtemp(dir=folder))
            started = time.monotonic()
            done = run(operation.words(given, out, first=first))
            self.seconds = time.monotonic() - started
            if done.returncode:
                raise RuntimeError(f"{operation.name} fails by itself: {done.stderr}")
            made.append(out)
        self.old_folder = made[0]
        self._old, self._new, again = (digests(one, operation.outputs) for one in made)
        if self._new != again or set(self._new) != set(operation.outputs):
            raise RuntimeError(f"{operation.name} writes other bytes each time: nothing to compare")
        if self._old == self._new:
            raise RuntimeError(f"{operation.name}: the old files are the new ones")
        self.n_bytes = max((made[1] / name).stat().st_size for name in operation.outputs)

    @contextmanager
    def folder(self, parent: Path | None = None, *, with_old: bool) -> Iterator[Path]:
        """A folder of outputs, empty or with the old ones."""
        with tempfile.TemporaryDirectory(dir=parent) as name:
            out = Path(name)
            if with_old:
                for path in self.old_folder.rglob("*"):
                    target = out / path.relative_to(self.old_folder)
                    if path.is_dir():
                        target.mkdir()
                    else:
                        target.write_bytes(path.read_bytes())
            yield out

    def start(self, out: Path, given: Path | None = None) -> subprocess.Popen[bytes]:
        """A run in a session of its own."""
        return subprocess.Popen(
            [*PROGRAM, *self.operation.words(given or self.given, out)],
            cwd=PROJECT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def tally(self, out: Path, *ended: tuple[int, str | bytes], with_old: bool) -> Counter[str]:
        """What is left, and the exit codes and errors of the runs that ended."""
        verdict, temporary = self.judge(out, with_old=with_old)
        counts = Counter({verdict: 1, "temporaries": temporary, "tracebacks": 0})
        for code, said in ended:
            counts[f"exit {code}"] += 1
            counts["tracebacks"] += "Traceback" in str(said)
        return counts

    def judge(self, out: Path, *, with_old: bool) -> tuple[str, int]:
        """Old, new, mixed (several whole files) or BROKEN; and the number of temporary files."""
        from valle_convert.files import remove_stale

        names = self.operation.outputs
        left = set(_files(out))
        for folder in {out, *(path.parent for path in (out / name for name in names))}:
            remove_stale(folder)
        strangers = set(_files(out)) - set(names)
        found = digests(out, names)
        states = set()
        for name in names:
            if with_old and found.get(name) == self._old[name] == self._new[name]:
                continue  # no information
            if found.get(name) == self._new[name]:
                states.add(NEW)
            elif found.get(name) == (self._old[name] if with_old else None):
                states.add(OLD)
            else:
                states.add(MIXED if self._is_between(out / name) else BROKEN)
        verdict = states.pop() if len(states) == 1 else BROKEN if BROKEN in states else MIXED
        return (BROKEN if strangers else verdict), len(left - set(_files(out)))

    def _is_between(self, path: Path) -> bool:
        """Whether it is a whole list of files, some of them old and some new."""
        from valle_convert.quantize.manifest import MANIFEST, SUMS, read_manifest

        known = {*self._old.values(), *self._new.values()}
        if path.name == MANIFEST and path.exists():
            return {one.sha256 for one in read_manifest(path)} <= known
        if path.name == SUMS and path.exists():
            return {line.split("  ")[0] for line in path.read_text().splitlines()} <= known
        return False


def _files(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]


def _children_are_gone(session: int) -> bool:
    """Whether all processes of a session end within a few seconds."""
    end = time.monotonic() + _ENDED_SECONDS
    while time.monotonic() < end:
        if not list(_living(session)):
            return True
        time.sleep(0.05)
    return False


def _living(session: int) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                state, _, _, of = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(of) == session and state != "Z":
                    yield int(entry.name)


# ------------------------------------------------------------------------------- the faults


def signals(
    stage: Stage, sent: Sequence[signal.Signals], rng: Random, *, with_old: bool
) -> Counter[str]:
    """Send signals to a run at a random moment; the last of several closely behind the first."""
    with stage.folder(with_old=with_old) as out:
        process = stage.start(out)
        try:
            # Half of them near the end, where files get their names.
            begin = rng.choice((0.0, 0.6)) * stage.seconds
            process.wait(rng.uniform(begin, 1.05 * stage.seconds))
        except subprocess.TimeoutExpired:
            stage.seconds *= 1.02
        else:  # it was over: the machine has less to do than when the time was taken
            stage.seconds *= 0.8
        for one in sent:
            process.send_signal(one)
            time.sleep(0.02 if len(sent) > 1 else 0)
        _, err = process.communicate()
        counts = Counter({"child left": not _children_are_gone(process.pid)})
        return counts + stage.tally(out, (process.returncode, err), with_old=with_old)


def fails(
    stage: Stage, out: Path, *, with_old: bool, given: Path | None = None, **options: object
) -> Counter[str]:
    """Run to the end under some fault, and look."""
    done = run(stage.operation.words(given or stage.given, out), **options)
    return stage.tally(out, (done.returncode, done.stderr), with_old=with_old)


def full_disk(stage: Stage, rng: Random, disk: Path, *, with_old: bool) -> Counter[str]:
    """A disk of memory that is full after a part of the output."""
    room = int(rng.uniform(0.02, 0.95) * stage.n_bytes)
    old = sum(path.stat().st_size + 8192 for path in stage.old_folder.rglob("*"))
    with mounted("tmpfs", disk, size=room + with_old * old + 12_288):  # noqa: SIM117
        with stage.folder(disk, with_old=with_old) as out:
            return fails(stage, out, with_old=with_old)


def file_limit(stage: Stage, rng: Random, *, with_old: bool) -> Counter[str]:
    """No file may be larger than a part of the output, as with a quota."""
    limit = int(rng.uniform(0.02, 0.95) * stage.n_bytes)

    def set_limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    with stage.folder(with_old=with_old) as out:
        return fails(stage, out, with_old=with_old, preexec_fn=set_limit)


def read_only(stage: Stage, *, with_old: bool) -> Counter[str]:
    """A folder of root, and a run by nobody."""
    with stage.folder(with_old=with_old) as out:
        for path in (out, *out.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        return fails(stage, out, with_old=with_old, before=_AS_NOBODY)


def at_once(stage: Stage, *, with_old: bool) -> Counter[str]:
    """Two runs into the same outputs at the same time."""
    with stage.folder(with_old=with_old) as out:
        both = [stage.start(out) for _ in range(2)]
        errors = [one.communicate()[1] for one in both]
        ended = [(one.returncode, err) for one, err in zip(both, errors, strict=True)]
        return stage.tally(out, *ended, with_old=with_old)


def bad_disk(stage: Stage, rng: Random, mount: Path, *, with_old: bool) -> Counter[str]:
    """Inputs on a disk that gives errors from some place of each large file on."""
    with (
        failing(stage.given, mount, rng.uniform(0.05, 0.95)),
        stage.folder(with_old=with_old) as out,
    ):
        return fails(stage, out, with_old=with_old, given=mount)


def cut_off(stage: Stage, rng: Random, *, with_old: bool) -> Counter[str]:
    """Inputs that another program cuts off while they are read."""
    with tempfile.TemporaryDirectory() as name, stage.folder(with_old=with_old) as out:
        copy = Path(shutil.copytree(stage.given, Path(name) / "copy"))
        largest = max((path for path in copy.rglob("*") if path.is_file()), key=_size)
        process = stage.start(out, copy)
        with suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0, stage.seconds))
        for path in {largest, *(one for one in copy.rglob("*") if _size(one) > 1 << 20)}:
            os.truncate(path, int(rng.uniform(0, 0.9) * _size(path)))
        _, err = process.communicate()
        return stage.tally(out, (process.returncode, err), with_old=with_old)


# --------------------------------------------------------------------------------- machines


def _as_root(*arguments: object) -> None:
    subprocess.run([*map(str, arguments)], check=True, capture_output=True)


@contextmanager
def mounted(kind: str, folder: Path, *, size: int) -> Iterator[None]:
    """A disk of memory."""
    folder.mkdir(exist_ok=True)
    _as_root("mount", "-t", kind, "-o", f"size={size}", kind, folder)
    try:
        yield
    finally:
        _as_root("umount", folder)


@contextmanager
def failing(folder: Path, mount: Path, part: float) -> Iterator[None]:
    """A folder, seen through `failing_disk.py`."""
    mount.mkdir(exist_ok=True)
    server = Path(__file__).with_name("failing_disk.py")
    command = [sys.executable, server, folder, mount, part]
    with subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None  # noqa: S101 - for the type checker
        if process.stdout.readline() != b"mounted\n":
            raise RuntimeError("FUSE cannot be had here")
        try:
            yield
        finally:
            _as_root("umount", mount)


def _size(path: Path) -> int:
    return path.stat().st_size


# ------------------------------------------------------------------------------------ table


def table(rows: Mapping[tuple[str, str], Counter[str]]) -> Iterator[tuple[object, ...]]:
    """One row for each fault and operation, below their names."""
    yield (
        *("fault", "operation", "runs", "old files kept", "whole new ones"),
        *("some of each, all whole", "anything else", "temporaries left, and removed"),
        *("tracebacks", "children left", "exit codes"),
    )
    for (fault, operation), counts in rows.items():
        runs = sum(counts[one] for one in (OLD, NEW, MIXED, BROKEN))
        codes = {key.removeprefix("exit "): n for key, n in counts.items() if key[:5] == "exit "}
        told = ", ".join(f"{code}: {n}" for code, n in sorted(codes.items()))
        columns = (OLD, NEW, MIXED, BROKEN, "temporaries", "tracebacks", "child left")
        yield (fault, operation, runs, *(counts[one] for one in columns), told)


def faults_of(
    stage: Stage, kills: int, rng: Random, folder: Path
) -> Iterator[tuple[str, Counter[str]]]:
    """All faults of one operation; a few of each that is not `kill -9`."""
    few = max(2, kills // 20)
    stop = [signal.SIGINT, signal.SIGINT]
    trials: dict[str, Callable[..., Counter[str]]] = {
        "kill -9": partial(signals, stage, [signal.SIGKILL], rng),
        "SIGTERM": partial(signals, stage, [signal.SIGTERM], rng),
        "Ctrl-C twice": partial(signals, stage, stop, rng),
        "two runs at once": partial(at_once, stage),
        "largest file (RLIMIT_FSIZE)": partial(file_limit, stage, rng),
        "inputs cut off while read": partial(cut_off, stage, rng),
    }
    if os.geteuid() == 0:
        trials |= {
            "full disk (tmpfs)": partial(full_disk, stage, rng, folder / "disk"),
            "folder of another user": partial(read_only, stage),
            "read errors (FUSE)": partial(bad_disk, stage, rng, folder / "failing"),
        }
    for fault, trial in trials.items():
        n = kills if fault == "kill -9" else few
        # Over the old files and into empty folders in turn.
        yield fault, sum((trial(with_old=bool(i % 2)) for i in range(n)), Counter())


def main() -> int:
    """Run; 1 where anything but an old or a new file was left."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=60, help="for each operation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", help="names of operations")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    sys.path[:0] = [str(PROJECT), str(PROJECT / "fixtures"), str(PROJECT / "tests" / "verify")]
    rows: dict[tuple[str, str], Counter[str]] = {}
    only = given.only or [one.name for one in OPERATIONS]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # nobody reads the inputs
        inputs = folder / "given"
        inputs.mkdir()
        prepare(inputs)
        for operation in OPERATIONS:
            if operation.name not in only:
                continue
            stage = Stage(operation, inputs, folder)
            for fault, counts in faults_of(stage, given.kills, Random(given.seed), folder):
                rows[fault, operation.name] = counts
                print(fault, "|", operation.name, "|", dict(counts), file=sys.stderr, flush=True)
    csv.writer(sys.stdout, lineterminator="\n").writerows(table(rows))
    if given.json:
        said = [{"fault": one[0], "operation": one[1], **n} for one, n in rows.items()]
        given.json.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    bad = sum(counts[BROKEN] + counts["child left"] for counts in rows.values())
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
