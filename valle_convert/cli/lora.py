"""`valle-convert lora BASE LORA OUT.gguf`: convert a LoRA to a GGUF adapter."""

from pathlib import Path
from typing import Literal

from valle_convert.cli import console
from valle_convert.cli.options import CONFIG, FORCE, JSON, OUTPUT, arg, local_gguf, opt
from valle_convert.wording import plural


def lora(
    *,
    base: Path = arg(
        "BASE", "The converted file that it belongs to, quantized or not, or its checkpoint."
    ),
    source: str = arg("LORA[@SCALE]", "The LoRA (.sft, .pth), or a checkpoint with one."),
    out: Path = arg("OUT.gguf", "Output file."),
    outtype: Literal["f32", "f16"] = opt(
        "Number format of the matrices.", panel=OUTPUT, default="f32"
    ),
    config: Path | None = CONFIG,
    json_: bool = JSON,
    force: bool = FORCE,
) -> None:
    """Convert a LoRA to a GGUF adapter.

    llama.cpp applies it at run time: --lora of llama.cpp's programs and of `speak`, `verify` and
    `evaluate` takes it, over a base of any type. A LoRA for some codebook levels (rvq_levels) is
    applied in their passes only, which merging cannot do.
    """
    from valle_convert.api import write_lora
    from valle_convert.checkpoint.lora import LoraFile
    from valle_convert.files import check_outputs

    check_outputs(
        {"OUT.gguf": out}, inputs=[base, LoraFile.parse(source).path, config], force=force
    )
    base = local_gguf(base, or_checkpoint=True)
    written = write_lora(base, source, out, out_type=outtype, config=config, force=force)
    console.notes(written.notes)
    n_bytes, n_weights = out.stat().st_size, len(written.by_target)
    levels = list(written.levels)
    console.log(
        f"wrote {out}: {console.n_bytes(n_bytes)}, {plural(n_weights, 'weight')}, alpha "
        f"{written.alpha:g}, codebook levels: {', '.join(map(str, levels)) or 'all'}"
    )
    if json_:
        console.data_json(
            {
                "file": str(out),
                "bytes": n_bytes,
                "weights": n_weights,
                "alpha": written.alpha,
                "levels": levels,
            }
        )
