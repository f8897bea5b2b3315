"""The decoding algorithms, on any `protocol.Network`: from a condition to codes and back.

`speech` joins the stages: `length` (how many frames), `ar` or `masked` (level 0) and `nar` (the
levels above). `transcribe` is the reverse. `sampling` and `guidance` are the arithmetic on logits,
`causal` is a sequence that grows by one element a step, and `batch` lets several decodings take
their steps together.
"""

from valle_convert.decode.ar import append_codes, decode_ar
from valle_convert.decode.batch import Batch, Decoding, Steps
from valle_convert.decode.control import UNWATCHED, Callbacks, Decoded, End, ShouldStop, check_range
from valle_convert.decode.guidance import guide
from valle_convert.decode.length import decode_length, frames_for
from valle_convert.decode.masked import decode_masked
from valle_convert.decode.nar import decode_nar
from valle_convert.decode.options import DecodeOptions, Mode, ModeChoice
from valle_convert.decode.sampling import GREEDY, SamplingOptions
from valle_convert.decode.speech import (
    Prefix,
    Speech,
    Timings,
    choose_mode,
    decode_speech,
    speech_steps,
)
from valle_convert.decode.transcribe import Transcript, decode_transcript

__all__ = [
    "GREEDY",
    "UNWATCHED",
    "Batch",
    "Callbacks",
    "DecodeOptions",
    "Decoded",
    "Decoding",
    "End",
    "Mode",
    "ModeChoice",
    "Prefix",
    "SamplingOptions",
    "ShouldStop",
    "Speech",
    "Steps",
    "Timings",
    "Transcript",
    "append_codes",
    "check_range",
    "choose_mode",
    "decode_ar",
    "decode_length",
    "decode_masked",
    "decode_nar",
    "decode_speech",
    "decode_transcript",
    "frames_for",
    "guide",
    "speech_steps",
]
