"""Levels 1 and above, all frames of a level in one pass, in place.

In: level 0 [frames]. Out: all levels [frames, levels].
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from valle_convert.decode.causal import run_pass
from valle_convert.decode.control import End, ShouldStop, never
from valle_convert.decode.guidance import Guidance, guide
from valle_convert.decode.sampling import GREEDY, SamplingOptions, sample
from valle_convert.model.inputs import Condition, speech_segments
from valle_convert.model.spec import Codes
from valle_convert.network.protocol import Network
from valle_convert.progress import Progress, silent


@dataclass(frozen=True)
class NarOptions:
    """Options of decoding the levels above 0.

    Attributes:
        sampling: the most likely code by default; higher temperatures sound noisy.
        guidance: off by default; it doubles the time.
    """

    sampling: SamplingOptions = GREEDY
    guidance: Guidance = field(default_factory=Guidance)


@dataclass(frozen=True, eq=False)
class NarResult:
    """Codes [frames, levels]; if interrupted, the complete levels."""

    codes: Codes
    end: End


def decode_nar(
    network: Network,
    condition: Condition,
    level_0: Codes,
    options: NarOptions,
    rng: np.random.Generator,
    *,
    prefix: Codes | None = None,
    progress: Progress = silent,
    should_stop: ShouldStop = never,
) -> NarResult:
    """Decode the levels above 0 of a response.

    Args:
        level_0: [frames].
            prefix: the speech before, all levels, [frames, levels]; not part of the result.
    """
    codes = level_0.reshape(-1, 1).astype(np.int32)
    n_levels = network.model.config.n_levels
    if not len(codes):
        return NarResult(np.zeros((0, n_levels), np.int32), "stop")
    guidance = options.guidance
    end: End = "stop"
    with progress("levels", n_levels - 1, "level") as advance:
        for level in range(1, n_levels):
            if should_stop():
                end = "interrupted"
                break
            response = codes if prefix is None else np.concatenate([prefix[:, :level], codes])
            conditions = [condition, condition.null()] if guidance.is_on else [condition]
            found = [
                run_pass(
                    network,
                    speech_segments(network.model, one, level, response),
                    head=f"nar.{level}",
                    n_outputs=len(codes),
                )
                for one in conditions
            ]
            logits = found[0]
            if guidance.is_on:
                logits = guide(found[0], found[1], guidance.cfg_strength, guidance.cfg_rescale)
            drawn = sample(logits, options.sampling, rng)
            codes = np.concatenate([codes, drawn[:, None]], axis=1)
            advance(1)
    return NarResult(codes, end)
