"""What cannot be answered is refused in OpenAI's form, and harms nobody else."""

import json
import socket
import threading
from typing import Any

import httpx2
import pytest
from serve.servers import (
    CODEC,
    SPEECH,
    metric,
    serving,
    starting,
    wait_until_idle,
    wait_until_loaded,
)
from support import ONE_THREAD

from miniature.world import WorldCodec
from valle_convert.families.bundle import Bundle
from valle_convert.serve import app
from valle_convert.serve.gate import Access
from valle_convert.serve.server import SpeechServer

#: Values that no field of that kind takes.
_NO_TEXT: list[Any] = [1, True, [], {}, "\ud800", "x" * 4097]
_NO_NUMBER: list[Any] = ["1", True, [], {}, 1e400, 10**400]
WRONG: dict[str, list[Any]] = {
    "input": [*_NO_TEXT, "", " \n", "。。", "\u200b", None],
    "voice": [1, True, [], "nobody", "../plain", "plain.flac", "/etc/passwd", {"id": 1}, "\0"],
    "response_format": ["aac", "MP3", "", 1, {}, []],
    "stream_format": ["json", 1, []],
    "speed": [*_NO_NUMBER, 0, 0.2, 4.1, -1],
    "seed": [-1, 2**63, 1.5, "1", True, []],
    "language": [*_NO_TEXT, "xx", "english please"],
    "temperature": [*_NO_NUMBER, -1],
    "guidance": [*_NO_NUMBER, -1],
    "voice_text": ["Good morning."],  # this family has no use for it
}


def error_of(answer: httpx2.Response) -> dict[str, Any]:
    found = answer.json()["error"]
    assert set(found) == {"message", "type", "code", "param"}
    assert found["type"] in ("invalid_request_error", "server_error")
    assert 0 < len(found["message"]) <= 250
    assert answer.headers["x-request-id"]
    return dict(found)


@pytest.mark.parametrize("field", WRONG)
def test_each_field_wrong_in_turn(client: httpx2.Client, field: str) -> None:
    for value in WRONG[field]:
        body = json.dumps({"input": "Hello.", field: value})
        answer = client.post(SPEECH, content=body)
        assert answer.status_code == (
            404 if value == "nobody" or (isinstance(value, str) and field == "voice") else 400
        ), (value, answer.text)
        error = error_of(answer)
        assert error["param"] in (field, None), value
        assert error["code"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"Hello."', b"\xff\xfe", b'{"input": ' + b"[" * 60_000, b"{}"],
)
def test_bodies_that_are_no_request(client: httpx2.Client, body: bytes) -> None:
    answer = client.post(SPEECH, content=body)
    assert answer.status_code == 400
    error_of(answer)


def test_ten_megabytes_are_refused_whether_announced_or_not(client: httpx2.Client) -> None:
    data = json.dumps({"input": "x" * (10 << 20)}).encode()
    for content in (data, (data[i : i + 65536] for i in range(0, len(data), 65536))):
        answer = client.post(SPEECH, content=content)
        assert answer.status_code == 413
        assert error_of(answer)["code"] == "request_too_large"


def test_paths_methods_hosts_and_origins(client: httpx2.Client) -> None:
    for method, path, status in (
        ("GET", "/v1/audio/speech", 405),
        ("PUT", "/v1/models", 405),
        ("GET", "/v1/audio/voices/../../etc/passwd", 404),
        ("POST", "/v1/audio/voices", 405),  # not allowed here
        ("DELETE", "/v1/audio/voices/plain", 404),
        ("GET", "/v2", 404),
    ):
        answer = client.request(method, path)
        assert answer.status_code == status, path
        error_of(answer)
    own = str(client.base_url).rstrip("/")
    for headers, status in (
        ({"Host": "evil.example:80"}, 403),
        ({"Host": "[bad"}, 403),
        ({"Host": "localhost:1234"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://[bad"}, 403),
        ({"Origin": own}, 200),
    ):
        answer = client.get("/v1/models", headers=headers)
        assert answer.status_code == status, headers
        assert "access-control-allow-origin" not in answer.headers


def test_pages_of_named_sites_may_ask(miniature: Bundle) -> None:
    site = "https://chat.example"
    with serving(miniature, None, access=Access("key", (site,))) as client:
        ask = {"Origin": site, "Access-Control-Request-Method": "POST"}
        ask["Access-Control-Request-Headers"] = "authorization,content-type"
        assert client.options(SPEECH, headers=ask).status_code == 200
        answer = client.get("/v1/models", headers={"Origin": site, "Authorization": "Bearer key"})
        assert answer.headers["access-control-allow-origin"] == site
        refused = client.get("/v1/models", headers={"Origin": "https://evil.example"})
        assert refused.status_code == 403


def raw_request(client: httpx2.Client, n_bytes: int) -> socket.socket:
    """A connection with the head of a request on it."""
    url = client.base_url
    opened = socket.socket()
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    opened.settimeout(60)
    opened.connect((url.host, url.port))
    head = f"POST {SPEECH} HTTP/1.1\r\nHost: {url.host}\r\nContent-Length: {n_bytes}\r\n\r\n"
    opened.sendall(head.encode())
    return opened


def test_a_client_that_sends_slowly_is_left_and_holds_up_nobody(
    client: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "_BODY_SECONDS", 1.0)
    with raw_request(client, 1000) as slow:
        slow.sendall(b'{"input"')
        assert client.post(SPEECH, json={"input": "Hello."}).status_code == 200
        assert slow.recv(1 << 16).startswith(b"HTTP/1.1 408")
    wait_until_idle(client)


def test_a_client_that_does_not_read_is_left_and_holds_up_nobody(miniature: Bundle) -> None:
    text = "The old man sees the river. " * 20
    data = json.dumps({"input": text, "response_format": "wav"}).encode()
    with serving(miniature, None, seconds=8.0, n_places=2, send_buffer=4096) as client:
        with raw_request(client, len(data)) as slow:
            slow.sendall(data)
            got = slow.recv(16)
            assert got.startswith(b"HTTP/1.1 200")
            assert client.post(SPEECH, json={"input": "Hello."}).status_code == 200
            wait_until_idle(client)
            while more := slow.recv(1 << 16):
                got += more
        assert not got.endswith(b"0\r\n\r\n")  # cut off, and not as if it were whole
        assert client.post(SPEECH, json={"input": "Hello."}).status_code == 200


def test_a_request_beyond_its_time_is_told_so(miniature: Bundle) -> None:
    with serving(miniature, None, seconds=0.01) as client:
        answer = client.post(SPEECH, json={"input": "Hello world."})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        assert error_of(answer)["code"] == "timeout"
        assert metric(client, "valle_queue") == 0


def test_one_too_many_is_told_to_come_again(miniature: Bundle) -> None:
    with serving(miniature, None, n_places=1) as client:
        long = {"input": "The old man sees the river. " * 20, "response_format": "pcm"}
        with client.stream("POST", SPEECH, json=long) as held:
            sound = held.iter_raw()
            next(sound)
            answer = client.post(SPEECH, json={"input": "Hello."})
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")
            assert error_of(answer)["code"] == "queue_full"
            assert metric(client, "valle_queue") == 1
        wait_until_idle(client)
        assert client.post(SPEECH, json={"input": "Hello."}).status_code == 200


def test_until_the_model_is_there_requests_are_told_to_wait(miniature: Bundle) -> None:
    loaded = threading.Event()

    def open_late() -> Any:
        loaded.wait()
        return miniature.family.speaker(miniature, codec=WorldCodec(CODEC), settings=ONE_THREAD)

    server = SpeechServer(app.ServerSettings(miniature), open_late)
    with starting(server) as client:
        assert client.get("/health").status_code == 503
        answer = client.post(SPEECH, json={"input": "Hello."})
        assert (answer.status_code, error_of(answer)["code"]) == (503, "loading")
        assert answer.headers["retry-after"] == "2"
        loaded.set()
        wait_until_loaded(client)
