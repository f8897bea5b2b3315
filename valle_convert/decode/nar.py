"""Levels 1 and above, all frames of a level in one pass, in place.

In: level 0 [frames]. Out: all levels [frames, levels].
"""

from collections.abc import Callable

import numpy as np

from valle_convert.decode.causal import run_pass
from valle_convert.decode.options import (
    NO_WATCH,
    Callbacks,
    Decoded,
    DecodeOptions,
    SamplingOptions,
)
from valle_convert.decode.sampling import Logits, guided, sample
from valle_convert.model.inputs import Condition, speech_segments
from valle_convert.model.spec import Codes
from valle_convert.network.protocol import Network


def decode_nar(
    network: Network,
    condition: Condition,
    level_0: Codes,  # [frames]
    options: DecodeOptions,
    rng: np.random.Generator,
    *,
    prefix: Codes | None = None,  # the speech before, [frames, levels]; not part of the result
    watch: Callbacks = NO_WATCH,
) -> Decoded:
    conditions = [condition, condition.null()] if options.guidance_strength else [condition]

    def predict(codes: Codes) -> Logits:
        level = codes.shape[1]
        response = codes if prefix is None else np.concatenate([prefix[:, :level], codes])
        found = (
            run_pass(
                network,
                speech_segments(network.model, one, level, response),
                head=f"nar.{level}",
                n_outputs=len(codes),
            )
            for one in conditions
        )
        return guided(found, options)

    n_levels = network.model.config.n_levels
    return decode_levels_above(predict, level_0, n_levels, options.nar_sampling, rng, watch)


def decode_levels_above(
    predict: Callable[[Codes], Logits],
    level_0: Codes,
    n_levels: int,
    sampling: SamplingOptions,
    rng: np.random.Generator,
    watch: Callbacks,
) -> Decoded:
    """Decode level by level; `predict` gives the logits of the level after [frames, levels]."""
    codes = level_0.reshape(-1, 1).astype(np.int32)
    if not len(codes):
        return Decoded(np.zeros((0, n_levels), np.int32), "stop")
    with watch.progress("levels", n_levels - 1, "level") as advance:
        for _ in range(1, n_levels):
            if watch.should_stop():
                return Decoded(codes, "interrupted")
            drawn = sample(predict(codes), sampling, rng)
            codes = np.concatenate([codes, drawn[:, None]], axis=1)
            advance(1)
    return Decoded(codes, "stop")
