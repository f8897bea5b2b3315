"""`valle-convert codec CODEC OUT`: the codec, as a file that a program of C++ or this one loads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from valle_convert.cli import console
from valle_convert.cli.options import ForceOption, JsonOption

CodecType = Literal["f16", "f32"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("codec")(codec)


def codec(
    source: Annotated[
        str,
        typer.Argument(
            metavar="CODEC",
            help="An EnCodec: a folder with config.json and weights, a .th file of Meta's, or a "
            "name on the Hugging Face hub such as facebook/encodec_24khz.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT.bin",
            help="The file to write, as encodec.cpp and vall_e.cpp load it.",
            show_default=False,
        ),
    ],
    out_type: Annotated[
        CodecType,
        typer.Option(
            "--outtype",
            help="Number format of the matrices. encodec.cpp aborts on f32 unless it is patched.",
        ),
    ] = "f16",
    force: ForceOption = False,
    json_: JsonOption = False,
) -> None:
    """Write an EnCodec as one file, refusing what would be loaded and computed wrongly.

    A .bin is for encodec.cpp and the fork of it that vall_e.cpp uses: their loader checks next to
    nothing, so everything that they would get wrong is refused here, with the reason.
    """
    from valle_convert.encodec import open_encodec, write_cpp_file
    from valle_convert.files import check_outputs

    if out.suffix != ".bin":
        raise typer.BadParameter("the file must end in .bin.", param_hint="OUT.bin")
    check_outputs({"OUT.bin": out}, inputs=[Path(source)], force=force)
    written = write_cpp_file(
        open_encodec(source), out, out_type=out_type, force=force, progress=console.progress_bar
    )
    if json_:
        console.data_json(_json(written))
    for note in written.notes:
        console.talk(f"note: {note}")
    console.talk(f"wrote {written.path}: {written.n_tensors} tensors, {written.n_bytes:,} bytes")


def _json(written: Any) -> dict[str, Any]:  # noqa: ANN401 - imported where it is used
    return {
        "file": str(written.path),
        "bytes": written.n_bytes,
        "tensors": written.n_tensors,
        "notes": list(written.notes),
    }
