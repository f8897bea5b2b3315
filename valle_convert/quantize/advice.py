"""The recommended file, for the report of a run and for the card of a folder.

It is right (it holds the checkpoint's weights), near the reference, and the smallest such file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from valle_convert.wording import plural

if TYPE_CHECKING:
    from valle_convert.quantize.report import FileReport

#: With fewer different texts nothing is recommended: chance decides between neighbouring types.
MIN_TEXTS = 8
#: The recommended file has at most this mean KL divergence from the reference, in nats.
NEAR_KL = 1e-2
#: By the mean KL divergence in nats: a word for it, and what such a file is good for. At the first
#: limit one in hundreds of best codes changes; at the last, a tenth (docs/quantize-measured.md).
_NEARNESS: tuple[tuple[float, str, str], ...] = (
    (1e-3, "very close", "as good as the original"),
    (NEAR_KL, "close", "everyday use"),
    (1e-1, "changed", "if memory is short; speech varies from the original's"),
    (math.inf, "far", "experiments only"),
)


def nearness(kl: float) -> str:
    """How near a file is to the reference, in a word or two; not-a-number is far."""
    return next((word for limit, word, _ in _NEARNESS if kl <= limit), _NEARNESS[-1][1])


def use_of(kl: float) -> str:
    return next((use for limit, _, use in _NEARNESS if kl <= limit), _NEARNESS[-1][2])


@dataclass(frozen=True)
class Advice:
    """The recommended file and the reason; `take` is None if nothing is recommended."""

    take: FileReport | None
    sentence: str


def advise(files: Sequence[FileReport], n_texts: int) -> Advice:
    """Recommend the smallest file that passes and is near the reference, or say why none is."""
    measured = [one for one in files if one.kl is not None and not math.isnan(one.kl)]
    passing = [one for one in measured if not one.faults]
    near = [one for one in passing if one.kl is not None and one.kl <= NEAR_KL]
    taken = [one for one in near if not one.beyond_noise]
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
            f"{nearest.kind}, with {nearest.kl:.2g}"
        )
    if not taken:
        return _none(f"listening told every file within {NEAR_KL:g} nats of the reference from F16")
    best = min(taken, key=lambda one: one.n_bytes)
    heard = any(one.beyond_noise is not None for one in files)
    noise = " that listening does not tell from F16" if heard else ""
    return Advice(
        best,
        f"Take {best.kind} ({best.n_bytes / 2**20:,.1f} MiB): the smallest file within "
        f"{NEAR_KL:g} nats of the reference{noise} (KL {best.kl:.2g}, top-1 agreement "
        f"{best.top_1:.1%}, measured over {n_texts} different texts).",
    )


def _none(why: str) -> Advice:
    return Advice(None, f"No file is recommended: {why}.")
