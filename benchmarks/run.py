"""Run every benchmark, one after the other. Nothing else should run on the machine meanwhile."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

FILES = sorted(Path(__file__).parent.glob("bench_*.py"))

if __name__ == "__main__":
    for path in FILES:
        print(f"\n{path.stem}\n")
        import_module(path.stem).main([])
