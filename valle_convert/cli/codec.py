"""`valle-convert codec CODEC OUT`: convert EnCodec to one file."""

from pathlib import Path
from typing import Literal

import typer

from valle_convert.cli import console
from valle_convert.cli.options import FORCE, JSON, OUTPUT, arg, opt
from valle_convert.wording import plural


def codec(
    *,
    source: str = arg(
        "CODEC",
        "EnCodec: a folder with config.json and weights, a name on the Hugging Face hub such as "
        "facebook/encodec_24khz, or a file (Meta's .th, a .bin or .gguf).",
    ),
    out: Path = arg("OUT", "OUT.gguf for this program, or OUT.bin for encodec.cpp and vall_e.cpp."),
    outtype: Literal["f16", "f32"] = opt(
        "Number format of the matrices. Unpatched encodec.cpp aborts on f32.",
        panel=OUTPUT,
        default="f16",
    ),
    license_: str | None = opt(
        "general.license of OUT.gguf. Default: from the model card.", "ID", OUTPUT
    ),
    url: str | None = opt("general.source.url of OUT.gguf.", "URL", OUTPUT),
    force: bool = FORCE,
    json_: bool = JSON,
) -> None:
    """Convert EnCodec, encoder and decoder, to one file.

    --codec of the other commands takes OUT.gguf. OUT.bin is for encodec.cpp and vall_e.cpp; models
    that their loader would compute wrongly are rejected.
    """
    from valle_convert.encodec.cpp_file import write_cpp_file
    from valle_convert.encodec.gguf_codec import write_gguf_codec
    from valle_convert.encodec.sources import open_encodec
    from valle_convert.files import check_outputs

    if out.suffix not in (".bin", ".gguf"):
        raise typer.BadParameter("the file must end in .gguf or .bin.", param_hint="OUT")
    if out.suffix == ".bin" and (license_ or url):
        raise typer.BadParameter("a .bin file cannot store it.", param_hint="--license, --url")
    check_outputs({"OUT": out}, inputs=[Path(source)], force=force)
    opened, bar = open_encodec(source), console.progress_bar
    if out.suffix == ".bin":
        written = write_cpp_file(opened, out, out_type=outtype, force=force, progress=bar)
    else:
        named = {"license_": license_, "url": url}
        written = write_gguf_codec(
            opened, out, out_type=outtype, force=force, progress=bar, **named
        )
    if json_:
        console.data_json(
            {
                "file": str(written.path),
                "bytes": written.n_bytes,
                "tensors": written.n_tensors,
                "notes": list(written.notes),
            }
        )
    console.notes(written.notes)
    console.log(
        f"wrote {written.path}: {plural(written.n_tensors, 'tensor')}, {written.n_bytes:,} bytes"
    )
