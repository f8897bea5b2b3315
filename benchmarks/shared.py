"""What several benchmarks need: models of production size, runs beside each other, tables."""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
sys.path[:0] = [str(ROOT), str(ROOT / "fixtures")]

from make_checkpoint import PRODUCTION, Shape, make_checkpoint  # noqa: E402 - needs the path above

from valle_convert import Choices, plan_conversion, write_gguf  # noqa: E402

MIB = 1 << 20
PROGRAM = [sys.executable, "-m", "valle_convert"]
T = TypeVar("T")


@contextmanager
def options(
    doc: str | None, argv: Sequence[str] | None, **defaults: object
) -> Iterator[argparse.Namespace]:
    """The options of a benchmark, and its `folder`: a temporary one, unless one is named."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where the files stay")
    for name, default in defaults.items():
        if default is False:
            parser.add_argument(f"--{name}", action="store_true")
        else:
            parser.add_argument(f"--{name}", type=type(default), default=default)
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        given.folder = given.folder or Path(temporary)
        given.folder.mkdir(parents=True, exist_ok=True)
        yield given


def make_source(folder: Path, shape: Shape = PRODUCTION) -> tuple[Path, Path]:
    """A random checkpoint, and the file converted from it, both in float16."""
    checkpoint = folder / "production.sft"
    f16 = folder / "production-F16.gguf"
    if not f16.exists():
        make_checkpoint(checkpoint, shape, dtype="f16")
        write_gguf(plan_conversion(checkpoint), f16)
    return checkpoint, f16


def make_file(checkpoint: Path, f16: Path, kind: str) -> Path:
    """A file of another type, converted or quantized."""
    path = f16.with_name(f"production-{kind}.gguf")
    if path.exists():
        return path
    if kind in ("F32", "BF16"):
        write_gguf(plan_conversion(checkpoint, Choices(kind.lower())), path)
    else:
        command = [*PROGRAM, "quantize", f16, path, kind]
        subprocess.run([*map(str, command)], check=True, stdout=subprocess.DEVNULL)
    return path


def in_own_process(run: Callable[..., T], *given: object, **named: object) -> T:
    """The result of a function in a new process, with memory and threads of its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(run, *given, **named).result()


def timed(
    command: Sequence[object], *, repeat: int, source: Path | None = None, out: Path | None = None
) -> tuple[float, int]:
    """The median time of a command in seconds, and its largest peak memory in bytes.

    Before each run, the source is in the page cache, and the output gone.
    """
    seconds, peaks = [], []
    for _ in range(repeat):
        if out is not None:
            out.unlink(missing_ok=True)
        if source is not None:
            with source.open("rb") as file:
                while file.read(64 * MIB):
                    pass
        start = time.perf_counter()
        words = [*map(str, command)]
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds.append(time.perf_counter() - start)
        if status:
            sys.exit(f"{' '.join(words)} failed")
        peaks.append(usage.ru_maxrss * 1024)
    return statistics.median(seconds), max(peaks)


def in_turns(
    repeat: int,
    clock: Callable[[], float] = time.perf_counter,
    /,
    **tasks: Callable[[], object],
) -> dict[str, float]:
    """The median time of each after a run that is not counted; all meet the same noise."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for n in range(repeat + 1):
        for name, task in tasks.items():
            start = clock()
            task()
            if n:
                times[name].append(clock() - start)
    return {name: statistics.median(found) for name, found in times.items()}


def print_numbers(results: Mapping[str, float]) -> None:
    """Print a table, and the machine's load."""
    shown = {**results, "load average at the end": os.getloadavg()[0]}
    width = max(map(len, shown))
    for key, value in shown.items():
        print(f"{key:<{width}}  {value:10.3f}")


def print_rows(rows: Iterable[Sequence[object]], path: Path | None) -> None:
    """A table as CSV, on stdout and, if there is a path, in a file."""
    rows = list(rows)
    csv.writer(sys.stdout, lineterminator="\n").writerows(rows)
    if path is not None:
        with path.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
