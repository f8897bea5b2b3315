"""How good and how fast a file is: the same passes on it and on what it is held against.

The reference is the checkpoint in PyTorch, or, where there is none, the file that was
quantized, on the same llama.cpp. Its logits are computed once and kept (a few megabytes).

    quality   every head and task over the utterances: divergence of the distributions
    greedy    the codes of a decode without randomness, against the reference's
    speed     milliseconds of one AR step and one NAR pass
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np
from numpy.typing import NDArray

from valle_convert.decode import GREEDY, ArOptions, NarOptions, decode_ar, decode_nar
from valle_convert.families.v5.trials import Case, Utterance, cases, run_case
from valle_convert.metrics import kl_divergence
from valle_convert.model.inputs import Condition, assemble, speech_segments
from valle_convert.network.protocol import Network
from valle_convert.progress import Advance

ALL = "all"
GREEDY_FRAMES = 32
# A request of everyday size: four seconds of EnCodec after three seconds of voice.
_SPEED_PHONEMES, _SPEED_PROMPT, _SPEED_FRAMES = 60, 225, 300
_SPEED_STEPS, _SPEED_PASSES = 16, 3


@dataclass(frozen=True)
class Quality:
    """How far some predictions are from those that are right.

    Attributes:
        n_rows: predictions compared.
        kl_mean, kl_p99, kl_max: Kullback-Leibler divergence in nats a prediction.
        nmse: squared error of the logits over the energy of the right ones.
        best_code: part of the predictions whose most likely code is the same.
    """

    n_rows: int
    kl_mean: float
    kl_p99: float
    kl_max: float
    nmse: float
    best_code: float


@dataclass(frozen=True)
class Greedy:
    """Codes of a decode without randomness that stay equal.

    Attributes:
        ar_frames: frames that the reference's AR spoke, over all utterances.
        ar_equal: part of them that are the same.
        ar_before_first: mean number of frames before the first difference.
        nar_codes: codes that the NAR levels gave to these frames.
        nar_equal: part of them that are the same; each level reads those before it.
    """

    ar_frames: int
    ar_equal: float
    ar_before_first: float
    nar_codes: int
    nar_equal: float


@dataclass(frozen=True)
class Speed:
    """Milliseconds, medians.

    Attributes:
        ar_step: one code of the AR after `n_positions` elements.
        nar_pass: one NAR pass over `n_positions` elements.
    """

    ar_step: float
    nar_pass: float
    n_positions: int


@dataclass(frozen=True)
class Measured:
    """Everything about one file; `quality` by head, and over all under `all`."""

    quality: dict[str, Quality]
    greedy: Greedy
    speed: Speed


@dataclass(frozen=True, eq=False)
class Expected:
    """What the files are held against, computed once.

    Attributes:
        name: in words.
        cases: every pass with the logits that are right.
        conditions: what the greedy decodes speak from.
        spoken: their codes [frames, levels]; the AR's level 0 and the NAR's levels over it.
    """

    name: str
    cases: tuple[tuple[Case, NDArray[np.float32]], ...]
    conditions: tuple[Condition, ...]
    spoken: tuple[NDArray[np.int32], ...]


def run_reference(
    network: Network, name: str, utterances: Iterable[Utterance], advance: Advance
) -> Expected:
    """Run the reference over the utterances; `advance` is called after each."""
    done: list[tuple[Case, NDArray[np.float32]]] = []
    conditions: list[Condition] = []
    spoken: list[NDArray[np.int32]] = []
    for utterance in utterances:
        done += [(case, run_case(network, case)) for case in cases(network.model, utterance)]
        condition = utterance.condition
        conditions.append(condition)
        spoken.append(_finish(network, condition, _speak(network, condition)))
        advance(1)
    return Expected(name, tuple(done), tuple(conditions), tuple(spoken))


def measure(network: Network, expected: Expected, advance: Advance) -> Measured:
    """Hold a network against the reference; `advance` is called after each pass."""
    tallies: dict[str, list[Rows]] = {}
    for case, logits in expected.cases:
        tallies.setdefault(case.head, []).append(compare_rows(logits, run_case(network, case)))
        advance(1)
    quality = {ALL: quality_of(list(chain.from_iterable(tallies.values())))}
    quality |= {head: quality_of(rows) for head, rows in tallies.items()}
    return Measured(quality, measure_greedy(network, expected), measure_speed(network))


def measure_greedy(network: Network, expected: Expected) -> Greedy:
    """Speak the same, without randomness; the NAR finishes what the *reference's* AR said."""
    n_frames = n_equal = n_before = n_codes = n_codes_equal = 0
    for condition, spoken in zip(expected.conditions, expected.spoken, strict=True):
        frames = len(spoken)
        found = _speak(network, condition)[:frames]
        same = np.zeros(frames, bool)
        same[: len(found)] = found == spoken[: len(found), 0]
        n_frames += frames
        n_equal += int(same.sum())
        n_before += frames if same.all() else int(same.argmin())
        finished = _finish(network, condition, spoken[:, 0])
        n_codes += finished[:, 1:].size
        n_codes_equal += int((finished[:, 1:] == spoken[:, 1:]).sum())
    return Greedy(
        ar_frames=n_frames,
        ar_equal=n_equal / n_frames if n_frames else 1.0,
        ar_before_first=n_before / len(expected.spoken) if expected.spoken else 0.0,
        nar_codes=n_codes,
        nar_equal=n_codes_equal / n_codes if n_codes else 1.0,
    )


def measure_speed(network: Network) -> Speed:
    """Time an AR step and a NAR pass on a request of everyday size."""
    model = network.model
    draw = np.random.default_rng(0)
    n_codes, n_levels = model.config.codebook_size, model.config.n_levels
    condition = Condition(
        phonemes=draw.integers(4, model.table("phonemes").n_rows, _SPEED_PHONEMES),
        language=0 if model.has_table("language") else None,
        prompt=draw.integers(0, n_codes, (_SPEED_PROMPT, n_levels)),
    )
    response = draw.integers(0, n_codes, (_SPEED_FRAMES, n_levels))
    spoken = assemble(model, speech_segments(model, condition, 0, response[:, 0]), network.look_up)
    passed = assemble(model, speech_segments(model, condition, 1, response), network.look_up)
    network.reset()
    first = len(spoken) - _SPEED_STEPS
    edges = [0, spoken.last, first, *range(first + 1, len(spoken) + 1)]
    steps: list[float] = []
    for start, stop in pairwise(edges):
        begin = time.perf_counter()
        network.step(
            spoken.embeddings[start:stop],
            spoken.positions[start:stop],
            head="ar",
            outputs=slice(-1, None),
        )
        steps.append(time.perf_counter() - begin)
    passes: list[float] = []
    for _ in range(_SPEED_PASSES):
        network.reset()
        begin = time.perf_counter()
        network.step(
            passed.embeddings, passed.positions, head="nar.1", outputs=slice(passed.last, None)
        )
        passes.append(time.perf_counter() - begin)
    return Speed(
        ar_step=1000 * statistics.median(steps[-_SPEED_STEPS:]),
        nar_pass=1000 * statistics.median(passes),
        n_positions=len(passed),
    )


@dataclass(frozen=True, eq=False)
class Rows:
    """The comparison of one case, prediction by prediction."""

    divergences: NDArray[np.float64]
    same: NDArray[np.bool_]
    error: float
    energy: float


def compare_rows(expected: NDArray[np.float32], found: NDArray[np.float32]) -> Rows:
    """Hold logits against those that are right, both [predictions, codes]."""
    return Rows(
        divergences=kl_divergence(expected, found),
        same=expected.argmax(-1) == found.argmax(-1),
        error=float(np.square(found.astype(np.float64) - expected).sum()),
        energy=float(np.square(expected, dtype=np.float64).sum()),
    )


def quality_of(rows: Sequence[Rows]) -> Quality:
    """The quality over several cases."""
    divergences = np.concatenate([one.divergences for one in rows])
    energy = sum(one.energy for one in rows)
    return Quality(
        n_rows=len(divergences),
        kl_mean=float(divergences.mean()),
        kl_p99=float(np.quantile(divergences, 0.99)),
        kl_max=float(divergences.max()),
        nmse=sum(one.error for one in rows) / energy if energy else 0.0,
        best_code=float(np.concatenate([one.same for one in rows]).mean()),
    )


def _speak(network: Network, condition: Condition) -> NDArray[np.int32]:
    options = ArOptions(sampling=GREEDY, max_frames=GREEDY_FRAMES)
    return decode_ar(network, condition, options, np.random.default_rng(0)).codes


def _finish(
    network: Network, condition: Condition, level_0: NDArray[np.int32]
) -> NDArray[np.int32]:
    rng = np.random.default_rng(0)
    return decode_nar(network, condition, level_0, NarOptions(sampling=GREEDY), rng).codes
