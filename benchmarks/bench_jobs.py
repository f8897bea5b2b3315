"""What each job of workflow/Snakefile takes, and from that what many machines take.

    python benchmarks/bench_jobs.py [--sizes small,middle] [--folder DIR]

Runs convert, imatrix, the reference, quantize, evaluate and merge as the workflow does, each as a
process of its own with two threads, at two sizes of random weights. Prints two Markdown tables for
docs/scale.md: seconds, memory and bytes of each job, and what 20 checkpoints of some sizes in 12
types take, where a job takes as long a weight as at the larger size that was measured.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fixtures"))

from bench_quantize import Run, measure
from make_checkpoint import PRODUCTION, Shape, make_checkpoint

from valle_convert.gguf_file.read import GgufFile

SIZES = {
    "small": Shape(dim=512, heads=8, layers=6, audio_tokens=1024, text_tokens=256),
    "middle": PRODUCTION,
}
TYPES = ("Q8_0", "Q4_K_M", "IQ4_XS")
N_TYPES, N_CHECKPOINTS, THREADS = 12, 20, "2"
#: Weights of published models, in thousand millions.
PUBLISHED = (0.2, 0.5, 1.0)


@dataclass(frozen=True)
class Job:
    """A job of one checkpoint, or of one type of it, and the bytes of what it wrote."""

    name: str
    run: Run
    n_bytes: int

    @property
    def is_of_type(self) -> bool:
        """Whether there is one for each type."""
        return self.name in ("quantize", "evaluate")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--folder", type=Path, help="where the files go; else a temporary one")
    given = parser.parse_args(arguments)
    print(f"{os.cpu_count()} cores, load at the start {os.getloadavg()[0]:.1f}\n")
    print("| weights | job | seconds | of the CPU | memory, MB | bytes written, MB |")
    print("|---:|---|---:|---:|---:|---:|")
    for size in given.sizes.split(","):
        with tempfile.TemporaryDirectory(dir=given.folder) as name:
            n_weights, jobs = measured(Path(name), SIZES[size])
        for job in jobs:
            print(
                f"| {n_weights / 1e6:.0f} M | {job.name} | {job.run.seconds:.0f} "
                f"| {job.run.cpu_seconds:.0f} | {job.run.megabytes:.0f} | {job.n_bytes / 1e6:.1f} |"
            )
    print(f"\nload at the end {os.getloadavg()[0]:.1f}; from {n_weights / 1e6:.0f} M weights:\n")
    print("| weights | one checkpoint, 1 machine | 20, 1 machine | 10 | 100 | does not divide |")
    print("|---:|---:|---:|---:|---:|---:|")
    for billions in PUBLISHED:
        print(row(jobs, billions, billions * 1e9 / n_weights))


def measured(folder: Path, shape: Shape) -> tuple[int, list[Job]]:
    """The number of weights, and every job; of types, the mean."""
    checkpoint, source = folder / "model.sft", folder / "model.gguf"
    matrix, reference = folder / "imatrix.gguf", folder / "reference.safetensors"
    make_checkpoint(checkpoint, shape, dtype="f16")
    compared = ("--checkpoint", checkpoint, "--threads", THREADS)
    jobs = [
        job("convert", [source], checkpoint, source, "--outtype", "f16"),
        job("imatrix", [matrix], checkpoint, "-o", matrix),
        job("evaluate", [reference], source, *compared, "--save-reference", reference, of="shared"),
    ]
    for kind in TYPES:
        made = ("--types", kind, "--imatrix", matrix, "--threads", THREADS)
        jobs.append(job("quantize", [folder / kind], source, folder / kind, *made))
        kept = folder / kind / f"model-{kind}.measurements.json"
        jobs.append(job("evaluate", [kept], folder / kind, *compared, "--reference", reference))
    folders = [folder / kind for kind in TYPES]
    jobs.append(job("merge", [folder / "out" / "manifest.json"], *folders, folder / "out"))
    weights = sum(one.n_elements for one in GgufFile(source).tensors.values())
    means = {
        name: mean([one for one in jobs if one.name == name])
        for name in dict.fromkeys(one.name for one in jobs)
    }
    return weights, list(means.values())


def job(command: str, outputs: list[Path], *arguments: object, of: str = "") -> Job:
    """Run a job as a process of its own."""
    run = measure([sys.executable, "-m", "valle_convert", command, *map(str, arguments)])
    files = [one for path in outputs for one in (path.iterdir() if path.is_dir() else [path])]
    name = "reference" if of else command
    return Job(name, run, sum(one.stat().st_size for one in files))


def mean(jobs: Sequence[Job]) -> Job:
    """The mean of some jobs; of memory, the most."""
    n = len(jobs)
    run = Run(
        sum(one.run.seconds for one in jobs) / n,
        sum(one.run.cpu_seconds for one in jobs) / n,
        max(one.run.megabytes for one in jobs),
    )
    return Job(jobs[0].name, run, sum(one.n_bytes for one in jobs) // n)


def row(jobs: Sequence[Job], billions: float, factor: float) -> str:
    """Hours by the number of machines, and the longest chain of jobs that wait for each other."""
    seconds = {one.name: one.run.seconds * factor for one in jobs}
    of_types = sum(seconds[one.name] for one in jobs if one.is_of_type)
    shared = sum(seconds[one.name] for one in jobs if not one.is_of_type)
    one = shared + N_TYPES * of_types
    begin = seconds["convert"] + max(seconds["imatrix"] + seconds["quantize"], seconds["reference"])
    chain = begin + seconds["evaluate"] + N_TYPES / len(TYPES) * seconds["merge"]
    hours = [one, N_CHECKPOINTS * one]
    hours += [max(N_CHECKPOINTS * one / machines, chain) for machines in (10, 100)]
    shown = " | ".join(f"{value / 3600:.2f} h" for value in (*hours, chain))
    return f"| {billions:g} B | {shown} |"


if __name__ == "__main__":
    main()
