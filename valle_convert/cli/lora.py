"""`valle-convert lora BASE LORA OUT.gguf`: a LoRA that llama.cpp applies while it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from valle_convert.cli import console
from valle_convert.cli.options import (
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
            help="The converted file that it is for, quantized or not; or its checkpoint.",
        ),
    ],
    source: Annotated[
        str,
        typer.Argument(
            metavar="LORA[@SCALE]", help="The LoRA: .sft or .pth, or a checkpoint that holds one."
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT.gguf", help="The file to write.")],
    out_type: Annotated[
        Literal["f32", "f16"],
        typer.Option("--outtype", help="Number format of the adapter's matrices."),
    ] = "f32",
    config: ConfigOption = None,
    lora_alpha: LoraAlphaOption = None,
    json_: JsonOption = False,
    force: ForceOption = False,
) -> None:
    """Make of a LoRA a GGUF adapter, which stays apart from the converted file.

    Stock llama.cpp applies it at run time (llama_adapter_lora_init, --lora of its programs) to the
    base, quantized or not; `speak`, `verify` and `quantize` take it with --lora. A LoRA for some
    codebook levels (rvq_levels) is switched on in the passes of these only, which merging cannot
    do.
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
        console.talk(f"note: {note}")
    levels = ", ".join(map(str, written.levels)) or "all"
    console.talk(
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
