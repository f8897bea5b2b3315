"""Codes by demasking (NAR-len): all frames at once, the doubtful ones again and again.

In: a condition and a number of frames n. At time t from 0 to 1, in S steps:

    1. for each level, the mask hides the cos(t pi / 2) n codes with the lowest scores;
    2. one pass for the condition and one for the null condition give guided logits;
    3. codes drawn at a temperature that falls with t replace the hidden ones;
    4. every place gets a new score, a probability without temperature.

Versions 5 and 6 decode level 0 this way (`decode_masked`), version 7 all levels together.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from valle_convert.decode.causal import run_pass
from valle_convert.decode.options import NO_WATCH, Callbacks, Decoded, DecodeOptions
from valle_convert.decode.sampling import Logits, draw, filtered, guide, probabilities
from valle_convert.model.inputs import Condition, speech_segments
from valle_convert.model.spec import Codes
from valle_convert.network.protocol import Network

#: Weaker guidance than this gives incoherent speech.
MINIMUM_CFG_STRENGTH = 2.5
#: Voice conversion shows the other recording while t is below this.
VC_THRESHOLD = 0.25
#: The part of the shown codes that is masked at random.
VC_MASK_P = 0.25


def demask(
    predict: Callable[[Condition, Codes], Logits],  # gives [.., frames, codes] for the shown codes
    condition: Condition,
    draft: Codes,  # mask codes and kept codes
    mask: int,
    options: DecodeOptions,
    rng: np.random.Generator,
    *,
    kept: NDArray[np.bool_] | None = None,  # codes of the draft that are never hidden
    recording: Codes | None = None,  # the one whose voice is changed
    # Score by the drawn codes after the filters, not by the likeliest before them
    scores_drawn: bool = False,
    watch: Callbacks = NO_WATCH,
) -> Decoded:
    """Decode codes [frames], or [levels, frames]; if interrupted, the draft of the last step."""
    codes, n_frames, n_steps = draft, draft.shape[-1], options.max_steps
    scores: NDArray[np.float64] = np.ones(codes.shape)
    strength = max(options.guidance_strength, MINIMUM_CFG_STRENGTH)
    with watch.progress("steps", n_steps, "step") as advance:
        for step, time in enumerate(times(n_steps)):
            if watch.should_stop():
                return Decoded(codes if step else codes[..., :0], "interrupted")
            hidden = _lowest(scores, n_hidden(time, n_frames, step))
            if kept is not None:
                hidden &= ~kept
            shown = np.where(hidden, np.int32(mask), codes)
            if recording is not None and time < VC_THRESHOLD:
                masked = rng.random(codes.shape) < VC_MASK_P
                shown = np.where(hidden & ~masked, recording, shown)
            full, null = (predict(one, shown) for one in (condition, condition.null()))
            # The original project computes a strength that grows with t, but also uses the full one
            # in every step.
            logits = guide(full, null, strength, options.guidance_rescale)
            left = filtered(logits, options.sampling)
            drawn = draw(left, options.sampling.temperature * (1.0 - time), rng)
            codes = np.where(hidden, drawn, codes)
            if scores_drawn:
                scores = np.take_along_axis(probabilities(left), drawn[..., None], axis=-1)[..., 0]
            else:
                scores = probabilities(logits).max(axis=-1)
            advance(1)
    return Decoded(codes, "stop")


def decode_masked(
    network: Network,
    condition: Condition,
    n_frames: int,
    options: DecodeOptions,
    rng: np.random.Generator,
    *,
    prefix: Codes | None = None,  # level 0 of the speech before, [frames]; not part of the result
    recording: Codes | None = None,  # level 0 of the one whose voice is changed, [n_frames]
    watch: Callbacks = NO_WATCH,
) -> Decoded:
    """Decode level 0 of a response of `n_frames` frames by demasking."""
    spoken = np.zeros(0, np.int32) if prefix is None else prefix

    def predict(given: Condition, shown: Codes) -> Logits:
        response = np.concatenate([spoken, shown])
        segments = speech_segments(network.model, given, 0, response, masked=True)
        return run_pass(network, segments, head="mask", n_outputs=n_frames)

    mask = network.model.config.special_code
    return demask(
        predict,
        condition,
        np.full(n_frames, mask, np.int32),
        mask,
        options,
        rng,
        recording=recording,
        watch=watch,
    )


def times(n_steps: int) -> list[float]:
    """Numbers from 0 to 1, rounded like the original's float32, which decides halves of n."""
    step, i = np.float64(np.float32(1) / np.float32(max(n_steps - 1, 1))), np.arange(n_steps)
    exact = np.where(i < n_steps // 2, step * i, 1 - step * (n_steps - 1 - i))
    found: list[float] = (exact if n_steps > 1 else np.zeros(1)).astype(np.float32).tolist()
    return found


def n_hidden(time: float, n_frames: int, step: int) -> int:
    """The number of masked frames; each step finishes at least one."""
    angle = float(np.float32(time) * np.float32(math.pi) * np.float32(0.5))
    return max(1, min(int(math.cos(angle) * n_frames), n_frames - step))


def _lowest(scores: NDArray[np.float64], count: int) -> NDArray[np.bool_]:
    """A mask of the `count` lowest scores of the last axis; the first of equal ones."""
    chosen = np.zeros(scores.shape, bool)
    order = np.argsort(scores, axis=-1, kind="stable")[..., :count]
    np.put_along_axis(chosen, order, values=True, axis=-1)
    return chosen
