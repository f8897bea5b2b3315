"""The families of checkpoints, each a folder; `family.py` says what it supplies.

`bundle` plans, writes and opens the files of a model of any of them. docs/families.md says how
to add one.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path
from typing import cast

from valle_convert.checkpoint import Checkpoint
from valle_convert.errors import InputError
from valle_convert.families.family import AnyFamily
from valle_convert.gguf_file.read import GgufFile, parsed

#: The folders, in the order in which they are asked; the last one takes, or refuses, the rest.
FOLDERS = ("vallex", "v7", "v5")


@cache
def families() -> tuple[AnyFamily, ...]:
    """All of them, in the order in which they are asked."""
    return tuple(
        cast("AnyFamily", import_module(f"{__name__}.{folder}").FAMILY) for folder in FOLDERS
    )


def family_of(checkpoint: Checkpoint) -> AnyFamily:
    """The family of a checkpoint; the last one where none claims it, which says what is wrong."""
    return next((one for one in families() if one.claims(checkpoint)), families()[-1])


def family_of_file(file: GgufFile) -> AnyFamily:
    """The family of a GGUF file; the last one where none claims it, which says what is wrong."""
    return next((one for one in families() if one.claims_file(file)), families()[-1])


def refuse_known(path: Path) -> None:
    """Refuse a GGUF file that holds a model of a family and is no converted one.

    Raises:
        InputError: it is one.
    """
    file = parsed(path) if path.is_file() else path
    refusal = family_of_file(file).refusal(file) if isinstance(file, GgufFile) else ""
    if refusal:
        raise InputError(refusal)
