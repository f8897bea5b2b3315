"""The JSON of `POST /v1/audio/speech`, checked before anything is queued."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from valle_convert.errors import InputError
from valle_convert.families.family import AnyFamily
from valle_convert.serve.refusal import Refusal, bad_value
from valle_convert.serve.sound import SOUND_FORMATS
from valle_convert.speech.results import SpeakOptions

STREAM_FORMATS = ("audio", "sse")


@dataclass(frozen=True)
class SpeechRequest:
    """A client's request; `voice` is a name, or None for the default one."""

    text: str
    voice: str | None
    sound: str
    speed: float
    is_sse: bool
    options: SpeakOptions


#: Fields of a request that are options of speaking.
_OPTIONS = {
    "seed": int,
    "language": str,
    "voice_text": str,
    "temperature": float,
    "guidance": float,
}
_WORDS = {int: "an integer from 0 to 2^63 - 1", str: "a string", float: "a number"}


def parse_request(
    data: bytes, defaults: SpeakOptions, family: AnyFamily, *, max_characters: int
) -> SpeechRequest:
    """A request, or a `Refusal` that names the field; unknown keys are ignored."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "The body of the request is not valid JSON.", "invalid_json") from error
    if not isinstance(body, dict):
        raise Refusal(400, "The body of the request is not a JSON object.", "invalid_json")
    given = {name: value for name, value in body.items() if value is not None}
    text = _string(given, "input", max_characters)
    if text is None or not text.strip():
        raise bad_value("input", "input is missing or empty; give the text to say.")
    speed = _value(given, "speed", float, "invalid_speed")
    if speed is not None and not 0.25 <= speed <= 4:
        raise bad_value("speed", "speed must be from 0.25 to 4.", "invalid_speed")
    return SpeechRequest(
        text=text,
        voice=_voice(given),
        sound=_choice(given, "response_format", SOUND_FORMATS, "unsupported_response_format"),
        speed=1.0 if speed is None else speed,
        is_sse=_choice(given, "stream_format", STREAM_FORMATS, "invalid_value") == "sse",
        options=_options(given, defaults, family, max_characters),
    )


def _options(
    given: Mapping[str, Any], options: SpeakOptions, family: AnyFamily, max_characters: int
) -> SpeakOptions:
    for name, kind in _OPTIONS.items():
        is_text = kind is str
        value: Any = _string(given, name, max_characters) if is_text else _value(given, name, kind)
        if value is None:
            continue
        field = {"temperature": "sampling", "guidance": "guidance_strength"}.get(name, name)
        if field not in family.speaks_with:
            raise bad_value(name, f"{name} does not apply to {family.title}; leave it out.")
        try:
            if name == "temperature":
                value = replace(options.sampling, temperature=value)
            options = replace(options, **{field: value})
        except InputError as error:
            raise bad_value(name, str(error)) from error
    return options


def _voice(given: Mapping[str, Any]) -> str | None:
    voice = given.get("voice")
    if isinstance(voice, dict):
        voice = voice.get("id")
    if voice is not None and not isinstance(voice, str):
        raise bad_value("voice", 'voice must be a name, or {"id": NAME}.')
    return voice or None


def _choice(given: Mapping[str, Any], name: str, known: Any, code: str) -> str:  # noqa: ANN401
    """One of several words; the first one is the default."""
    value = given.get(name, next(iter(known)))
    if not isinstance(value, str) or value not in known:
        raise bad_value(name, f"{name} must be one of {', '.join(known)}.", code)
    return value


def _string(given: Mapping[str, Any], name: str, max_characters: int) -> str | None:
    text: str | None = _value(given, name, str)
    if text is None:
        return None
    if len(text) > max_characters:
        message = f"{name} has {len(text):,} characters, expected at most {max_characters:,}."
        raise bad_value(name, message, "string_above_max_length")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise bad_value(name, f"{name} contains half of a surrogate pair, not a character.")
    return text


def _value(given: Mapping[str, Any], name: str, kind: type, code: str = "invalid_value") -> Any:  # noqa: ANN401
    value = given.get(name)
    if value is None:
        return None
    is_right = isinstance(value, kind) or (kind is float and isinstance(value, int))
    if kind is float and is_right:
        is_right = abs(value) < 1e9  # finite, and small enough for a float
    if kind is int and is_right:
        is_right = 0 <= value < 2**63
    if not is_right or isinstance(value, bool):
        raise bad_value(name, f"{name} must be {_WORDS[kind]}.", code)
    return float(value) if kind is float else value
