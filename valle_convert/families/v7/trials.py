"""Examples and cases of version 7: utterances, random or from files, and passes over them.

One pass gives the logits of every level, and each level is its own case.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from valle_convert.audio.utterances import SpokenUtterance, read_spoken
from valle_convert.decode.options import GREEDY, DecodeOptions
from valle_convert.families.family import GREEDY_FRAMES, Case, Speed, median_ms
from valle_convert.families.gemma import everyday_speech, random_speech
from valle_convert.families.v7.composed import AllLevelsNetwork
from valle_convert.families.v7.decode import decode_levels
from valle_convert.families.v7.facts import VersionSevenModel
from valle_convert.model.inputs import Condition, FloatArray
from valle_convert.model.spec import Codes

Logits = NDArray[np.float32]

_N_TEXT = 12
_MASKED_PART = 0.5
_GREEDY_STEPS = 4
_SPEED_PASSES = 3


@dataclass(frozen=True, kw_only=True)
class MaskedUtterance(SpokenUtterance):
    """One seeded example."""

    #: The response with mask codes in it, in different frames on each level.
    masked: NDArray[np.int64]
    pieces: NDArray[np.int64]  # ids of text; random, since nothing here spells words


def utterances(
    model: VersionSevenModel, n: int, *, seed: int = 0, length: float = 1.0
) -> Iterator[MaskedUtterance]:
    """`n` different utterances of random phonemes and codes, the same for the same seed."""
    for i in range(n):
        draw = np.random.default_rng([seed, i])
        yield _masked(model, SpokenUtterance(*random_speech(model, i, draw, length)), draw)


def read_utterance(
    path: Path, model: VersionSevenModel, *, seed: tuple[int, ...]
) -> MaskedUtterance:
    """One utterance from a file; the seed decides which codes are masked."""
    return _masked(model, read_spoken(path, model), np.random.default_rng(seed))


def _masked(
    model: VersionSevenModel, given: SpokenUtterance, draw: np.random.Generator
) -> MaskedUtterance:
    hidden = draw.random(given.response.shape) < _MASKED_PART
    masked = np.where(hidden, model.config.mask_code, given.response).astype(np.int64)
    n_text = model.table("text").n_rows if model.has_table("text") else 1
    pieces = draw.integers(0, n_text, _N_TEXT)
    return MaskedUtterance(**vars(given), masked=masked, pieces=pieces)


class _Levels:
    """A pass for all levels, which is run once."""

    def __init__(self, condition: Condition, response: NDArray[np.int64]) -> None:
        self._given = condition, response
        self._network: AllLevelsNetwork | None = None
        self._left: dict[int, FloatArray] = {}

    def of(self, level: int) -> Callable[[AllLevelsNetwork], Logits]:
        def run(network: AllLevelsNetwork) -> Logits:
            if self._network is not network or level not in self._left:
                self._network = network
                self._left = dict(enumerate(network.levels(*self._given)))
            found = self._left.pop(level)
            if not self._left:
                self._network = None
            return found

        return run


def cases(model: VersionSevenModel, example: MaskedUtterance) -> Iterator[Case[AllLevelsNetwork]]:
    """Every level, every other head and every task of the model, over one utterance."""
    condition, n_levels = example.condition, model.n_levels
    for name, one in (
        ("", _Levels(condition, example.masked)),
        (" null", _Levels(condition.null(), example.masked)),
    ):
        for level in range(n_levels):
            head = f"level.{level}"
            yield Case(f"{head}{name}", head, one.of(level))
    alone = {
        "unmasked": (condition, example.response),
        "without prompt": (replace(condition, prompt=None), example.masked),
    }
    for task in ("ns", "sr"):
        if task in model.tasks:
            alone[task] = (replace(condition, task=task), example.masked)
    for name, given in alone.items():
        yield Case(f"level.0 {name}", "level.0", partial(_level_0, *given))
    yield Case("length", "length", lambda network: network.length(condition, everywhere=True))
    phonemes = condition.phonemes[:_N_TEXT]
    yield Case(
        "phonemes",
        "phonemes",
        lambda network: network.phonemes(example.response, phonemes, condition.language),
    )
    if model.has_table("text") and model.audio.has_head("text"):
        yield Case(
            "text",
            "text",
            lambda network: network.text(condition.phonemes, example.pieces, condition.language),
        )


def _level_0(
    condition: Condition, response: NDArray[np.int64], network: AllLevelsNetwork
) -> Logits:
    logits: Logits = network.levels(condition, response)[0]
    return logits


def speak_level_0(network: AllLevelsNetwork, example: MaskedUtterance) -> Codes:
    """Level 0 without randomness in a few steps, [frames]."""
    return _greedy(network, example, GREEDY_FRAMES, None)[:, 0]


def speak_levels(network: AllLevelsNetwork, example: MaskedUtterance, level_0: Codes) -> Codes:
    """All levels without randomness over those of level 0, [frames, levels]."""
    return _greedy(network, example, len(level_0), level_0)


def _greedy(
    network: AllLevelsNetwork, example: MaskedUtterance, n_frames: int, level_0: Codes | None
) -> Codes:
    options = DecodeOptions(max_steps=_GREEDY_STEPS, sampling=GREEDY)
    rng = np.random.default_rng(0)
    return decode_levels(network, example.condition, n_frames, options, rng, level_0=level_0).codes


def measure_speed(network: AllLevelsNetwork) -> Speed:
    """Time a pass on a request of everyday size; a frame has its share of all steps' passes."""
    model = network.model
    condition, response = everyday_speech(model)
    assert condition.prompt is not None  # noqa: S101 - it has a voice
    one_pass = partial(network.levels, condition, response)
    one_pass()  # dequantizes weights
    pass_ms = median_ms(one_pass, _SPEED_PASSES)
    n_passes, n_frames = 2 * DecodeOptions().max_steps, len(response)
    n_positions = len(condition.phonemes) + len(condition.prompt) + n_frames + 4
    return Speed(pass_ms * n_passes / n_frames, pass_ms, n_positions)
