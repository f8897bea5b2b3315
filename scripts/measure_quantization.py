"""Measure types, importance matrices, tensor types and matrices on the miniature, and write a page.

    python scripts/measure_quantization.py [--types Q8_0,Q4_K_M] [--utterances 4]

Writes docs/quantize-measured.md. Takes ten minutes of one core or so; what the types say is in
docs/quality.md.
"""

# ruff: noqa: T201 - a script, and it prints.

from __future__ import annotations

import argparse
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
from valle_convert.families.bundle import plan  # noqa: E402
from valle_convert.quantize.evaluate import Given, evaluate  # noqa: E402
from valle_convert.quantize.examples import Examples  # noqa: E402
from valle_convert.quantize.imatrix import make_imatrices  # noqa: E402
from valle_convert.quantize.limits import Gates  # noqa: E402
from valle_convert.quantize.options import (  # noqa: E402
    FolderOptions,
    MakeOptions,
    MeasureOptions,
    RunLog,
)
from valle_convert.quantize.quality import ALL, Quality  # noqa: E402
from valle_convert.quantize.report import EvaluationReport, FileReport  # noqa: E402
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

PAGE = PROJECT / "docs" / "quantize-measured.md"
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
    """Everything that the page tells; files by type."""

    n: int
    bare: dict[str, FileReport]
    noise: dict[str, FileReport]
    real: dict[str, FileReport]
    mixed: list[tuple[str, FileReport]]
    sensitivities: tuple[Sensitivity, ...]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--types", help="only these")
    parser.add_argument("--utterances", type=int, default=4)
    options = parser.parse_args()
    types = parse_types(options.types) if options.types else tuple(distinct_types())
    with tempfile.TemporaryDirectory() as name:
        found = measure_all(Path(name), types, options.utterances)
    PAGE.write_text("\n".join(page(found)) + "\n", encoding="utf-8")


def measure_all(folder: Path, types: Sequence[FileType], n: int) -> Found:
    """All measurements, one after the other."""
    checkpoint = read_checkpoint(MODEL)
    reference = plan(checkpoint)
    family, model = reference.family, reference.model
    write_data(held_out(_CALIBRATION_SEED, N_CALIBRATION), folder / "calibration")
    write_data(held_out(_SEED, n), folder / "data")
    for name, utterances in {
        "real": Examples.given(family, model, folder / "calibration", seed=0),
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
        talk = RunLog(talk=lambda text: print(text, flush=True))
        quantize(MODEL, folder / name, making, checkpoint=checkpoint, log=talk)
        given = Given((folder / name,), checkpoint=checkpoint)
        return evaluate(given, Gates(), measuring, log=talk)

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
    weights = {one.tensor: round(8 * one.n_bytes / one.bits) for one in scanned}
    for target in TARGETS:
        mixture = choose_mixture(scanned, weights, target_bits=target)
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


def page(found: Found) -> Iterator[str]:
    """The page with the numbers."""
    yield "# What types, importance matrices and tensor types measured"
    yield ""
    yield (
        "Written by `scripts/measure_quantization.py` on the [trained miniature]"
        f"(../miniature/README.md), against its checkpoint in PyTorch, over {found.n} sentences "
        "that it was not trained on, every head and task. What is said: [quality.md](quality.md)."
    )
    yield ""
    yield "## What this says of a model of 220 M"
    yield ""
    yield (
        "It shows that the tools work on a network that has learnt, that a trained one keeps more "
        "of its best codes than a random one of its size (whose codes are nearly equally likely), "
        "and how types stand to each other here. It cannot tell what a type costs the "
        "published models: rows of 256 are one block of a K-quant where theirs of 1024 are four, "
        "its weights are those of hours of training, a level has 256 codes and not 1024, and it "
        "has heard three voices of one synthesizer say sentences of a few templates. Which "
        "matrices mind most may differ with depth, and so may the worth of an importance matrix. "
        "So no limit of this program comes from here; measure your own: `evaluate --checkpoint "
        "model.sft --data utterances/ --listen`."
    )
    yield ""
    yield "## Types"
    yield ""
    yield (
        "Importance matrices: none; of "
        f"{N_CALIBRATION} utterances of random codes; of {N_CALIBRATION} sentences, other ones "
        "than those measured. KL mean in nats a prediction, and how often the best code stays."
    )
    yield ""
    yield (
        "| type | bits/weight | KL, no matrix | best code | KL, of noise | best code "
        "| KL, of speech | best code |"
    )
    yield "|---|---:|" + "---:|" * 6
    everything = {**found.bare, **found.noise, **found.real}
    for kind in sorted(everything, key=lambda kind: -everything[kind].bits_per_weight):
        cells = [
            cell for one in (found.bare, found.noise, found.real) for cell in _cells(one.get(kind))
        ]
        yield f"| {kind} | {everything[kind].bits_per_weight:.2f} | {' | '.join(cells)} |"
    yield ""
    yield from advice(found)
    yield ""
    yield "## Tensor types"
    yield ""
    yield "| tensor types | type | MiB | bits/weight | KL mean | best code | NAR codes equal |"
    yield "|---|---|---:|---:|---:|---:|---:|"
    for name, file in found.mixed:
        if file.measured:
            total = file.measured.quality[ALL]
            yield (
                f"| {name} | {file.kind} | {file.n_bytes / 2**20:.2f} | "
                f"{file.bits_per_weight:.2f} | {total.kl_mean:.2e} | {total.best_code:.1%} | "
                f"{file.measured.greedy.nar_equal:.1%} |"
            )
    yield ""
    yield "## Which matrices mind"
    yield ""
    yield (
        "KL with all matrices of a kind in a type (the sum over layers of each alone), everything "
        "else as it was; and the same a million of its weights, which tells where bits are worth "
        "most."
    )
    yield ""
    yield from sensitivity_table(found)


def advice(found: Found) -> Iterator[str]:
    """What the importance matrices were worth, counted."""
    both = [kind for kind in found.real if kind in found.noise]
    kls = {kind: (_kl(found.noise[kind]), _kl(found.real[kind])) for kind in both}
    better = [kind for kind, (noise, real) in kls.items() if real < noise]
    yield f"A matrix of speech is better than one of noise in {len(better)} of {len(both)} types."
    bare = [kind for kind in both if kind in found.bare]
    for name, files in (("speech", found.real), ("noise", found.noise)):
        ratios = sorted(_kl(files[kind]) / _kl(found.bare[kind]) for kind in bare)
        if ratios:
            fine = sum(ratio < 1 for ratio in ratios)
            yield (
                f"One of {name} is better than none in {fine} of the {len(bare)} types that need "
                f"none: the KL is that of none times {ratios[len(ratios) // 2]:.2f} in the median "
                f"({ratios[0]:.2f} to {ratios[-1]:.2f})."
            )


def sensitivity_table(found: Found) -> Iterator[str]:
    """By kind of matrix, summed over layers."""
    sizes = {one.tensor: 8 * one.n_bytes / one.bits for one in found.sensitivities}
    by_kind: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    weights: dict[str, float] = defaultdict(float)
    for name, size in sizes.items():
        weights[_kind(name)] += size
    for one in found.sensitivities:
        by_kind[_kind(one.tensor)][one.kind] += one.kl
    types = [kind for kind in SCANNED if any(kind in found for found in by_kind.values())]
    yield "| matrices | million weights | " + " | ".join(types) + " | Q4_K, a million weights |"
    yield "|---|---:|" + "---:|" * (len(types) + 1)
    for kind, row in sorted(by_kind.items(), key=lambda item: -item[1]["Q4_K"] / weights[item[0]]):
        millions = weights[kind] / 1e6
        cells = " | ".join(f"{row[one]:.2e}" for one in types)
        yield f"| {kind} | {millions:.2f} | {cells} | {row['Q4_K'] / millions:.2e} |"


def _kind(tensor: str) -> str:
    return tensor.split(".", 2)[-1].removesuffix(".weight") if "blk." in tensor else tensor


def _kl(file: FileReport) -> float:
    assert file.measured is not None  # noqa: S101 - asked for
    return file.measured.quality[ALL].kl_mean


def _cells(file: FileReport | None) -> tuple[str, str]:
    if file is None:
        return "", ""
    if file.measured is None:
        return file.note, ""
    total: Quality = file.measured.quality[ALL]
    return f"{total.kl_mean:.2e}", f"{total.best_code:.1%}"


if __name__ == "__main__":
    main()
