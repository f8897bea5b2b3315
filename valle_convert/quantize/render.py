"""Texts made from templates/; in HTML, values are escaped."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from valle_convert.wording import markdown_table

if TYPE_CHECKING:
    from jinja2 import Environment


def render(template: str, values: Mapping[str, Any]) -> str:
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=PackageLoader("valle_convert.quantize"),
        autoescape=select_autoescape(["html.jinja"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters: dict[str, Callable[..., str]] = {
        "plain": markdown_words,
        "table": markdown_table,
        "unbroken": _unbroken,
    }
    environment.filters.update(filters)
    return environment


def markdown_words(text: object) -> str:
    """Words of a file in one line, in which Markdown and HTML see nothing but words."""
    line = " ".join(str(text).split())
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", line) if re.search(r"[`<>|\[\]]", line) else line


def _unbroken(cell: str) -> str:
    """A cell whose interval is not broken into two lines."""
    return re.sub(r"\((\S+) to (\S+)\)", "(\\1\u00a0to\u00a0\\2)", cell)
