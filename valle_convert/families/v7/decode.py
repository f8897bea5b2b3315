"""All levels of a response by demasking: all frames at once, the doubtful codes again and again.

In: a condition and a number of frames n. At time t from 0 to 1, in S steps:

    1. of each level, the cos(t pi / 2) n codes with the lowest scores are hidden behind the mask;
    2. one pass for the condition and one for the null condition give guided logits of all levels;
    3. codes drawn at a temperature that falls with t take the hidden places;
    4. the score of every place is the probability of the code drawn there, after the filters and
       without temperature.

It is `decode.masked` over all levels, but for the scores, which there are of the likeliest code.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from valle_convert.decode import (
    LengthOptions,
    MaskedOptions,
    MaskedResult,
    ShouldStop,
    frames_for,
    guide,
    never,
)
from valle_convert.decode.masked import MINIMUM_CFG_STRENGTH, n_hidden, times
from valle_convert.decode.sampling import Logits, draw, filtered, probabilities
from valle_convert.families.v7.composed import AllLevelsNetwork
from valle_convert.model.inputs import Condition
from valle_convert.model.spec import Codes
from valle_convert.progress import Progress, silent


def decode_levels(
    network: AllLevelsNetwork,
    condition: Condition,
    n_frames: int,
    options: MaskedOptions,
    rng: np.random.Generator,
    *,
    level_0: Codes | None = None,
    prefix: Codes | None = None,
    progress: Progress = silent,
    should_stop: ShouldStop = never,
) -> MaskedResult:
    """Decode a response of `n_frames` frames.

    Args:
        level_0: codes of level 0 that stay as they are, [n_frames].
        prefix: what was said before, [frames, levels]; not part of the result.

    Returns:
        Codes [n_frames, levels]. A model may give the stop code, `codebook_size`, at any place.
    """
    config = network.model.config
    codes = np.full((n_frames, config.n_levels), config.mask_code, np.int32)
    scores: NDArray[np.float64] = np.ones(codes.shape)
    spoken = codes[:0] if prefix is None else prefix
    strength = max(options.guidance.cfg_strength, MINIMUM_CFG_STRENGTH)
    n_steps = options.max_steps
    with progress("steps", n_steps, "step") as advance:
        for step, time in enumerate(times(n_steps)):
            if should_stop():
                return MaskedResult(codes if step else codes[:0], "interrupted")
            order = np.argsort(scores, axis=0, kind="stable")[: n_hidden(time, n_frames, step)]
            hidden = np.zeros(codes.shape, bool)
            np.put_along_axis(hidden, order, values=True, axis=0)
            if level_0 is not None:
                hidden[:, 0], codes[:, 0] = False, level_0
            shown = np.where(hidden, np.int32(config.mask_code), codes)
            response = np.concatenate([spoken, shown])
            full, null = (
                network.levels(one, response)[:, -n_frames:]
                for one in (condition, condition.null())
            )
            growth = time if options.annealed_guidance else 1.0
            logits = guide(full, null, strength * growth, options.guidance.cfg_rescale)
            annealing = 1.0 - time if options.annealed_sampling else 1.0
            drawn, found = _draw(logits, options, annealing, rng)
            codes = np.where(hidden, drawn, codes)
            scores = found
            if options.score_hidden_only:
                scores = np.where(hidden, found, 1.0)
            advance(1)
    return MaskedResult(codes, "stop")


def _draw(
    logits: Logits, options: MaskedOptions, annealing: float, rng: np.random.Generator
) -> tuple[Codes, NDArray[np.float64]]:
    """Codes and their probabilities [frames, levels] of logits [levels, frames, A + 1]."""
    rows = filtered(logits.reshape(-1, logits.shape[-1]), options.sampling)
    drawn = draw(rows, options.sampling.temperature * annealing, rng)
    found = np.take_along_axis(probabilities(rows), drawn[:, None], axis=-1)
    shape = logits.shape[:2]
    return drawn.reshape(shape).T, found.reshape(shape).T


def decode_duration(
    network: AllLevelsNetwork, condition: Condition, options: LengthOptions, frame_rate: float
) -> int:
    """How many frames to decode for a text: the model says it in seconds, or digit by digit."""
    found = network.length(condition)
    if found.shape[1] > 1:
        said = int("".join(map(str, found.argmax(-1))))
    else:
        seconds = np.nan_to_num(found[0, 0], nan=0.0).clip(0, options.max_frames)
        said = int(seconds * frame_rate)
    return frames_for(said, options)


def without_stops(
    network: AllLevelsNetwork, condition: Condition, codes: Codes, prefix: Codes | None = None
) -> Codes:
    """The codes with the likeliest real code in the place of each stop, which no codec has.

    Trained models give none; one more pass is run where there is one.
    """
    stop = network.model.config.stop_code
    if not (codes == stop).any():
        return codes
    spoken = codes[:0] if prefix is None else prefix
    logits = network.levels(condition, np.concatenate([spoken, codes]))[:, len(spoken) :, :stop]
    likeliest = logits.argmax(-1).T
    return np.where(codes == stop, likeliest, codes).astype(np.int32)
