"""The number of frames for a text: the model predicts it digit by digit.

The digits begin with a given 0 and end with the stop element, so that 0 2 3 1 stop is 231.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from valle_convert.decode.causal import CausalSequences
from valle_convert.errors import InputError
from valle_convert.model.inputs import Condition, length_segments
from valle_convert.model.spec import LENGTH_STOP
from valle_convert.network.protocol import Network

MAX_DIGITS = 10


@dataclass(frozen=True)
class LengthOptions:
    """Changes to the predicted number."""

    duration_padding: float = 1.05  # a factor, so that nothing is cut off at the end
    min_frames: int = 75  # the minimum before padding (one second of EnCodec)
    max_frames: int = 900  # the maximum after padding (12 seconds)

    def __post_init__(self) -> None:
        if not 0 < self.duration_padding <= 100:
            raise InputError(
                f"The duration padding is {self.duration_padding}, expected a factor above 0, "
                "at most 100."
            )


def decode_length(network: Network, condition: Condition) -> int:
    """The unchanged number of frames that the model predicts."""
    segments = length_segments(network.model, condition, [0])
    digits = "0"
    with CausalSequences(network, [segments], head="len", table="length") as sequence:
        logits = sequence.begin()
        for place in range(MAX_DIGITS):
            digit = min(int(np.argmax(logits)), LENGTH_STOP)
            if digit == LENGTH_STOP:
                break
            digits += str(digit)
            if place < MAX_DIGITS - 1:
                logits = sequence.append(digit)
    return int(digits)


def frames_for(said: int, options: LengthOptions) -> int:
    """The number of frames to decode, at least one."""
    wanted = int(max(said, options.min_frames) * options.duration_padding)
    return max(1, min(wanted, options.max_frames))
