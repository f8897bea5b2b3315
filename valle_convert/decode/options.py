"""What all decoders take and give: options and their ranges, callbacks, the codes of a stage."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from valle_convert.errors import InputError
from valle_convert.model.spec import Codes
from valle_convert.progress import Progress, silent

Mode = Literal["ar", "nar-len"]
ModeChoice = Literal["auto", "ar", "nar-len"]

#: Each continuation is a sequence with a cache of its own.
MAX_BEST_OF = 64

#: Called before every step; True ends the decoding, and the result is what exists by then.
ShouldStop = Callable[[], bool]

#: `stop`: the model (or the task) was complete; `limit`: the maximum was reached first;
#: `interrupted`: `ShouldStop` returned True.
End = Literal["stop", "limit", "interrupted"]


@dataclass(frozen=True)
class Callbacks:
    """Callbacks to follow and stop a decoding."""

    progress: Progress = silent  # shows frames, steps and levels
    should_stop: ShouldStop = lambda: False  # called between steps


UNWATCHED = Callbacks()


@dataclass(frozen=True, eq=False)
class Decoded:
    """The codes of a stage, without the stop code; if interrupted, those that are complete."""

    codes: Codes
    end: End


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Reject an option's value outside of `low` to `high`."""
    if not low <= value <= high or math.isinf(value):
        limits = f"{low:g} or more" if math.isinf(high) else f"from {low:g} to {high:g}"
        raise InputError(f"{name} is {value}, expected a number {limits}.")


@dataclass(frozen=True)
class SamplingOptions:
    """How codes are drawn; names and defaults are the training project's."""

    temperature: float = 1.0  # 0 takes the most likely code; 1 draws by the model's probabilities
    top_k: int = 0  # keep that many codes (and those as likely as the last of them); 0 keeps all
    top_p: float = 1.0  # keep the fewest most likely codes with this total probability
    min_p: float = 0.0  # keep codes at least this likely, relative to the most likely one
    #: Keep logits within this many standard deviations of the highest; 0 keeps all.
    top_no: float = 0.0

    def __post_init__(self) -> None:
        check_range("temperature", self.temperature, 0.0, math.inf)
        check_range("top_k", self.top_k, 0, math.inf)
        check_range("top_p", self.top_p, 0.0, 1.0)
        check_range("min_p", self.min_p, 0.0, 1.0)
        check_range("top_no", self.top_no, 0.0, math.inf)


GREEDY = SamplingOptions(temperature=0.0)


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
