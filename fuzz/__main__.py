"""The command line: all targets for some minutes, or one input once more."""

from __future__ import annotations

import argparse
import csv
import os
import signal
import sys
import tempfile
from pathlib import Path

# Before anything imports torch: a worker is a copy of this process, which must have one thread.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["GGML_NO_BACKTRACE"] = "1"
PROJECT = Path(__file__).parents[1]
sys.path[:0] = [str(PROJECT / "fixtures"), str(PROJECT / "tests")]


def main() -> int:
    """Run; 1 where something was found."""
    from fuzz import seeds
    from fuzz.runner import Bench, Run, distinct, make_input, table
    from fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="for all targets together")
    parser.add_argument("--inputs", type=int, help="so many for each target, however long it takes")
    parser.add_argument("--targets", help="names with commas between; all by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=PROJECT / "build" / "fuzz")
    parser.add_argument("--again", nargs=2, metavar=("TARGET", "INDEX"), help="one input")
    parser.add_argument("--table", action="store_true", help="of all runs so far, and no more")
    given = parser.parse_args()
    if given.table:
        rows = table(Run(given.out, given.seed).counts())
        csv.writer(sys.stdout, lineterminator="\n").writerows(rows)
        return 0
    seeds.warm()
    if given.again:
        name, index = given.again
        files = make_input(TARGETS[name], given.seed, int(index))
        with tempfile.TemporaryDirectory() as folder:
            signal.signal(signal.SIGPROF, signal.SIG_DFL)
            print(Bench(Path(folder)).read(TARGETS[name], files))
        return 0
    names = given.targets.split(",") if given.targets else list(TARGETS)
    run = Run(given.out, given.seed, {name: TARGETS[name] for name in names})
    if given.inputs:
        counts = iter([run.turn(one, 1e9, given.inputs) for one in run.targets.values()])
    else:
        counts = run.for_seconds(60 * given.minutes)
    for count in counts:
        print(
            f"{count.target:14} {count.inputs:9,} inputs  {count.accepted:8,} taken  "
            f"{count.refused:9,} refused  {count.findings:4} findings  {count.seconds:6.1f} s  "
            f"{count.peak_mb:5.0f} MB",
            flush=True,
        )
    total = run.counts()
    print(
        f"so far: {sum(one.inputs for one in total):,} inputs in "
        f"{sum(one.seconds for one in total):,.0f} s"
    )
    found = distinct(run.findings)
    for finding, n in found:
        print(
            f"FOUND {n} x {finding.target}: {finding.what} in {finding.where}; again with "
            f"--again {finding.target} {finding.index} --seed {finding.seed}"
        )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
