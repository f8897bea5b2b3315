"""The number of frames for a text: the model predicts it digit by digit.

The digits begin with a given 0 and end with the stop element, so that 0 2 3 1 stop is 231.
"""

from __future__ import annotations

import numpy as np

from valle_convert.decode.causal import CausalSequences
from valle_convert.decode.options import DecodeOptions
from valle_convert.model.inputs import Condition, length_segments
from valle_convert.model.spec import LENGTH_STOP
from valle_convert.network.protocol import Network

MAX_DIGITS = 10
#: Longest sentence by default.
MAX_SECONDS = 12.0


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


def most_frames(options: DecodeOptions, frame_rate: float) -> int:
    """The number of frames of the longest sentence."""
    return max(1, round((options.max_seconds or MAX_SECONDS) * frame_rate))


def frames_for(said: int, options: DecodeOptions, frame_rate: float) -> int:
    """The number of frames to decode, at least one: a second or more, padded, and limited."""
    wanted = int(max(said, round(frame_rate)) * options.duration_padding)
    return max(1, min(wanted, most_frames(options, frame_rate)))
