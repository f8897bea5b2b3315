"""`valle-convert lora BASE LORA OUT.gguf`: convert a LoRA to a GGUF adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from valle_convert.cli import console
from valle_convert.cli.options import (
    OUTPUT,
    ConfigOption,
    ForceOption,
    JsonOption,
    LoraAlphaOption,
    paths_of,
)
from valle_convert.cli.remote import local_gguf
from valle_convert.wording import plural


def register(app: typer.Typer) -> None:
    app.command("lora")(lora)


def lora(
    base: Annotated[
        Path,
        typer.Argument(
            metavar="BASE",
            help="The converted file it belongs to, quantized or not, or the checkpoint of that.",
        ),
    ],
    source: Annotated[
        str,
        typer.Argument(
            metavar="LORA[@SCALE]", help="The LoRA (.sft, .pth), or a checkpoint with one."
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT.gguf", help="Output file.")],
    out_type: Annotated[
        Literal["f32", "f16"],
        typer.Option("--outtype", help="Number format of the matrices.", rich_help_panel=OUTPUT),
    ] = "f32",
    config: ConfigOption = None,
    lora_alpha: LoraAlphaOption = None,
    json_: JsonOption = False,
    force: ForceOption = False,
) -> None:
    """Convert a LoRA to a GGUF adapter that llama.cpp applies at run time.

    --lora of llama.cpp's programs and of `speak`, `verify` and `quantize` takes it, over a base of
    any type. A LoRA for some codebook levels (rvq_levels) is applied in their passes only, which is
    not possible by merging.
    """
    from valle_convert.api import write_lora
    from valle_convert.files import check_outputs

    check_outputs({"OUT.gguf": out}, inputs=[base, *paths_of([source]), config], force=force)
    written = write_lora(
        local_gguf(base, or_checkpoint=True),
        source,
        out,
        out_type=out_type,
        config=config,
        lora_alpha=lora_alpha,
        force=force,
    )
    for note in written.notes:
        console.log(f"note: {note}")
    levels = ", ".join(map(str, written.levels)) or "all"
    console.log(
        f"wrote {out}: {console.n_bytes(out.stat().st_size)}, "
        f"{plural(len(written.pairs), 'weight')}, alpha {written.alpha:g}, "
        f"codebook levels: {levels}"
    )
    if json_:
        console.data_json(
            {
                "file": str(out),
                "bytes": out.stat().st_size,
                "weights": len(written.pairs),
                "alpha": written.alpha,
                "levels": list(written.levels),
            }
        )
