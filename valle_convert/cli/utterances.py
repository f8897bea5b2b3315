"""`valle-convert utterances AUDIO.. --text .. OUTDIR`: what `evaluate --data` measures on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from valle_convert.cli import console
from valle_convert.cli.options import (
    CodecOption,
    ForceOption,
    JsonOption,
    LanguageOption,
    check_utf8,
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
    audio: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[AUDIO]...", help="Recordings (wav, flac, ogg, mp3), or codes (.npz)."
        ),
    ] = None,
    *,
    out: Annotated[
        Path,
        typer.Argument(metavar="OUTDIR", help="A folder, one .npz file an utterance."),
    ],
    model: Annotated[
        Path,
        typer.Option(
            "--model",
            metavar="GGUF",
            help="A converted file, whose tokenizer, levels and languages are taken.",
        ),
    ],
    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text",
            metavar="TEXT",
            help="What is said in a recording; once for each AUDIO, in their order.",
        ),
    ] = None,
    list_: Annotated[
        Path | None,
        typer.Option(
            "--list",
            metavar="FILE.tsv",
            help="Instead of AUDIO and --text: a path, a tab and the text a line; paths are "
            "relative to the file.",
        ),
    ] = None,
    voice: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The voice prompt of all of them: a recording, or codes. Without it, none.",
        ),
    ] = None,
    codec: CodecOption = None,
    phonemes: Annotated[
        bool, typer.Option("--phonemes", help="The texts are IPA already.")
    ] = False,
    language: LanguageOption = None,
    json_: JsonOption = False,
    force: ForceOption = False,
) -> None:
    """Make the utterances that evaluate and imatrix take with --data, of recordings and texts.

    Texts become phonemes and ids as for `speak`, recordings become codes. Nothing is written
    unless all of them can be used.
    """
    from valle_convert.families.bundle import open_bundle

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
    """The recordings and their texts, however they were given."""
    from valle_convert.audio.recorded import Recorded, read_list

    if listed is not None:
        if audio or texts:
            raise typer.BadParameter("give either it, or AUDIO and --text.", param_hint="--list")
        return read_list(listed)
    if not audio:
        raise typer.BadParameter("give recordings and OUTDIR, or --list.", param_hint="AUDIO")
    if len(audio) != len(texts):
        raise InputError(
            f"There are {plural(len(audio), 'recording')} and {plural(len(texts), 'text')}; give "
            "--text once for each recording, in their order (the last argument "
            "is the folder to write into)."
        )
    for one in texts:
        check_utf8(one)
    return [Recorded(path, said) for path, said in zip(audio, texts, strict=True)]


def _check_recordings(paths: Sequence[Path]) -> None:
    """Refuse paths that lead to no file before anything is computed."""
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
        console.talk(f"note: {notice}")
    if others:
        console.talk(
            f"note: {out} has {plural(others, 'other .npz file')}, which --data takes as well"
        )
