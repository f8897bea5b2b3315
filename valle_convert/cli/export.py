"""`valle-convert export GGUF DIR`: a converted file back to a checkpoint."""

from pathlib import Path
from typing import Literal

from valle_convert.cli import console
from valle_convert.cli.options import FORCE, GGUF, JSON, OUTPUT, arg, local_gguf, opt


def export(
    *,
    gguf: Path = GGUF,
    folder: Path = arg("DIR", "Output folder, made if it is missing; the file is DIR/fp32.sft."),
    dtype: Literal["auto", "f32", "f16", "bf16"] = opt(
        "Number format; auto keeps that of the file, and turns quantized types into f32.",
        panel=OUTPUT,
        default="auto",
    ),
    json_: bool = JSON,
    force: bool = FORCE,
) -> None:
    """Convert a GGUF file back to a checkpoint.

    DIR/fp32.sft, the training project's own name for an export of any number format, has the
    checkpoint's weights, config and vocabulary, bit for bit, except tensors that only training
    uses. A quantized GGUF gives its dequantized weights.
    """
    from valle_convert.families.bundle import open_files

    bundle = open_files(local_gguf(gguf))
    done = bundle.family.ability("export")(
        bundle, folder, dtype=dtype, force=force, progress=console.progress_bar
    )
    n_bytes = done.stat().st_size
    console.log(f"wrote {done}: {console.n_bytes(n_bytes)}")
    if json_:
        console.data_json({"file": str(done), "bytes": n_bytes})
