"""`valle-convert export GGUF DIR`: a converted file back to a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from valle_convert.cli import console
from valle_convert.cli.options import OUTPUT, ForceOption, JsonOption
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
        typer.Argument(metavar="DIR", help="Output folder."),
    ],
    dtype: Annotated[
        Literal["auto", "f32", "f16", "bf16"],
        typer.Option(
            help="Number format; auto keeps that of the file, and turns quantized types into f32.",
            rich_help_panel=OUTPUT,
        ),
    ] = "auto",
    json_: JsonOption = False,
    force: ForceOption = False,
) -> None:
    """Convert a GGUF file back to a checkpoint.

    Without quantization, DIR/fp32.sft has the checkpoint's weights, config and vocabulary, bit for
    bit. A quantized file gives its dequantized weights.
    """
    from valle_convert.families.bundle import open_files

    bundle = open_files(local_gguf(gguf))
    done = bundle.family.ability("export")(
        bundle,
        folder,
        dtype=dtype,
        force=force,
        progress=console.progress_bar,
    )
    for note in done.notes:
        console.log(f"note: {note}")
    console.log(f"wrote {done.path}: {console.n_bytes(done.n_bytes)}")
    if json_:
        console.data_json(
            {"file": str(done.path), "bytes": done.n_bytes, "notes": list(done.notes)}
        )
