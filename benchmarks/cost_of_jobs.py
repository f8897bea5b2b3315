"""What each job of workflow/Snakefile takes, and from that what many machines take.

    python benchmarks/cost_of_jobs.py [--sizes tiny,small,middle] [--folder DIR]

Runs convert, imatrix, the reference, quantize, evaluate and merge as the workflow does, each as a
process of its own with one thread, at some sizes of random weights. Prints two Markdown tables for
docs/scale.md: time, memory and bytes of each job, and what 20 checkpoints of some sizes in 12 types
take on machines of two cores, where a job takes as much of the processor a weight as at the last
size that was measured. The processor's time is taken since it stays the same on a busy machine.
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
    "tiny": Shape(dim=256, heads=4, layers=4, audio_tokens=256, text_tokens=256),
    "small": Shape(dim=512, heads=8, layers=6, audio_tokens=1024, text_tokens=256),
    "middle": Shape(dim=768, heads=12, layers=8, audio_tokens=1024, text_tokens=256),
    "production": PRODUCTION,
}
#: It stands for all types.
TYPE = "Q4_K_M"
#: The matrix is measured on few of the 32 utterances that are the default.
N_UTTERANCES, N_DEFAULT = 4, 32
N_TYPES, N_CHECKPOINTS, N_CORES = 12, 20, 2
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
    parser.add_argument("--sizes", default="tiny,small,middle")
    parser.add_argument("--folder", type=Path, help="where the files go; else a temporary one")
    given = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"
    print(f"{os.cpu_count()} cores, load at the start {os.getloadavg()[0]:.1f}\n")
    print("| weights | job | CPU, s | clock, s | memory, MB | written, MB |")
    print("|---:|---|---:|---:|---:|---:|")
    for size in given.sizes.split(","):
        with tempfile.TemporaryDirectory(dir=given.folder) as name:
            n_weights, jobs = measured(Path(name), SIZES[size])
        for job in jobs:
            print(
                f"| {n_weights / 1e6:.0f} M | {job.name} | {job.run.cpu_seconds:.0f} "
                f"| {job.run.seconds:.0f} | {job.run.megabytes:.0f} | {job.n_bytes / 1e6:.1f} |"
            )
    print(f"\nload at the end {os.getloadavg()[0]:.1f}; from {n_weights / 1e6:.0f} M weights:\n")
    print("| weights | 1 machine | 10 machines | 100 machines | does not divide |")
    print("|---:|---:|---:|---:|---:|")
    for billions in PUBLISHED:
        print(row(jobs, billions, billions * 1e9 / n_weights))


def measured(folder: Path, shape: Shape) -> tuple[int, list[Job]]:
    """The number of weights, and every job."""
    checkpoint, source = folder / "model.sft", folder / "model.gguf"
    matrix, reference = folder / "imatrix.gguf", folder / "reference.safetensors"
    make_checkpoint(checkpoint, shape, dtype="f16")
    compared = ("--checkpoint", checkpoint, "--threads", "1")
    jobs = [
        job("convert", [source], checkpoint, source, "--outtype", "f16"),
        job("imatrix", [matrix], checkpoint, "-o", matrix, "--utterances", N_UTTERANCES),
        job("evaluate", [reference], source, *compared, "--save-reference", reference, of="shared"),
    ]
    made = ("--types", TYPE, "--imatrix", matrix, "--threads", "1")
    kept = folder / TYPE / f"model-{TYPE}.measurements.json"
    jobs += [
        job("quantize", [folder / TYPE], source, folder / TYPE, *made),
        job("evaluate", [kept], folder / TYPE, *compared, "--reference", reference),
        job("merge", [folder / "out" / "manifest.json"], folder / TYPE, folder / "out"),
    ]
    return sum(one.n_elements for one in GgufFile(source).tensors.values()), jobs


def job(command: str, outputs: list[Path], *arguments: object, of: str = "") -> Job:
    """Run a job as a process of its own."""
    run = measure([sys.executable, "-m", "valle_convert", command, *map(str, arguments)])
    files = [one for path in outputs for one in (path.iterdir() if path.is_dir() else [path])]
    name = "reference" if of else command
    return Job(name, run, sum(one.stat().st_size for one in files))


def row(jobs: Sequence[Job], billions: float, factor: float) -> str:
    """Hours by the number of machines, and the longest chain of jobs that wait for each other."""
    seconds = {one.name: one.run.cpu_seconds * factor for one in jobs}
    seconds["imatrix"] *= N_DEFAULT / N_UTTERANCES
    seconds["merge"] *= N_TYPES
    of_types = sum(seconds[one.name] for one in jobs if one.is_of_type)
    shared = sum(seconds[one.name] for one in jobs if not one.is_of_type)
    work = N_CHECKPOINTS * (shared + N_TYPES * of_types) / N_CORES
    begin = seconds["convert"] + max(seconds["imatrix"] + seconds["quantize"], seconds["reference"])
    chain = begin + seconds["evaluate"] + seconds["merge"]
    hours = [max(work / machines, chain) for machines in (1, 10, 100)]
    shown = " | ".join(f"{value / 3600:.2f} h" for value in (*hours, chain))
    return f"| {billions:g} B | {shown} |"


if __name__ == "__main__":
    main()
