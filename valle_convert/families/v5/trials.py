"""Examples and cases of versions 5 and 6: utterances, random or from files, and passes over them.

A pass is its inputs, its head, and the elements that are compared. The same cases serve the
verdict, importance matrices, and the quality of quantized files.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from valle_convert.audio.utterances import SpokenUtterance, read_spoken
from valle_convert.decode.ar import append_codes, decode_ar
from valle_convert.decode.batch import Element
from valle_convert.decode.nar import decode_nar
from valle_convert.decode.options import GREEDY, DecodeOptions
from valle_convert.families.family import GREEDY_FRAMES, Case, Speed, median_ms
from valle_convert.families.gemma import everyday_speech, random_speech
from valle_convert.model.inputs import (
    Condition,
    Segment,
    assemble,
    length_segments,
    speech_segments,
    transcript_segments,
)
from valle_convert.model.spec import LENGTH_STOP, Model
from valle_convert.network.protocol import Network

_N_TRANSCRIPT = 16
_MASKED_PART = 0.5
#: Codes that are decoded one by one at the beginning and at the end of the speech.
_N_STEPS = 4
_SPEED_STEPS, _SPEED_PASSES = 16, 3


@dataclass(frozen=True, kw_only=True)
class Utterance(SpokenUtterance):
    """One seeded example."""

    masked: NDArray[np.int64]  # level 0 of the response with mask codes in it, [frames]
    digits: NDArray[np.int64]  # a duration so far, beginning with 0


def utterances(model: Model, n: int, *, seed: int = 0, length: float = 1.0) -> Iterator[Utterance]:
    """`n` different utterances of random phonemes and codes, the same for the same seed."""
    for i in range(n):
        draw = np.random.default_rng([seed, i])
        condition, response = random_speech(model, i, draw, length)
        masked = np.where(
            draw.random(len(response)) < _MASKED_PART, model.config.special_code, response[:, 0]
        )
        digits = np.array([0, *draw.integers(0, LENGTH_STOP, 3)])
        yield Utterance(condition, response, masked=masked, digits=digits)


def cases(model: Model, utterance: Utterance) -> Iterator[Case[Network]]:
    """Every head and every task of the model, over one utterance."""
    condition, response = utterance.condition, utterance.response
    n = len(response)

    def speech(
        name: str,
        head: str,
        given: Condition,
        level: int,
        codes: NDArray[np.int64],
    ) -> Case[Network]:
        segments = speech_segments(model, given, level, codes, masked=head == "mask")
        # The AR's first code is predicted by the separator before the response.
        return pass_case(name, head, segments, n + (head == "ar"))

    yield speech("ar", "ar", condition, 0, response)
    steps = tuple(sorted({*range(_N_STEPS + 1), *range(n - _N_STEPS, n + 1)} & {*range(n + 1)}))
    run = partial(_stepwise, speech_segments(model, condition, 0, response), steps)
    yield Case("ar one code a step", "ar", run, repeats="ar", rows=steps)
    yield speech("ar without prompt", "ar", replace(condition, prompt=None), 0, response)
    yield speech("ar null", "ar", condition.null(), 0, response)
    for task in ("ns", "sr"):
        if task in model.tasks:
            yield speech(f"ar {task}", "ar", replace(condition, task=task), 0, response)
    for level in range(1, model.config.n_levels):
        yield speech(f"nar.{level}", f"nar.{level}", condition, level, response)
    if model.config.n_levels > 1:
        yield speech("nar.1 null", "nar.1", condition.null(), 1, response)
    yield speech("mask", "mask", condition, 0, utterance.masked)
    yield speech("mask null", "mask", condition.null(), 0, utterance.masked)
    if model.has_head("len"):
        digits = utterance.digits
        segments = length_segments(model, condition, digits)
        yield pass_case("len", "len", segments, len(digits))
    transcript = condition.phonemes[:_N_TRANSCRIPT]
    if model.config.n_levels > 1:
        spoken = transcript_segments(model, response, transcript, condition.language)
    else:
        # Such a model has the head, but no task that reads it.
        spoken = speech_segments(model, condition, 0, response)
    yield pass_case("stt", "stt", spoken, len(transcript))
    if model.has_head("text"):
        # No task of these models reads it; its rows are compared on the same hidden states.
        yield replace(pass_case("text", "text", spoken, len(transcript)), repeats="stt")


def pass_case(name: str, head: str, segments: Sequence[Segment], n_outputs: int) -> Case[Network]:
    """One pass, whose last elements are compared."""
    return Case(name, head, partial(_pass, segments=segments, head=head, n_outputs=n_outputs))


def _pass(
    network: Network, segments: Sequence[Segment], head: str, n_outputs: int
) -> NDArray[np.float32]:
    # Also beyond the model's context, which decoders refuse.
    inputs = assemble(network.model, segments, network.look_up)
    outputs = slice(len(inputs) - n_outputs, None)
    logits = network.step(inputs.embeddings, inputs.positions, head=head, outputs=outputs)
    network.forget(0)
    return logits


def _stepwise(
    segments: Sequence[Segment], steps: Sequence[int], network: Network
) -> NDArray[np.float32]:
    """The AR in steps that end at elements of the last segment, counted from its separator."""
    inputs = assemble(network.model, segments, network.look_up)
    logits = []
    for start, stop in pairwise([0, *(inputs.last + n for n in steps)]):
        rows, places = inputs.embeddings[start:stop], inputs.positions[start:stop]
        logits.append(network.step(rows, places, head="ar", outputs=slice(-1, None)))
    network.forget(0)
    return np.concatenate(logits)


def speak_level_0(network: Network, utterance: Utterance) -> NDArray[np.int32]:
    """The AR's speech without randomness, [frames]."""
    rng, options = np.random.default_rng(0), DecodeOptions(sampling=GREEDY)
    return decode_ar(network, utterance.condition, options, rng, max_frames=GREEDY_FRAMES).codes


def speak_levels(
    network: Network, utterance: Utterance, level_0: NDArray[np.int32]
) -> NDArray[np.int32]:
    """The levels above without randomness, [frames, levels]."""
    rng = np.random.default_rng(0)
    return decode_nar(network, utterance.condition, level_0, DecodeOptions(), rng).codes


def measure_speed(network: Network) -> Speed:
    """Time an AR step and a pass over all frames on a request of everyday size."""
    model = network.model
    condition, response = everyday_speech(model)
    head, level = ("nar.1", 1) if model.n_levels > 1 else ("mask", 0)
    spoken, passed = (
        assemble(model, segments, network.look_up)
        for segments in (
            speech_segments(model, condition, 0, response),
            speech_segments(model, condition, level, response, masked=level == 0),
        )
    )
    network.step(spoken.embeddings, spoken.positions, head="ar", outputs=slice(-1, None))
    places = count(int(spoken.positions[-1]) + 1)
    ar_step = median_ms(lambda: append_codes(network, [Element(0, 0, next(places))]), _SPEED_STEPS)
    network.forget(0)

    def one_pass() -> None:
        outputs = slice(passed.last, None)
        network.step(passed.embeddings, passed.positions, head=head, outputs=outputs)
        network.forget(0)  # it stays if the pass is causal

    return Speed(ar_step, median_ms(one_pass, _SPEED_PASSES), len(passed))


# ------------------------------------------------------------------------- files


def read_utterance(path: Path, model: Model, *, seed: tuple[int, ...]) -> Utterance:
    """One utterance from a file; the seed decides which frames are masked."""
    given = read_spoken(path, model)
    hidden = np.random.default_rng(seed).random(len(given.response)) < _MASKED_PART
    masked = np.where(hidden, model.config.special_code, given.response[:, 0]).astype(np.int64)
    digits = np.array([0, *map(int, str(len(given.response)))])
    return Utterance(**vars(given), masked=masked, digits=digits)
