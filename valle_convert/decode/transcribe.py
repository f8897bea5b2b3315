"""Speech to phonemes (stt): causal, always the most likely phoneme."""

from __future__ import annotations

import numpy as np

from valle_convert.decode.causal import CausalSequences
from valle_convert.decode.options import UNWATCHED, Callbacks, Decoded, End
from valle_convert.model.inputs import transcript_segments
from valle_convert.model.spec import BOS_PHONEME, EOS_PHONEME, Codes
from valle_convert.network.protocol import Network


def decode_transcript(
    network: Network,
    speech: Codes,  # [frames, levels]
    language: int | None,
    max_phonemes: int,
    *,
    watch: Callbacks = UNWATCHED,
) -> Decoded:
    """The ids of the phonemes of some speech, without the marks around them."""
    start = np.array([BOS_PHONEME])
    segments = transcript_segments(network.model, speech, start, language)
    phonemes: list[int] = []
    end: End = "limit"
    with (
        CausalSequences(network, [segments], head="stt", table="phonemes") as sequence,
        watch.progress("phonemes", max_phonemes, "phoneme") as advance,
    ):
        while len(phonemes) < max_phonemes:
            if watch.should_stop():
                end = "interrupted"
                break
            logits = sequence.append(phonemes[-1]) if phonemes else sequence.begin()
            phoneme = int(np.argmax(logits))
            if phoneme == EOS_PHONEME:
                end = "stop"
                break
            phonemes.append(phoneme)
            advance(1)
    return Decoded(np.array(phonemes, np.int32), end)
