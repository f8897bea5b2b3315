"""`valle-convert utterances AUDIO.. --text .. OUTDIR`: what `quantize --data` measures on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from collections.abc import Sequence

    from valle_convert.families.v5.recordings import MadeUtterance, Recorded


def register(app: typer.Typer) -> None:
    """Add the command."""
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
    """Make the utterances that quantize and imatrix take with --data, of recordings and texts.

    Texts become phonemes and ids as for `speak`, recordings become codes. Nothing is written
    unless all of them can be used.
    """
    from valle_convert.audio import open_codec
    from valle_convert.audio.codes import is_codes_path
    from valle_convert.families.bundle import open_bundle
    from valle_convert.files import check_outputs, locked_folder, made_folder
    from valle_convert.tokenizer.compiled import TRUE_IDS_KEY
    from valle_convert.tokenizer.oracle import LlamaTokenizer

    recorded = _recorded(audio or [], text or [], list_)
    sources = [model, *(one.path for one in recorded)]
    sources += [one for one in (list_, voice, Path(codec) if codec else None) if one is not None]
    heard = [*(one.path for one in recorded), *([voice] if voice else [])]
    _check_recordings(heard)
    bundle = open_bundle(local_gguf(model))
    recordings = bundle.family.ability("utterances")
    opened = bundle.model
    true_ids = bundle.main.keys[TRUE_IDS_KEY]
    with (
        made_folder(out, "give another name."),
        locked_folder(out),
        LlamaTokenizer(bundle.path) as llama,
    ):
        names = recordings.utterance_names(recorded)
        check_outputs({name: out / name for name in names}, inputs=sources, force=force)
        # All texts are looked at before a codec is loaded, or asked for at the hub.
        said = recordings.say_all(
            recorded,
            opened,
            lambda line: [
                true_ids[i] for i in llama.encode(line, add_special=True, parse_special=False)
            ],
            language=language,
            is_phonemes=phonemes,
        )
        made = recordings.make_utterances(
            recorded,
            said,
            opened,
            codec=None if all(map(is_codes_path, heard)) else open_codec(codec, opened),
            voice=voice,
            is_phonemes=phonemes,
            progress=console.progress_bar,
        )
        recordings.write_utterances(made, out, force=force, sources=sources)
        others = len({path.name for path in out.glob("*.npz")} - set(names))
    _show(made, out, others, as_json=json_)


def _recorded(audio: Sequence[Path], texts: Sequence[str], listed: Path | None) -> list[Recorded]:
    """The recordings and their texts, however they were given."""
    from valle_convert.families.v5.recordings import Recorded, read_list

    if listed is not None:
        if audio or texts:
            raise typer.BadParameter("give either it, or AUDIO and --text.", param_hint="--list")
        return read_list(listed)
    if not audio:
        raise typer.BadParameter("give recordings and OUTDIR, or --list.", param_hint="AUDIO")
    if len(audio) != len(texts):
        raise InputError(
            f"There are {len(audio)} recordings and {len(texts)} texts; give --text once for each "
            "recording, in their order (the last argument is the folder to write into)."
        )
    for one in texts:
        check_utf8(one)
    return [Recorded(path, said) for path, said in zip(audio, texts, strict=True)]


def _check_recordings(paths: Sequence[Path]) -> None:
    """Refuse paths that lead to no file before anything is computed."""
    from valle_convert.files import check_input_file

    for path in paths:
        check_input_file(path, "recording")


def _show(made: Sequence[MadeUtterance], out: Path, others: int, *, as_json: bool) -> None:
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
            console.data(f"{one.name}: {ids} ids, {frames} frames ({one.said.language})")
    for notice in (notice for one in made for notice in one.notices):
        console.talk(f"note: {notice}")
    if others:
        console.talk(f"note: {out} has {others} other .npz files, which --data takes as well")
