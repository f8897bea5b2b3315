"""The server: time to first sound and throughput with 1, 2, 4 and 8 clients, over one client.

    python benchmarks/bench_serve.py [--requests 6] [--threads 1] [--write]

The miniature in Q8_0 on a server of its own, with and without --parallel 4, asked by HTTP for three
sentences as pcm, each client --requests times in a row. Everything is a ratio over one client of
the server without it, but for the first row: over `speaker.pieces` in this process. --write writes
docs/clients.csv.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median

import httpx2
from shared import DOCS, ROOT, options, print_rows

from miniature.world import WorldCodec
from valle_convert import Choices, plan_conversion, write_gguf
from valle_convert.decode.options import SamplingOptions
from valle_convert.families.bundle import Bundle, open_bundle
from valle_convert.llama.context import Settings
from valle_convert.serve.app import ServerSettings
from valle_convert.serve.server import SpeechServer, bind
from valle_convert.speech.results import SpeakOptions
from valle_convert.speech.speaker import AnySpeaker

MINIATURE = ROOT / "miniature"
CSV = DOCS / "clients.csv"
CLIENTS = (1, 2, 4, 8)
TEXT = "Hello world. The old man sees the river. A small dog wants the red apple."
OPTIONS = SpeakOptions(
    mode="ar", language="en", sampling=SamplingOptions(0.6), prompt_seconds=0.8, max_seconds=2.0
)
BYTES_A_SECOND = 48_000


@dataclass(frozen=True)
class Measured:
    """Seconds to the first sound, to the end, and seconds of sound for a second."""

    first: float
    whole: float
    throughput: float


def open_speaker(bundle: Bundle, threads: int, parallel: int = 1) -> AnySpeaker:
    codec = WorldCodec(MINIATURE / "codec.safetensors")
    settings = Settings(n_threads=threads, n_parallel=parallel)
    return bundle.family.speaker(bundle, codec=codec, settings=settings)


def measure_alone(bundle: Bundle, threads: int, n: int) -> Measured:
    """The same work without a server."""
    firsts, wholes, seconds = [], [], 0.0
    with open_speaker(bundle, threads) as speaker:
        for seed in range(-1, n):
            begin, times = time.perf_counter(), []
            for piece in speaker.pieces(TEXT, None, replace(OPTIONS, seed=abs(seed))):
                times.append(time.perf_counter() - begin)
                seconds += piece.audio.seconds if seed >= 0 else 0.0
            if seed >= 0:  # the first loads espeak-ng
                firsts.append(times[0])
                wholes.append(times[-1])
    return Measured(median(firsts), median(wholes), seconds / sum(wholes))


@contextmanager
def serving(bundle: Bundle, threads: int, parallel: int) -> Iterator[str]:
    """The address of a server that is ready."""
    server = SpeechServer(
        ServerSettings(bundle, defaults=OPTIONS, n_places=max(CLIENTS)),
        lambda: open_speaker(bundle, threads, parallel),
    )
    with ThreadPoolExecutor(1) as thread, bind("127.0.0.1", 0) as listening:
        running = thread.submit(server.run, listening)
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        while httpx2.get(f"{address}/health").status_code == 503:
            time.sleep(0.05)
        yield address
        server.stop()
        running.result()


def ask(address: str, seed: int) -> tuple[float, float, int]:
    """Seconds to the first sound and to the last, and bytes."""
    wanted = {"input": TEXT, "seed": seed, "response_format": "pcm"}
    begin, first, size = time.perf_counter(), 0.0, 0
    with httpx2.stream("POST", f"{address}/v1/audio/speech", json=wanted, timeout=600) as answer:
        answer.raise_for_status()
        for chunk in answer.iter_raw():
            first = first or time.perf_counter() - begin
            size += len(chunk)
    return first, time.perf_counter() - begin, size


def measure(address: str, n_clients: int, n: int) -> Measured:
    """So many clients; each asks again as soon as it has its answer."""
    begin = time.perf_counter()
    with ThreadPoolExecutor(n_clients) as threads:
        turns = threads.map(
            lambda client: [ask(address, client * n + turn) for turn in range(n)], range(n_clients)
        )
        answers = [one for turn in turns for one in turn]
    took = time.perf_counter() - begin
    seconds = sum(size for _, _, size in answers) / BYTES_A_SECOND
    return Measured(
        median(first for first, _, _ in answers),
        median(whole for _, whole, _ in answers),
        seconds / took,
    )


def table(alone: Measured, found: dict[tuple[int, int], Measured]) -> Iterator[tuple[str, ...]]:
    one = found[1, 1]
    pairs = [("1, over the speaker without a server", one, alone)]
    for (parallel, n), each in found.items():
        name = f"{n}, over 1 client" if parallel == 1 else f"{n}, --parallel {parallel}"
        pairs += [(name, each, one)] if each is not one else []
    yield ("clients", "time to first sound", "time to the end", "throughput")
    for name, this, base in pairs:
        fields = ("first", "whole", "throughput")
        yield (name, *(f"{getattr(this, field) / getattr(base, field):.2f}" for field in fields))


def main(argv: Sequence[str] | None = None) -> None:
    with options(__doc__, argv, requests=6, threads=1, write=False) as given:
        path = given.folder / "miniature.gguf"
        write_gguf(plan_conversion(MINIATURE / "miniature.sft", Choices("q8_0")), path, force=True)
        bundle = open_bundle(path)
        alone = measure_alone(bundle, given.threads, given.requests)
        found = {}
        for parallel in (1, 4):
            with serving(bundle, given.threads, parallel) as address:
                ask(address, 0)
                for n in CLIENTS:
                    found[parallel, n] = measure(address, n, given.requests)
    print_rows(table(alone, found), CSV if given.write else None)


if __name__ == "__main__":
    main()
