"""The families of checkpoints, each a folder that implements `family.py`.

`bundle` plans, writes and opens the files of a model of any family. docs/families.md explains how
to add one.
"""

from functools import cache
from importlib import import_module
from pathlib import Path
from typing import cast

from valle_convert.checkpoint import Checkpoint
from valle_convert.errors import InputError
from valle_convert.families.family import AnyFamily
from valle_convert.gguf_file.read import GgufFile, look_at

#: The folders, in the order in which they are asked; the last one takes, or rejects, the rest.
FOLDERS = ("vallex", "v7", "v5")


@cache
def families() -> tuple[AnyFamily, ...]:
    """All of them, in the order in which they are asked."""
    return tuple(
        cast("AnyFamily", import_module(f"{__name__}.{folder}").FAMILY) for folder in FOLDERS
    )


def family_of(checkpoint: Checkpoint) -> AnyFamily:
    """The family of a checkpoint; if none claims it, the last one, which reports the problem."""
    return next((one for one in families() if one.claims(checkpoint)), families()[-1])


def family_of_file(file: GgufFile) -> AnyFamily:
    """The family of a GGUF file; if none claims it, the last one, which reports the problem."""
    return next((one for one in families() if one.claims_file(file)), families()[-1])


def refuse_known(path: Path) -> None:
    """Reject a GGUF file that holds a model of a family but was not converted by this project."""
    _, file = look_at(path, strict=False)
    refusal = family_of_file(file).refusal(file) if isinstance(file, GgufFile) else ""
    if refusal:
        raise InputError(refusal)
