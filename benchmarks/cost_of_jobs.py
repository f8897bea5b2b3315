"""Measure each job of workflow/Snakefile, and compute the time on many machines.

    python benchmarks/cost_of_jobs.py --folder DIR [--sizes 12x1024,24x1536] [--jobs LIST]

Runs convert, imatrix, the reference, quantize, evaluate and merge as the workflow does, each as a
process of its own with one thread, for random weights of some sizes. DIR keeps files and
results.json; a run measures what is missing there, in this order, until `--minutes` are over.
`--jobs` selects jobs, such as quantize,evaluate:Q8_0. Prints every job, and the times of
docs/scale.md; `--write` writes docs/jobs.csv. What was not measured is computed: `evaluate` from
the mean of the measured types, another size by the number of weights. Seconds are of the CPU, the
same on a busy machine.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import msgspec
from bench_quantize import measure
from shared import DOCS, PRODUCTION, PROGRAM, make_checkpoint, options, print_rows

from valle_convert.gguf_file.read import GgufFile
from valle_convert.wording import markdown_table

TYPES = (
    *("Q8_0", "Q6_K", "Q5_K_M", "Q5_0", "Q4_K_M", "Q4_0", "IQ4_XS"),
    *("Q3_K_M", "Q2_K", "IQ3_XXS", "IQ2_XXS", "IQ1_S"),
)
#: The matrix is measured on few of the 32 utterances that are the default.
N_UTTERANCES, N_DEFAULT = 2, 32
N_CHECKPOINTS, N_CORES = 20, 2


@dataclass(frozen=True)
class Cost:
    """The time and memory of a job, and the bytes that it writes."""

    size: str
    n_weights: int
    job: str
    kind: str
    seconds: float
    megabytes: float
    n_bytes: int
    is_measured: bool = True

    @property
    def name(self) -> str:
        """Such as `convert`, or `evaluate:Q8_0`."""
        return f"{self.job}:{self.kind}" if self.kind else self.job


def main(argv: Sequence[str] | None = None) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    found: list[Cost] = []
    with options(__doc__, argv, sizes="12x1024", jobs="", minutes=60.0, write=False) as given:
        end = time.monotonic() + 60 * given.minutes
        wanted = {*filter(None, given.jobs.split(","))}
        results = given.folder / "results.json"
        if results.exists():
            found = msgspec.json.decode(results.read_bytes(), type=list[Cost])
        for size in given.sizes.split(","):
            for cost in measured(given.folder / size, size, found, wanted):
                found.append(cost)
                results.write_bytes(msgspec.json.encode(found))
                if time.monotonic() > end:
                    return
    print_tables(found, DOCS / "jobs.csv" if given.write else None)


def measured(folder: Path, size: str, known: Sequence[Cost], wanted: set[str]) -> Iterator[Cost]:
    """Every job of a checkpoint that is not known yet."""
    layers, dim = map(int, size.split("x"))
    checkpoint, source = folder / "model.sft", folder / "model.gguf"
    if not checkpoint.exists():
        folder.mkdir(parents=True, exist_ok=True)
        shape = replace(PRODUCTION, dim=dim, heads=dim // 64, layers=layers)
        make_checkpoint(checkpoint, shape, dtype="f16")
    matrix, reference = folder / "imatrix.gguf", folder / "reference.safetensors"
    compared = ("--checkpoint", checkpoint, "--threads", 1)
    saved, used = ("--save-reference", reference), ("--reference", reference)
    jobs: list[tuple[str, str, Path, Sequence[object]]] = [
        ("convert", "", source, (checkpoint, source, "--outtype", "f16")),
        ("imatrix", "", matrix, (checkpoint, "-o", matrix, "--utterances", N_UTTERANCES)),
        ("reference", "", reference, (source, *compared, *saved)),
    ]
    for kind in TYPES:
        out = folder / kind
        made = (source, out, "--types", kind, "--imatrix", matrix, "--threads", 1)
        jobs.append(("quantize", kind, out / f"model-{kind}.gguf", made))
    for kind in TYPES:
        kept = folder / kind / f"model-{kind}.measurements.json"
        jobs.append(("evaluate", kind, kept, (folder / kind, *compared, *used)))
    jobs.append(("merge", "", folder / "out/manifest.json", ()))
    done = {one.name for one in known if one.size == size}
    for job, kind, output, arguments in jobs:
        name = f"{job}:{kind}".rstrip(":")
        if name in done or (wanted and not wanted & {job, name}):
            continue
        command = "evaluate" if job == "reference" else job
        words = [*PROGRAM, command, *arguments, "--force"]
        if job == "merge":
            merged = [one.parent for one in folder.glob("*/*.measurements.json")]
            words += [*merged, folder / "out"]
        run = measure([*map(str, words)])
        n_weights = sum(one.n_elements for one in GgufFile(source).tensors.values())
        n_bytes = output.stat().st_size
        yield Cost(size, n_weights, job, kind, run.cpu_seconds, run.megabytes, n_bytes)


def completed(found: Sequence[Cost]) -> dict[str, dict[str, Cost]]:
    """Every job by size; those that were not measured are computed."""
    sizes: dict[str, dict[str, Cost]] = {}
    for one in sorted(found, key=lambda cost: cost.n_weights):
        sizes.setdefault(one.size, {})[one.name] = one
    smaller: dict[str, Cost] = {}
    for costs in sizes.values():
        some = next(iter(costs.values()))
        for job in ("quantize", "evaluate"):
            known = [one for one in costs.values() if one.job == job]
            for kind in TYPES if known else ():
                guess = replace(
                    known[0],
                    kind=kind,
                    seconds=mean(one.seconds for one in known),
                    megabytes=max(one.megabytes for one in known),
                    is_measured=False,
                )
                costs.setdefault(guess.name, guess)
        for name, one in smaller.items():
            factor = some.n_weights / one.n_weights
            guess = replace(
                one,
                size=some.size,
                n_weights=some.n_weights,
                seconds=one.seconds * factor,
                megabytes=one.megabytes * factor,
                n_bytes=round(one.n_bytes * (factor if one.job == "quantize" else 1)),
                is_measured=False,
            )
            costs.setdefault(name, guess)
        smaller |= costs
    return sizes


def print_tables(found: Sequence[Cost], path: Path | None) -> None:
    sizes = completed(found)
    header = "layers x width,billion weights,job,CPU seconds,MB held,MB written,measured"
    jobs = [
        (
            *(one.size, f"{one.n_weights / 1e9:.2f}", one.name.replace(":", " ")),
            *(f"{one.seconds:.0f}", f"{one.megabytes:.0f}", f"{one.n_bytes / 1e6:.1f}"),
            "yes" if one.is_measured else "no",
        )
        for costs in sizes.values()
        for one in costs.values()
    ]
    print_rows([header.split(","), *jobs], path)
    whole = {name for costs in sizes.values() for name in costs}
    rows = []
    for costs in sizes.values():
        if {"convert", "imatrix", "reference", "merge"} <= costs.keys() == whole:
            words = f"{next(iter(costs.values())).n_weights / 1e9:.2f} B"
            rows.append((words, *(f"{one / 3600:.2f} h" for one in hours(costs))))
    machines = ("1 machine", "10 machines", "100 machines", "one after the other")
    print("\n" + markdown_table(("weights of each", *machines), rows))


def hours(costs: dict[str, Cost]) -> list[float]:
    """Seconds of all checkpoints by the number of machines, and of the longest chain of jobs."""
    seconds = {name: one.seconds for name, one in costs.items()}
    seconds["imatrix"] *= N_DEFAULT / N_UTTERANCES
    work = N_CHECKPOINTS * sum(seconds.values()) / N_CORES
    slowest = max(seconds[f"quantize:{kind}"] for kind in TYPES)
    begin = max(seconds["imatrix"] + slowest, seconds["reference"])
    chain = seconds["convert"] + begin + max(seconds[f"evaluate:{kind}"] for kind in TYPES)
    chain += seconds["merge"]
    return [*(max(work / machines, chain) for machines in (1, 10, 100)), chain]


if __name__ == "__main__":
    main()
