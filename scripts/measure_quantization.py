"""Measure every type and recipe on random networks, and write the page with the numbers.

    python scripts/measure_quantization.py [--types Q8_0,Q4_K_M]

Writes docs/quantize-measured.md. Takes ten to twenty minutes.
"""

# ruff: noqa: T201 - a script, and it prints.

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT / "fixtures"))

from make_checkpoint import Shape, make_checkpoint  # noqa: E402 - found by the line above

from valle_convert.checkpoint import read_checkpoint  # noqa: E402
from valle_convert.quantize.plan import Listener, Options  # noqa: E402
from valle_convert.quantize.quality import ALL  # noqa: E402
from valle_convert.quantize.report import FileReport  # noqa: E402
from valle_convert.quantize.run import quantize  # noqa: E402
from valle_convert.quantize.types import (  # noqa: E402
    FILE_TYPES,
    RECIPES,
    STOCK,
    FileType,
    Recipe,
    parse_types,
)

PAGE = PROJECT / "docs" / "quantize-measured.md"
#: Rows of 256, so that every type can be itself.
NETWORKS = {
    "random, 256 x 2, bidirectional": Shape(dim=256, heads=4, layers=2, seed=1),
    "random, 256 x 2, unified, causal": Shape(
        dim=256, heads=4, layers=2, unified=True, noncausal=False, seed=2
    ),
    "random, 256 x 6, 256 codes": Shape(dim=256, heads=4, layers=6, audio_tokens=256, seed=3),
}
#: What the recipes are compared on: tables as large beside the layers as in the published model.
RECIPE_NETWORK = Shape(dim=512, heads=8, layers=6, audio_tokens=512, seed=4)
RECIPE_TYPES = ("Q6_K", "Q4_K_M", "Q3_K_M")


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--types", help="only these")
    given = parser.parse_args().types
    types = parse_types(given) if given else tuple(distinct_types())
    measured: dict[str, dict[str, FileReport]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for network, shape in NETWORKS.items():
            for file in measure(folder, shape, types, STOCK):
                measured.setdefault(file.kind, {})[network] = file
        recipes = {
            recipe.name: measure(
                folder,
                RECIPE_NETWORK,
                parse_types(",".join(RECIPE_TYPES)),
                recipe,
            )
            for recipe in RECIPES.values()
        }
    PAGE.write_text("\n".join(page(measured, recipes)) + "\n", encoding="utf-8")


def distinct_types() -> Iterator[FileType]:
    """Every type once, under the longest of its names; COPY makes nothing."""
    by_number: dict[int, FileType] = {}
    for kind in FILE_TYPES.values():
        known = by_number.get(kind.number)
        if kind.base and (known is None or len(kind.name) > len(known.name)):
            by_number[kind.number] = kind
    yield from by_number.values()


def measure(
    folder: Path, shape: Shape, types: Sequence[FileType], recipe: Recipe
) -> tuple[FileReport, ...]:
    """Quantize a random network and measure the files."""
    checkpoint = folder / f"random-{shape.seed}.sft"
    if not checkpoint.exists():
        make_checkpoint(checkpoint, shape)
    report = quantize(
        checkpoint,
        folder / f"out-{shape.seed}-{recipe.name}",
        Options(tuple(types), recipe=recipe, threads=1, n_imatrix=8),
        checkpoint=read_checkpoint(checkpoint),
        listener=Listener(talk=lambda text: print(text, flush=True)),
    )
    return report.files


def page(
    measured: dict[str, dict[str, FileReport]], recipes: dict[str, tuple[FileReport, ...]]
) -> Iterator[str]:
    """The page with the numbers."""
    yield "# What the types and recipes measured"
    yield ""
    yield (
        "Written by `scripts/measure_quantization.py`, on random networks with the layout of the "
        "published models: their codes have nearly equal logits, so that the best code changes "
        "more easily than in a trained network, and the numbers tell types apart rather than how "
        "a voice will sound. Measured against the checkpoint in PyTorch, over "
        "two seeded utterances and every head and task. Types that cannot be made without an "
        "importance matrix got one of 8 seeded utterances."
    )
    yield ""
    yield "## Types"
    yield ""
    networks = list(NETWORKS)
    yield "| type | bits/weight | " + " | ".join(f"KL: {n} | best code" for n in networks) + " |"
    yield "|---|---:|" + "---:|---:|" * len(networks)
    order = sorted(measured, key=lambda kind: -measured[kind][networks[0]].bits_per_weight)
    for kind in order:
        files = measured[kind]
        cells = [cell(file) for file in files.values()]
        yield f"| {kind} | {files[networks[0]].bits_per_weight:.2f} | {' | '.join(cells)} |"
    yield ""
    yield "## Recipes"
    yield ""
    yield (
        f"A random network of {RECIPE_NETWORK.dim} x {RECIPE_NETWORK.layers} with "
        f"{RECIPE_NETWORK.audio_tokens} codes a level."
    )
    yield ""
    yield "| recipe | type | size, MiB | bits/weight | KL mean | best code | NAR codes equal |"
    yield "|---|---|---:|---:|---:|---:|---:|"
    for name, files in recipes.items():
        for file in files:
            if file.measured:
                total = file.measured.quality[ALL]
                yield (
                    f"| {name} | {file.kind} | {file.n_bytes / 2**20:.2f} | "
                    f"{file.bits_per_weight:.2f} | {total.kl_mean:.2e} | {total.best_code:.1%} | "
                    f"{file.measured.greedy.nar_equal:.1%} |"
                )


def cell(file: FileReport) -> str:
    """Two cells of the table of types."""
    if file.measured is None:
        return f"{file.note} | "
    total = file.measured.quality[ALL]
    return f"{total.kl_mean:.2e} | {total.best_code:.1%}"


if __name__ == "__main__":
    main()
