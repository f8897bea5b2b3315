"""Named mixtures, each with its reason.

A recipe is a list of tensor types, as `llama-quantize --tensor-type` takes them: a pattern
that is searched in a tensor's name, and the type that it gets whatever the file's type says.
What they gain and cost is measured by scripts/measure_quantization.py; docs/quantize.md has
the table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from valle_convert.errors import InputError
from valle_convert.quantize.types import ggml_type


@dataclass(frozen=True)
class Recipe:
    """A named mixture.

    Attributes:
        name: what `--recipe` takes.
        tensor_types: pattern=TYPE, the first that matches wins.
        reason: what it is for.
    """

    name: str
    tensor_types: tuple[str, ...]
    reason: str


_LIST = (
    Recipe("stock", (), "llama-quantize's own choice: Q6_K for token_embd in most types"),
    Recipe(
        "embd-f16",
        ("token_embd=F16",),
        "token_embd holds every input table and every head; in F16 they add no error at all, at "
        "the price of the largest tensor staying as it was",
    ),
    Recipe(
        "embd-q8",
        ("token_embd=Q8_0",),
        "token_embd in 8 bits: close to F16 in quality at half of its size",
    ),
    Recipe(
        "embd-q4",
        ("token_embd=Q4_K",),
        "token_embd in 4 bits, for the smallest file; shows what the precision of the tables and "
        "heads is worth",
    ),
    Recipe(
        "attn-q8",
        ("token_embd=Q8_0", "attn_=Q8_0"),
        "token_embd and attention in 8 bits, feed-forward as the type says: two thirds of the "
        "backbone are feed-forward, so most of the size is still saved",
    ),
)
RECIPES: Mapping[str, Recipe] = {recipe.name: recipe for recipe in _LIST}
STOCK = RECIPES["stock"]


def recipe_named(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        InputError: there is none; the message lists those that there are.
    """
    found = RECIPES.get(name)
    if found is None:
        raise InputError(f"There is no recipe {name!r}; there are {', '.join(RECIPES)}.")
    return found


def check_tensor_type(text: str) -> str:
    """A `--tensor-type` value in the form that llama-quantize takes: pattern=type, lower case.

    Raises:
        InputError: it is not of the form pattern=TYPE, or one of the two is none.
    """
    pattern, separator, name = text.partition("=")
    if not pattern or not separator:
        raise InputError(
            f"The tensor type {text!r} is not of the form PATTERN=TYPE, such as attn_v=Q6_K."
        )
    kind = ggml_type(name)
    try:
        re.compile(pattern)
    except re.error as error:
        raise InputError(
            f"The pattern {pattern!r} of the tensor type {text!r} is no regular expression: "
            f"{error}."
        ) from error
    return f"{pattern.lower()}={kind.name.lower()}"


def matches(tensor_type: str, tensor: str) -> bool:
    """Whether a checked `pattern=type` names a tensor."""
    return re.search(tensor_type.partition("=")[0], tensor) is not None
