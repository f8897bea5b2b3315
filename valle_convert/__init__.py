"""Turn a trained VALL-E checkpoint into a GGUF file that stock llama.cpp runs, and prove it.

What `valle_convert.api` has is offered here, and imported when first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from valle_convert.api import (
        open_network,
        plan_conversion,
        plan_repair,
        read_checkpoint,
        verify_gguf,
        write_gguf,
        write_lora,
    )
    from valle_convert.families.family import Choices

__version__ = "0.1.0"

__all__ = [
    "Choices",
    "open_network",
    "plan_conversion",
    "plan_repair",
    "read_checkpoint",
    "verify_gguf",
    "write_gguf",
    "write_lora",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name stands for
    if name in __all__:
        return getattr(import_module("valle_convert.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
