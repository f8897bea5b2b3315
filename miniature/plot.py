"""Plot the training losses by head: python -m miniature.plot build/miniature/log.jsonl OUT."""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

#: Before the name of a head, of sentences that are not trained on.
VALIDATION = "validation."


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split(":", 1)[0])
    arguments.add_argument("log", type=Path)
    arguments.add_argument("out", type=Path)
    given = arguments.parse_args()
    from matplotlib.figure import Figure

    # A killed run continues from its last save, which is before its last lines.
    by_step: dict[int, dict[str, float]] = defaultdict(dict)
    for text in given.log.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        by_step[line["step"]].update(line)
    lines = [by_step[step] for step in sorted(by_step)]
    names = sorted({name for line in lines for name in line} - {"step", "seconds"})
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for head in [name for name in names if not name.startswith(VALIDATION)]:
        for name, style in ((head, "-"), (VALIDATION + head, "o--")):
            found = [(line["step"], line[name]) for line in lines if name in line]
            if style == "-":
                (drawn,) = axes.plot(*zip(*found, strict=True), label=head)
            elif found:
                axes.plot(*zip(*found, strict=True), style, color=drawn.get_color(), markersize=3)
    axes.set(
        xlabel="step (dots: sentences of validation, without dropout)",
        ylabel="loss, nats per code",
        ylim=(0, 6),
    )
    axes.grid(alpha=0.3)
    axes.legend(ncols=2)
    figure.savefig(given.out, dpi=110)


if __name__ == "__main__":
    main()
