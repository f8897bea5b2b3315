"""Speech of versions 5 and 6, on any `network.protocol.Network`."""

import time
from collections.abc import Sequence
from typing import Literal

import numpy as np

from valle_convert.decode.ar import append_codes
from valle_convert.decode.batch import Element, Steps
from valle_convert.decode.greedy import decode_transcript
from valle_convert.decode.sampling import Logits
from valle_convert.decode.speech import Speech, Timings, choose_mode, speech_steps
from valle_convert.errors import InputError
from valle_convert.model.inputs import Condition
from valle_convert.model.spec import Codes
from valle_convert.network.protocol import Network
from valle_convert.speech.phonemes import PhonemeSpeaker, language_id, prefix_of
from valle_convert.speech.recordings import Recording
from valle_convert.speech.results import Heard, SpeakOptions, Spoken
from valle_convert.speech.speaker import (
    UNWATCHED,
    SentenceInputs,
    Watch,
    seeded,
)


class VersionFiveSpeaker(PhonemeSpeaker[Network]):
    """A version 5 or 6 model that speaks, answers recordings and transcribes them."""

    remedies = f"{PhonemeSpeaker.remedies}, or --set mode=nar-len"
    stepwise = ", or add --set mode=ar"

    def _append(self, elements: Sequence[Element]) -> Logits:
        return append_codes(self._network, elements)

    # ------------------------------------------------------------------------- speaking

    def _n_sequences(self, options: SpeakOptions) -> int:
        if choose_mode(self._network.model, options.mode) != "ar":
            return 0
        return 2 if options.guidance_strength else 1

    def _decode(self, given: SentenceInputs[Codes, Codes]) -> Steps[Speech]:
        line, options = given.line, given.options
        return speech_steps(
            self._network,
            Condition(phonemes=line.rows, language=line.language_id, prompt=given.voice),
            options,
            given.rng,
            self.frame_rate,
            level_0=given.level_0,
            prefix=prefix_of(given.said, line, options.context_history),
            watch=given.watch,
        )

    def answer(
        self,
        task: Literal["vc", "ns", "sr"],
        source: Recording,
        text: str = "",
        voice: Recording | None = None,
        options: SpeakOptions | None = None,
        *,
        is_phonemes: bool = False,
        watch: Watch = UNWATCHED,
    ) -> Spoken:
        """Answer a recording with one of the same length."""
        tasks = self._network.model.tasks
        if task != "vc" and task not in tasks:
            raise InputError(
                f"This model does not support the task {task}, only {', '.join(tasks)}."
            )
        options = seeded(options)
        begin = time.perf_counter()
        if text or task == "vc":
            (line,) = self._lines(text, options, is_phonemes=is_phonemes, whole=True)
        else:
            line = self._silence(options)
        text_done = time.perf_counter()
        recording, notices = self.prompt(source, None, "the recording")
        prompt, of_voice = self._voice(voice, options) if task == "vc" else (recording, ())
        seconds = Timings(text=text_done - begin, voice=time.perf_counter() - text_done)
        steps = speech_steps(
            self._network,
            Condition(
                phonemes=line.rows,
                language=line.language_id,
                prompt=prompt,
                task="tts" if task == "vc" else task,
            ),
            options,
            np.random.default_rng(options.seed),
            self.frame_rate,
            recording=recording[:, 0] if task == "vc" else None,
            watch=watch,
        )
        return self._at_once(line, steps, notices + of_voice, seconds, options, watch)

    # ------------------------------------------------------------------------ listening

    def transcribe(
        self,
        recording: Recording,
        language: str | None = None,
        max_phonemes: int = 900,
        *,
        watch: Watch = UNWATCHED,
    ) -> Heard:
        model = self._network.model
        if not model.has_head("stt"):
            raise InputError("This model cannot transcribe: it has no head for the task stt.")
        spoken = self._language(language)
        begin = time.perf_counter()
        codes, notices = self.prompt(recording, None, "the recording")
        voice_done = time.perf_counter()
        transcript = decode_transcript(
            self._network,
            codes,
            language_id(model, spoken),
            max_phonemes,
            watch=watch,
        )
        ids = tuple(transcript.codes.tolist())
        return Heard(
            phonemes=self._detokenize(ids),
            ids=ids,
            language=spoken,
            end=transcript.end,
            notices=notices,
            voice_seconds=voice_done - begin,
            decode_seconds=time.perf_counter() - voice_done,
        )


SPEAKER = VersionFiveSpeaker
