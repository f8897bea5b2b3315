"""Seeded inputs for every head and task of a model, and how to run them on a network.

A case is one pass: what goes in, which head answers, which elements are compared. The same
cases serve the verifier and the quality reports of quantized files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from valle_convert.model.inputs import (
    Condition,
    Inputs,
    Segment,
    assemble,
    length_segments,
    speech_segments,
    transcript_segments,
)
from valle_convert.model.spec import BOS_PHONEME, EOS_PHONEME, LENGTH_STOP, Model
from valle_convert.network.protocol import Network

Prediction = NDArray[np.float32]

_N_PHONEMES = 32
_N_PROMPT_FRAMES = 48
_N_FRAMES = 60
_N_TRANSCRIPT = 16


@dataclass(frozen=True)
class Utterance:
    """One seeded example: text, voice and speech.

    Attributes:
        condition: phonemes with their marks, language, prompt.
        response: [frames, levels].
        masked: level 0 of the response with mask codes in it, [frames].
        digits: a duration so far, beginning with 0.
        text: the words, where they are known.
    """

    condition: Condition
    response: NDArray[np.int64]
    masked: NDArray[np.int64]
    digits: NDArray[np.int64]
    text: str = ""


@dataclass(frozen=True)
class Case:
    """One pass of a network.

    Attributes:
        name: for reports, such as `nar.3` or `mask null`.
        head: whose logits are asked for.
        segments: what goes in.
        n_outputs: how many elements are compared, counted from the end.
        stepwise: the last segment goes in one element at a time, through the cache.
    """

    name: str
    head: str
    segments: tuple[Segment, ...]
    n_outputs: int
    stepwise: bool = False


def utterances(model: Model, n: int, *, seed: int = 0) -> Iterator[Utterance]:
    """`n` different utterances of random phonemes and codes, the same for the same seed."""
    config = model.config
    for i in range(n):
        draw = np.random.default_rng([seed, i])
        n_phonemes = model.table("phonemes").n_rows
        inner = draw.integers(min(4, n_phonemes - 1), n_phonemes, _N_PHONEMES + 3 * i)
        response = draw.integers(0, config.codebook_size, (_N_FRAMES + 7 * i, config.n_levels))
        masked = np.where(draw.random(len(response)) < 0.5, config.special_code, response[:, 0])
        has_language = model.has_table("language")
        yield Utterance(
            condition=Condition(
                phonemes=np.array([BOS_PHONEME, *inner, EOS_PHONEME]),
                language=i % model.table("language").n_rows if has_language else None,
                prompt=draw.integers(
                    0, config.codebook_size, (_N_PROMPT_FRAMES + 5 * i, config.n_levels)
                ),
                tone=0 if "tone" in config.capabilities else None,
            ),
            response=response,
            masked=masked,
            digits=np.array([0, *draw.integers(0, LENGTH_STOP, 3)]),
        )


def cases(model: Model, utterance: Utterance) -> Iterator[Case]:
    """Every head and every task of the model, over one utterance."""
    condition, response = utterance.condition, utterance.response
    n = len(response)

    def speech(
        name: str,
        head: str,
        given: Condition,
        level: int,
        codes: NDArray[np.int64],
        *,
        stepwise: bool = False,
    ) -> Case:
        segments = speech_segments(model, given, level, codes, masked=head == "mask")
        # The AR's first code is predicted by the separator before the response.
        return Case(name, head, tuple(segments), n + (head == "ar"), stepwise)

    yield speech("ar", "ar", condition, 0, response)
    yield speech("ar one code a step", "ar", condition, 0, response, stepwise=True)
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
        yield Case("len", "len", tuple(length_segments(model, condition, digits)), len(digits))
    transcript = condition.phonemes[:_N_TRANSCRIPT]
    if model.config.n_levels > 1:
        spoken = transcript_segments(model, response, transcript, condition.language)
    else:
        # Such a model has the head, and no task that reads it.
        spoken = speech_segments(model, condition, 0, response)
    yield Case("stt", "stt", tuple(spoken), len(transcript))
    if model.has_head("text"):
        # No task of these models reads it; its rows are compared on the same hidden states.
        yield Case("text", "text", tuple(spoken), len(transcript))


def run_case(network: Network, case: Case) -> Prediction:
    """The logits of a case, [n_outputs, rows of its head]."""
    network.reset()
    inputs = assemble(network.model, case.segments, network.look_up)
    if not case.stepwise:
        first = len(inputs) - case.n_outputs
        return network.step(
            inputs.embeddings, inputs.positions, head=case.head, outputs=slice(first, None)
        )
    return np.concatenate(list(_stepwise(network, case.head, inputs)))


def _stepwise(network: Network, head: str, inputs: Inputs) -> Iterator[Prediction]:
    """All but the last segment at once, then element after element."""
    for start, stop in pairwise([0, *range(inputs.last, len(inputs) + 1)]):
        part = slice(start, stop)
        yield network.step(
            inputs.embeddings[part], inputs.positions[part], head=head, outputs=slice(-1, None)
        )
