"""The command starts, tells its errors, and ends by a signal after running requests."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from serve.servers import CODEC, SPEECH, samples_of, takes_no_more, wait_until_loaded
from support import PROJECT, Cli, error_of, executable, install, wait_for
from test_docs import blocks

import miniature.world  # noqa: F401 - registers the codec
from valle_convert.families.bundle import Bundle


@contextmanager
def running(gguf: Path, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server process that says where it listens."""
    command = [sys.executable, "-m", "miniature", "serve", str(gguf), "--codec", str(CODEC)]
    process = subprocess.Popen(
        [*command, "--port", "0", "--set", "max_seconds=1", "--threads", "1"],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(PROJECT), **environment},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"http://\S+", line)
        assert found, line
        yield process, found[0]
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.communicate()


def test_a_signal_lets_what_was_begun_end(miniature: Bundle) -> None:
    with running(miniature.path, VALLE_API_KEY="key") as (process, address):
        headers = {"Authorization": "Bearer key"}
        with httpx2.Client(base_url=address, timeout=120, headers=headers) as client:
            wait_until_loaded(client)
            assert client.get("/v1/models", headers={"Authorization": ""}).status_code == 401
            text = "The old man sees the river. " * 4
            wanted = {"input": text, "response_format": "wav", "seed": 1}
            with client.stream("POST", SPEECH, json=wanted) as answer:
                sound = answer.iter_raw()
                size = len(next(sound))
                process.send_signal(signal.SIGTERM)
                size += sum(map(len, sound))  # no error: the answer is whole
            assert size > 2 * 24_000
        assert process.wait(60) == 0


def test_two_signals_end_it_at_once(miniature: Bundle) -> None:
    with running(miniature.path) as (process, address), httpx2.Client(base_url=address) as client:
        wait_until_loaded(client)
        wanted = {"input": "The old man sees the river. " * 100, "response_format": "wav"}
        with client.stream("POST", SPEECH, json=wanted, timeout=120) as answer:
            sound = answer.iter_raw()
            next(sound)
            process.send_signal(signal.SIGINT)
            assert wait_for(lambda: takes_no_more(address))
            process.send_signal(signal.SIGINT)
            with pytest.raises(httpx2.TransportError):
                b"".join(sound)
        assert process.wait(60) == 130


def test_what_cannot_be_served_is_refused(miniature: Bundle, tmp_path: Path, cli: Cli) -> None:
    run = ("serve", miniature.path, "--port", 0)
    assert "codec" in error_of(cli(*run), 2)
    missing = tmp_path / "none.safetensors"
    assert error_of(cli(*run, "--codec", missing), 2)
    assert "there is no folder" in cli(*run, "--voices", tmp_path / "none").err
    assert "--voices" in cli(*run, "--allow-voices").err
    assert "empty" in cli(*run, "--api-key", "").err
    at_once = cli(*run, "--codec", CODEC, "--parallel", 2, "--set", "mode=nar-len")
    assert "leave it out, or add --set mode=ar" in error_of(at_once, 2)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = error_of(cli(*run[:-1], port, "--codec", CODEC), 3)
        assert f"port {port}" in message
    assert "cannot listen" in error_of(cli(*run, "--codec", CODEC, "--host", "192.0.2.1"), 3)


# docs


def is_ready(address: str) -> bool:
    try:
        return httpx2.get(f"{address}/health").status_code == 200
    except httpx2.ConnectError:
        return False


def test_the_page_leads_to_sound(tmp_path: Path) -> None:
    # What the page takes for granted.
    (tmp_path / "miniature").symlink_to(PROJECT / "miniature")
    install(tmp_path / "bin")
    executable(tmp_path / "bin" / "python", f'exec {sys.executable} "$@"')
    start, ask = (block.text for block in blocks("docs/serve.md") if block.language == "sh")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": str(PROJECT),
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
    }
    how = {"cwd": tmp_path, "env": environment}
    # The tools and the program are installed here.
    *prepare, serve = start.replace("\\\n", " ").splitlines()[2:]
    subprocess.run(["bash", "-euc", "\n".join(prepare)], check=True, **how)
    command = [*shlex.split(serve), "--port", str(port), "--threads", "1"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, **how) as process:
        try:
            address = f"http://127.0.0.1:{port}"
            assert wait_for(lambda: process.poll() is not None or is_ready(address), seconds=120)
            assert process.poll() is None
            voices = httpx2.get(f"{address}/v1/voices").json()["voices"]
            assert [one["id"] for one in voices] == [
                f"voice-{name}" for name in ("deep", "female", "plain")
            ]
            at_port, n = re.subn(r"http://127.0.0.1:8000", address, ask)
            assert n == 1
            subprocess.run(["bash", "-euc", at_port + " --fail -s"], check=True, **how)
        finally:
            process.terminate()
    samples, rate = samples_of((tmp_path / "hello.mp3").read_bytes())
    assert len(samples) > 0.3 * rate
