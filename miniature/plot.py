"""Plot the losses of a training by head: python -m miniature.plot build/miniature/log.jsonl OUT."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def main() -> None:
    """Read the log, write the picture."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split(":", 1)[0])
    arguments.add_argument("log", type=Path)
    arguments.add_argument("out", type=Path)
    given = arguments.parse_args()
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    read = map(json.loads, given.log.read_text(encoding="utf-8").splitlines())
    # A run that was killed goes on from where it was saved, before some of its last lines.
    by_step = {line["step"]: line for line in read}
    lines = [by_step[step] for step in sorted(by_step)]
    heads = sorted({head for line in lines for head in line} - {"step", "seconds"})
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for head in heads:
        found = [(line["step"], line[head]) for line in lines if head in line]
        axes.plot(*zip(*found, strict=True), label=head)
    axes.set(xlabel="step", ylabel="training loss, nats a code", ylim=(0, 6))
    axes.grid(alpha=0.3)
    axes.legend(ncols=2)
    figure.savefig(given.out, dpi=110)


if __name__ == "__main__":
    main()
