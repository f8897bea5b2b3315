"""Level 0 by demasking (NAR-len): all frames at once, the doubtful ones again and again.

In: a condition and a number of frames n. At time t from 0 to 1, in S steps:

    1. the cos(t pi / 2) n frames with the lowest scores are hidden behind the mask code;
    2. one pass for the condition and one for the null condition give guided logits;
    3. codes drawn at a temperature that falls with t take the hidden places;
    4. every frame's score is the probability of the most likely code there.

Voice conversion shows another recording's codes at the hidden places, as long as t is small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from valle_convert.decode.causal import assemble_within_context
from valle_convert.decode.control import End, ShouldStop, check_range, never
from valle_convert.decode.guidance import Guidance, guide
from valle_convert.decode.sampling import Logits, SamplingOptions, probabilities, sample
from valle_convert.model.inputs import Condition, speech_segments
from valle_convert.model.spec import Codes
from valle_convert.network.protocol import Network
from valle_convert.progress import Progress, silent

#: Weaker guidance than this gives incoherent speech.
MINIMUM_CFG_STRENGTH = 2.5


@dataclass(frozen=True)
class MaskedOptions:
    """How level 0 is demasked.

    Attributes:
        max_steps: S above; every step is two passes.
        sampling: how hidden codes are drawn; its temperature is the one at t = 0.
        annealed_guidance: whether the strength grows with t. The checkpoints' own project computes
            such a strength, but then guides with the full one in every step, and so does the
            default here: its codes come out equal.
        score_hidden_only: leave frames that were not hidden alone from then on, with a score of 1,
            instead of scoring them with the others.
        vc_threshold: voice conversion shows the other recording while t is below this,
        vc_mask_p: with this part of its codes masked, at random.
    """

    max_steps: int = 25
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    guidance: Guidance = field(default_factory=lambda: Guidance(MINIMUM_CFG_STRENGTH))
    annealed_sampling: bool = True
    annealed_guidance: bool = False
    score_hidden_only: bool = False
    vc_threshold: float = 0.25
    vc_mask_p: float = 0.25

    def __post_init__(self) -> None:
        check_range("steps", self.max_steps, 1, math.inf)


@dataclass(frozen=True, eq=False)
class MaskedResult:
    """Codes of level 0, [frames].

    Attributes:
        codes: where interrupted, those of the last step that was finished, which are a whole
            draft; no frames where none was.
    """

    codes: Codes
    end: End


def decode_masked(
    network: Network,
    condition: Condition,
    n_frames: int,
    options: MaskedOptions,
    rng: np.random.Generator,
    *,
    prefix: Codes | None = None,
    source: Codes | None = None,
    progress: Progress = silent,
    should_stop: ShouldStop = never,
) -> MaskedResult:
    """Decode level 0 of a response of `n_frames` frames by demasking.

    Args:
        prefix: level 0 of what was said before, [frames]; not part of the result.
        source: level 0 of the recording whose voice is changed, [n_frames].
    """
    mask = network.model.config.special_code
    codes = np.full(n_frames, mask, np.int32)
    scores = np.ones(n_frames)
    n_steps = options.max_steps
    spoken = np.zeros(0, np.int32) if prefix is None else prefix
    strength = max(options.guidance.cfg_strength, MINIMUM_CFG_STRENGTH)
    with progress("steps", n_steps, "step") as advance:
        for step, time in enumerate(times(n_steps)):
            if should_stop():
                finished = codes if step else codes[:0]
                return MaskedResult(finished, "interrupted")
            hidden = _lowest(scores, n_hidden(time, n_frames, step))
            shown = np.where(hidden, np.int32(mask), codes)
            if source is not None and time < options.vc_threshold:
                masked = rng.random(n_frames) < options.vc_mask_p
                shown = np.where(hidden & ~masked, source, shown).astype(np.int32)
            logits = _guided_pass(
                network,
                condition,
                np.concatenate([spoken, shown]),
                n_frames,
                strength * (time if options.annealed_guidance else 1.0),
                options.guidance.cfg_rescale,
            )
            annealing = 1.0 - time if options.annealed_sampling else 1.0
            drawn = sample(logits, options.sampling, rng, annealing=annealing)
            codes = np.where(hidden, drawn, codes)
            scores = probabilities(logits).max(axis=-1)
            if options.score_hidden_only:
                scores = np.where(hidden, scores, 1.0)
            advance(1)
    return MaskedResult(codes, "stop")


def times(n_steps: int) -> list[float]:
    """Numbers from 0 to 1, rounded as the original's float32: there, halves of n are at stake."""
    step, i = np.float64(np.float32(1) / np.float32(max(n_steps - 1, 1))), np.arange(n_steps)
    exact = np.where(i < n_steps // 2, step * i, 1 - step * (n_steps - 1 - i))
    found: list[float] = (exact if n_steps > 1 else np.zeros(1)).astype(np.float32).tolist()
    return found


def n_hidden(time: float, n_frames: int, step: int) -> int:
    """How many frames are masked; never more than would leave one finished a step."""
    angle = float(np.float32(time) * np.float32(math.pi) * np.float32(0.5))
    return max(1, min(int(math.cos(angle) * n_frames), n_frames - step))


def _lowest(scores: NDArray[np.float64], count: int) -> NDArray[np.bool_]:
    """Which are the `count` lowest scores; of equal ones the first."""
    chosen = np.zeros(len(scores), bool)
    chosen[np.argsort(scores, kind="stable")[:count]] = True
    return chosen


def _guided_pass(
    network: Network,
    condition: Condition,
    response: Codes,
    n_frames: int,
    strength: float,
    rescale: float,
) -> Logits:
    """Guided logits at the last `n_frames` of the response, [n_frames, codes]."""
    full, null = (
        _pass(network, one, response)[-n_frames:] for one in (condition, condition.null())
    )
    return guide(full, null, strength, rescale)


def _pass(network: Network, condition: Condition, response: Codes) -> Logits:
    inputs = assemble_within_context(
        network, speech_segments(network.model, condition, 0, response, masked=True)
    )
    network.reset()
    return network.step(
        inputs.embeddings, inputs.positions, head="mask", outputs=slice(inputs.last, None)
    )
