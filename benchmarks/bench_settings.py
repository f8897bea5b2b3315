"""Which settings of llama.cpp are fastest for each type: docs/performance.md.

    python benchmarks/bench_settings.py [--types F16,Q8_0] [--rounds 3] [--folder DIR] [--write]

On the production-size random model (12 x 1024), for each type and setting: a NAR pass of 701
positions with 300 outputs, and an AR step after 400 positions. All settings of a file take turns,
so that they meet the same noise; PyTorch computes the same pass in float32. The times are the best
of all rounds. `--write` puts the tables into the page.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from bench_speak import (
    QUICK,
    machine,
    make_file,
    make_source,
    measure_reference,
    nar_pass,
)

from valle_convert.families.bundle import open_bundle
from valle_convert.llama.context import EXACT, Settings
from valle_convert.llama.tuning import candidates

PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- written by benchmarks/bench_settings.py -->", "<!-- end -->"
TYPES = ("F32", "F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0")
DEPTH, STEPS = 400, 15


def name_of(settings: Settings) -> str:
    """What differs from the exact settings, in words."""
    words = ["whole head"] if not settings.own_head else []
    words += ["flash attention"] if settings.flash_attention else []
    words += ["f16 cache"] if settings.cache_type == "f16" else []
    words += [] if settings.repack else ["not repacked"]
    return ", ".join(words) or "exact"


def measure(path: Path, rounds: int) -> dict[str, tuple[float, float]]:
    """By setting, milliseconds of a pass and of a step; `tuned` is what the search takes."""
    bundle = open_bundle(path)
    found: dict[str, list[tuple[float, float]]] = {}
    with ExitStack() as held:
        networks: dict[str, Any] = {}
        for settings in (EXACT, *candidates(Settings(own_head=True))):
            network = bundle.family.open(bundle, settings=settings)
            networks[name_of(settings)] = held.enter_context(network)
        networks["tuned"] = held.enter_context(bundle.family.open(bundle, tune="again"))
        for _ in range(rounds):
            for name, network in networks.items():
                found.setdefault(name, []).append((pass_ms(network), step_ms(network)))
    return {
        name: (min(a for a, _ in runs), min(b for _, b in runs)) for name, runs in found.items()
    }


def pass_ms(network: Any) -> float:  # noqa: ANN401 - of version 5
    """A NAR pass, embeddings included."""
    begin = time.perf_counter()
    nar_pass(network)
    return (time.perf_counter() - begin) * 1e3


def step_ms(network: Any) -> float:  # noqa: ANN401 - of version 5
    """The fastest of some AR steps."""
    network.forget(0)
    rows = network.look_up("response.ar", np.arange(DEPTH + STEPS) % 1000)

    def step(begin: int, end: int) -> float:
        start = time.perf_counter()
        network.step(rows[begin:end], np.arange(begin, end), head="ar", outputs=slice(-1, None))
        return (time.perf_counter() - start) * 1e3

    step(0, DEPTH)
    return min(step(DEPTH + i, DEPTH + i + 1) for i in range(STEPS))


def tables(results: dict[str, Any]) -> Iterator[str]:
    """A table of passes and one of steps."""
    known = results["machine"]
    reference = results["pytorch_ms"]
    yield f"{known['cpu']}, {known['cores']} cores, load {results['load']:.1f} at the start."
    for which, title, unit in ((0, "NAR pass", ".0f"), (1, "AR step", ".1f")):
        beside = f"; PyTorch float32 takes {reference:.0f}" if which == 0 else ""
        files = results["files"]
        yield ""
        yield f"{title}, milliseconds{beside}:"
        yield ""
        yield f"| settings | {' | '.join(files)} |"
        yield f"|---|{'---:|' * len(files)}"
        for name in next(iter(files.values())):
            cells = [f"{one[name][which]:{unit}}" for one in files.values()]
            yield f"| {name} | {' | '.join(cells)} |"
        ratios = [f"{one['tuned'][which] / one['whole head'][which]:.2f}" for one in files.values()]
        yield f"| tuned over today's exact way | {' | '.join(ratios)} |"


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and give the numbers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--types", default=",".join(TYPES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the files go; else a temporary one")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.measure is not None:  # in a process of its own
        measured = measure(arguments.measure, arguments.rounds)
        print(json.dumps(measured))
        return measured
    load = os.getloadavg()[0]
    results: dict[str, Any] = {"machine": machine(), "load": load, "files": {}}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        checkpoint, f16 = make_source(Path(folder))
        threads = len(os.sched_getaffinity(0))
        results["pytorch_ms"] = measure_reference(checkpoint, threads, QUICK)["nar_ms"]
        for kind in arguments.types.split(","):
            path = f16 if kind == "F16" else make_file(checkpoint, f16, kind)
            command = [sys.executable, __file__, "--measure", path]
            command += ["--rounds", str(arguments.rounds)]
            done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, check=True)
            results["files"][kind] = json.loads(done.stdout.splitlines()[-1])
            print(kind, results["files"][kind], file=sys.stderr, flush=True)
            if path != f16:
                path.unlink()
    text = "\n".join(tables(results))
    print(text)
    if arguments.write:
        page = PAGE.read_text(encoding="utf-8")
        before, after = page.split(BEGIN)[0], page.split(END)[1]
        PAGE.write_text(f"{before}{BEGIN}\n{text}\n\n{END}{after}", encoding="utf-8")
    return results


if __name__ == "__main__":
    main()
