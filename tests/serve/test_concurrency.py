"""Several clients at once: nobody waits for ever, and nobody changes what another one hears."""

import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from serve.servers import CODEC, SPEECH, metric, serving, wait_until_idle

from miniature.world import WorldCodec
from valle_convert.audio import Audio
from valle_convert.families.bundle import Bundle

SENTENCES = (
    "Hello world.",
    "The old man sees the river.",
    "Good morning everybody.",
    "A small dog wants the red apple.",
)


def wanted(n_sentences: int, seed: int) -> dict[str, Any]:
    text = " ".join(SENTENCES[(seed + i) % len(SENTENCES)] for i in range(n_sentences))
    return {
        "input": text,
        "seed": seed,
        "response_format": "pcm",
        "voice": ("plain", "deep")[seed % 2],
    }


@pytest.fixture(scope="module")
def parallel(miniature: Bundle, voices: Path) -> Iterator[httpx2.Client]:
    """A client of a server that decodes four sentences side by side."""
    with serving(miniature, voices, parallel=4, n_places=16) as opened:
        yield opened


def test_the_same_seed_says_the_same_beside_others(
    client: httpx2.Client, parallel: httpx2.Client
) -> None:
    bodies = [wanted(n, seed) for n, seed in ((1, 1), (3, 2), (2, 3), (4, 4))]
    alone = [client.post(SPEECH, json=body).raise_for_status().content for body in bodies]
    for server in (client, parallel):
        with ThreadPoolExecutor(4) as threads:
            beside = threads.map(lambda body: server.post(SPEECH, json=body).content, bodies)  # noqa: B023
            assert [*beside] == alone


def test_a_short_text_does_not_wait_for_long_ones(client: httpx2.Client) -> None:
    with ExitStack() as opened:
        for seed in range(4):
            long = opened.enter_context(client.stream("POST", SPEECH, json=wanted(40, seed)))
            sound = long.iter_raw()
            opened.callback(sound.close)
            next(sound)
        before = metric(client, "valle_sentences_total")
        assert client.post(SPEECH, json=wanted(1, 5)).status_code == 200
        # Its own, and at most the one that was being spoken, the next, and one that began since.
        assert metric(client, "valle_sentences_total") - before <= 4
        assert metric(client, "valle_queue") == 4
    wait_until_idle(client)


def test_who_leaves_is_not_spoken_for_any_more(client: httpx2.Client) -> None:
    with client.stream("POST", SPEECH, json=wanted(40, 1)) as long:
        next(long.iter_raw())
    wait_until_idle(client)
    before = metric(client, "valle_sentences_total")
    for seed in range(5):
        assert client.post(SPEECH, json=wanted(1, seed)).status_code == 200
    # Theirs, and the one that was stopped in its middle.
    assert metric(client, "valle_sentences_total") - before <= 6


class Breaking(WorldCodec):
    """The miniature's codec, until it is told to fail as no codec foresees."""

    breaks = False

    def decode(self, codes: np.ndarray) -> Audio:
        if self.breaks:
            raise ZeroDivisionError("secret inside")
        return super().decode(codes)


def test_a_request_that_crashes_leaves_the_server_up(
    miniature: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    codec = Breaking(CODEC)
    with serving(miniature, None, codec=codec) as client:
        good = client.post(SPEECH, json=wanted(1, 3) | {"voice": None}).content
        codec.breaks = True
        answer = client.post(SPEECH, json={"input": "Hello."})
        assert answer.status_code == 500
        assert answer.json()["error"]["type"] == "server_error"
        assert "secret" not in answer.text
        assert answer.headers["x-request-id"] in caplog.text
        assert "secret inside" in caplog.text
        codec.breaks = False
        assert client.post(SPEECH, json=wanted(1, 3) | {"voice": None}).content == good
        # In the middle of an answer, the client sees that it is not whole.
        with client.stream("POST", SPEECH, json=wanted(6, 1) | {"voice": None}) as answer:
            sound = answer.iter_raw()
            next(sound)
            codec.breaks = True
            with pytest.raises(httpx2.RemoteProtocolError):
                b"".join(sound)
        codec.breaks = False
        body = wanted(6, 1) | {"voice": None, "stream_format": "sse"}
        with client.stream("POST", SPEECH, json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            codec.breaks = True
            events: list[str] = []
            with pytest.raises(httpx2.RemoteProtocolError):
                events.extend(lines)
            assert json.loads(events[-2].removeprefix("data: "))["type"] == "error"
        assert metric(client, "valle_queue") == 0


def resident_megabytes() -> float:
    status = Path(f"/proc/{os.getpid()}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024


def ask(client: httpx2.Client, number: int) -> str:
    """One request of mixed length, that is left by chance before or in the middle of its answer."""
    rng = np.random.default_rng(number)
    body = wanted(int(rng.choice((1, 1, 1, 2, 3))), number % 16)
    body["response_format"] = str(rng.choice(("mp3", "wav", "pcm", "opus", "flac")))
    leaves = float(rng.random())
    try:
        timeout = httpx2.Timeout(120, read=rng.uniform(0.01, 0.5) if leaves < 0.15 else 120)
        with client.stream("POST", SPEECH, json=body, timeout=timeout) as answer:
            if answer.status_code == 429:
                return "full"
            assert answer.status_code == 200, answer.read()
            sound = answer.iter_raw()
            if leaves < 0.3:
                next(sound)
                return "left"
            assert sum(map(len, sound)) > 100
            return "whole"
    except httpx2.ReadTimeout:
        return "left"


def check_many(client: httpx2.Client, n: int) -> None:
    before = metric(client, 'valle_requests_total{status="200"}')
    with ThreadPoolExecutor(8) as threads:
        ends = [*threads.map(lambda number: ask(client, number), range(n))]
    wait_until_idle(client)
    assert ends.count("whole") > n / 2
    assert ends.count("left") > 0
    assert ends.count("full") == 0  # eight clients have eight places, but for those of who left
    answered = metric(client, 'valle_requests_total{status="200"}') - before
    assert answered >= ends.count("whole")


def test_many_requests_of_eight_clients_all_end(parallel: httpx2.Client) -> None:
    check_many(parallel, 30)


@pytest.mark.slow
@pytest.mark.parametrize("n_parallel", [1, 4])
def test_memory_stays_flat_over_two_hundred(
    miniature: Bundle, voices: Path, n_parallel: int
) -> None:
    with serving(miniature, voices, parallel=n_parallel, n_places=16) as client:
        check_many(client, 50)
        before = resident_megabytes()
        check_many(client, 200)
        assert resident_megabytes() - before < 50
