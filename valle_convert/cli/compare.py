"""`valle-convert compare`."""

from pathlib import Path

import typer

from valle_convert.cli import console
from valle_convert.cli.options import JSON, arg, flag, local_gguf
from valle_convert.errors import EXIT_FAILED_CHECK


def compare(
    first: Path = arg("A.gguf", "A GGUF file, or hf:OWNER/REPO:NAME.gguf on the hub."),
    second: Path = arg("B.gguf", "The file to compare it with."),
    exit_code: bool = flag("End with exit code 1 if the files differ."),
    json_: bool = JSON,
) -> None:
    """Show the differences of two GGUF files.

    Compares key by key and tensor by tensor. For models of several files, give the main files.
    """
    from valle_convert.families.bundle import files_at
    from valle_convert.gguf_file.compare import compare_files

    files = [files_at(local_gguf(path)) for path in (first, second)]
    result = compare_files(*files, progress=console.progress_bar)
    if json_:
        console.data_json(result.to_json())
    else:
        for line in result.lines():
            console.data(line)
    if exit_code and not result.same:
        raise typer.Exit(EXIT_FAILED_CHECK)
