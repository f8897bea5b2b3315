"""From a condition to all levels of a response: duration, level 0, the levels above.

In the mode `ar`, level 0 is decoded from left to right and ends by itself; in the mode `nar-len`,
the duration is decoded first, then all of level 0 by demasking. NAR levels follow in both.
"""

from __future__ import annotations

import time
from dataclasses import astuple, dataclass, replace
from operator import add

import numpy as np

from valle_convert.decode.ar import ar_steps
from valle_convert.decode.batch import Steps
from valle_convert.decode.greedy import decode_length, frames_for, most_frames
from valle_convert.decode.masked import decode_masked
from valle_convert.decode.nar import decode_nar
from valle_convert.decode.options import NO_WATCH, Callbacks, DecodeOptions, End, Mode, ModeChoice
from valle_convert.errors import InputError
from valle_convert.model.inputs import Condition
from valle_convert.model.spec import Codes, Model
from valle_convert.network.protocol import Network


@dataclass(frozen=True, eq=False)
class Prefix:
    """An earlier piece of text and its speech, to be continued."""

    phonemes: Codes  # ids, with the marks around them, [n]
    codes: Codes  # the speech, [frames, levels]

    def extend(self, phonemes: Codes) -> Codes:
        """The phonemes of both pieces, with the marks around them once."""
        return np.concatenate([self.phonemes[:-1], phonemes[1:]])


@dataclass(frozen=True)
class Timings:
    """Seconds of computing, by stage."""

    text: float = 0.0
    voice: float = 0.0
    length: float = 0.0
    level_0: float = 0.0
    levels: float = 0.0
    codec: float = 0.0

    @property
    def total(self) -> float:
        return float(sum(astuple(self)))

    def __add__(self, other: Timings) -> Timings:
        return Timings(*map(add, astuple(self), astuple(other)))


@dataclass(frozen=True, eq=False)
class Speech:
    codes: Codes  # [frames, levels]; if interrupted, the complete frames and levels
    mode: Mode
    #: How that ended; `limit` if speech was cut off at the maximum (ar), or is shorter than the
    #: model predicted (nar-len).
    end: End
    seconds: Timings  # of the stages that stand alone; the rest is level 0's


def modes_of(model: Model) -> list[Mode]:
    """How a model can speak, the best first."""
    capabilities = model.config.capabilities
    can: dict[Mode, bool] = {
        "nar-len": "len" in capabilities and model.has_head("mask") and model.has_head("len"),
        "ar": "ar" in capabilities and model.has_head("ar"),
    }
    possible = [mode for mode, able in can.items() if able]
    if not possible:
        raise InputError(
            f"This model cannot speak: it has the capabilities {', '.join(capabilities)}, expected "
            "ar or len."
        )
    return possible


def choose_mode(model: Model, wanted: ModeChoice = "auto") -> Mode:
    possible = modes_of(model)
    if wanted == "auto":
        return possible[0]
    if wanted not in possible:
        raise InputError(
            f"This model cannot decode in the mode {wanted}: it has the capabilities "
            f"{', '.join(model.config.capabilities)}; use the mode {possible[0]}."
        )
    return wanted


def speech_steps(
    network: Network,
    condition: Condition,
    options: DecodeOptions,
    rng: np.random.Generator,
    frame_rate: float,
    *,
    level_0: Codes | None = None,  # [frames], to decode only the levels above it
    prefix: Prefix | None = None,
    recording: Codes | None = None,  # level 0 of the one whose voice is changed, [frames]
    watch: Callbacks = NO_WATCH,
) -> Steps[Speech]:
    mode, n_frames = choose_mode(network.model, options.mode), None
    if recording is not None:
        if mode != "nar-len":
            raise InputError(
                "Voice conversion starts from another recording's codes, which only the mode "
                "nar-len can do; this model or --set mode asks for ar."
            )
        n_frames = len(recording)
    elif condition.task != "tts":
        if condition.prompt is None or not len(condition.prompt):
            raise InputError(
                f"The task {condition.task} works on a recording; give it as the voice."
            )
        n_frames = len(condition.prompt)
    if prefix is not None:
        phonemes = prefix.extend(np.asarray(condition.phonemes, np.int32))
        continued = replace(condition, phonemes=phonemes)
    else:
        continued = condition

    begin = length_done = time.perf_counter()
    before = None if prefix is None else prefix.codes[:, 0]
    end: End
    if level_0 is not None:
        end = "stop"
    elif mode == "ar":
        spoken = yield from ar_steps(
            network,
            continued,
            options,
            rng,
            max_frames=most_frames(options, frame_rate) if n_frames is None else n_frames,
            prefix=before,
            watch=watch,
        )
        level_0, end = spoken.codes, spoken.end
    else:
        is_limited = False
        if n_frames is None:
            n_frames = frames_for(decode_length(network, condition), options, frame_rate)
            is_limited = n_frames == most_frames(options, frame_rate)
            length_done = time.perf_counter()
        drawn = decode_masked(
            network,
            continued,
            n_frames,
            options,
            rng,
            prefix=before,
            recording=recording,
            watch=watch,
        )
        level_0, end = drawn.codes, drawn.end
        if is_limited and end == "stop":
            end = "limit"
    level_0_done = time.perf_counter()
    raised = decode_nar(
        network,
        continued,
        level_0,
        options,
        rng,
        prefix=None if prefix is None else prefix.codes,
        watch=watch,
    )
    done = time.perf_counter()
    return Speech(
        codes=raised.codes,
        mode=mode,
        end="interrupted" if raised.end == "interrupted" else end,
        seconds=Timings(length=length_done - begin, levels=done - level_0_done),
    )
