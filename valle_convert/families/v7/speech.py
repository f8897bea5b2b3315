"""Speech of version 7, on any `AllLevelsNetwork`."""

import time
from dataclasses import replace

from valle_convert.decode.batch import Steps
from valle_convert.decode.greedy import most_frames
from valle_convert.decode.speech import Speech, Timings
from valle_convert.errors import InputError
from valle_convert.families.v7.composed import AllLevelsNetwork
from valle_convert.families.v7.decode import decode_duration, decode_levels, without_stops
from valle_convert.model.inputs import Condition
from valle_convert.model.spec import Codes
from valle_convert.speech.phonemes import PhonemeSpeaker, prefix_of
from valle_convert.speech.results import SpeakOptions
from valle_convert.speech.speaker import SentenceInputs


class VersionSevenSpeaker(PhonemeSpeaker[AllLevelsNetwork]):
    """A model of version 7 that speaks. Close it, or use it as a context manager."""

    def _n_sequences(self, options: SpeakOptions) -> int:
        del options
        capabilities = self._model.config.capabilities
        if "len" not in capabilities:
            raise InputError(
                f"This model cannot speak: it has the capabilities {', '.join(capabilities)}, "
                "expected len."
            )
        return 0

    def _decode(self, given: SentenceInputs[Codes, Codes]) -> Steps[Speech]:
        yield from ()  # no steps
        line, options, level_0 = given.line, given.options, given.level_0
        condition = Condition(phonemes=line.rows, language=line.language_id, prompt=given.voice)
        begin = time.perf_counter()
        if level_0 is None:
            n_frames = decode_duration(self._network, condition, options, self.frame_rate)
        else:
            n_frames = len(level_0)
        length_done = time.perf_counter()
        before = prefix_of(given.said, line, options.context_history)
        prefix = None
        if before is not None:
            condition = replace(condition, phonemes=before.extend(line.rows))
            prefix = before.codes
        drawn = decode_levels(
            self._network,
            condition,
            n_frames,
            options,
            given.rng,
            level_0=level_0,
            prefix=prefix,
            watch=given.watch,
        )
        codes = without_stops(self._network, condition, drawn.codes, prefix)
        is_limited = level_0 is None and n_frames == most_frames(options, self.frame_rate)
        return Speech(
            codes=codes,
            mode="nar-len",
            end="limit" if is_limited and drawn.end == "stop" else drawn.end,
            seconds=Timings(length=length_done - begin, levels=time.perf_counter() - length_done),
        )


SPEAKER = VersionSevenSpeaker
