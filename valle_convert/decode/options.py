"""The options of all decoders."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from valle_convert.decode.control import check_range
from valle_convert.decode.sampling import GREEDY, SamplingOptions

Mode = Literal["ar", "nar-len"]
ModeChoice = Literal["auto", "ar", "nar-len"]

#: Each continuation is a sequence with a cache of its own.
MAX_BEST_OF = 64


@dataclass(frozen=True)
class DecodeOptions:
    """How codes are decoded. A family reads only the fields in its `speaks_with`."""

    #: How level 0 is decoded; `auto` uses `nar-len` if the model predicts durations.
    mode: ModeChoice = "auto"
    #: How codes of level 0 are drawn. Demasking starts at its temperature, which then falls.
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    #: How codes of the other levels are drawn; higher temperatures sound noisy.
    nar_sampling: SamplingOptions = GREEDY
    #: Penalty on codes of level 0 that were already generated; 1 is off.
    repetition_penalty: float = 1.0
    repetition_decay: float = 0.0  # the penalty is multiplied by the distance to this power
    #: Classifier-free guidance of all levels: 0 is off, otherwise every pass is run a second time,
    #: for the null condition. Demasking always has some, see `decode.masked`.
    guidance_strength: float = 0.0
    #: How far (0 to 1) the spread of the guided logits, which grows with the strength, is brought
    #: back to that of the model's own.
    guidance_rescale: float = 0.75
    max_steps: int = 25  # number of demasking steps; every step is two passes
    best_of: int = 1  # number of candidates, of which the most probable one is kept
    #: Above 0 makes speech longer; None uses the family's default.
    length_penalty: float | None = None
    max_seconds: float | None = None  # longest sentence; None uses the family's default
    duration_padding: float = 1.05  # factor for predicted durations, so that nothing is cut off

    def __post_init__(self) -> None:
        check_range("repetition_penalty", self.repetition_penalty, 1e-6, math.inf)
        check_range("repetition_decay", self.repetition_decay, -100.0, 100.0)
        check_range("guidance_strength", self.guidance_strength, 0.0, math.inf)
        check_range("guidance_rescale", self.guidance_rescale, 0.0, 1.0)
        check_range("max_steps", self.max_steps, 1, 1000)
        check_range("best_of", self.best_of, 1, MAX_BEST_OF)
        if self.length_penalty is not None:
            check_range("length_penalty", self.length_penalty, -100.0, 100.0)
        check_range("duration_padding", self.duration_padding, 0.01, 100.0)
