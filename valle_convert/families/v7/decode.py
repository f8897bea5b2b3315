"""All levels of a response by demasking, and its duration."""

import numpy as np

from valle_convert.decode.greedy import frames_for, most_frames
from valle_convert.decode.masked import demask
from valle_convert.decode.options import NO_WATCH, Callbacks, Decoded, DecodeOptions
from valle_convert.decode.sampling import Logits
from valle_convert.families.v7.composed import AllLevelsNetwork
from valle_convert.model.inputs import Condition
from valle_convert.model.spec import Codes


def decode_levels(
    network: AllLevelsNetwork,
    condition: Condition,
    n_frames: int,
    options: DecodeOptions,
    rng: np.random.Generator,
    *,
    level_0: Codes | None = None,  # fixed codes of level 0, [n_frames]
    prefix: Codes | None = None,  # the speech before, [frames, levels]; not part of the result
    watch: Callbacks = NO_WATCH,
) -> Decoded:
    """Decode codes [n_frames, levels]; a model may give the stop code at any place."""
    config = network.model.config
    draft = np.full((config.n_levels, n_frames), config.mask_code, np.int32)
    kept = np.zeros(draft.shape, bool)
    if level_0 is not None:
        draft[0], kept[0] = level_0, True

    def predict(given: Condition, shown: Codes) -> Logits:
        response = shown.T if prefix is None else np.concatenate([prefix, shown.T])
        return network.levels(given, response)[:, -n_frames:]

    found = demask(
        predict,
        condition,
        draft,
        config.mask_code,
        options,
        rng,
        kept=kept,
        scores_drawn=True,
        watch=watch,
    )
    return Decoded(found.codes.T, found.end)


def decode_duration(
    network: AllLevelsNetwork, condition: Condition, options: DecodeOptions, frame_rate: float
) -> int:
    """The number of frames for a text, which the model gives in seconds or digit by digit."""
    found = network.length(condition)
    if found.shape[1] > 1:
        said = int("".join(map(str, found.argmax(-1))))
    else:
        seconds = np.nan_to_num(found[0, 0], nan=0.0).clip(0, most_frames(options, frame_rate))
        said = int(seconds * frame_rate)
    return frames_for(said, options, frame_rate)


def without_stops(
    network: AllLevelsNetwork, condition: Condition, codes: Codes, prefix: Codes | None = None
) -> Codes:
    """The codes with each stop, which no codec has, replaced by the likeliest real code.

    Trained models give none; if there is one, one more pass is run.
    """
    stop = network.model.config.stop_code
    if not (codes == stop).any():
        return codes
    spoken = codes[:0] if prefix is None else prefix
    logits = network.levels(condition, np.concatenate([spoken, codes]))[:, len(spoken) :, :stop]
    likeliest = logits.argmax(-1).T
    return np.where(codes == stop, likeliest, codes).astype(np.int32)
