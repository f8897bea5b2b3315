"""What all decoders take and give: options and their ranges, callbacks, the codes of a stage."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from valle_convert.errors import InputError
from valle_convert.model.spec import Codes
from valle_convert.progress import Progress, silent

Mode = Literal["ar", "nar-len"]
ModeChoice = Literal["auto", "ar", "nar-len"]

#: Called before every step; True ends the decoding, and the result is what exists by then.
ShouldStop = Callable[[], bool]

#: `stop`: the model (or the task) was complete; `limit`: the maximum was reached first;
#: `interrupted`: `ShouldStop` returned True.
End = Literal["stop", "limit", "interrupted"]


@dataclass(frozen=True)
class Callbacks:
    progress: Progress = silent  # shows frames, steps and levels
    should_stop: ShouldStop = lambda: False  # called between steps


NO_WATCH = Callbacks()


@dataclass(frozen=True, eq=False)
class Decoded:
    """The codes of a stage, without the stop code; if interrupted, those that are complete."""

    codes: Codes
    end: End


#: Recordings are read up to here; longer ones exceed every model's context.
MAX_RECORDING_SECONDS = 600.0


def option(default: object, help_: str, low: float | None = None, high: float = math.inf) -> Any:  # noqa: ANN401
    """A field with its help and, if it is a number, its range."""
    return field(default=default, metadata={"help": help_, "range": (low, high)})


@dataclass(frozen=True)
class _Checked:
    """Rejects numbers outside of the ranges of their fields."""

    def __post_init__(self) -> None:
        for one in fields(self):
            value, (low, high) = getattr(self, one.name), one.metadata.get("range", (None, None))
            if value is None or low is None:
                continue
            if not low <= value <= high or math.isinf(value):
                limits = f"{low:g} or more" if math.isinf(high) else f"from {low:g} to {high:g}"
                raise InputError(f"{one.name} is {value}, expected a number {limits}.")


@dataclass(frozen=True)
class SamplingOptions(_Checked):
    """How codes are drawn; names and defaults are the training project's."""

    temperature: float = option(1.0, "temperature; 0 takes the most likely code", 0)
    top_k: int = option(0, "keep the k most likely codes; 0 keeps all", 0)
    top_p: float = option(1.0, "keep the most likely codes with this total probability", 0, 1)
    min_p: float = option(
        0.0, "drop codes less likely than this fraction of the most likely one", 0, 1
    )
    top_no: float = option(
        0.0, "drop logits more than n standard deviations below the highest; 0 keeps all", 0
    )


GREEDY = SamplingOptions(temperature=0.0)


@dataclass(frozen=True)
class DecodeOptions(_Checked):
    """How codes are decoded. A family reads only the fields in its `speaks_with`."""

    mode: ModeChoice = option("auto", "`auto` uses `nar-len` if the model predicts durations")
    #: How codes of level 0 are drawn. Demasking starts at its temperature, which then falls.
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    #: How codes of the other levels are drawn; higher temperatures sound noisy.
    nar_sampling: SamplingOptions = GREEDY
    repetition_penalty: float = option(
        1.0, "penalty on codes that were already generated (`ar`); 1 is off", 1e-6
    )
    repetition_decay: float = option(
        0.0, "exponent of the distance to the earlier code, as a factor of the penalty", -100, 100
    )
    #: With guidance, every pass is run a second time, for the null condition.
    guidance_strength: float = option(
        0.0, "classifier-free guidance; 0 is off, demasking uses at least 2.5", 0
    )
    guidance_rescale: float = option(
        0.75, "how far guided logits are scaled back to their original spread, 0 to 1", 0, 1
    )
    max_steps: int = option(25, "demasking steps of two passes each (`nar-len`)", 1, 1000)
    #: Each continuation is a sequence with a cache of its own.
    best_of: int = option(1, "draw n candidates and keep the most likely one", 1, 64)
    length_penalty: float | None = option(
        None, "above 0: longer speech (`ar`); the default depends on the model", -100, 100
    )
    max_seconds: float | None = option(None, "longest sentence", 0)
    duration_padding: float = option(1.05, "factor for predicted durations (`nar-len`)", 0.01, 100)
