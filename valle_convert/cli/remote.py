"""GGUF files of a command line that are on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from valle_convert.cli import console


def local_gguf(path: Path, *, or_checkpoint: bool = False) -> Path:
    """A GGUF file, downloaded into the hub's cache where `path` is on the hub.

    Of a model of several files, all of them are.
    """
    from valle_convert.checkpoint.hub import is_on_hub
    from valle_convert.errors import InputError

    if not is_on_hub(path) or (or_checkpoint and path.suffix != ".gguf"):
        return path
    if path.suffix != ".gguf":
        raise InputError(
            f"{path} is no GGUF file, where hf:OWNER/REPO:NAME.gguf or a file here is expected; "
            f"convert it first: valle-convert {path} OUT.gguf."
        )
    from valle_convert.families.bundle import fetched

    return fetched(path, console.progress_bar)
