"""Packages that not everybody needs: imported where they are used, explained where missing."""

import importlib
from typing import Any

from valle_convert.errors import EnvironmentFault


def install(*extras: str) -> str:
    """How to install extras; nothing is on PyPI."""
    return f"pip install '.[{','.join(extras)}]' in a clone of valle-convert"


def require(module: str, purpose: str, *, extra: str = "speech") -> Any:  # noqa: ANN401
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:
        package = module.partition(".")[0]
        raise EnvironmentFault(
            f"{purpose} needs the Python package {package}, which cannot be imported ({error}). "
            f"Run {install(extra)}."
        ) from error
