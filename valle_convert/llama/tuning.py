"""Measures which of llama.cpp's settings are fastest for a file on this machine, once.

The best setting depends on the CPU and the type: weights that are not repacked gain 25 % on one
machine and lose 25 % on another. The two parts of a network are timed apart, since a whole sentence
would take seconds for each setting:

* the matrix products on the file itself, for a few rows: repacked or not, and how many threads;
* attention at the length of a sentence, in one random layer of the same width: the type of the
  cache, and flash attention.

Finally, steps of several sequences are timed with the settings found.

A setting that rounds more than the exact ones must cost less precision than the file's type.

On a busy machine the times mean nothing (one thread beats two): the search is given up, and nothing
is kept.
"""

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from valle_convert.llama.context import CacheType, Context, FloatArray, LlamaModel, Settings, Tune
from valle_convert.llama.cpu import busy_seconds, cpu_name, usable_cores
from valle_convert.llama.library import find_library, load_library
from valle_convert.llama.probe import cache_folder, fingerprint, prove_library
from valle_convert.metrics import nmse
from valle_convert.threads import BACKGROUND

#: Seconds of a pass over a sentence, and of a step after it.
Seconds = NDArray[np.float64]
_Way = TypeVar("_Way")

VERSION = 4  # increment it when the search changes
SENTENCE = 512  # positions
#: The searched types of the cache, each with or without flash attention; the exact one is first.
CACHES: tuple[tuple[CacheType, bool], ...] = (("f32", False), ("f16", False), ("f16", True))
_ROWS, _STEPS, _ROUNDS = 32, 4, 3
_NUMBERS = (1, 2, 4, 8)
#: Anything else must be this much faster than the exact settings or fewer sequences: timings are
#: noisy.
_GAIN = 0.97
#: The part of all cores that other processes may take during a search.
_OTHERS = 0.15


@dataclass(frozen=True)
class FileFacts:
    """What the fastest settings depend on, besides the machine: the commonest type, and sizes."""

    type: str
    n_weights: int
    n_layer: int
    n_embd: int


@dataclass(frozen=True)
class Choice:
    """The fastest settings, and their estimated seconds beside those of the exact ones."""

    settings: Settings
    seconds: float
    exact_seconds: float


@dataclass(frozen=True)
class Fastest:
    """The answer of a search."""

    file: FileFacts
    passes: Choice  # over a sentence, in both directions
    steps: Choice  # of one sequence
    #: The number of sequences whose joint step takes the least time for each.
    n_parallel: Annotated[int, msgspec.Meta(ge=1, le=_NUMBERS[-1])]


def tuned_settings(
    paths: Sequence[Path],
    file: FileFacts,
    base: Settings,
    rows: FloatArray,  # [n, n_embd], likely inputs
    rounding: float,  # the normalized mean square error of a weight in the file's type
    mode: Tune,
    others: float = _OTHERS,
) -> Fastest | None:
    """The fastest settings for a file; searched once, then kept in the cache folder.

    None if other processes take more than `others` of the machine.
    """
    machine = _machine()
    facts = msgspec.json.encode([machine, file, base])
    kept_at = cache_folder() / f"tuned-{hashlib.sha256(facts).hexdigest()[:24]}.json"
    found = None if mode == "again" else _read(kept_at, machine)
    if found is None:
        with BACKGROUND:
            answer = search(paths, base, rows, rounding, others)
        if answer is None:
            return None
        found = Fastest(file, *answer)
        with suppress(OSError):
            kept_at.parent.mkdir(parents=True, exist_ok=True)
            kept_at.write_bytes(msgspec.json.encode([machine, found]))
    return found


def kept_settings() -> list[Fastest]:
    """All answers that are kept for this library on this CPU."""
    machine = _machine()
    found = [_read(path, machine) for path in sorted(cache_folder().glob("tuned-*.json"))]
    return sorted((one for one in found if one is not None), key=lambda one: str(one.file))


def settings_words(settings: Settings) -> str:
    """The differences from the exact settings, in words."""
    words = ["flash attention"] if settings.flash_attention else []
    words += [] if settings.cache_type == "f32" else [f"{settings.cache_type} cache"]
    words += [] if settings.repack else ["not repacked"]
    words += [f"{settings.n_threads} threads"] if settings.n_threads else []
    return ", ".join(words) or "exact"


# ---------------------------------------------------------------------------------- the search


class _Neighbors:
    """Measures how much of the machine other processes take from now on."""

    def __init__(self) -> None:
        self._start, self._own, self._all = time.time(), time.process_time(), busy_seconds()

    def take(self) -> float:
        seconds = busy_seconds() - self._all - (time.process_time() - self._own)
        return seconds / (time.time() - self._start) / (os.cpu_count() or 1)


def search(
    paths: Sequence[Path], base: Settings, rows: FloatArray, rounding: float, others: float
) -> tuple[Choice, Choice, int] | None:
    """The fields of `Fastest`; None if disturbed."""
    prove_library()
    library = load_library()
    rows = np.resize(rows, (_ROWS + _STEPS, rows.shape[1]))
    with ExitStack() as held:
        models = {
            repack: held.enter_context(
                LlamaModel(
                    library,
                    paths[0],
                    further_parts=paths[1:],
                    settings=replace(base, repack=repack),
                )
            )
            for repack in ((True, False) if base.repack else (False,))
        }
        neighbors = _Neighbors()
        products = _time_products(models, base, rows)
        if neighbors.take() > others:
            return None
        attention = _time_attention(models[base.repack], base)
        times = {
            replace(one, cache_type=cache, flash_attention=flash): seconds + more
            for one, seconds in products.items()
            for (cache, flash), more in attention.items()
        }
        if neighbors.take() > others:
            return None
        is_exact_enough = exactness(models, next(iter(times)), rows, rounding)
        passes, steps = (choose(times, which, is_exact_enough) for which in (0, 1))
        neighbors = _Neighbors()
        how = steps.settings
        n_parallel = fastest_number(_time_together(models[how.repack], how, rows))
        return None if neighbors.take() > others else (passes, steps, n_parallel)


def exactness(
    models: Mapping[bool, LlamaModel], exact: Settings, rows: FloatArray, rounding: float
) -> Callable[[Settings], bool]:
    """Whether settings change the logits less than rounding the inputs to the file's type does."""

    def logits(settings: Settings, inputs: FloatArray = rows) -> FloatArray:
        with _open(models[settings.repack], settings, len(inputs)) as context:
            return _run(context, inputs)[1]

    expected = logits(exact)
    size = np.sqrt(np.square(rows).mean(-1, keepdims=True) * np.float32(rounding))
    noise = np.random.default_rng(0).standard_normal(rows.shape, np.float32)
    allowed = nmse(expected, logits(exact, rows + size * noise))
    return lambda settings: nmse(expected, logits(settings)) <= allowed


def choose(
    times: Mapping[Settings, Seconds], which: int, is_exact_enough: Callable[[Settings], bool]
) -> Choice:
    """The fastest settings that are exact enough and clearly faster than the first, exact ones."""
    exact, exact_seconds = next((one, float(seconds[which])) for one, seconds in times.items())
    for settings in sorted(times, key=lambda one: float(times[one][which])):
        seconds = float(times[settings][which])
        if seconds >= _GAIN * exact_seconds:
            break
        if is_exact_enough(settings):
            return Choice(settings, seconds, exact_seconds)
    return Choice(exact, exact_seconds, exact_seconds)


def _time_products(
    models: Mapping[bool, LlamaModel], base: Settings, rows: FloatArray
) -> dict[Settings, Seconds]:
    """Times without the attention to a sentence, by settings; the exact ones come first.

    Half the threads are tried as long as they are faster: two threads of one core gain nothing.
    """
    found: dict[Settings, Seconds] = {}
    for n_threads in _halves(base.n_threads or usable_cores()):
        both = [replace(base, repack=repack, n_threads=n_threads) for repack in models]
        fastest = np.min([*found.values(), np.full(2, np.inf)], axis=0)
        with ExitStack() as held:
            contexts = {
                how: held.enter_context(_open(models[how.repack], how, len(rows))) for how in both
            }
            found |= _best_of(contexts, rows, _ROUNDS if not found else 1)
        if base.n_threads or not np.any(np.min([found[how] for how in both], axis=0) < fastest):
            break
    return {how: seconds * [SENTENCE / _ROWS, 1] for how, seconds in found.items()}


def fastest_number(seconds: Mapping[int, float]) -> int:
    """The number of sequences with the least time for each, given the seconds of joint steps."""
    best = 1
    for n in sorted(seconds):
        if seconds[n] / n < _GAIN * seconds[best] / best:
            best = n
    return best


def _time_together(model: LlamaModel, settings: Settings, rows: FloatArray) -> dict[int, float]:
    """Seconds of a joint step by the number of sequences, at their start; all take turns."""
    found: dict[int, list[float]] = {n: [] for n in _NUMBERS}
    with ExitStack() as held:
        contexts = {n: held.enter_context(_open(model, settings, _STEPS, n)) for n in _NUMBERS}
        for place in np.arange(_STEPS, dtype=np.int32):
            for n, context in contexts.items():
                ids, start = np.arange(n, dtype=np.int32), time.perf_counter()
                context.decode(rows[:n], np.repeat(place, n), ids, causal=True)
                found[n].append(time.perf_counter() - start)
    return {n: min(seconds) for n, seconds in found.items()}


def _halves(n: int) -> Iterator[int]:
    while n:
        yield n
        n //= 2


def _time_attention(model: LlamaModel, base: Settings) -> dict[tuple[CacheType, bool], Seconds]:
    """What each kind of attention takes longer than the exact one, in all layers."""
    from valle_convert.llama.tiny import GemmaShape, random_gemma, write_gemma

    api = model.library.api
    heads = api.llama_model_n_head(model.handle), api.llama_model_n_head_kv(model.handle)
    shape = GemmaShape(model.n_embd, *heads, n_layer=1, n_ff=32, n_vocab=32)
    rows = np.random.default_rng(0).standard_normal((SENTENCE + _STEPS, model.n_embd), np.float32)
    with ExitStack() as held:
        folder = held.enter_context(tempfile.TemporaryDirectory())
        path = Path(folder) / "layer.gguf"
        write_gemma(path, shape, random_gemma(shape, seed=0))
        layer = held.enter_context(LlamaModel(model.library, path, settings=base))
        kinds = {
            (cache, flash): replace(base, cache_type=cache, flash_attention=flash)
            for cache, flash in CACHES
        }
        contexts = {
            kind: held.enter_context(_open(layer, how, len(rows))) for kind, how in kinds.items()
        }
        found = _best_of(contexts, rows, _ROUNDS)
    exact = found[CACHES[0]]
    return {kind: (seconds - exact) * model.n_layer for kind, seconds in found.items()}


def _open(model: LlamaModel, settings: Settings, n: int, n_seq: int = 1) -> Context:
    threads, rows = settings.n_threads or usable_cores(), max(n, n_seq)
    return Context(model, n_ctx=n, n_ubatch=rows, n_seq=n_seq, n_threads=threads, settings=settings)


def _best_of(
    contexts: Mapping[_Way, Context], rows: FloatArray, rounds: int
) -> dict[_Way, Seconds]:
    """The best times of some rounds, in which all take turns, so that all meet the same noise."""
    runs = [{way: _run(one, rows)[0] for way, one in contexts.items()} for _ in range(rounds)]
    return {way: np.min([run[way] for run in runs], axis=0) for way in contexts}


def _run(context: Context, rows: FloatArray) -> tuple[Seconds, FloatArray]:
    """A pass over all rows but the last ones, steps over those, and all their logits."""
    n = len(rows) - _STEPS
    places, ids = np.arange(len(rows), dtype=np.int32), np.zeros(len(rows), np.int32)
    wanted = places >= n // 2
    context.clear()

    def decode(part: slice, *, causal: bool) -> tuple[float, FloatArray]:
        start = time.perf_counter()
        found = context.decode(rows[part], places[part], ids[part], wanted[part], causal=causal)
        return time.perf_counter() - start, found.copy()

    seconds, logits = decode(slice(n), causal=False)
    steps = [decode(slice(n + i, n + i + 1), causal=True) for i in range(_STEPS)]
    logits = np.concatenate([logits, *(found for _, found in steps)])
    return np.array([seconds, min(time for time, _ in steps)]), logits


# ------------------------------------------------------------------------------------- keeping


def _machine() -> list[object]:
    """What an answer depends on besides the file."""
    library = find_library()
    return [VERSION, fingerprint(library) if library else "", cpu_name(), usable_cores()]


def _read(path: Path, machine: list[object]) -> Fastest | None:
    """A kept answer; None if it is missing, unreadable, or of another machine."""
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=tuple[list[Any], Fastest])
    except (OSError, ValueError):
        return None
    return kept[1] if kept[0] == machine else None
