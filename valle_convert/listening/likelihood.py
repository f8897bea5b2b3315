"""The likelihood of the true codes of some speech, head by head, teacher forced.

Everything before a code is the truth, so nothing is drawn, and one utterance gives hundreds of
predictions. Of all measures of a quantized speaker, this one tells two types apart with the fewest
sentences.
"""

from __future__ import annotations

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
    """A pass with known targets.

    Attributes:
        n_outputs: the elements at the end that predict.
        among: which of them, [n].
        targets: the true codes, [n].
    """

    head: str
    segments: tuple[Segment, ...]
    n_outputs: int
    among: NDArray[np.int64] | slice
    targets: NDArray[np.int64]


def teacher_forced_passes(
    model: Model, condition: Condition, codes: NDArray[np.integer], rng: np.random.Generator
) -> Iterator[TeacherForcedPass]:
    """All passes over codes [frames, levels] that a model's capabilities allow.

    A part cos(u pi / 2) of the frames is masked, u uniform, as in training.
    """
    capabilities, n, levels = model.config.capabilities, len(codes), model.config.n_levels
    level_0 = np.asarray(codes)[:, 0]
    if "ar" in capabilities and model.has_head("ar"):
        segments = speech_segments(model, condition, 0, level_0)
        yield _pass("ar", segments, [*level_0, model.config.special_code])
    for level in range(1, levels):
        segments = speech_segments(model, condition, level, codes)
        yield _pass(f"nar.{level}", segments, codes[:, level])
    if "len" in capabilities and model.has_head("mask"):
        n_hidden = max(1, round(math.cos(rng.random() * math.pi / 2) * n))
        hidden = np.sort(rng.choice(n, n_hidden, replace=False))
        shown = level_0.copy()
        shown[hidden] = model.config.special_code
        segments = speech_segments(model, condition, 0, shown, masked=True)
        targets = np.array(level_0[hidden], np.int64)
        yield TeacherForcedPass("mask", tuple(segments), n, hidden, targets)
    if "len" in capabilities and model.has_head("len"):
        digits = [int(digit) for digit in str(n)]
        segments = length_segments(model, condition, [0, *digits])
        yield _pass("len", segments, [*digits, LENGTH_STOP])
    if model.has_head("stt") and levels > 1:
        phonemes = np.asarray(condition.phonemes)
        segments = transcript_segments(model, codes, phonemes[:-1], condition.language)
        yield _pass("stt", segments, phonemes[1:])


def negative_log_likelihood(network: Network, one_pass: TeacherForcedPass) -> NDArray[np.float64]:
    """The negative log likelihood of each target, in nats, [n]."""
    head, n = one_pass.head, one_pass.n_outputs
    logits = run_pass(network, one_pass.segments, head=head, n_outputs=n)[one_pass.among]
    found: NDArray[np.float64] = log_softmax(logits)[np.arange(len(logits)), one_pass.targets]
    return -found


def _pass(
    head: str, segments: list[Segment], targets: NDArray[np.integer] | list[int]
) -> TeacherForcedPass:
    """A pass whose last elements predict."""
    true = np.array(targets, np.int64)
    return TeacherForcedPass(head, tuple(segments), len(true), slice(None), true)
