"""What strangers say of a model, as YAML, JSON or a pickle: plain values, and not too many.

A few lines of YAML can unfold into billions of values by naming each other, and a pickle can hold
itself or a number of a million digits. Nothing of that is walked through or printed before it has
been measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

#: A vocabulary has some thousand.
_MAX_VALUES = 1 << 18
_MAX_DIGITS = 1000  # of a number, a date ... in YAML
_MAX_INTEGER = 1 << 64


def load_yaml(text: str) -> object:
    """YAML, or JSON, which is YAML.

    Raises:
        ValueError: it is none, or unfolds into too much.
    """
    import yaml

    try:
        loader = yaml.SafeLoader(text)
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
        # Of what is no value of its tag, the constructors raise whatever their parts do
        # (KeyError, AttributeError, IndexError ...).
        raise ValueError(str(error) or type(error).__name__) from error
    return value


def check_plain(value: object) -> None:
    """Hold a value against what a config may be made of.

    Raises:
        ValueError: it holds itself, too many values, a number beyond 64 bits, or something that is
            no dict, list, text, number, boolean or None.
    """
    try:
        _measure(value, _children_of_value)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def is_plain(value: object) -> bool:
    """Whether `check_plain` takes it."""
    try:
        check_plain(value)
    except ValueError:
        return False
    return True


def _measure(root: Any, children_of: Callable[[Any], Iterable[Any]]) -> None:  # noqa: ANN401
    """Count everything below a value as often as it is named."""
    sizes: dict[int, int | None] = {}  # None while it is being counted

    def size_of(value: Any) -> int:  # noqa: ANN401
        key = id(value)
        if key in sizes:
            known = sizes[key]
            if known is None:
                raise ValueError("it holds itself")
            return known
        sizes[key] = None
        size = 1
        for child in children_of(value):
            size += size_of(child)
            if size > _MAX_VALUES:
                raise ValueError(f"it unfolds into more than {_MAX_VALUES:,} values")
        sizes[key] = size
        return size

    size_of(root)


def _children_of_node(node: Any) -> Iterable[Any]:  # noqa: ANN401 - yaml has no types
    import yaml

    if isinstance(node, yaml.ScalarNode):
        if len(node.value) > _MAX_DIGITS and not node.tag.endswith((":str", ":binary")):
            raise ValueError(f"a value of {len(node.value):,} characters that is no text")
        return
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
        return
    for pair in node.value:
        yield from pair


def _children_of_value(value: object) -> Iterable[object]:
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield from (key, child)
    elif isinstance(value, list | tuple):
        yield from value
    elif isinstance(value, int) and abs(value) >= _MAX_INTEGER:
        raise ValueError("a whole number of more than 64 bits")
    elif value is not None and not isinstance(value, str | int | float):
        raise ValueError(f"a {type(value).__name__}, where a plain value is expected")
