"""The fields of `SpeakOptions` by flat names, as `--set NAME=VALUE` takes them.

Names, types, defaults and help are those of the dataclasses.
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


@dataclass(frozen=True)
class SpeakSetting:
    """One setting of speech."""

    name: str
    field: str  # of `SpeakOptions`
    inner: str  # the field of its value, if that is a group
    kind: type  # `int`, `float` or `str`
    choices: tuple[str, ...]  # the allowed words; empty if there are others
    default: object
    help: str

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
    """All settings, by name."""
    return {one.name: one for one in _settings_of(SpeakOptions()) if one.name not in _APART}


def parse_settings(given: Sequence[str]) -> dict[str, object]:
    """The values of settings by name, each given as `NAME=VALUE`, or several with commas."""
    found = {}
    for one in ",".join(given).split(",") if given else ():
        name, equals, text = one.partition("=")
        setting = settings().get(name.strip().replace("-", "_"))
        if setting is None or not equals:
            near = get_close_matches(name.strip(), settings(), n=1)
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


def _settings_of(options: object, group: str = "") -> Iterator[SpeakSetting]:
    hints = get_type_hints(type(options))
    for one in fields(options):  # type: ignore[arg-type]
        value, prefix = getattr(options, one.name), _PREFIXES.get(group, "")
        if is_dataclass(value):
            yield from _settings_of(value, one.name)
            continue
        help_ = f"`{one.name}` of the levels above 0" if prefix else one.metadata.get("help", "")
        field, inner = (group, one.name) if group else (one.name, "")
        kind, choices = _kind(hints[one.name])
        yield SpeakSetting(prefix + one.name, field, inner, kind, choices, value, help_)


def _kind(hint: Any) -> tuple[type, tuple[str, ...]]:  # noqa: ANN401 - an annotation
    """The type of a value, and its words if there are only some."""
    if get_origin(hint) in (Union, UnionType):
        (hint,) = (one for one in get_args(hint) if one is not type(None))
    return (str, get_args(hint)) if get_origin(hint) is Literal else (hint, ())
