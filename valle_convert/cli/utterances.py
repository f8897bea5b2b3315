"""`valle-convert utterances AUDIO.. --text .. OUTDIR`: data to measure quality on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from valle_convert.cli import console
from valle_convert.cli.options import (
    MODEL,
    VOICE,
    CodecOption,
    ForceOption,
    JsonOption,
    LanguageOption,
    check_utf8,
    excludes,
)
from valle_convert.cli.remote import local_gguf
from valle_convert.errors import InputError
from valle_convert.wording import plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from valle_convert.audio.recorded import Recorded


def register(app: typer.Typer) -> None:
    app.command("utterances")(utterances)


def utterances(
    context: typer.Context,
    audio: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[AUDIO]...", help="Recordings (wav, flac, ogg, mp3), or codes (.npz)."
        ),
    ] = None,
    *,
    out: Annotated[
        Path,
        typer.Argument(metavar="OUTDIR", help="Output folder, one .npz file per utterance."),
    ],
    model: Annotated[
        Path,
        typer.Option(
            "--model",
            metavar="GGUF",
            help="A converted file; its tokenizer, levels and languages are used.",
            rich_help_panel=MODEL,
        ),
    ],
    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text",
            metavar="TEXT",
            help="Transcript of a recording; once per AUDIO, in the same order.",
            rich_help_panel=VOICE,
        ),
    ] = None,
    list_: Annotated[
        Path | None,
        typer.Option(
            "--list",
            metavar="FILE.tsv",
            help="Instead of AUDIO and --text: one path, tab and transcript per line; paths are "
            "relative to this file.",
            rich_help_panel=VOICE,
        ),
    ] = None,
    voice: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Voice prompt for all utterances: a recording or saved codes. Default: none.",
            rich_help_panel=VOICE,
        ),
    ] = None,
    codec: CodecOption = None,
    phonemes: Annotated[
        bool,
        typer.Option("--phonemes", help="The texts are IPA.", rich_help_panel=VOICE),
    ] = False,
    language: LanguageOption = None,
    json_: JsonOption = False,
    force: ForceOption = False,
) -> None:
    """Turn recordings and transcripts into data for --data of evaluate and imatrix.

    Nothing is written unless all recordings and texts are usable. Models of version 7 and VALL-E X
    are not supported.
    """
    from valle_convert.families.bundle import open_bundle

    excludes(context, {"list_": "audio text"})
    recorded = _recorded(audio or [], text or [], list_)
    _check_recordings([*(one.path for one in recorded), *([voice] if voice else [])])
    bundle = open_bundle(local_gguf(model))
    made = bundle.family.ability("utterances")(
        bundle,
        recorded,
        out,
        codec=codec,
        voice=voice,
        language=language,
        is_phonemes=phonemes,
        force=force,
        inputs=[one for one in (list_, Path(codec) if codec else None) if one is not None],
        progress=console.progress_bar,
    )
    others = len({path.name for path in out.glob("*.npz")} - {one.name for one in made})
    _show(made, out, others, as_json=json_)


def _recorded(audio: Sequence[Path], texts: Sequence[str], listed: Path | None) -> list[Recorded]:
    """The recordings and their transcripts."""
    from valle_convert.audio.recorded import Recorded, read_list

    if listed is not None:
        return read_list(listed)
    if not audio:
        raise typer.BadParameter("give recordings and OUTDIR, or --list.", param_hint="AUDIO")
    if len(audio) != len(texts):
        raise InputError(
            f"{plural(len(audio), 'recording')} and {plural(len(texts), 'text')}; give --text once "
            "per recording (the last argument is the output folder)."
        )
    for one in texts:
        check_utf8(one)
    return [Recorded(path, said) for path, said in zip(audio, texts, strict=True)]


def _check_recordings(paths: Sequence[Path]) -> None:
    """Refuse missing files before anything is computed."""
    from valle_convert.files import check_input_file

    for path in paths:
        check_input_file(path, "recording")


def _show(made: Sequence[Any], out: Path, others: int, *, as_json: bool) -> None:
    if as_json:
        console.data_json(
            {
                "folder": str(out),
                "utterances": [
                    {
                        "file": one.name,
                        "source": str(one.source),
                        "language": one.said.language,
                        "phonemes": one.said.phonemes,
                        "ids": len(one.arrays["phonemes"]),
                        "frames": len(one.arrays["response"]),
                        "notices": list(one.notices),
                    }
                    for one in made
                ],
            }
        )
    else:
        for one in made:
            ids, frames = len(one.arrays["phonemes"]), len(one.arrays["response"])
            console.data(
                f"{one.name}: {plural(ids, 'id')}, {plural(frames, 'frame')} ({one.said.language})"
            )
    for notice in (notice for one in made for notice in one.notices):
        console.log(f"note: {notice}")
    if others:
        console.log(f"note: {out} has {plural(others, 'other .npz file')}, which --data reads too")
