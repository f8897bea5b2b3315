"""Run every benchmark, one after the other. Nothing else should run on the machine meanwhile."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import bench_codec
import bench_containers
import bench_convert
import bench_quantize
import bench_serve
import bench_speak
import bench_vallex

if __name__ == "__main__":
    for benchmark in (
        bench_convert,
        bench_containers,
        bench_quantize,
        bench_speak,
        bench_serve,
        bench_codec,
        bench_vallex,
    ):
        print(f"\n{benchmark.__name__}\n")
        benchmark.main([])
