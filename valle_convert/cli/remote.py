"""Download GGUF files named on the command line from the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from valle_convert.errors import InputError


def local_gguf(path: Path, *, or_checkpoint: bool = False) -> Path:
    """The path of a GGUF file, downloaded to the hub's cache if needed, with all its parts."""
    from valle_convert.checkpoint.folder import is_on_hub

    if not is_on_hub(path) or (or_checkpoint and path.suffix != ".gguf"):
        return path
    if path.suffix != ".gguf":
        raise InputError(
            f"{path} is not a GGUF file (hf:OWNER/REPO:NAME.gguf, or a local one). Convert it "
            f"first: valle-convert {path} OUT.gguf."
        )
    from valle_convert.families.bundle import fetched

    return fetched(path)
