"""`valle-convert serve GGUF`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from valle_convert.cli import console
from valle_convert.cli.options import GGUF, VOICE, flag, local_gguf, opt
from valle_convert.cli.speak_options import DecodingOptions, EngineOptions

if TYPE_CHECKING:
    from valle_convert.serve.app import ServerSettings
    from valle_convert.serve.server import SpeechServer
    from valle_convert.speech.speaker import AnySpeaker

_MODULES = ("starlette", "uvicorn", "python_multipart", "prometheus_client", "python_stretch")


def serve(
    *,
    gguf: Path = GGUF,
    voices: Path | None = opt(
        "Recordings or codes (.npz) by name, with the words of NAME.wav in NAME.txt if the model "
        "needs them. Without it, the model chooses a voice.",
        "DIR",
    ),
    allow_voices: bool = flag("Let clients add voices to DIR and remove them."),
    host: str = opt(
        "The address to listen on; 0.0.0.0 is all of them.", "ADDRESS", default="127.0.0.1"
    ),
    port: int = opt("0 takes a free one.", "N", default=8000, min=0, max=65535),
    api_key: str | None = opt(
        "Clients must send it. Other users of this machine can read a command line, so "
        "$VALLE_API_KEY is better.",
        "KEY",
        envvar="VALLE_API_KEY",
    ),
    cors: list[str] | None = opt(
        "A site whose pages may use the server, such as https://chat.example.org; repeatable.",
        "ORIGIN",
    ),
    queue: int = opt("Simultaneous requests; further ones get 429.", "N", default=8, min=1),
    timeout: float = opt("Seconds for a request and its answer.", "N", default=900.0, min=1),
    max_characters: int = opt("Longest text.", "N", default=4096, min=1, max=1 << 20),
    language: str | None = opt(
        "en, de, fr, ja, zh or ko. Default: detected from the text.", "CODE", VOICE
    ),
    decoding: DecodingOptions,
    engine: EngineOptions,
) -> None:
    """Serve speech as OpenAI's API does, with a web page.

    The endpoint is POST /v1/audio/speech, the page is at /. Sound is sent sentence by sentence. One
    thread speaks; requests take turns after each sentence, or with --parallel, their sentences are
    decoded side by side. The options of speaking are the defaults for requests without them.
    """
    from valle_convert.extras import require
    from valle_convert.families.bundle import open_bundle

    for module in _MODULES:
        require(module, "Serving", extra="serve")
    from valle_convert.serve.app import ServerSettings
    from valle_convert.serve.gate import Access, is_local
    from valle_convert.serve.server import SpeechServer

    if voices is not None and not voices.is_dir():
        raise typer.BadParameter(f"there is no folder {voices}.", param_hint="--voices")
    if api_key == "":
        raise typer.BadParameter("the key is empty.", param_hint="--api-key")
    bundle = open_bundle(local_gguf(gguf))
    served = ServerSettings(
        bundle,
        voices=voices,
        defaults=decoding.options(bundle.family, language=language),
        access=Access(api_key, tuple(cors or ()), is_local(host)),
        n_places=queue,
        seconds=timeout,
        max_characters=max_characters,
        allows_new_voices=allow_voices,
    )

    def open_speaker() -> AnySpeaker:
        speaker = engine.speaker(bundle)
        speaker.check_options(served.defaults, engine.parallel)
        return speaker

    _run(SpeechServer(served, open_speaker), served, host, port)


def _run(server: SpeechServer, served: ServerSettings, host: str, port: int) -> None:
    from valle_convert.serve.server import bind

    with bind(host, port) as listening:
        address, found = listening.getsockname()[:2]
        name = f"[{address}]" if ":" in address else address
        if not served.access.is_local and served.access.api_key is None:
            console.log("note: anyone who reaches this machine can use it; --api-key locks it")
        console.log(f"serving {served.bundle.path} on http://{name}:{found} (Ctrl-C ends it)")
        server.run(listening)
