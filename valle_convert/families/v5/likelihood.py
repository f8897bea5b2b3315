"""The likelihood of the true codes of some speech, head by head, teacher forced.

Everything before a code is the truth, so nothing is drawn, and one utterance gives hundreds of
predictions. Of all measures of a quantized speaker, this one tells two types apart with the fewest
sentences.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from valle_convert.decode.causal import run_pass
from valle_convert.metrics import log_softmax
from valle_convert.model.inputs import (
    Condition,
    Segment,
    length_segments,
    speech_segments,
    transcript_segments,
)
from valle_convert.model.spec import LENGTH_STOP, Model
from valle_convert.network.protocol import Network


@dataclass(frozen=True, eq=False)
class TeacherForcedPass:
    """A pass with known targets."""

    head: str
    segments: tuple[Segment, ...]
    n_outputs: int  # the elements at the end that predict
    among: NDArray[np.int64] | slice  # which of them, [n]
    targets: NDArray[np.int64]  # the true codes, [n]


def teacher_forced_passes(
    model: Model, condition: Condition, codes: NDArray[np.integer], rng: np.random.Generator
) -> Iterator[TeacherForcedPass]:
    """All passes over codes [frames, levels] that a model's capabilities allow."""
    capabilities, levels = model.config.capabilities, model.config.n_levels
    heads = ["ar"] if "ar" in capabilities and model.has_head("ar") else []
    heads += [f"nar.{level}" for level in range(1, levels)]
    heads += [one for one in ("mask", "len") if "len" in capabilities and model.has_head(one)]
    heads += ["stt"] if model.has_head("stt") and levels > 1 else []
    for head in heads:
        yield teacher_forced_pass(model, head, condition, codes, rng)


def teacher_forced_pass(
    model: Model,
    head: str,
    condition: Condition,
    codes: NDArray[np.integer],
    rng: np.random.Generator,
) -> TeacherForcedPass:
    """The pass of a head: "ar", "nar.<level>", "mask", "len" or "stt".

    A part cos(u pi / 2) of the frames is masked, u uniform.
    """
    n, level_0 = len(codes), np.asarray(codes)[:, 0]
    if head == "ar":
        segments = speech_segments(model, condition, 0, level_0)
        return _pass(head, segments, [*level_0, model.config.special_code])
    if head == "mask":
        n_hidden = max(1, round(math.cos(rng.random() * math.pi / 2) * n))
        hidden = np.sort(rng.choice(n, n_hidden, replace=False))
        shown = level_0.copy()
        shown[hidden] = model.config.special_code
        segments = speech_segments(model, condition, 0, shown, masked=True)
        targets = np.array(level_0[hidden], np.int64)
        return TeacherForcedPass(head, tuple(segments), n, hidden, targets)
    if head == "len":
        digits = [int(digit) for digit in str(n)]
        segments = length_segments(model, condition, [0, *digits])
        return _pass(head, segments, [*digits, LENGTH_STOP])
    if head == "stt":
        phonemes = np.asarray(condition.phonemes)
        segments = transcript_segments(model, codes, phonemes[:-1], condition.language)
        return _pass(head, segments, phonemes[1:])
    level = int(head.removeprefix("nar."))
    return _pass(head, speech_segments(model, condition, level, codes), codes[:, level])


def negative_log_likelihood(network: Network, one_pass: TeacherForcedPass) -> NDArray[np.float64]:
    """The negative log likelihood of each target, in nats, [n]."""
    head, n = one_pass.head, one_pass.n_outputs
    logits = run_pass(network, one_pass.segments, head=head, n_outputs=n)[one_pass.among]
    found: NDArray[np.float64] = log_softmax(logits)[np.arange(len(logits)), one_pass.targets]
    return -found


def _pass(
    head: str, segments: list[Segment], targets: NDArray[np.integer] | list[int]
) -> TeacherForcedPass:
    true = np.array(targets, np.int64)
    return TeacherForcedPass(head, tuple(segments), len(true), slice(None), true)
