"""`valle-convert serve GGUF`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from valle_convert.cli import console
from valle_convert.cli.options import (
    CodecOption,
    GgufArgument,
    GpuLayersOption,
    LanguageOption,
    ParallelOption,
    SettingsOption,
    TemperatureOption,
    ThreadsOption,
    TuneOption,
)
from valle_convert.cli.remote import local_gguf
from valle_convert.cli.speak import refuse_foreign

if TYPE_CHECKING:
    from valle_convert.speech.speaker import AnySpeaker


def register(app: typer.Typer) -> None:
    app.command("serve")(serve)


def serve(
    gguf: GgufArgument,
    codec: CodecOption = None,
    voices: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Recordings or codes (.npz) by name, with the words of NAME.wav in NAME.txt if "
            "the model needs them. Without it, the model chooses a voice.",
        ),
    ] = None,
    allow_voices: Annotated[
        bool, typer.Option("--allow-voices", help="Let clients add voices to DIR and remove them.")
    ] = False,
    host: Annotated[
        str, typer.Option(help="The address to listen on; 0.0.0.0 is all of them.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            envvar="VALLE_API_KEY",
            help="Clients must send it. Other users of this machine can read a command line, "
            "so $VALLE_API_KEY is better.",
        ),
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="A site whose pages may use the server, such as https://chat.example.org; "
            "repeatable.",
        ),
    ] = None,
    queue: Annotated[
        int, typer.Option(help="Simultaneous requests; further ones get 429.", min=1)
    ] = 8,
    timeout: Annotated[
        float, typer.Option(help="Seconds for a request and its answer.", min=1)
    ] = 900.0,
    max_characters: Annotated[int, typer.Option(help="Of one text.", min=1, max=1 << 20)] = 4096,
    language: LanguageOption = None,
    temperature: TemperatureOption = 1.0,
    settings: SettingsOption = None,
    threads: ThreadsOption = None,
    tune: TuneOption = "auto",
    parallel: ParallelOption = 1,
    gpu_layers: GpuLayersOption = 0,
) -> None:
    """Serve a converted model as OpenAI's POST /v1/audio/speech, with a page at /.

    Sound is sent sentence by sentence. One thread speaks; requests take turns after each sentence,
    or with --parallel, their sentences are decoded side by side.
    The options of speaking are the defaults for requests without them.
    """
    from valle_convert.audio import open_codec
    from valle_convert.decode import SamplingOptions
    from valle_convert.extras import require
    from valle_convert.families.bundle import open_bundle
    from valle_convert.llama.context import Settings
    from valle_convert.speech.results import SpeakOptions
    from valle_convert.speech.settings import parse_settings, with_settings

    for module in (
        "starlette",
        "uvicorn",
        "python_multipart",
        "prometheus_client",
        "python_stretch",
    ):
        require(module, "Serving", extra="serve")
    from valle_convert.serve.app import ServerSettings
    from valle_convert.serve.gate import Access, is_local
    from valle_convert.serve.server import SpeechServer, bind

    if voices is not None and not voices.is_dir():
        raise typer.BadParameter(f"there is no folder {voices}.", param_hint="--voices")
    if allow_voices and voices is None:
        raise typer.BadParameter("give the folder with --voices.", param_hint="--allow-voices")
    if api_key == "":
        raise typer.BadParameter("the key is empty.", param_hint="--api-key")
    values = parse_settings(settings or [])
    bundle = open_bundle(local_gguf(gguf))
    refuse_foreign(bundle.family, values)
    served = ServerSettings(
        bundle,
        voices=voices,
        defaults=with_settings(
            SpeakOptions(language=language, sampling=SamplingOptions(temperature)), values
        ),
        access=Access(api_key, tuple(cors or ()), is_local(host)),
        n_places=queue,
        seconds=timeout,
        max_characters=max_characters,
        allows_new_voices=allow_voices,
    )

    def open_speaker() -> AnySpeaker:
        speaker = bundle.family.speaker(
            bundle,
            codec=open_codec(codec, bundle.model),
            n_threads=threads,
            settings=Settings(n_gpu_layers=gpu_layers, n_parallel=parallel),
            tune=tune,
        )
        speaker.check_parallel(served.defaults)
        return speaker

    server = SpeechServer(served, open_speaker)
    with bind(host, port) as listening:
        address, found = listening.getsockname()[:2]
        name = f"[{address}]" if ":" in address else address
        if not served.access.is_local and api_key is None:
            console.log("note: anyone who reaches this machine can use it; --api-key locks it")
        console.log(f"serving {bundle.path} on http://{name}:{found} (Ctrl-C ends it)")
        server.run(listening)
