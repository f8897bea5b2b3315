"""What is decoded by the likeliest element: the duration of a text, and transcripts (stt).

A duration is predicted digit by digit. The digits begin with a given 0 and end with the stop
element, so that 0 2 3 1 stop is 231 frames.
"""

from collections.abc import Sequence

import numpy as np

from valle_convert.decode.causal import CausalSequences
from valle_convert.decode.options import NO_WATCH, Callbacks, Decoded, DecodeOptions, End
from valle_convert.model.inputs import Condition, Segment, length_segments, transcript_segments
from valle_convert.model.spec import BOS_PHONEME, EOS_PHONEME, LENGTH_STOP, Codes
from valle_convert.network.protocol import Network

MAX_DIGITS = 10
#: Longest sentence by default.
MAX_SECONDS = 12.0


def decode_length(network: Network, condition: Condition) -> int:
    """The unchanged number of frames that the model predicts."""
    segments = length_segments(network.model, condition, [0])
    digits = _likeliest(network, segments, "len", "length", LENGTH_STOP, MAX_DIGITS).codes
    return int("".join(map(str, [0, *digits])))


def decode_transcript(
    network: Network,
    speech: Codes,  # [frames, levels]
    language: int | None,
    max_phonemes: int,
    *,
    watch: Callbacks = NO_WATCH,
) -> Decoded:
    """The ids of the phonemes of some speech, without the marks around them."""
    segments = transcript_segments(network.model, speech, np.array([BOS_PHONEME]), language)
    return _likeliest(network, segments, "stt", "phonemes", EOS_PHONEME, max_phonemes, watch)


def _likeliest(
    network: Network,
    segments: Sequence[Segment],
    head: str,
    table: str,
    stop: int,
    most: int,
    watch: Callbacks = NO_WATCH,
) -> Decoded:
    """Grow a sequence by its likeliest rows of a table until `stop`."""
    rows: list[int] = []
    end: End = "limit"
    with (
        CausalSequences(network, [segments], head=head, table=table) as sequence,
        watch.progress(table, most, table.removesuffix("s")) as advance,
    ):
        while len(rows) < most:
            if watch.should_stop():
                end = "interrupted"
                break
            logits = sequence.append(rows[-1]) if rows else sequence.begin()
            row = int(np.argmax(logits))
            if row == stop:
                end = "stop"
                break
            rows.append(row)
            advance(1)
    return Decoded(np.array(rows, np.int32), end)


def most_frames(options: DecodeOptions, frame_rate: float) -> int:
    return max(1, round((options.max_seconds or MAX_SECONDS) * frame_rate))


def frames_for(said: int, options: DecodeOptions, frame_rate: float) -> int:
    """The number of frames to decode, at least one: a second or more, padded, and limited."""
    wanted = int(max(said, round(frame_rate)) * options.duration_padding)
    return max(1, min(wanted, most_frames(options, frame_rate)))
