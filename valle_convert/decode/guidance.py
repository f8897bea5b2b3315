"""Guidance: push the logits away from those without text and voice."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from valle_convert.decode.options import DecodeOptions
from valle_convert.decode.sampling import Logits


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
