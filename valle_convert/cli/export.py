"""`valle-convert export GGUF DIR`: a converted file back to a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from valle_convert.cli import console
from valle_convert.cli.options import ForceOption, JsonOption, TokenizerOption
from valle_convert.cli.remote import local_gguf


def register(app: typer.Typer) -> None:
    app.command("export")(export)


def export(
    gguf: Annotated[
        Path,
        typer.Argument(metavar="GGUF", help="A converted file, quantized or not."),
    ],
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="The folder for the result."),
    ],
    dtype: Annotated[
        Literal["auto", "f32", "f16", "bf16"],
        typer.Option(help="Of the numbers; auto keeps the file's, and makes quantized ones f32."),
    ] = "auto",
    tokenizer: TokenizerOption = None,
    json_: JsonOption = False,
    force: ForceOption = False,
) -> None:
    """Write a converted file back as a checkpoint.

    Of a plain file, fp32.sft has the numbers, the config and the phoneme strings that the
    checkpoint had, bit for bit; of a quantized one, the numbers that are left.
    """
    from valle_convert.families.bundle import open_files

    bundle = open_files(local_gguf(gguf))
    done = bundle.family.ability("export")(
        bundle,
        folder,
        dtype=dtype,
        tokenizer=tokenizer,
        force=force,
        progress=console.progress_bar,
    )
    for note in done.notes:
        console.talk(f"note: {note}")
    console.talk(f"wrote {done.path}: {console.n_bytes(done.n_bytes)}")
    if json_:
        console.data_json(
            {"file": str(done.path), "bytes": done.n_bytes, "notes": list(done.notes)}
        )
