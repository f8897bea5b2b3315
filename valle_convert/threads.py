"""How the threads of torch and llama.cpp wait for each other."""

from __future__ import annotations

import os


def wait_politely() -> None:
    """Let OpenMP threads spin for a short while only, then sleep; call it before they are loaded.

    Both libraries split every small matrix product over threads that wait for each other
    spinning, by default for so long that one other busy process on the machine makes a step of
    a small model take 250 ms instead of 1. Spinning for a 30th of that costs nothing that could
    be measured on an idle machine. Who sets one of the variables himself is left alone.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
