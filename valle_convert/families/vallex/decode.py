"""VALL-E X: text and a voice to codes. Level 0 from left to right, each level above in one pass.

In: all text rows and the codes of the prompt. Out: codes [frames, levels] of the continuation. Of
several drawn continuations (`best_of`), the one with the best mean log probability is kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from valle_convert.decode.batch import Element, Steps, alone
from valle_convert.decode.control import UNWATCHED, Callbacks, Decoded, End, check_range
from valle_convert.decode.nar import decode_levels_above
from valle_convert.decode.sampling import GREEDY, Logits, SamplingOptions, draw, filtered
from valle_convert.decode.speech import Speech, Timings
from valle_convert.families.vallex.composed import ComposedNetwork, VallexText
from valle_convert.model.spec import Codes

#: The AR ends after this many codes per text row, including the prompt's rows.
MAX_CODES_A_SYMBOL = 16
#: Each continuation is a sequence with a cache of its own.
MAX_BEST_OF = 64


@dataclass(frozen=True)
class VallexOptions:
    """Options of VALL-E X; the defaults are those of its own project."""

    #: How codes of level 0 are drawn.
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    #: How the levels above are drawn; the original always takes the best code.
    nar_sampling: SamplingOptions = GREEDY
    best_of: int = 1  # how many continuations are drawn; the best one is kept
    #: Power of the length that a continuation's log probability is divided by; 0 prefers short
    #: ones.
    length_penalty: float = 1.0
    max_frames: int | None = None  # the limit; None for `MAX_CODES_A_SYMBOL` only

    def __post_init__(self) -> None:
        check_range("best_of", self.best_of, 1, MAX_BEST_OF)
        check_range("length_penalty", self.length_penalty, -100, 100)

    @property
    def n_copies(self) -> int:
        """Continuations to draw; at temperature 0, they would all be the same."""
        return self.best_of if self.sampling.temperature > 0 else 1


@dataclass(eq=False)
class _Continuation:
    """A growing sequence, and its name: its codes, and the sum of their log probabilities."""

    codes: list[int] = field(default_factory=list)
    log_probability: float = 0.0
    end: End = "limit"

    def score(self, n_prompt: int, length_penalty: float) -> float:
        length = 1 + n_prompt + len(self.codes)  # begin is one
        return self.log_probability / math.pow(length, length_penalty)


def vallex_steps(
    network: ComposedNetwork,
    text: VallexText,
    prompt: Codes,
    options: VallexOptions,
    rng: np.random.Generator,
    *,
    level_0: Codes | None = None,
    watch: Callbacks = UNWATCHED,
) -> Steps[Speech]:
    """Decode all levels of a continuation.

    Args:
        prompt: codes of the voice, [frames, levels]; without a voice, no frames.
        level_0: of the continuation, [frames], to decode only the levels above it.
    """
    end: End = "stop"
    if level_0 is None:
        best = yield from vallex_ar_steps(network, text, prompt[:, 0], options, rng, watch=watch)
        level_0, end = best.codes, best.end
    begin = time.perf_counter()
    sampling = options.nar_sampling
    raised = decode_vallex_nar(network, text, prompt, level_0, sampling, rng, watch=watch)
    seconds = Timings(levels=time.perf_counter() - begin)
    if raised.end == "interrupted":
        end = raised.end
    return Speech(raised.codes, "ar", end, seconds)


def vallex_ar_steps(
    network: ComposedNetwork,
    text: VallexText,
    prompt: Codes,
    options: VallexOptions,
    rng: np.random.Generator,
    *,
    watch: Callbacks = UNWATCHED,
) -> Steps[Decoded]:
    """Decode level 0 of the best continuation, which may be interrupted; the prompt is [frames]."""
    stop = network.codebook_size
    max_frames = MAX_CODES_A_SYMBOL * len(text)
    if options.max_frames is not None:
        max_frames = min(max_frames, options.max_frames)
    sampling = options.sampling
    drawn = [_Continuation() for _ in range(options.n_copies)]
    growing = list(drawn)
    try:
        with watch.progress("frames", max_frames, "frame") as advance:
            for n in range(max_frames):
                if watch.should_stop():
                    for one in growing:
                        one.end = "interrupted"
                    break
                logits: Logits
                if n == 0:
                    first = network.begin_ar(text, prompt, growing, room=max_frames)
                    logits = np.repeat(first, len(growing), axis=0)
                else:
                    logits = yield [Element(one, one.codes[-1], len(prompt) + n) for one in growing]
                left = filtered(logits, sampling)
                codes = draw(left, sampling.temperature, rng)
                gained = log_probabilities(left, codes, sampling.temperature)
                for one, code, log_probability in zip(list(growing), codes, gained, strict=True):
                    one.log_probability += float(log_probability)
                    if code == stop:
                        one.end = "stop"
                        growing.remove(one)
                        network.forget(one)
                    else:
                        one.codes.append(int(code))
                if not growing:
                    break
                advance(1)
    finally:
        for one in growing:
            network.forget(one)
    best = max(drawn, key=lambda one: one.score(len(prompt), options.length_penalty))
    return Decoded(np.array(best.codes, np.int32), best.end)


def append_codes(network: ComposedNetwork, elements: Sequence[Element]) -> Logits:
    return network.append_codes(elements)


decode_vallex_ar = alone(vallex_ar_steps, append_codes)


def decode_vallex_nar(
    network: ComposedNetwork,
    text: VallexText,
    prompt: Codes,
    level_0: Codes,
    sampling: SamplingOptions,
    rng: np.random.Generator,
    *,
    watch: Callbacks = UNWATCHED,
) -> Decoded:
    """Decode the levels above `level_0`, [frames]."""
    predict = partial(network.pass_nar, text, prompt)
    return decode_levels_above(predict, level_0, network.n_levels, sampling, rng, watch)


def log_probabilities(logits: Logits, codes: Codes, temperature: float) -> NDArray[np.float64]:
    """The log probability of one code per row at that temperature, [rows].

    Args:
        logits: [rows, codes], filtered; minus infinity for excluded codes.
        codes: [rows]; none of them is excluded.
    """
    if temperature == 0:
        return np.zeros(len(codes))
    highest = logits.max(axis=-1, keepdims=True)
    with np.errstate(over="ignore"):
        scaled = (logits - highest).astype(np.float64) / temperature
    total = np.log(np.exp(scaled).sum(axis=-1))
    chosen: NDArray[np.float64] = scaled[np.arange(len(codes)), codes] - total
    return chosen
