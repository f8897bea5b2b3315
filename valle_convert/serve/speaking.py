"""The work of a speech request in the worker's thread."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

from valle_convert.decode.options import ShouldStop
from valle_convert.errors import InputError
from valle_convert.families.family import AnyFamily
from valle_convert.serve.metrics import Metrics
from valle_convert.serve.request import SpeechRequest
from valle_convert.serve.sound import Encoder
from valle_convert.serve.voices import Voices
from valle_convert.serve.worker import TURN
from valle_convert.speech.speaker import AnySpeaker, Watch, seeded


class Speaking:
    """The work of one request: bytes of sound, and turns of others between steps.

    The voice is looked up at once, so that a wrong name does not occupy the queue.
    """

    def __init__(
        self, wanted: SpeechRequest, voices: Voices, family: AnyFamily, metrics: Metrics
    ) -> None:
        self.wanted = wanted
        self._voices, self._metrics = voices, metrics
        self._voice = voices.find(wanted.voice)
        self.options = seeded(wanted.options)
        if self._voice is not None and "voice_text" in family.speaks_with:
            said = wanted.options.voice_text or self._voice.text
            self.options = replace(self.options, voice_text=said)
        self.n_frames = 0

    def __call__(
        self, speaker: AnySpeaker, should_stop: ShouldStop
    ) -> Generator[bytes | None, None, None]:
        encoder, notices = Encoder(self.wanted.sound, self.wanted.speed), [""]
        voice = None if self._voice is None else self._voices.load(self._voice, speaker)
        watch = Watch(should_stop=should_stop)
        for piece in speaker.turns(self.wanted.text, voice, self.options, watch=watch):
            if piece is None:
                yield TURN
                continue
            self._metrics.spoke(piece)
            notices += piece.notices
            if piece.audio is not None and len(piece.codes):
                self.n_frames += len(piece.codes)
                yield encoder.add(piece.audio)
        if not self.n_frames and not should_stop():
            raise InputError(f"There is nothing to hear: {notices[-1]}.")
        yield encoder.finish()
