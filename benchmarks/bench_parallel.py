"""Sentences side by side: an AR step of 1, 2, 4 and 8 sequences, beside bare llama.cpp.

    python benchmarks/bench_parallel.py [--types F16,Q8_0] [--steps 30] [--folder DIR] [--write]

On the production-size random model (12 x 1024): sentences are decoded in a `Batch`, sampling
included, and every step is followed by a bare `llama_decode` of one token for each of as many
sequences at the same depth, so that both meet the same noise. "Over one by one" is codes a second
over those of one sentence at a time. `--write` writes docs/parallel.csv.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from bench_speak import DEPTH, LENGTH_PENALTY, Bare, condition_of
from shared import DOCS, in_own_process, make_file, make_source, options, print_rows

from valle_convert.decode.ar import append_codes, ar_steps
from valle_convert.decode.batch import Batch
from valle_convert.decode.options import DecodeOptions
from valle_convert.families.bundle import open_bundle
from valle_convert.llama.context import Settings
from valle_convert.llama.cpu import cpu_name

CSV = DOCS / "parallel.csv"
NUMBERS = (1, 2, 4, 8)


class BareSequences(Bare):
    """llama.cpp as its own programs use it: a token for each sequence, all logits."""

    def __init__(self, path: Path, n: int, n_threads: int) -> None:
        super().__init__(path, n, n_threads)
        self._batch = self._api.llama_batch_init(DEPTH, 0, 1)
        self._place = DEPTH
        for sequence in range(n):
            self._add([(sequence, place) for place in range(DEPTH)])
        self._n = n

    def close(self) -> None:
        self._api.llama_batch_free(self._batch)
        super().close()

    def step(self) -> None:
        self._add([(sequence, self._place) for sequence in range(self._n)])
        self._place += 1

    def _add(self, given: Sequence[tuple[int, int]]) -> None:
        batch = self._batch
        batch.n_tokens = len(given)
        for i, (sequence, place) in enumerate(given):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = 5 + i, place, 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = ctypes.c_int8(place >= DEPTH)
        self._decode(batch)


def measure(path: Path, n_threads: int, n_steps: int) -> dict[int, tuple[float, float]]:
    """Milliseconds of a step by the number of sequences: ours, and bare llama.cpp's."""
    bundle = open_bundle(path)
    options = DecodeOptions(length_penalty=LENGTH_PENALTY)
    found = {}
    for n in NUMBERS:
        with (
            bundle.family.open(
                bundle, settings=Settings(n_threads=n_threads, n_parallel=n)
            ) as network,
            BareSequences(path, n, n_threads) as bare,
        ):
            batch = Batch(partial(append_codes, network), n)
            condition = condition_of(network.model)
            for i in range(n):
                rng = np.random.default_rng(i)
                batch.add(ar_steps(network, condition, options, rng, max_frames=n_steps + 2))
            batch.step()
            bare.step()
            pairs = [(_ms(batch.step), _ms(bare.step)) for _ in range(n_steps)]
            found[n] = median(a for a, _ in pairs), median(b for _, b in pairs)
    return found


def _ms(run: Any) -> float:  # noqa: ANN401 - a function
    begin = time.perf_counter()
    run()
    return (time.perf_counter() - begin) * 1e3


def table(files: dict[str, dict[int, tuple[float, float]]]) -> Iterator[tuple[str, ...]]:
    yield ("type", "sequences", "a step, ms", "bare llama.cpp", "ratio", "over one by one")
    for kind, steps in files.items():
        for n, (ours, bare) in steps.items():
            numbers = (f"{ours:.1f}", f"{bare:.1f}", f"{ours / bare:.2f}")
            yield (kind, str(n), *numbers, f"{n * steps[1][0] / ours:.2f}")


def main(argv: Sequence[str] | None = None) -> None:
    load, files, types = os.getloadavg()[0], {}, "F16,Q8_0,Q4_K_M"
    n_threads = len(os.sched_getaffinity(0))
    with options(__doc__, argv, types=types, steps=30, threads=n_threads, write=False) as given:
        checkpoint, f16 = make_source(given.folder)
        for kind in given.types.split(","):
            path = make_file(checkpoint, f16, kind)
            files[kind] = in_own_process(measure, path, given.threads, given.steps)
            print(kind, files[kind], file=sys.stderr, flush=True)
    print(f"{cpu_name()}, {given.threads} threads, load {load:.1f}")
    print_rows(table(files), CSV if given.write else None)


if __name__ == "__main__":
    main()
