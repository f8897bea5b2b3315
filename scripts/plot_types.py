"""docs/types.csv -> docs/size-quality.png: size of a type against its divergence."""

from __future__ import annotations

import csv
from pathlib import Path

from matplotlib.figure import Figure

DOCS = Path(__file__).parents[1] / "docs"
#: Far off, or the same file as of another type.
LEFT_OUT = {"F32", "MXFP4_MOE", "Q1_0", "Q2_0", "TQ1_0", "TQ2_0"}
#: The others are gray dots without a name.
NAMED = {"BF16", "F16", "Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0"}


def main() -> None:
    """Plot the types measured without an importance matrix."""
    with (DOCS / "types.csv").open(encoding="utf-8", newline="") as file:
        rows = [row[:3] for row in csv.reader(file) if row[2]][1:]
    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    axes = figure.subplots()
    for kind, bits, divergence in rows:
        place = float(bits), float(divergence)
        if kind not in LEFT_OUT:
            axes.scatter(*place, s=18, color="tab:blue" if kind in NAMED else "lightgray")
        if kind in NAMED:
            under = kind in {"Q4_K_M", "Q5_K_M"}
            axes.annotate(
                kind,
                place,
                xytext=(-3, -3) if under else (4, 3),
                ha="right" if under else "left",
                va="top" if under else "bottom",
                textcoords="offset points",
                fontsize=8,
            )
    axes.set(
        yscale="log",
        xscale="log",
        xlim=(3.8, 18.5),
        xlabel="bits per weight",
        ylabel="KL divergence from the checkpoint, nats",
        title="Size against quality, 3.7 M test model",
    )
    ticks = [4, 5, 6, 8, 16]
    axes.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
    axes.set_xticks([], minor=True)
    axes.grid(alpha=0.3)
    figure.savefig(DOCS / "size-quality.png", dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
