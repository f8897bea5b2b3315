"""Run every benchmark, one after the other. Nothing else should run on the machine meanwhile."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

BENCHMARKS = tuple(
    import_module(f"bench_{name}")
    for name in (
        "convert",
        "containers",
        "repair",
        "quantize",
        "speak",
        "start",
        "scale",
        "parallel",
        "serve",
        "codec",
        "vallex",
    )
)

if __name__ == "__main__":
    for benchmark in BENCHMARKS:
        print(f"\n{benchmark.__name__}\n")
        benchmark.main([])
