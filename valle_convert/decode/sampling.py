"""From logits to a choice: penalties, filters, temperature, and a draw.

Every function is pure and works on logits [rows, codes]; excluded codes have a logit of minus
infinity. The only randomness is the given numpy generator, so a seed gives the same codes on the
same logits.

    logits -> penalties (AR only) -> min-p -> top-k -> top-p -> top-n-sigma -> temperature -> draw

Every filter keeps the most likely code of each row, so temperature 0 is the argmax of the
(penalized) logits for all other options.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from valle_convert.decode.control import check_range
from valle_convert.model.spec import Codes

Logits = NDArray[np.float32]  # [rows, codes]

NEVER = np.float32(-np.inf)


@dataclass(frozen=True)
class SamplingOptions:
    """How codes are drawn; names and defaults are the training project's."""

    temperature: float = 1.0  # 0 takes the most likely code; 1 draws by the model's probabilities
    top_k: int = 0  # keep that many codes (and those as likely as the last of them); 0 keeps all
    top_p: float = 1.0  # keep the fewest most likely codes with this total probability
    min_p: float = 0.0  # keep codes at least this likely, relative to the most likely one
    #: Keep logits within this many standard deviations of the highest; 0 keeps all.
    top_no: float = 0.0

    def __post_init__(self) -> None:
        check_range("temperature", self.temperature, 0.0, math.inf)
        check_range("top_k", self.top_k, 0, math.inf)
        check_range("top_p", self.top_p, 0.0, 1.0)
        check_range("min_p", self.min_p, 0.0, 1.0)
        check_range("top_no", self.top_no, 0.0, math.inf)


GREEDY = SamplingOptions(temperature=0.0)


def sample(logits: Logits, options: SamplingOptions, rng: np.random.Generator) -> Codes:
    """Filter and draw one code a row, [rows, codes] -> [rows]; penalties come before."""
    return draw(filtered(logits, options), options.temperature, rng)


def filtered(logits: Logits, options: SamplingOptions) -> Logits:
    """The logits after all filters, before the temperature, [rows, codes] -> [rows, codes]."""
    logits = keep_min_p(logits, options.min_p)
    logits = keep_top_k(logits, options.top_k)
    logits = keep_top_p(logits, options.top_p)
    return keep_top_n_sigma(logits, options.top_no)


def draw(logits: Logits, temperature: float, rng: np.random.Generator) -> Codes:
    """One code a row, in proportion to exp(logit / temperature); at 0 the first highest."""
    if temperature > 0:
        # The argmax of logits with Gumbel noise is a code with its probability. The maximum is
        # subtracted first, so that no temperature, however small, overflows into a tie.
        with np.errstate(over="ignore"):
            scaled = (logits - logits.max(axis=-1, keepdims=True)).astype(np.float64) / temperature
        chosen = np.argmax(scaled + rng.gumbel(size=logits.shape), axis=-1)
    else:
        chosen = np.argmax(logits, axis=-1)
    return np.asarray(chosen, np.int32)


def probabilities(logits: Logits) -> NDArray[np.float64]:
    """Softmax over the codes of each row."""
    shifted = np.exp((logits - logits.max(axis=-1, keepdims=True)).astype(np.float64))
    result: NDArray[np.float64] = shifted / shifted.sum(axis=-1, keepdims=True)
    return result


def keep_min_p(logits: Logits, min_p: float) -> Logits:
    """Exclude codes less likely than `min_p` times the most likely one of the row."""
    if min_p <= 0:
        return logits
    return np.where(logits < logits.max(axis=-1, keepdims=True) + math.log(min_p), NEVER, logits)


def keep_top_k(logits: Logits, top_k: int) -> Logits:
    """Exclude codes less likely than the k-th of the row; ties with it stay."""
    if not 0 < top_k < logits.shape[-1]:
        return logits
    last = np.partition(logits, -top_k, axis=-1)[..., -top_k, None]
    return np.where(logits < last, NEVER, logits)


def keep_top_p(logits: Logits, top_p: float) -> Logits:
    """Keep the fewest most likely codes of each row whose probabilities reach `top_p`."""
    if top_p >= 1:
        return logits
    order = np.argsort(-logits, axis=-1, kind="stable")
    likely_first = np.take_along_axis(probabilities(logits), order, axis=-1)
    before = np.cumsum(likely_first, axis=-1) - likely_first  # total of the more likely codes
    outside = before >= top_p
    outside[..., 0] = False
    kept = np.take_along_axis(logits, order, axis=-1)
    result = np.empty_like(logits)
    np.put_along_axis(result, order, np.where(outside, NEVER, kept), axis=-1)
    return result


def keep_top_n_sigma(logits: Logits, n: float) -> Logits:
    """Exclude logits more than n standard deviations below the highest of the row.

    The deviation is that of the logits left by earlier filters, so the filter is the same at every
    temperature.
    """
    if n <= 0:
        return logits
    left = np.isfinite(logits)
    count = left.sum(axis=-1, keepdims=True)
    values = np.where(left, logits, 0).astype(np.float64)
    mean = values.sum(axis=-1, keepdims=True) / count
    squares = np.where(left, (values - mean) ** 2, 0).sum(axis=-1, keepdims=True)
    deviation = np.sqrt(squares / np.maximum(count - 1, 1))
    return np.where(logits < logits.max(axis=-1, keepdims=True) - n * deviation, NEVER, logits)


def penalize_repetition(logits: Logits, previous: Codes, penalty: float, decay: float) -> Logits:
    """Weaken earlier codes by `penalty * distance ** decay`.

    A code counts once, at its latest place; the distance of the previous code is 1. A positive
    logit is divided, a negative one multiplied, so that the code never gains.
    """
    if penalty == 1 or not len(previous):
        return logits
    from_latest = previous[::-1]
    codes, places = np.unique(from_latest, return_index=True)
    return _weaken(logits, codes, penalty, places + 1.0, decay)


def penalize_length(logits: Logits, stop: int, length: int, factor: float) -> Logits:
    """Weaken the stop code by `length ** factor`; `length` counts from 1."""
    if factor == 0:
        return logits
    return _weaken(logits, np.array([stop]), 1.0, np.array([float(length)]), factor)


def _weaken(
    logits: Logits,
    codes: NDArray[np.integer],
    factor: float,
    distances: NDArray[np.floating],
    power: float,
) -> Logits:
    """Weaken codes by `factor * distance ** power`, which may be infinite."""
    result = logits.copy()
    there = logits[..., codes]
    single, double = np.finfo(np.float32), np.finfo(np.float64)
    with np.errstate(over="ignore", divide="ignore"):
        strength = np.clip(factor * np.power(distances, power), double.tiny, double.max)
        weakened = np.where(there > 0, there / strength, there * strength)
    result[..., codes] = np.clip(weakened, single.min, single.max)
    return result
