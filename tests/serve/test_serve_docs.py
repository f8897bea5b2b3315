"""What docs/serve.md tells to type, as it stands but for the port."""

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import httpx2
from serve.servers import samples_of
from support import PROJECT, executable, install, wait_for
from test_docs import blocks


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
