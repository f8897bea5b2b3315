"""Guidance: push the logits away from those without text and voice."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from valle_convert.decode.control import check_range
from valle_convert.decode.sampling import Logits


@dataclass(frozen=True)
class Guidance:
    """The strength of guidance."""

    #: 0 is off and costs nothing; otherwise every pass is run a second time, for the null
    #: condition.
    cfg_strength: float = 0.0
    #: How far (0 to 1) the spread of the guided logits, which grows with the strength, is brought
    #: back to that of the model's own.
    cfg_rescale: float = 0.75

    def __post_init__(self) -> None:
        check_range("guidance_strength", self.cfg_strength, 0.0, math.inf)
        check_range("guidance_rescale", self.cfg_rescale, 0.0, 1.0)

    @property
    def is_on(self) -> bool:
        """Whether the null condition is needed."""
        return self.cfg_strength > 0


def guided(found: Iterable[Logits], guidance: Guidance) -> Logits:
    """The logits of a condition, guided by those of the null condition if there are any."""
    full, *null = found
    if not null:
        return full
    return guide(full, null[0], guidance.cfg_strength, guidance.cfg_rescale)


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
