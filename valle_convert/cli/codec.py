"""`valle-convert codec CODEC OUT`: convert EnCodec to one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from valle_convert.cli import console
from valle_convert.cli.options import OUTPUT, ForceOption, JsonOption
from valle_convert.wording import plural

CodecType = Literal["f16", "f32"]


def register(app: typer.Typer) -> None:
    app.command("codec")(codec)


def codec(
    source: Annotated[
        str,
        typer.Argument(
            metavar="CODEC",
            help="EnCodec: a folder with config.json and weights, a name on the Hugging Face hub "
            "such as facebook/encodec_24khz, or a file (Meta's .th, a .bin or .gguf).",
        ),
    ],
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            help="OUT.gguf for this program, or OUT.bin for encodec.cpp and vall_e.cpp.",
        ),
    ],
    out_type: Annotated[
        CodecType,
        typer.Option(
            "--outtype",
            help="Number format of the matrices. Unpatched encodec.cpp aborts on f32.",
            rich_help_panel=OUTPUT,
        ),
    ] = "f16",
    license_: Annotated[
        str | None,
        typer.Option(
            "--license",
            metavar="ID",
            help="general.license of OUT.gguf. Default: from the model card.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="general.source.url of OUT.gguf.", rich_help_panel=OUTPUT),
    ] = None,
    force: ForceOption = False,
    json_: JsonOption = False,
) -> None:
    """Convert EnCodec, encoder and decoder, to one file.

    --codec of the other commands takes OUT.gguf. OUT.bin is for encodec.cpp and vall_e.cpp; models
    that their loader would compute wrongly are rejected.
    """
    from valle_convert.encodec import open_encodec, write_cpp_file, write_gguf_codec
    from valle_convert.files import check_outputs

    if out.suffix not in (".bin", ".gguf"):
        raise typer.BadParameter("the file must end in .gguf or .bin.", param_hint="OUT")
    if out.suffix == ".bin" and (license_ or url):
        raise typer.BadParameter("a .bin file cannot store it.", param_hint="--license, --url")
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
