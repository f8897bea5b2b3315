"""The fields of `SpeakOptions` by flat names, as `--set NAME=VALUE` takes them.

Names, types and defaults come from the dataclasses; only the help is written here.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from valle_convert.errors import InputError
from valle_convert.speech.results import SpeakOptions

#: What the fields of a group are called: `nar_sampling.top_k` is `nar_top_k`.
_PREFIXES = {"sampling": "", "nar_sampling": "nar_"}
#: Fields with an option of their own.
_APART = frozenset({"language", "voice_text", "seed", "temperature"})

HELP = {
    "mode": "`auto` uses `nar-len` if the model predicts durations",
    "max_seconds": "longest sentence; the default depends on the model",
    "prompt_seconds": "how much of the voice is used; a shorter voice is repeated",
    "context_history": "number of previous sentences to condition on",
    "duration_padding": "factor for predicted durations (`nar-len`)",
    "max_steps": "demasking steps (`nar-len`)",
    "guidance_strength": "classifier-free guidance; 0 is off, demasking uses at least 2.5",
    "guidance_rescale": "how far guided logits are scaled back to their original spread, 0 to 1",
    "top_k": "keep the k most likely codes; 0 keeps all",
    "top_p": "keep the most likely codes with this total probability",
    "min_p": "drop codes less likely than this fraction of the most likely one",
    "top_no": "drop logits more than n standard deviations below the highest; 0 keeps all",
    "repetition_penalty": "penalty on codes that were already generated (`ar`); 1 is off",
    "repetition_decay": "exponent of the distance to the earlier code, as a factor of the penalty",
    "length_penalty": "above 0: longer speech (`ar`); the default depends on the model",
    "best_of": "draw n candidates and keep the most likely one",
    "accent": "accent for the whole text: `en`, `zh` or `ja`",
    "nar_temperature": "temperature of the levels above 0; 0 takes the most likely code",
    "nar_top_k": "`top_k` of the levels above 0",
    "nar_top_p": "`top_p` of the levels above 0",
    "nar_min_p": "`min_p` of the levels above 0",
    "nar_top_no": "`top_no` of the levels above 0",
}


@dataclass(frozen=True)
class SpeakSetting:
    """One setting of speech."""

    name: str
    field: str  # of `SpeakOptions`
    inner: str  # the field of its value, if that is a group
    kind: type  # `int`, `float` or `str`
    choices: tuple[str, ...]  # the allowed words; empty if there are others
    default: object

    def parse(self, text: str) -> object:
        """The value of a text."""
        try:
            value = self.kind(text)
        except ValueError:
            value = None
        is_finite = not isinstance(value, float) or math.isfinite(value)
        if value is None or not is_finite or (self.choices and value not in self.choices):
            words = {int: "a whole number", float: "a finite number"}.get(self.kind, "")
            expected = words or f"one of {', '.join(self.choices)}"
            raise InputError(f"--set {self.name}={text}: expected {expected}.")
        return value


@cache
def settings() -> dict[str, SpeakSetting]:
    """All settings, by name, in the order of `HELP`."""
    found = {one.name: one for one in _settings_of(SpeakOptions()) if one.name not in _APART}
    return {name: found[name] for name in (*HELP, *(found.keys() - HELP.keys()))}


def parse_settings(given: Sequence[str]) -> dict[str, object]:
    """The values of settings by name, each given as `NAME=VALUE`, or several with commas."""
    found = {}
    for one in ",".join(given).split(",") if given else ():
        name, equals, text = one.partition("=")
        setting = settings().get(name.strip().replace("-", "_"))
        if setting is None or not equals:
            near = get_close_matches(name.strip(), HELP, n=1)
            hint = f"Did you mean {near[0]}?" if near else "docs/commands.md lists the names."
            raise InputError(f"--set {one:.60}: expected NAME=VALUE with a known name. {hint}")
        found[setting.name] = setting.parse(text.strip())
    return found


def with_settings(options: SpeakOptions, values: Mapping[str, object]) -> SpeakOptions:
    """Options with some settings changed."""
    for name, value in values.items():
        setting, changed = settings()[name], value
        if setting.inner:
            group: Any = getattr(options, setting.field)
            changed = replace(group, **{setting.inner: value})
        options = replace(options, **{setting.field: changed})  # type: ignore[arg-type]
    return options


def _settings_of(options: SpeakOptions) -> Iterator[SpeakSetting]:
    hints = get_type_hints(SpeakOptions)
    for field in fields(options):
        value = getattr(options, field.name)
        if not is_dataclass(value):
            kind, choices = _kind(hints[field.name])
            yield SpeakSetting(field.name, field.name, "", kind, choices, value)
            continue
        inner_hints = get_type_hints(type(value))
        for inner in fields(value):
            name = _PREFIXES[field.name] + inner.name
            kind, choices = _kind(inner_hints[inner.name])
            default = getattr(value, inner.name)
            yield SpeakSetting(name, field.name, inner.name, kind, choices, default)


def _kind(hint: Any) -> tuple[type, tuple[str, ...]]:  # noqa: ANN401 - an annotation
    """The type of a value, and its words if there are only some."""
    if get_origin(hint) in (Union, UnionType):
        (hint,) = (one for one in get_args(hint) if one is not type(None))
    return (str, get_args(hint)) if get_origin(hint) is Literal else (hint, ())
