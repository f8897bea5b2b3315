"""The price of `valle-convert quantize` over llama-quantize alone, on the production size.

    python benchmarks/bench_quantize.py [--runs 3] [--folder DIR]

For each type: the time of the program by itself and of our command without measuring, best of
some runs taken in turn, and the largest memory that the processes of each held together. Start
of Python and two digests are a fixed price, so that it shows most in Q8_0, which takes two
seconds. The ratio of CPU time stays the same on a machine that does other things too. Prints a
Markdown table. Needs 2 GB of disk and some minutes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared import make_source, options

from valle_convert.quantize.tool import find_quantizer
from valle_convert.wording import markdown_table

TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS")
#: What the command should take at most, of the program's time.
MAX_RATIO = 1.3
_POLL = 0.02  # seconds between two looks at the memory


@dataclass(frozen=True)
class Run:
    """Time, CPU time (with children) and memory of one command."""

    seconds: float
    cpu_seconds: float
    megabytes: float


def main(argv: Sequence[str] | None = None) -> None:
    program = find_quantizer().command[0]
    with options(__doc__, argv, runs=3, types=",".join(TYPES)) as given:
        folder, types = given.folder, given.types.split(",")
        _, source = make_source(folder)
        print(f"{source.name}: {source.stat().st_size / 2**20:.0f} MiB, {os.cpu_count()} cores\n")
        rows = []
        for kinds in (*([kind] for kind in types), types):
            alone, command = best(program, source, folder, kinds, given.runs)
            rows.append(row(", ".join(kinds), alone, command))
        header = ("types", "llama-quantize, s", "valle-convert quantize, s", "ratio")
        print(markdown_table((*header, "ratio of CPU time", "more memory, MB"), rows))
        print(
            f"\nwanted: a ratio of {MAX_RATIO}; all types in one command: "
            f"{command.seconds / alone.seconds:.2f}, {command.megabytes - alone.megabytes:+.0f} MB"
        )


def best(
    program: str, source: Path, folder: Path, types: Sequence[str], runs: int
) -> tuple[Run, Run]:
    """The program's and our best, taken in turn so that both meet the same noise."""
    pairs = [
        (theirs(program, source, folder, types), ours(source, folder, types)) for _ in range(runs)
    ]
    return (
        min((pair[0] for pair in pairs), key=lambda run: run.seconds),
        min((pair[1] for pair in pairs), key=lambda run: run.seconds),
    )


def theirs(program: str, source: Path, folder: Path, types: Sequence[str]) -> Run:
    """llama-quantize by itself, one type after the other."""
    done = []
    for kind in types:
        out = folder / "theirs.gguf"
        done.append(measure([program, str(source), str(out), kind]))
        out.unlink()
    return Run(
        sum(run.seconds for run in done),
        sum(run.cpu_seconds for run in done),
        max(run.megabytes for run in done),
    )


def ours(source: Path, folder: Path, types: Sequence[str]) -> Run:
    """Our command, from the start of Python to its end."""
    command = [sys.executable, "-m", "valle_convert", "quantize", str(source)]
    command += [str(folder / "ours"), "--types", ",".join(types)]
    done = measure(command)
    for path in (folder / "ours").iterdir():
        path.unlink()
    return done


def measure(command: list[str]) -> Run:
    """Run a command; its time, and the most that it and its children held at once."""
    # As a user runs it: modules are compiled once, not in every run.
    user = {name: x for name, x in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    start, before = time.perf_counter(), os.times()
    child = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=user
    )
    peak = 0
    while child.poll() is None:
        peak = max(peak, sum(resident(pid) for pid in family(child.pid)))
        time.sleep(_POLL)
    seconds = time.perf_counter() - start
    if child.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed with exit code {child.returncode}")
    after = os.times()
    cpu = after.children_user + after.children_system
    cpu -= before.children_user + before.children_system
    return Run(seconds, cpu, peak / 1e6)


def family(pid: int) -> Iterator[int]:
    """A process and everything that it started."""
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in children:
        yield from family(int(child))


def resident(pid: int) -> int:
    """Bytes of memory that a process holds, mapped files included; 0 where it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def row(name: str, alone: Run, command: Run) -> tuple[str, ...]:
    ratios = (command.seconds / alone.seconds, command.cpu_seconds / alone.cpu_seconds)
    numbers = (f"{one:.2f}" for one in (alone.seconds, command.seconds, *ratios))
    return (name, *numbers, f"{command.megabytes - alone.megabytes:+.0f}")


if __name__ == "__main__":
    main()
