"""Which file to take: one rule for the report of a run and for the card of a folder.

Whether a file is right (it holds what it says) is one question, how near it comes to the reference
another. The file to take is right, near, and the smallest of those.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from valle_convert.wording import plural

#: From fewer different texts nothing is recommended: chance decides between neighbouring types.
MIN_TEXTS = 8
#: A file that is taken has at most this mean KL divergence from the reference, in nats.
NEAR_KL = 1e-2
#: By the mean KL divergence in nats: a word for it, and what such a file is good for. At the first
#: limit one in hundreds of best codes changes; at the last, a tenth (docs/quantize-measured.md).
_NEARNESS: tuple[tuple[float, str, str], ...] = (
    (1e-3, "very close", "as good as the original"),
    (NEAR_KL, "close", "everyday use"),
    (1e-1, "changed", "where memory is short; other takes than the original's"),
    (math.inf, "far", "experiments only"),
)


def nearness(kl: float) -> str:
    """How near a file is to the reference, in a word or two; not-a-number is far."""
    return next((word for limit, word, _ in _NEARNESS if kl <= limit), _NEARNESS[-1][1])


def use_of(kl: float) -> str:
    return next((use for limit, _, use in _NEARNESS if kl <= limit), _NEARNESS[-1][2])


@dataclass(frozen=True)
class Choice:
    """A file that could be taken.

    Attributes:
        kl: mean divergence from the reference in nats; None where it was not measured.
        top_1: part of the predictions whose most likely code is the reference's; likewise.
        passes: it is not wrong, and beyond no limit.
    """

    name: str
    n_bytes: int
    kl: float | None
    top_1: float | None
    passes: bool
    is_heard_apart: bool = False


@dataclass(frozen=True)
class Advice:
    """What to take and why, in a sentence; `take` is None where nothing is recommended."""

    take: Choice | None
    sentence: str


def advise(choices: Sequence[Choice], n_texts: int, *, heard: bool) -> Advice:
    """Recommend the smallest file that passes and is near the reference, or say why none is."""
    measured = [one for one in choices if one.kl is not None and not math.isnan(one.kl)]
    passing = [one for one in measured if one.passes]
    near = [one for one in passing if one.kl is not None and one.kl <= NEAR_KL]
    taken = [one for one in near if not one.is_heard_apart]
    if not measured:
        return _none("no file was measured")
    if n_texts < MIN_TEXTS:
        return _none(
            f"files were measured over {plural(n_texts, 'different text')}, and fewer than "
            f"{MIN_TEXTS} do not tell types apart"
        )
    if not passing:
        return _none("no file that was measured passed")
    if not near:
        nearest = min(passing, key=lambda one: one.kl or 0.0)
        return _none(
            f"no file that passed is within {NEAR_KL:g} nats of the reference; the nearest is "
            f"{nearest.name}, with {nearest.kl:.2g}"
        )
    if not taken:
        return _none(f"listening told every file within {NEAR_KL:g} nats of the reference from F16")
    best = min(taken, key=lambda one: one.n_bytes)
    same = "" if best.top_1 is None else f", top-1 agreement {best.top_1:.1%}"
    noise = " that listening does not tell from F16" if heard else ""
    return Advice(
        best,
        f"Take {best.name} ({best.n_bytes / 2**20:,.1f} MiB): the smallest file within "
        f"{NEAR_KL:g} nats of the reference{noise} (KL {best.kl:.2g}{same}, measured over "
        f"{n_texts} different texts).",
    )


def _none(why: str) -> Advice:
    return Advice(None, f"No file is recommended: {why}.")
