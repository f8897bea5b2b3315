"""`valle-convert codec CODEC OUT`: the codec as one file, for this program or for encodec.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from valle_convert.cli import console
from valle_convert.cli.options import ForceOption, JsonOption
from valle_convert.wording import plural

CodecType = Literal["f16", "f32"]


def register(app: typer.Typer) -> None:
    app.command("codec")(codec)


def codec(
    source: Annotated[
        str,
        typer.Argument(
            metavar="CODEC",
            help="An EnCodec: a folder with config.json and weights, a name on the Hugging Face "
            "hub such as facebook/encodec_24khz, or a file: Meta's .th, a .bin or .gguf.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            help="OUT.gguf for this program, to lie beside the model's; or OUT.bin for "
            "encodec.cpp and vall_e.cpp.",
        ),
    ],
    out_type: Annotated[
        CodecType,
        typer.Option(
            "--outtype",
            help="Number format of the matrices. encodec.cpp aborts on f32 unless it is patched.",
        ),
    ] = "f16",
    license_: Annotated[
        str | None,
        typer.Option(
            "--license",
            metavar="ID",
            help="Of the weights, for OUT.gguf; without it, what their model card says.",
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Where they come from, for OUT.gguf."),
    ] = None,
    force: ForceOption = False,
    json_: JsonOption = False,
) -> None:
    """Write an EnCodec, encoder and decoder, as one file.

    A .gguf is what --codec of speak and transcribe takes. A .bin is for encodec.cpp and the fork of
    it that vall_e.cpp uses: their loader checks next to nothing, so everything that they would get
    wrong is refused here, with the reason.
    """
    from valle_convert.encodec import open_encodec, write_cpp_file, write_gguf_codec
    from valle_convert.files import check_outputs

    if out.suffix not in (".bin", ".gguf"):
        raise typer.BadParameter("the file must end in .gguf or .bin.", param_hint="OUT")
    if out.suffix == ".bin" and (license_ or url):
        raise typer.BadParameter("a .bin has no place for it.", param_hint="--license, --url")
    check_outputs({"OUT": out}, inputs=[Path(source)], force=force)
    opened, bar = open_encodec(source), console.progress_bar
    if out.suffix == ".bin":
        written = write_cpp_file(opened, out, out_type=out_type, force=force, progress=bar)
    else:
        written = write_gguf_codec(
            opened,
            out,
            out_type=out_type,
            license_=license_,
            url=url,
            force=force,
            progress=bar,
        )
    if json_:
        console.data_json(_json(written))
    for note in written.notes:
        console.log(f"note: {note}")
    console.log(
        f"wrote {written.path}: {plural(written.n_tensors, 'tensor')}, {written.n_bytes:,} bytes"
    )


def _json(written: Any) -> dict[str, Any]:  # noqa: ANN401 - imported where it is used
    return {
        "file": str(written.path),
        "bytes": written.n_bytes,
        "tensors": written.n_tensors,
        "notes": list(written.notes),
    }
