"""A request to speak: its JSON, checked before anything is queued, and its work."""

import re
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Annotated, Any

import msgspec

from valle_convert.decode.options import ShouldStop
from valle_convert.errors import InputError
from valle_convert.families.family import AnyFamily
from valle_convert.serve.gate import Metrics
from valle_convert.serve.refusal import Refusal, bad_value
from valle_convert.serve.sound import SOUND_FORMATS, Encoder
from valle_convert.serve.voices import Voices
from valle_convert.serve.worker import TURN
from valle_convert.speech.results import SpeakOptions
from valle_convert.speech.speaker import AnySpeaker, Watch, seeded

STREAM_FORMATS = ("audio", "sse")
_Number = Annotated[float, msgspec.Meta(gt=-1e9, lt=1e9)]


@dataclass(frozen=True)
class SpeechRequest:
    """A client's request; `voice` is a name, or None for the default one."""

    text: str
    voice: str | None
    sound: str
    speed: float
    is_sse: bool
    options: SpeakOptions


class _Voice(msgspec.Struct):
    id: str


class _Body(msgspec.Struct):
    """The fields of a request, in which null is the default; unknown ones are ignored."""

    input: str
    voice: str | _Voice | None = None
    response_format: str | None = None
    stream_format: str | None = None
    speed: Annotated[float, msgspec.Meta(ge=0.25, le=4)] | None = None
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None = None
    language: str | None = None
    voice_text: str | None = None
    temperature: _Number | None = None
    guidance: _Number | None = None


#: Fields of a request that are options of speaking, by the option's name.
_OPTIONS = {
    "seed": "seed",
    "language": "language",
    "voice_text": "voice_text",
    "sampling": "temperature",
    "guidance_strength": "guidance",
}


def parse_request(
    data: bytes, defaults: SpeakOptions, family: AnyFamily, *, max_characters: int
) -> SpeechRequest:
    """A request, or a `Refusal` that names the field."""
    try:
        body = msgspec.json.decode(data, type=_Body)
    except msgspec.ValidationError as error:
        words, _, place = str(error).partition(" - at `$.")
        named = re.match(r"\w+", place) or re.search(r"(?<=required field `)\w+", words)
        field = named and named[0]
        message = f"{field or 'The request'}: {words}."
        raise Refusal(400, message, "invalid_value", field) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal(400, "The body of the request is not valid JSON.", "invalid_json") from error
    for name in ("input", "language", "voice_text"):
        n = len(getattr(body, name) or "")
        if n > max_characters:
            message = f"{name} has {n:,} characters, expected at most {max_characters:,}."
            raise bad_value(name, message, "string_above_max_length")
    if not body.input.strip():
        raise bad_value("input", "input is empty; give the text to say.")
    sound = "mp3" if body.response_format is None else body.response_format
    stream = "audio" if body.stream_format is None else body.stream_format
    for name, value, known in (
        ("response_format", sound, SOUND_FORMATS),
        ("stream_format", stream, STREAM_FORMATS),
    ):
        if value not in known:
            raise bad_value(name, f"{name} must be one of {', '.join(known)}.")
    return SpeechRequest(
        text=body.input,
        voice=(body.voice.id if isinstance(body.voice, _Voice) else body.voice) or None,
        sound=sound,
        speed=1.0 if body.speed is None else body.speed,
        is_sse=stream == "sse",
        options=_options(body, defaults, family),
    )


def _options(body: _Body, options: SpeakOptions, family: AnyFamily) -> SpeakOptions:
    for option, name in _OPTIONS.items():
        value: Any = getattr(body, name)
        if value is None:
            continue
        if option not in family.speaks_with:
            raise bad_value(name, f"{name} does not apply to {family.title}; leave it out.")
        try:
            if name == "temperature":
                value = replace(options.sampling, temperature=value)
            options = replace(options, **{option: value})
        except InputError as error:
            raise bad_value(name, str(error)) from error
    return options


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
