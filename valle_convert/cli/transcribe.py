"""`valle-convert transcribe GGUF SPEECH`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from valle_convert.cli import console
from valle_convert.cli.options import (
    CodecOption,
    GgufArgument,
    JsonOption,
    LanguageOption,
    ThreadsOption,
)
from valle_convert.cli.remote import local_gguf

if TYPE_CHECKING:
    from valle_convert.speech.results import Heard


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("transcribe")(transcribe)


def transcribe(
    gguf: GgufArgument,
    speech: Annotated[
        Path,
        typer.Argument(
            metavar="SPEECH", help="A recording (wav, flac, ogg, mp3), or its codes (.npz)."
        ),
    ],
    codec: CodecOption = None,
    language: LanguageOption = None,
    max_phonemes: Annotated[int, typer.Option(help="Where to end.", min=1, max=20_000)] = 900,
    threads: ThreadsOption = None,
    json_: JsonOption = False,
) -> None:
    """Print the phonemes of a recording, as the model hears them."""
    from valle_convert.audio import open_codec
    from valle_convert.audio.codes import is_codes_path
    from valle_convert.decode import TranscribeOptions
    from valle_convert.families.bundle import open_bundle
    from valle_convert.speech.speaker import Watch

    begin = time.perf_counter()
    bundle = open_bundle(local_gguf(gguf))
    hear = bundle.family.ability("transcribe")
    opened = None if is_codes_path(speech) else open_codec(codec, bundle.model)
    with bundle.family.speaker(bundle, codec=opened, n_threads=threads) as speaker:
        loaded = time.perf_counter() - begin
        watch = Watch(progress=console.progress_bar)
        heard = hear(speaker, speech, language, TranscribeOptions(max_phonemes), watch=watch)
    if json_:
        console.data_json(_heard_json(heard, loaded))
    else:
        console.data(heard.phonemes)
    for notice in heard.notices:
        console.talk(f"note: {notice}")
    if heard.end == "limit":
        console.talk(f"note: there is more than the {max_phonemes} phonemes of --max-phonemes")


def _heard_json(heard: Heard, loaded: float) -> dict[str, Any]:
    return {
        "phonemes": heard.phonemes,
        "ids": list(heard.ids),
        "language": heard.language,
        "end": heard.end,
        "notices": list(heard.notices),
        "timings": {
            "load": round(loaded, 4),
            "voice": round(heard.voice_seconds, 4),
            "decode": round(heard.decode_seconds, 4),
        },
    }
