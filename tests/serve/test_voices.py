"""A voice is encoded once; clients add and remove voices where they may, and reach nothing else."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from serve.servers import CODEC, MINIATURE, SPEECH, serving
from support import Cli, error_of

from miniature.world import WorldCodec  # registers the codec
from valle_convert.audio import Audio, read_codes
from valle_convert.families.bundle import Bundle

RECORDING = MINIATURE / "voice-female.flac"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "voices"
    folder.mkdir()
    shutil.copy(MINIATURE / "voice-plain.flac", folder / "plain.flac")
    return folder


@pytest.fixture
def open_to_voices(miniature: Bundle, folder: Path) -> Iterator[httpx2.Client]:
    with serving(miniature, folder, allows_new_voices=True) as client:
        yield client


def said(client: httpx2.Client, voice: str) -> bytes:
    wanted = {"input": "Hello.", "voice": voice, "seed": 5, "response_format": "pcm"}
    return client.post(SPEECH, json=wanted).raise_for_status().content


def upload(client: httpx2.Client, name: str, data: bytes, **more: str) -> httpx2.Response:
    return client.post(
        "/v1/audio/voices", files={"file": ("x.flac", data)}, data={"name": name, **more}
    )


def test_a_voice_comes_speaks_and_goes(open_to_voices: httpx2.Client, folder: Path) -> None:
    client = open_to_voices
    plain = said(client, "plain")
    answer = upload(client, "Ann 2", RECORDING.read_bytes(), text="Good morning everybody.")
    assert (answer.status_code, answer.json()["id"]) == (201, "Ann 2")
    assert [one["id"] for one in client.get("/v1/voices").json()["voices"]] == ["Ann 2", "plain"]
    assert (folder / "Ann 2.txt").read_text() == "Good morning everybody."
    assert len(read_codes(folder / "Ann 2.npz").codes) == round(0.8 * 40) + 1  # a begun one
    female = said(client, "Ann 2")
    assert female != plain
    shutil.copy(RECORDING, folder / "female.flac")
    assert said(client, "female") == female
    assert upload(client, "Ann 2", RECORDING.read_bytes()).json()["error"]["code"] == "voice_exists"
    assert client.delete("/v1/audio/voices/Ann%202").json()["deleted"] is True
    refused = client.delete("/v1/audio/voices/plain")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "voice_not_removable")
    assert client.delete("/v1/audio/voices/Ann%202").status_code == 404
    assert client.delete("/v1/audio/voices/..%2Fvoices%2Fplain").status_code == 404
    assert sorted(one.name for one in folder.iterdir() if one.is_file()) == [
        "female.flac",
        "plain.flac",
    ]


#: What is changed of a good upload, the status, and the field that is named.
BAD_UPLOADS: list[tuple[dict[str, Any], int, str | None]] = [
    *(({"name": name}, 400, "name") for name in ("../evil", ".hid", "a/b", "", "x" * 65, "a\n")),
    ({"name": "plain"}, 400, "name"),
    ({"file": b""}, 400, None),
    ({"file": b"no sound"}, 400, None),
    ({"file": RECORDING.read_bytes()[:1000]}, 400, None),
    ({"file": bytes(9 << 20)}, 413, None),
    ({"text": "x" * 5000}, 400, "text"),
    ({"file": None}, 400, "file"),
]


def test_bad_uploads_leave_nothing(open_to_voices: httpx2.Client, folder: Path) -> None:
    client = open_to_voices
    for change, status, param in BAD_UPLOADS:
        given = {"name": "ann", "text": "Hello.", "file": RECORDING.read_bytes(), **change}
        name, text, data = given["name"], given["text"], given["file"]
        part = {"other" if data is None else "file": ("x.flac", data or b"")}
        answer = client.post("/v1/audio/voices", data={"name": name, "text": text}, files=part)
        assert answer.status_code == status, (change, answer.text)
        assert answer.json()["error"]["param"] == param, change
    for body in (b"", b"--x\r\n", b"no form"):
        for kind in ("multipart/form-data", "multipart/form-data; boundary=x", "text/plain"):
            headers = {"Content-Type": kind}
            bad = client.post("/v1/audio/voices", content=body, headers=headers)
            assert bad.status_code == 400, (body, kind)
    assert [one.name for one in folder.parent.rglob("*") if one.is_file()] == ["plain.flac"]


def test_a_recording_is_encoded_once_and_kept(
    miniature: Bundle, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[float] = []
    encode = WorldCodec.encode

    def counting(codec: Any, audio: Audio) -> Any:
        heard.append(audio.seconds)
        return encode(codec, audio)

    monkeypatch.setattr(WorldCodec, "encode", counting)
    with serving(miniature, folder) as client:
        first = said(client, "plain")
        assert said(client, "plain") == first
    with serving(miniature, folder) as client:
        assert said(client, "plain") == first
        assert len(heard) == 1
        shutil.copy(RECORDING, folder / "plain.flac")
        assert said(client, "plain") != first
        assert len(heard) == 2


def test_a_voice_of_the_command_line_is_the_recording(
    miniature: Bundle, folder: Path, tmp_path: Path, cli: Cli
) -> None:
    out = folder / "ann.npz"
    run = ("voice", RECORDING, out, "--codec", CODEC, "--model", miniature.path)
    assert cli(*run, "--seconds", "0.8").code == 0
    with serving(miniature, folder) as client:
        shutil.copy(RECORDING, folder / "female.flac")
        assert said(client, "ann") == said(client, "female")
    assert "not overwritten" in error_of(cli(*run), 2)
    assert "wrote" in cli(*run, "--force").err
    whole = read_codes(out, miniature.model)
    assert 0.8 * 40 + 1 < len(whole.codes) <= 3.0 * 40 + 1
    assert cli("voice", RECORDING, tmp_path / "x.npz", "--codec", CODEC).code == 0
    same = read_codes(tmp_path / "x.npz")
    assert np.array_equal(same.codes, whole.codes)
    assert ".npz" in error_of(cli("voice", RECORDING, tmp_path / "x.wav", "--codec", CODEC), 2)


@pytest.mark.parametrize("content", ["[]", "{", '{"default": 1}', '{"default": "nobody"}'])
def test_a_wrong_file_of_names_is_told_before_anything_is_served(
    miniature: Bundle, folder: Path, cli: Cli, content: str
) -> None:
    (folder / "names.json").write_text(content)
    run = ("serve", miniature.path, "--codec", CODEC, "--voices", folder, "--port", 0)
    assert "names" in error_of(cli(*run), 2)
