"""Servers of these tests: in this process, on a free port of this machine, asked by HTTP."""

import io
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import soundfile
from support import PROJECT, wait_for

from miniature.world import WorldCodec
from valle_convert.audio import AudioCodec
from valle_convert.decode.options import SamplingOptions
from valle_convert.families.bundle import Bundle
from valle_convert.llama.context import Settings
from valle_convert.serve.app import ServerSettings
from valle_convert.serve.server import SpeechServer, bind
from valle_convert.speech.results import SpeakOptions

MINIATURE = PROJECT / "miniature"
CODEC = MINIATURE / "codec.safetensors"
SPEECH = "/v1/audio/speech"
#: As `make demo`, and short.
DEFAULTS = SpeakOptions(
    mode="ar",
    language="en",
    sampling=SamplingOptions(temperature=0.6),
    prompt_seconds=0.8,
    max_seconds=1.0,
)


@contextmanager
def serving(
    bundle: Bundle,
    voices: Path | None,
    *,
    codec: AudioCodec | None = None,
    defaults: SpeakOptions = DEFAULTS,
    parallel: int = 1,
    send_buffer: int | None = None,
    **how: Any,
) -> Iterator[httpx2.Client]:
    """A client of a server that is ready."""
    settings = ServerSettings(bundle, voices, defaults, **how)
    server = SpeechServer(
        settings,
        lambda: bundle.family.speaker(
            bundle,
            codec=codec or WorldCodec(CODEC),
            settings=Settings(n_threads=1, n_parallel=parallel),
        ),
    )
    with starting(server, send_buffer) as client:
        wait_until_loaded(client)
        yield client


@contextmanager
def starting(server: SpeechServer, send_buffer: int | None = None) -> Iterator[httpx2.Client]:
    """A client of a server that may still load its model."""
    with ThreadPoolExecutor(1) as thread, bind("127.0.0.1", 0) as listening:
        if send_buffer:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        running = thread.submit(server.run, listening)
        try:
            with httpx2.Client(base_url=address, timeout=120) as client:
                yield client
        finally:
            server.stop()
            running.result()


def samples_of(data: bytes) -> tuple[np.ndarray, int]:
    """What a file in memory sounds like; by blocks, since a stream does not tell its length."""
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        return np.concatenate([*file.blocks(4096, dtype="float32")]), file.samplerate


def metric(client: httpx2.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def wait_until_loaded(client: httpx2.Client) -> None:
    assert wait_for(lambda: client.get("/health").status_code != 503, seconds=120)


def wait_until_idle(client: httpx2.Client) -> None:
    assert wait_for(lambda: not metric(client, "valle_queue"), seconds=120)


def takes_no_more(address: str) -> bool:
    """Whether a stopping server accepts no more connections: refused, or cut off at any point."""
    try:
        httpx2.get(f"{address}/health")
    except (httpx2.ConnectError, httpx2.ReadError, httpx2.WriteError, httpx2.RemoteProtocolError):
        return True
    return False
