"""From logits to a choice: guidance, penalties, filters, temperature, and a draw.

Every function is pure and works on logits [rows, codes]; excluded codes have a logit of minus
infinity. The only randomness is the given numpy generator, so a seed gives the same codes on the
same logits.

    logits -> guidance -> penalties (AR only)
        -> min-p -> top-k -> top-p -> top-n-sigma -> temperature -> draw

Every filter keeps the most likely code of each row, so temperature 0 is the argmax of the
(penalized) logits for all other options.
"""

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from valle_convert.decode.options import DecodeOptions, SamplingOptions
from valle_convert.model.spec import Codes

Logits = NDArray[np.float32]  # [rows, codes]

NEVER = np.float32(-np.inf)


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


def guided(found: Iterable[Logits], options: DecodeOptions) -> Logits:
    """The logits of a condition, guided by those of the null condition if there are any."""
    full, *null = found
    if not null:
        return full
    return guide(full, null[0], options.guidance_strength, options.guidance_rescale)


def guide(full: Logits, null: Logits, strength: float, rescale: float) -> Logits:
    """Combine a block of logits with those of the null condition, [rows, codes] each.

    null + (full - null) * strength, its standard deviation over the whole block brought
    towards that of `full` by `rescale`. Strength 0 gives the null condition's logits.
    """
    guided = null + (full - null) * np.float32(strength)
    spread = float(guided.std(ddof=1, dtype=np.float64))
    if rescale == 0 or spread == 0:
        return guided
    ratio = float(full.std(ddof=1, dtype=np.float64)) / spread
    return guided * np.float32(rescale * ratio + (1 - rescale))


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
