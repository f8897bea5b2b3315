"""Plain values of untrusted YAML, JSON or pickles, limited in number.

Numbers of numpy or torch, tuples, dates and paths become plain values, and 8e-1 is a number in
YAML. Everything else is left out and listed.

A few lines of YAML can expand to billions of values by references, and a pickle can contain itself
or a number of a million digits. So sizes are measured before anything is walked through or printed.
"""

import datetime as dt
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

#: A vocabulary has a few thousand.
_MAX_VALUES = 1 << 18
_MAX_DIGITS = 1000  # of a number, a date ... in YAML
_MAX_INTEGER = 1 << 64
#: YAML 1.1 requires a point in every number with an exponent, 1.2 does not.
_EXPONENT = re.compile(r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)[eE][-+]?[0-9]+")


@dataclass(frozen=True)
class Unreadable:
    """Replaces a value that is not plain; an error about it shows the reason."""

    reason: str

    def __repr__(self) -> str:
        return self.reason


def to_plain(value: object) -> tuple[Any, list[str]]:
    """A value made plain, and the places of what has no plain value, which is `Unreadable`."""
    left_out: list[str] = []

    def convert(value: Any, place: str) -> Any:  # noqa: ANN401
        if _knows_plain(value):
            return convert(value.plain(), place)
        if isinstance(value, Mapping):
            found = {}
            for key, inner in value.items():
                word = key if isinstance(key, str) else type(key).__name__
                where = f"{place}.{word:.40}".lstrip(".")
                try:
                    found[_plain(key)] = convert(inner, where)
                except ValueError as error:
                    left_out.append(f"{where} ({error})")
                    found[word] = Unreadable(str(error))
            return found
        if isinstance(value, list | tuple | set | frozenset):
            return [convert(inner, f"{place}[]") for inner in value]
        return _plain(value)

    try:
        _measure(value, _children_of_any)
        return convert(value, ""), left_out
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _knows_plain(value: object) -> bool:
    """Whether it is a tensor or a placeholder; a class of placeholders is not."""
    return hasattr(value, "plain") and not isinstance(value, type)


def _plain(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, PurePath | dt.date | dt.time):
        return str(value)
    if isinstance(value, int) and abs(value) >= _MAX_INTEGER:
        raise ValueError("a whole number of more than 64 bits")
    if value is not None and not isinstance(value, str | int | float):
        raise ValueError(f"a {type(value).__name__}, expected a plain value")
    return value


def _children_of_any(value: Any) -> Iterable[object]:  # noqa: ANN401
    if _knows_plain(value):
        with suppress(ValueError):
            yield value.plain()
    elif isinstance(value, Mapping):
        for key, child in value.items():
            yield from (key, child)
    elif isinstance(value, list | tuple | set | frozenset):
        yield from value


def load_yaml(text: str) -> object:
    import yaml

    class Loader(yaml.SafeLoader):
        """With numbers such as 8e-1, which are text in YAML 1.1."""

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, _children_of_node)
        value: object = loader.construct_document(node)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except ValueError:
        raise
    except Exception as error:
        # For a value that does not match its tag, the constructors raise anything
        # (KeyError, AttributeError, IndexError ...).
        raise ValueError(str(error) or type(error).__name__) from error
    return value


def whole(value: object) -> int | None:
    """A whole number, which may be written as 64.0, else None."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _measure(root: Any, children_of: Callable[[Any], Iterable[Any]]) -> None:  # noqa: ANN401
    """Count everything below a value, once per reference."""
    sizes: dict[int, int | None] = {}  # None while it is being counted

    def size_of(value: Any) -> int:  # noqa: ANN401
        key = id(value)
        if key in sizes:
            known = sizes[key]
            if known is None:
                raise ValueError("it contains itself")
            return known
        sizes[key] = None
        size = 1
        for child in children_of(value):
            size += size_of(child)
            if size > _MAX_VALUES:
                raise ValueError(f"it expands to more than {_MAX_VALUES:,} values")
        sizes[key] = size
        return size

    size_of(root)


def _children_of_node(node: Any) -> Iterable[Any]:  # noqa: ANN401 - yaml has no types
    import yaml

    if isinstance(node, yaml.ScalarNode):
        if len(node.value) > _MAX_DIGITS and not node.tag.endswith((":str", ":binary")):
            raise ValueError(f"a value of {len(node.value):,} characters that is not text")
        return
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
        return
    for pair in node.value:
        yield from pair
