"""Measures which of llama.cpp's settings are fastest for a file on this machine, once.

The best setting depends on the CPU and the type: weights that are not repacked gain 25 % on one
machine and lose 25 % on another. So a few passes and steps are timed on the loaded file. A setting
that rounds more than the exact ones must cost less precision than the file's type.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np

from valle_convert.errors import EnvironmentFault
from valle_convert.llama.context import CacheType, FloatArray, Settings
from valle_convert.llama.cpu import cpu_name, usable_cores
from valle_convert.llama.library import find_library
from valle_convert.llama.probe import cache_folder, fingerprint
from valle_convert.llama.session import Session
from valle_convert.metrics import nmse

Tune = Literal["auto", "off", "again"]

VERSION = 1  # increment it when the trials change
#: Rows of a trial: as many as take about this long, but not more than a sentence has.
_SECONDS, _LEAST_ROWS, _MOST_ROWS = 0.25, 32, 512
_STEPS, _REPEATS = 6, 2
#: A setting must be this much faster than the exact one, since timings are noisy.
_GAIN = 0.97


@dataclass(frozen=True)
class Tuned:
    """Settings for passes in both directions, and for steps of one row."""

    passes: Settings
    steps: Settings


@dataclass(frozen=True)
class Trial:
    """A setting, the seconds of a pass and of a step, and whether it is exact enough."""

    settings: Settings
    seconds: tuple[float, float]
    is_exact_enough: bool


def tuned_settings(
    open_session: Callable[[Settings], Session],
    base: Settings,
    rows: FloatArray,
    *,
    rounding: float,
    about: Sequence[object],
    mode: Tune,
) -> Tuned:
    """The fastest settings for a file.

    Args:
        rows: [n, n_embd], likely inputs.
        rounding: the normalized mean square error of a weight in the file's type.
            about: what the result depends on besides the library and the CPU: type and sizes.
    """
    path = _kept_at(about, base)
    kept = None if mode == "again" else _read(path)
    if kept is None:
        kept = choose(try_settings(open_session, base, rows, rounding))
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(asdict(kept)), encoding="utf-8")
    return kept


def candidates(base: Settings) -> list[Settings]:
    """The settings to try, the exact ones first."""
    caches: list[tuple[CacheType, bool]] = [("f32", False), ("f16", False), ("f16", True)]
    return [
        replace(base, repack=repack, cache_type=cache, flash_attention=flash)
        for repack in ((True, False) if base.repack else (False,))
        for cache, flash in caches
    ]


def try_settings(
    open_session: Callable[[Settings], Session],
    base: Settings,
    rows: FloatArray,
    rounding: float,
) -> list[Trial]:
    """Time a pass and some steps with each candidate.

    A setting may change the results as much as rounding the inputs to the file's type once.
    """
    exact, *others = candidates(base)
    n_rows = _LEAST_ROWS
    with open_session(exact) as session:
        while n_rows < _MOST_ROWS and _time(session, rows, n_rows)[0][0] < _SECONDS:
            n_rows *= 2
        seconds, expected = _best(session, rows, n_rows)
        noise = np.random.default_rng(0).standard_normal(rows.shape, np.float32)
        size = np.sqrt(np.square(rows).mean(-1, keepdims=True) * np.float32(rounding))
        allowed = nmse(expected, _time(session, rows + size * noise, n_rows)[1])
    trials = [Trial(exact, seconds, is_exact_enough=True)]
    for settings in others:
        with suppress(EnvironmentFault), open_session(settings) as session:
            seconds, found = _best(session, rows, n_rows)
            trials.append(Trial(settings, seconds, nmse(expected, found) <= allowed))
    return trials


def _best(session: Session, rows: FloatArray, n: int) -> tuple[tuple[float, float], FloatArray]:
    runs = [_time(session, rows, n) for _ in range(_REPEATS)]
    return (min(run[0][0] for run in runs), min(run[0][1] for run in runs)), runs[0][1]


def _time(session: Session, rows: FloatArray, n: int) -> tuple[tuple[float, float], FloatArray]:
    """Seconds of a pass over n rows and of a step after it, and their results."""
    given = np.resize(rows, (n + _STEPS, rows.shape[1]))
    places = np.arange(n + _STEPS, dtype=np.int32)
    columns = slice(0, min(session.n_vocab, 1024))
    session.forget_all()

    def decode(part: slice, outputs: int, *, causal: bool) -> tuple[float, FloatArray]:
        wanted = np.arange(part.stop - part.start) >= part.stop - part.start - outputs
        start = time.perf_counter()
        found = session.decode(given[part], places[part], 0, wanted, causal=causal, columns=columns)
        return time.perf_counter() - start, found

    seconds, logits = decode(slice(0, n), n // 2, causal=False)
    steps = [decode(slice(n + i, n + i + 1), 1, causal=True) for i in range(_STEPS)]
    session.forget_all()
    return (seconds, median(time for time, _ in steps)), np.concatenate(
        [logits, *(found for _, found in steps)]
    )


def choose(trials: Sequence[Trial]) -> Tuned:
    exact = trials[0]
    usable = [one for one in trials if one.is_exact_enough]

    def fastest(i: int) -> Settings:
        best = min(usable, key=lambda one: one.seconds[i])
        return (best if best.seconds[i] < _GAIN * exact.seconds[i] else exact).settings

    return Tuned(fastest(0), fastest(1))


def _kept_at(about: Sequence[object], base: Settings) -> Path:
    library = find_library()
    built = fingerprint(library) if library else ""
    facts = json.dumps([VERSION, built, cpu_name(), usable_cores(), asdict(base), *about])
    return cache_folder() / f"tuned-{hashlib.sha256(facts.encode()).hexdigest()[:24]}.json"


def _read(path: Path) -> Tuned | None:
    """The stored settings; None if missing or unreadable."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return Tuned(Settings(**kept["passes"]), Settings(**kept["steps"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None
