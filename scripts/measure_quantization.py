"""Measure types, importance matrices, tensor types and matrices on the miniature.

    python scripts/measure_quantization.py [--types Q8_0,Q4_K_M] [--utterances 4]

Writes docs/types.csv, tensor-types.csv and matrices.csv, in about ten minutes on one core.
docs/quality.md sums them up.
"""

# ruff: noqa: T201 - a script, and it prints.

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from miniature.evaluate import held_out, write_data  # noqa: E402 - found by the line above
from valle_convert.checkpoint import read_checkpoint  # noqa: E402
from valle_convert.errors import InputError  # noqa: E402
from valle_convert.families.bundle import plan_bundle  # noqa: E402
from valle_convert.quantize.evaluate import FileSelection, evaluate  # noqa: E402
from valle_convert.quantize.examples import Examples  # noqa: E402
from valle_convert.quantize.imatrix import make_imatrices  # noqa: E402
from valle_convert.quantize.limits import Gates  # noqa: E402
from valle_convert.quantize.measurements import Evaluated  # noqa: E402
from valle_convert.quantize.options import (  # noqa: E402
    FolderOptions,
    MakeOptions,
    MeasureOptions,
    RunLog,
)
from valle_convert.quantize.report import EvaluationReport  # noqa: E402
from valle_convert.quantize.run import quantize  # noqa: E402
from valle_convert.quantize.scan import (  # noqa: E402
    SCANNED,
    Aim,
    Sensitivity,
    choose_mixture,
    scan,
)
from valle_convert.quantize.types import (  # noqa: E402
    FILE_TYPES,
    FileType,
    parse_types,
)

DOCS = PROJECT / "docs"
MODEL = PROJECT / "miniature" / "miniature.sft"
MIXED_TYPES = "Q6_K,Q4_K_M,Q3_K_M"
TENSOR_TYPES = (
    (),
    ("token_embd=f16",),
    ("token_embd=q8_0",),
    ("token_embd=q4_k",),
    ("token_embd=q8_0", "attn_=q8_0"),
)
TARGETS = (3.5, 4.5, 5.5)
N_CALIBRATION = 16
#: Sentences that matrices are made of, and others that files are measured on; none was trained on.
_CALIBRATION_SEED, _SEED = 11, 99


@dataclass(frozen=True)
class Found:
    """Everything that was measured; files by type."""

    n: int
    bare: dict[str, Evaluated]
    noise: dict[str, Evaluated]
    real: dict[str, Evaluated]
    mixed: list[tuple[str, Evaluated]]
    sensitivities: tuple[Sensitivity, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--types", help="only these")
    parser.add_argument("--utterances", type=int, default=4)
    options = parser.parse_args()
    types = parse_types(options.types) if options.types else tuple(distinct_types())
    with tempfile.TemporaryDirectory() as name:
        found = measure_all(Path(name), types, options.utterances)
    for table, rows in tables(found):
        with (DOCS / f"{table}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)


def measure_all(folder: Path, types: Sequence[FileType], n: int) -> Found:
    checkpoint = read_checkpoint(MODEL)
    reference = plan_bundle(checkpoint)
    family, model = reference.family, reference.model
    write_data(held_out(_CALIBRATION_SEED, N_CALIBRATION), folder / "calibration")
    write_data(held_out(_SEED, n), folder / "data")
    for name, utterances in {
        "real": Examples.choose(family, model, folder / "calibration", None),
        "noise": Examples.seeded(family, model, N_CALIBRATION, seed=0),
    }.items():
        print(f"importance matrix of {utterances.description}", flush=True)
        make_imatrices(reference, utterances, folder / f"{name}.gguf")

    def run(
        name: str,
        kinds: Sequence[FileType],
        *,
        imatrix: Path | None = None,
        tensor_types: tuple[str, ...] = (),
    ) -> EvaluationReport:
        making = MakeOptions(
            tuple(kinds), imatrix=str(imatrix or "none"), tensor_types=tensor_types, threads=1
        )
        log = RunLog(message=lambda text: print(text, flush=True))
        quantize(MODEL, folder / name, making, checkpoint=checkpoint, log=log)
        given = FileSelection((folder / name,), checkpoint=checkpoint)
        return evaluate(given, Gates(), measuring, log=log)

    measuring = MeasureOptions(folder / "data", n, threads=1)

    def can_be_made(kind: FileType) -> bool:
        try:
            making = MakeOptions((kind,), imatrix="none")
            quantize(
                MODEL,
                folder / "planned",
                making,
                FolderOptions(dry_run=True),
                checkpoint=checkpoint,
            )
        except InputError:  # not without an importance matrix
            return False
        return True

    bare = run("bare", [kind for kind in types if can_be_made(kind)])
    scanned = scan(MODEL, checkpoint, Aim(), MakeOptions(threads=1), measuring).sensitivities
    quantized = [kind for kind in types if kind.is_quantized]
    noise, real = (
        run(name, quantized, imatrix=folder / f"{name}.gguf") for name in ("noise", "real")
    )
    mixed = [
        (" ".join(given), file)
        for i, given in enumerate(TENSOR_TYPES)
        for file in run(f"mixed-{i}", parse_types(MIXED_TYPES), tensor_types=given).files
    ]
    for target in TARGETS:
        mixture = choose_mixture(scanned, target_bits=target)
        name = f"--target-bits {target:g}"
        (file,) = run(name, [mixture.file_type], tensor_types=mixture.tensor_types).files
        mixed.append((name, file))
    by_kind = [{file.kind: file for file in one.files} for one in (bare, noise, real)]
    return Found(n, *by_kind, mixed, scanned)


def distinct_types() -> Iterator[FileType]:
    """Every type once, under the longest of its names; COPY makes nothing."""
    by_number: dict[int, FileType] = {}
    for kind in FILE_TYPES.values():
        known = by_number.get(kind.number)
        if kind.base and (known is None or len(kind.name) > len(known.name)):
            by_number[kind.number] = kind
    yield from by_number.values()


def tables(found: Found) -> Iterator[tuple[str, list[list[str]]]]:
    how = ("no imatrix", "imatrix of noise", "imatrix of speech")
    files = (found.bare, found.noise, found.real)
    header = [f"{measure}, {one}" for one in how for measure in ("KL", "top-1")]
    rows = [["type", "bits per weight", *header]]
    everything = {**found.bare, **found.noise, **found.real}
    for kind in sorted(everything, key=lambda kind: -everything[kind].bits_per_weight):
        cells = [cell for one in files for cell in _cells(one.get(kind))]
        rows.append([kind, f"{everything[kind].bits_per_weight:.2f}", *cells])
    yield "types", rows

    rows = [["tensor types", "type", "MiB", "bits per weight", "KL", "top-1", "NAR codes equal"]]
    for name, file in found.mixed:
        if file.measured:
            size, nar = f"{file.n_bytes / 2**20:.2f}", f"{file.measured.greedy.nar_equal:.1%}"
            rows.append([name, file.kind, size, f"{file.bits_per_weight:.2f}", *_cells(file), nar])
    yield "tensor-types", rows

    yield "matrices", list(sensitivities(found))


def sensitivities(found: Found) -> Iterator[list[str]]:
    """KL by kind of matrix, summed over layers; the most sensitive per weight first."""
    sizes = {one.tensor: 8 * one.n_bytes / one.bits for one in found.sensitivities}
    by_kind: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    weights: dict[str, float] = defaultdict(float)
    for name, size in sizes.items():
        weights[_kind(name)] += size
    for one in found.sensitivities:
        by_kind[_kind(one.tensor)][one.kind] += one.kl
    types = [kind for kind in SCANNED if any(kind in found for found in by_kind.values())]
    yield ["matrices", "million weights", *types]
    for kind, row in sorted(by_kind.items(), key=lambda item: -item[1]["Q4_K"] / weights[item[0]]):
        yield [kind, f"{weights[kind] / 1e6:.2f}", *(f"{row[one]:.2e}" for one in types)]


def _kind(tensor: str) -> str:
    return tensor.split(".", 2)[-1].removesuffix(".weight") if "blk." in tensor else tensor


def _cells(file: Evaluated | None) -> tuple[str, str]:
    if file is None or file.kl is None:
        return "", ""
    return f"{file.kl:.2e}", f"{file.top_1:.1%}"


if __name__ == "__main__":
    main()
