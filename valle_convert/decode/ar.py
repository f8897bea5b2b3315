"""Level 0 from left to right: each code is drawn from the logits of the one before.

In: a condition. Out: codes [frames]. The network keeps the sequence, so a frame costs one element
(two with guidance).
"""

from functools import partial

import numpy as np

from valle_convert.decode.batch import Steps, alone
from valle_convert.decode.causal import CausalSequences, append_elements
from valle_convert.decode.options import NO_WATCH, Callbacks, Decoded, DecodeOptions, End
from valle_convert.decode.sampling import guided, penalize_length, penalize_repetition, sample
from valle_convert.model.inputs import Condition, Segment, speech_segments
from valle_convert.model.spec import Codes, Model
from valle_convert.network.protocol import Network

_TABLE = "response.ar"


def ar_steps(
    network: Network,
    condition: Condition,
    options: DecodeOptions,
    rng: np.random.Generator,
    *,
    max_frames: int,
    prefix: Codes | None = None,  # level 0 of the speech before, [frames]; not part of the result
    watch: Callbacks = NO_WATCH,
) -> Steps[Decoded]:
    """Decode level 0 of a response, one frame a step."""
    model = network.model
    spoken = np.zeros(0, np.int32) if prefix is None else prefix
    conditions = [condition, condition.null()] if options.guidance_strength else [condition]
    requests = [_segments(model, one, spoken) for one in conditions]
    taken = sum(len(segment) + 1 for segment in requests[0])
    max_frames = min(max_frames, max(1, model.config.n_ctx_train - taken))
    stop = model.config.special_code
    codes = list(spoken)
    n_frames = 0
    end: End = "limit"
    with (
        CausalSequences(network, requests, head="ar", table=_TABLE) as sequences,
        watch.progress("frames", max_frames, "frame") as advance,
    ):
        while n_frames < max_frames:
            if watch.should_stop():
                end = "interrupted"
                break
            rows = sequences.begin() if n_frames == 0 else (yield sequences.grow(codes[-1]))
            logits = guided(rows[:, None], options)
            logits = penalize_repetition(
                logits,
                np.array(codes, np.int32),
                options.repetition_penalty,
                options.repetition_decay,
            )
            logits = penalize_length(logits, stop, n_frames + 1, options.length_penalty or 0.0)
            code = int(sample(logits, options.sampling, rng)[0])
            if code == stop:
                end = "stop"
                break
            codes.append(code)
            n_frames += 1
            advance(1)
    return Decoded(np.array(codes[len(spoken) :], np.int32), end)


#: The network of `ar_steps`, for a `Batch`.
append_codes = partial(append_elements, head="ar", table=_TABLE)
decode_ar = alone(ar_steps, append_codes)


def _segments(model: Model, condition: Condition, spoken: Codes) -> list[Segment]:
    """The segments, with a response of the speech before, which may be empty."""
    leading = speech_segments(model, condition, 0, np.zeros(1, np.int32))[:-1]
    response = Segment((_TABLE,), np.asarray(spoken, np.int64).reshape(-1, 1))
    return [*leading, response]
