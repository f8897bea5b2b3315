"""Download GGUF files named on the command line from the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from valle_convert.cli import console


def local_gguf(path: Path, *, or_checkpoint: bool = False) -> Path:
    """The path of a GGUF file, downloaded to the hub's cache if needed, with all its parts."""
    from valle_convert.checkpoint.hub import HubTree, is_on_hub, parse_location
    from valle_convert.errors import InputError

    if not is_on_hub(path) or (or_checkpoint and path.suffix != ".gguf"):
        return path
    if path.suffix != ".gguf":
        raise InputError(
            f"{path} is not a GGUF file (hf:OWNER/REPO:NAME.gguf, or a local one). Convert it "
            f"first: valle-convert {path} OUT.gguf."
        )
    from valle_convert.families import family_of_file
    from valle_convert.families.bundle import paths_of
    from valle_convert.gguf_file.read import GgufFile, is_gguf

    tree = HubTree(parse_location(str(path)), progress=console.progress_bar)
    place = tree.resolve()
    local = tree.get(place)
    if is_gguf(local):
        file = GgufFile(local, allow_part=True)
        for beside in list(paths_of(Path(place), family_of_file(file).parts(file)).values())[1:]:
            tree.get(beside)
    return local
