"""VALL-E X: text and a voice to codes. Level 0 from left to right, each level above in one pass.

In: all text rows and the codes of the prompt. Out: codes [frames, levels] of the continuation. Of
several drawn continuations (`best_of`), the one with the best mean log probability is kept.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from valle_convert.decode.batch import Element, Steps, alone
from valle_convert.decode.nar import decode_levels_above
from valle_convert.decode.options import (
    NO_WATCH,
    Callbacks,
    Decoded,
    DecodeOptions,
    End,
    SamplingOptions,
)
from valle_convert.decode.sampling import Logits, draw, filtered
from valle_convert.decode.speech import Speech, Timings
from valle_convert.families.vallex.composed import ComposedNetwork, VallexText
from valle_convert.model.spec import Codes

#: The AR ends after this many codes per text row, including the prompt's rows.
MAX_CODES_A_SYMBOL = 16


def n_copies(options: DecodeOptions) -> int:
    """Continuations to draw; at temperature 0, they would all be the same."""
    return options.best_of if options.sampling.temperature > 0 else 1


@dataclass(eq=False)
class _Continuation:
    """A growing sequence, and its name: its codes, and the sum of their log probabilities."""

    codes: list[int] = field(default_factory=list)
    log_probability: float = 0.0
    end: End = "limit"

    def score(self, n_prompt: int, length_penalty: float | None) -> float:
        """Its log probability over a power of the length; 0 prefers short ones."""
        length = 1 + n_prompt + len(self.codes)  # begin is one
        return self.log_probability / math.pow(
            length, 1.0 if length_penalty is None else length_penalty
        )


def vallex_steps(
    network: ComposedNetwork,
    text: VallexText,
    prompt: Codes,  # codes of the voice, [frames, levels]; without a voice, no frames
    options: DecodeOptions,
    rng: np.random.Generator,
    *,
    max_frames: int | None = None,  # the limit; None for `MAX_CODES_A_SYMBOL` only
    level_0: Codes | None = None,  # [frames], to decode only the levels above it
    watch: Callbacks = NO_WATCH,
) -> Steps[Speech]:
    end: End = "stop"
    if level_0 is None:
        best = yield from vallex_ar_steps(
            network, text, prompt[:, 0], options, rng, max_frames=max_frames, watch=watch
        )
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
    options: DecodeOptions,
    rng: np.random.Generator,
    *,
    max_frames: int | None = None,
    watch: Callbacks = NO_WATCH,
) -> Steps[Decoded]:
    """Decode level 0 of the best continuation, which may be interrupted; the prompt is [frames]."""
    stop = network.model.codebook_size
    longest = MAX_CODES_A_SYMBOL * len(text)
    max_frames = longest if max_frames is None else min(longest, max_frames)
    sampling = options.sampling
    drawn = [_Continuation() for _ in range(n_copies(options))]
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
    watch: Callbacks = NO_WATCH,
) -> Decoded:
    predict = partial(network.pass_nar, text, prompt)
    return decode_levels_above(predict, level_0, network.model.n_levels, sampling, rng, watch)


def log_probabilities(logits: Logits, codes: Codes, temperature: float) -> NDArray[np.float64]:
    """The log probability of a code per row, [rows], in filtered logits [rows, codes]."""
    if temperature == 0:
        return np.zeros(len(codes))
    highest = logits.max(axis=-1, keepdims=True)
    with np.errstate(over="ignore"):
        scaled = (logits - highest).astype(np.float64) / temperature
    total = np.log(np.exp(scaled).sum(axis=-1))
    chosen: NDArray[np.float64] = scaled[np.arange(len(codes)), codes] - total
    return chosen
